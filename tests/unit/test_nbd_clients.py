"""The choice of the NBD client, and features that need libnbd."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from aoe.errors import AccessError, AoEError, NotFoundError, UsageError
from target.disks import open_disk
from target.disks.nbd.address import NbdAddress, connect, is_nbd
from target.disks.nbd.libnbd import find_libnbd
from target.disks.nbd.opening import choose_client
from target.disks.nbd.socket_client import SocketConnection
from tests.nbd_servers import CLIENTS, exported, nbdkit, server, use_client
from tests.requirements import need_libnbd

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = NbdAddress.parse("nbd+unix:///?socket=/run/nbd")
TLS = NbdAddress.parse("nbds://disks.example/name")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def without_libnbd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("target.disks.nbd.opening.find_libnbd", lambda: None)
    monkeypatch.setattr("target.disks.nbd.libnbd.find_libnbd", lambda: None)


def keys(path: Path, name: str = "alice") -> Path:
    path.write_text(f"{name}:{os.urandom(32).hex()}\n")
    return path


def with_keys(place: Path, file: Path) -> str:
    options = f"socket={quote(str(place))}&tls-psk-file={quote(str(file))}"
    return f"nbds+unix://alice@/?{options}"


@pytest.mark.parametrize(
    ("uri", "export", "endpoints"),
    [
        ("nbd+unix:///a%20b?socket=/run/a+b%3F", "a b", [(1, "/run/a+b?")]),
        ("nbd+unix://?socket=/run/nbd", "", [(1, "/run/nbd")]),
        ("nbd://127.0.0.1/x/y", "x/y", [(2, ("127.0.0.1", 10809))]),
        ("nbd://[::1]:99/", "", [(10, ("::1", 99, 0, 0))]),
        ("nbds://host/x", "x", []),
        ("nbds+unix://alice@/x?socket=/run/nbd", "x", []),
        ("nbd+vsock://2/", "", []),
    ],
)
def test_uri_is_parsed(uri: str, export: str, endpoints: list[object]) -> None:
    address = NbdAddress.parse(uri)
    assert is_nbd(uri)
    assert (address.export, [*address.endpoints]) == (export, endpoints)


@pytest.mark.parametrize(
    "uri",
    [
        "nbdx://host/",
        "nbd+ssh://host/",
        "nbd+unix:///name",
        "nbds+unix:///name",
        "nbd+unix:///?socket=/a&socket=/b",
        "nbd+unix:///?socket=",
        "nbd+unix://host/?socket=/run/nbd",
        "nbd:///name",
        "nbds:///name",
        "nbd://host:x/",
        "nbd://127.0.0.1/a%00b",
        "nbd://127.0.0.1/a\udcffb",
    ],
)
def test_invalid_uri_is_refused_with_an_example(uri: str) -> None:
    with pytest.raises(UsageError, match="Write it as nbd://host/name"):
        NbdAddress.parse(uri)


def test_unknown_host_message() -> None:
    with pytest.raises(AoEError, match="Check the host name"):
        NbdAddress.parse("nbd://" + "x" * 70 + ".invalid/")


def test_all_endpoints_are_tried(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()
        nowhere = (socket.AF_UNIX, f"{place}.none")
        address = NbdAddress("nbd://two", "", (nowhere, (socket.AF_UNIX, str(place))))
        connect(address, time.monotonic() + 10).close()
        with pytest.raises(FileNotFoundError):
            connect(NbdAddress("nbd://one", "", (nowhere,)), time.monotonic() + 10)


@pytest.mark.usefixtures("without_libnbd")
def test_built_in_client_is_used_without_libnbd() -> None:
    assert choose_client(PLAIN) is SocketConnection
    with pytest.raises(NotFoundError, match=r"need libnbd.*apt install python3-libnbd"):
        choose_client(TLS)
    with pytest.raises(NotFoundError, match="apt install python3-libnbd"):
        choose_client(PLAIN, "libnbd")


def test_libnbd_is_the_default_if_installed() -> None:
    need_libnbd()
    assert choose_client(PLAIN) is not SocketConnection
    assert choose_client(PLAIN, "own") is SocketConnection


def test_unknown_or_unsuitable_client_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UsageError, match="Unset AOE_NBD_CLIENT=own"):
        choose_client(TLS, "own")
    monkeypatch.setenv("AOE_NBD_CLIENT", "curl")
    with pytest.raises(
        UsageError, match=r"AOE_NBD_CLIENT=curl: .* Set it to libnbd or own"
    ):
        open_disk(PLAIN.uri)


def search_libnbd(directory: Path) -> str:
    """Return the result of a search in this directory alone."""
    probe = (
        "from target.disks.nbd import libnbd; libnbd._SYSTEM = ();"
        "print(libnbd.find_libnbd())"
    )
    environment = {**os.environ, "PYTHONPATH": str(directory)}
    command = [sys.executable, "-c", probe]
    return subprocess.run(
        command, env=environment, text=True, check=True, stdout=subprocess.PIPE
    ).stdout


def test_other_module_named_nbd_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "nbd.py").write_text("raise SystemExit('never to be imported')\n")
    assert search_libnbd(tmp_path) == "None\n"


@pytest.mark.parametrize(
    "name", ["libnbdmod.cpython-39-x86_64-linux-gnu.so", "libnbdmod.so"]
)
def test_binding_of_another_python_is_not_used(tmp_path: Path, name: str) -> None:
    (tmp_path / "nbd.py").write_text("import libnbdmod\n")
    (tmp_path / name).write_bytes(b"")
    assert search_libnbd(tmp_path) == "None\n"


def test_binding_on_sys_path_is_found(tmp_path: Path) -> None:
    need_libnbd()
    for name in ("nbd", "libnbdmod"):
        file = sys.modules[name].__file__
        assert file is not None
        (tmp_path / file.rpartition("/")[2]).symlink_to(file)
    assert str(tmp_path) in search_libnbd(tmp_path)


def test_other_system_packages_are_not_imported() -> None:
    need_libnbd()
    library = find_libnbd()
    assert library is not None
    assert library.__file__ is not None
    assert library.__file__.rpartition("/")[0] not in sys.path


def test_tls_with_matching_keys(place: Path, tmp_path: Path) -> None:
    need_libnbd()
    key = keys(tmp_path / "keys")
    uri = with_keys(place, key)
    command = nbdkit(place, "--tls=require", f"--tls-psk={key}", "memory", "4M")
    with server(command, place):
        disk = open_disk(uri)
        disk.write_from(512, memoryview(b"x" * 512))
        disk.flush()
    with server(command, place):
        buffer = bytearray(512)
        disk.read_into(512, memoryview(buffer))
        assert bytes(buffer) == bytes(512)
        disk.close()


def test_tls_with_different_keys_is_refused(place: Path, tmp_path: Path) -> None:
    need_libnbd()
    known, other = keys(tmp_path / "known"), keys(tmp_path / "other")
    command = nbdkit(place, "--tls=require", f"--tls-psk={known}", "memory", "4M")
    with server(command, place):
        for file in (other, tmp_path / "none"):
            uri = with_keys(place, file)
            with pytest.raises(AccessError, match="Check the keys on both sides"):
                open_disk(uri)


@pytest.mark.parametrize("client", CLIENTS)
def test_server_that_requires_tls_message(
    place: Path, tmp_path: Path, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_client(client, monkeypatch)
    key = keys(tmp_path / "keys")
    command = nbdkit(place, "--tls=require", f"--tls-psk={key}", "memory", "4M")
    with (
        server(command, place),
        pytest.raises(AccessError, match=r"requires TLS.* Use nbds://"),
    ):
        open_disk(exported(place))


def test_nbds_uri_refuses_a_server_without_tls(place: Path, tmp_path: Path) -> None:
    need_libnbd()
    uri = with_keys(place, keys(tmp_path / "keys"))
    with (
        server(nbdkit(place, "memory", "4M"), place),
        pytest.raises(AccessError, match=r"does not support TLS.* Use nbd://"),
    ):
        open_disk(uri)
