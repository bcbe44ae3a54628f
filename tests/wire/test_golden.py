"""One golden image and eight clients, each with an overlay."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from aoe.net.netns import Switch
from tests.programs import AOE, AOE_TARGET
from tests.requirements import need_namespaces
from tests.serving import finish, ready_line, start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aoe.net.netns import Namespace

pytestmark = pytest.mark.netns

MIB = 1 << 20
SIZE = 16 * MIB
CLIENTS = range(1, 9)


@pytest.fixture
def switch() -> Iterator[Switch]:
    need_namespaces()
    with Switch(9000) as made:
        yield made


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Lab:
    """A directory with the image, the overlays and the data of the clients."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.golden = directory / "golden.img"
        self.golden.write_bytes(os.urandom(SIZE))

    def overlay(self, client: int) -> Path:
        return self.directory / f"client{client}.ovl"

    def piece(self, client: int) -> tuple[int, bytes]:
        """Return the offset and the data of a client's write, which is not aligned."""
        return client * MIB + 512 * client, bytes((client,)) * (MIB + 512 * client)

    def expected(self, client: int) -> bytes:
        disk = bytearray(self.golden.read_bytes())
        offset, data = self.piece(client)
        disk[offset : offset + len(data)] = data
        return bytes(disk)

    def config(self) -> Path:
        file = self.directory / "aoe.toml"
        exports = [
            f'[[export]]\naddress = "e0.{client}"\noverlay = "client{client}.ovl"\n'
            for client in CLIENTS
        ]
        defaults = '[defaults]\ninterfaces = "aoe0"\n'
        file.write_text(
            defaults + "".join(f'{each}path = "golden.img"\n' for each in exports)
        )
        return file


def aoe(host: Namespace, *words: object) -> subprocess.Popen[bytes]:
    command = [*AOE, *map(str, words), "-i", "aoe0"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    child: subprocess.Popen[bytes] = host.popen(
        command, stderr=subprocess.PIPE, **pipes
    )
    return child


def overlay(*words: object) -> subprocess.CompletedProcess[str]:
    command = [*AOE_TARGET, "overlay", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def read_all(
    hosts: dict[int, Namespace], clients: range | tuple[int, ...]
) -> dict[int, bytes]:
    children = {
        client: aoe(hosts[client], "read", f"e0.{client}") for client in clients
    }
    return {client: child.communicate()[0] for client, child in children.items()}


def test_eight_overlays_serve_eight_initiators(switch: Switch, tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    before = sha256(lab.golden)
    target = switch.add_host()
    hosts = {client: switch.add_host() for client in CLIENTS}
    served = start(target, "serve", "--config", lab.config())
    for client in CLIENTS:
        assert ready_line(served).startswith(f"e0.{client} 16 MiB on aoe0 (")
    writing = []
    for client in CLIENTS:
        offset, data = lab.piece(client)
        child = aoe(hosts[client], "write", f"e0.{client}", "--offset", offset)
        writing.append((child, data))
    # All at once; no client sees the writes of another.
    for child, data in writing:
        assert child.stdin is not None
        child.stdin.write(data)
        child.stdin.close()
        child.stdin = None
    for child, _ in writing:
        assert (child.communicate()[1], child.returncode) == (b"", 0)
    for client, disk in read_all(hosts, CLIENTS).items():
        assert disk == lab.expected(client)
    refused = overlay("commit", lab.overlay(3))
    assert (refused.returncode, "in use" in refused.stderr) == (5, True)
    finish(served, signal.SIGTERM)
    assert sha256(lab.golden) == before
    check_commit_and_reset(lab, target, hosts)


def check_commit_and_reset(
    lab: Lab, target: Namespace, hosts: dict[int, Namespace]
) -> None:
    status = json.loads(overlay("status", lab.overlay(3), "--json").stdout)
    assert status["base_state"] == "unchanged"
    assert 1 <= status["used"] * status["cluster_size"] // MIB <= 2
    assert overlay("reset", lab.overlay(5)).returncode == 0
    golden, third = lab.golden.read_bytes(), lab.expected(3)
    served = start(target, "serve", "--config", lab.config())
    for _ in CLIENTS:
        ready_line(served)
    disks = read_all(hosts, (3, 5))
    assert disks[5] == golden
    assert disks[3] == third
    finish(served, signal.SIGTERM)
    assert overlay("commit", lab.overlay(3)).returncode == 0
    assert lab.golden.read_bytes() == third
    # The base of the other overlays has changed.
    served = start(target, "serve", "--config", lab.config())
    assert "client1.ovl: " in finish(served)
    assert served.returncode != 0
    assert overlay("reset", lab.overlay(1)).returncode == 0
    served = start(
        target, "serve", "e0.1", "aoe0", lab.golden, "--overlay", lab.overlay(1)
    )
    ready_line(served)
    assert read_all(hosts, (1,))[1] == third
    finish(served, signal.SIGTERM)
