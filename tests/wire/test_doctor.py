from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from aoe.net.netns import Switch
from tests.programs import AOE_TARGET
from tests.requirements import need_namespaces, program
from tests.serving import TIMEOUT, finish, ready_line, serving, start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aoe.net.netns import Namespace, Wire

pytestmark = pytest.mark.netns


@pytest.fixture
def switch() -> Iterator[Switch]:
    need_namespaces()
    with Switch() as made:
        yield made


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def call(where: Namespace, *words: object) -> subprocess.CompletedProcess[str]:
    command = [*AOE_TARGET, "doctor", *map(str, words)]
    done: subprocess.CompletedProcess[str] = where.run(
        command, capture_output=True, text=True, timeout=60
    )
    return done


def doctor(where: Namespace, *words: object) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the findings by subject and check."""
    done = call(where, *words, "--json")
    document = json.loads(done.stdout)
    assert document["schema_version"] == 1
    assert document["command"] == "doctor"
    found = {(each["subject"], each["check"]): each for each in document["findings"]}
    failed = "fail" in {each["verdict"] for each in found.values()}
    assert done.returncode == int(failed)
    return found


def finding(where: Namespace, subject: str, check: str) -> dict[str, Any]:
    """Return a finding; on a busy machine, a target may respond to a later run only."""
    end = time.monotonic() + TIMEOUT
    while (subject, check) not in (found := doctor(where)):
        assert time.monotonic() < end
    return found[subject, check]


def test_a_good_network_gives_no_failures(wire: Wire) -> None:
    found = doctor(wire.target)
    assert {each["verdict"] for each in found.values()} <= {"ok", "warn"}
    assert found["aoe0", "state"]["verdict"] == "ok"
    assert found["aoe0", "MTU"]["text"].startswith("1500: a frame carries 1 KiB; ")
    assert found["aoe0", "rings"]["verdict"] == "ok"
    assert found["aoe0", "targets"]["text"] == "no other target answers on this network"


def test_a_finding_is_a_line_with_its_fix_on_the_next(wire: Wire) -> None:
    wire.target.run(["ip", "link", "set", wire.interface, "down"], check=True)
    done = call(wire.target, wire.interface)
    assert done.returncode == 1
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    line = "fail  aoe0: state: is down: no frames are sent or received"
    at = lines.index(line)
    assert lines[at + 1] == "      ip link set aoe0 up"


def test_a_missing_interface_is_a_failure(wire: Wire) -> None:
    found = doctor(wire.target, "eth9")["eth9", "interface"]
    assert found["verdict"] == "fail"
    assert found["text"] == "no such interface (have: lo, aoe0)"


def test_no_interface_that_is_up_is_a_failure(wire: Wire) -> None:
    wire.target.run(["ip", "link", "set", wire.interface, "down"], check=True)
    assert doctor(wire.target)["host", "interfaces"]["verdict"] == "fail"


def test_a_missing_capability_is_a_failure_but_ends_no_other_check(wire: Wire) -> None:
    bare = [program("setpriv"), "--bounding-set=-all", "--inh-caps=-all"]
    done = wire.target.run(
        [*bare, *AOE_TARGET, "doctor", "--json"], capture_output=True, text=True
    )
    findings = json.loads(done.stdout)["findings"]
    found = {(each["subject"], each["check"]): each for each in findings}
    assert done.returncode == 1
    assert found["host", "capabilities"]["verdict"] == "fail"
    assert found["aoe0", "state"]["verdict"] == "ok"


def test_a_target_on_the_network_is_found(wire: Wire, image: Path) -> None:
    with serving(wire, image):
        found = finding(wire.initiator, "e7.3", "targets")
    assert found["verdict"] == "ok"
    assert found["text"] == "on aoe0, 52:54:00:ae:00:01: 64 buffers, 1 KiB per frame"


def test_a_running_target_is_checked(wire: Wire, image: Path) -> None:
    with serving(wire, image) as process:
        found = doctor(wire.target, wire.interface, "--path", image)
    running = found["aoe0", f"target {process.pid}"]
    assert running["text"] == "no frames lost, of 0 received and 1 sent"
    assert found[str(image), "opening"]["verdict"] == "warn"


def test_the_fix_for_a_bridge_port_names_the_bridge(wire: Wire) -> None:
    for words in ("add br0 type bridge", "set aoe0 master br0", "set br0 up"):
        wire.target.run(["ip", "link", *words.split()], check=True)
    found = doctor(wire.target, "aoe0")["aoe0", "bridge"]
    assert (found["verdict"], found["fix"]) == ("fail", "use br0")


def test_two_disks_at_one_address_are_a_failure(switch: Switch, tmp_path: Path) -> None:
    here = switch.add_host()
    processes = []
    for serial in ("one", "other"):
        words = ("aoe0", tmp_path / serial, "--create", "1M", "--serial", serial)
        host = switch.add_host()
        processes.append(start(host, "serve", "e7.3", *words, "--force"))
        ready_line(processes[-1])
    found = finding(here, "e7.3", "duplicate")
    assert found["verdict"] == "fail"
    assert "answer for it with different disks" in found["text"]
    for process in processes:
        finish(process, 15)


def test_two_paths_to_one_disk_are_ok(switch: Switch, image: Path) -> None:
    here = switch.add_host()
    processes = []
    for _ in range(2):
        words = ("aoe0", image, "--read-only", "--force", "--no-state")
        processes.append(start(switch.add_host(), "serve", "e7.3", *words))
        ready_line(processes[-1])
    found = finding(here, "e7.3", "duplicate")
    assert found["verdict"] == "ok"
    for process in processes:
        finish(process, 15)


def test_vblade_is_found(wire: Wire, image: Path) -> None:
    vblade = program("vblade")
    served = wire.target.popen(
        [vblade, "7", "3", wire.interface, str(image)], stdout=subprocess.PIPE
    )
    assert served.stdout is not None
    served.stdout.readline()
    found = finding(wire.initiator, "e7.3", "targets")
    assert "16 buffers, 1 KiB per frame" in found["text"]
    served.terminate()
    served.wait(TIMEOUT)
