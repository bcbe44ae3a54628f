"""``aoe check`` on a link: our target, a read-only target, and Debian's vblade."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from aoe.capture.annotated import read_capture
from tests.asking import config, frame, mask, mask_response, reserve, reserve_response
from tests.programs import AOE
from tests.requirements import program
from tests.serving import TIMEOUT, client, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aoe.net.netns import Wire
    from tests.conftest import MakeWire

pytestmark = pytest.mark.netns

CHECK = [*AOE, "check", "e7.3", "-i", "aoe0"]
EVERYTHING = ("--write", "--claim", "--hazardous")


def check(wire: Wire, *words: str) -> subprocess.CompletedProcess[str]:
    command = [*CHECK, "--timeout", "3", *words]
    done: subprocess.CompletedProcess[str] = wire.initiator.run(
        command, capture_output=True, text=True, timeout=180
    )
    return done


def checked(wire: Wire, code: int, *words: str) -> dict[str, Any]:
    """Run the suite, check the exit code, and return the JSON report."""
    done = check(wire, "--json", *words)
    assert done.returncode == code, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert (report["schema_version"], report["command"]) == (1, "check")
    return report


def named(report: dict[str, Any], verdict: str) -> set[str]:
    return {each["name"] for each in report["checks"] if each["verdict"] == verdict}


def claim(wire: Wire) -> None:
    with client(wire) as asking:
        assert asking.ask(config(4, b"an owner"))[32:40] == b"an owner"


def assert_only_claimed(wire: Wire) -> None:
    with client(wire) as asking:
        assert asking.ask(config(1, b"an owner"))[32:40] == b"an owner"
        assert asking.ask(mask(0)) == mask_response()
        assert asking.ask(reserve(0)) == reserve_response()


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_our_target_passes_and_is_restored(
    make_wire: MakeWire, image: Path, mtu: int
) -> None:
    wire = make_wire(mtu)
    content = image.read_bytes()
    with serving(wire, image, "-b", "16"):
        claim(wire)
        report = checked(wire, 0, *EVERYTHING, "--strict")
        assert named(report, "deviates") == set()
        assert named(report, "skipped") == {"writes.read_only"}
        assert_only_claimed(wire)
    assert image.read_bytes() == content
    assert report["deviations"] == {"must": 0, "advice": 0}
    assert report["passed"] == len(report["checks"]) - 1


def test_without_options_nothing_is_changed_and_skipped_checks_are_counted(
    wire: Wire, image: Path
) -> None:
    state = image.with_name("disk.img.aoe.json")
    with serving(wire, image):
        done = check(wire)
    assert done.returncode == 0
    first, *lines, summary = done.stdout.splitlines()
    assert first == (
        "e7.3 at 52:54:00:ae:00:01 on aoe0: 2048 sectors, 64 buffers, 2 sectors a frame"
    )
    assert {line.split()[0] for line in lines} == {"pass", "skipped"}
    assert "0 deviate (0 must, 0 advice)" in summary
    assert "need --write, " in summary
    assert not state.exists()


def test_p40_a_read_only_target_passes(wire: Wire, image: Path) -> None:
    with serving(wire, image, "--read-only"):
        report = checked(wire, 0, *EVERYTHING, "--strict")
    assert named(report, "deviates") == set()
    assert "writes.read_only" in named(report, "pass")
    assert "writes.write" in named(report, "skipped")


def test_a_missing_target_is_code_3(wire: Wire) -> None:
    done = check(wire, "--timeout", "0.1")
    assert done.returncode == 3
    assert done.stderr.startswith("aoe: e7.3: no response on aoe0 within 0.1 s. List")


def test_sectors_beyond_the_disk_are_rejected(wire: Wire, image: Path) -> None:
    with serving(wire, image):
        done = check(wire, "--write", "--lba", "2047", "--sectors", "2")
    assert done.returncode == 2
    assert done.stderr == (
        "aoe: --lba 2047 --sectors 2: e7.3 has 2048 sectors. "
        "Choose a range within the disk\n"
    )


def test_only_the_given_sectors_are_written(
    wire: Wire, image: Path, tmp_path: Path
) -> None:
    capture = tmp_path / "check.pcapng"
    with serving(wire, image):
        words = ("--write", "--lba", "100", "--sectors", "4", "--pcap", str(capture))
        assert named(checked(wire, 0, *words), "deviates") == set()
    written = {
        int.from_bytes(each.data[28:31], "little")
        for each in read_capture(capture)
        if each.data[14:20] == b"\x10\0\0\7\3\0"
        and each.data[27:28] in (b"\x30", b"\x34", b"\x35", b"\x45")
    }
    assert written
    assert written <= set(range(100, 104))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_check_restores_the_target(
    wire: Wire, image: Path, number: int
) -> None:
    content = image.read_bytes()
    with serving(wire, image):
        claim(wire)
        process = wire.initiator.popen(
            [*CHECK, *EVERYTHING], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        for line in process.stdout:
            if b"P58" in line:
                process.send_signal(number)
                break
        assert process.communicate(timeout=TIMEOUT)[1] == b"\naoe: interrupted\n"
        assert process.returncode == 130
        assert_only_claimed(wire)
    assert image.read_bytes() == content


def test_list_needs_no_target() -> None:
    command = [*AOE, "check", "--list", "--only", "P69"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["P69", "must"],
        ["P69", "advice"],
    ]
    assert done.stdout.count("--claim --hazardous") == 2


# Debian's vblade.

VBLADE_MUST = {
    "header.reserved_flags": "P3 P4: comes back as 19",
    "header.reserved_aflags": "P3 P4",
    "header.errors_in_requests": "P13: E comes back",
    "header.error_codes_in_requests": "P13: so does Error",
    "framing.padded": "P19: 32 bytes",
    "framing.zero_padding": "P34: bytes of the request in the padding",
    "identify.check_power": "P47: silence to a count of 1",
    "reads.zero_count": "P36: success, and nothing read",
    "reads.read_with_w": "P28: success, and 24 bytes of the sector",
    "config.overlong": "P56: stores what an earlier frame left behind",
    "writes.write_response": "P34: bytes of the data in the padding",
    "writes.write_zero_count": "P36: success, and nothing written",
}
VBLADE_ADVICE = {
    "header.versions": "P6: serves every version",
    "identify.identify_counts": "P45: error 2",
    "identify.checksum": "P82: none",
    "identify.flush_registers": "P46: status 0",
    "identify.flush_ext": "P46: aborted",
    "reads.flag_decides": "P31: the opcode alone does",
    "reads.counts_aborted": "P36 P37: success, error 2",
    "reads.read_with_w_aborted": "P28",
    "config.overlong_error": "P56: silence, or stored",
    "writes.write_without_w": "P28: executed, and the data comes back",
    "writes.write_zero_count_aborted": "P36",
    "writes.write_short_aborted": "P39: error 2",
}


@pytest.fixture
def vblade(wire: Wire, image: Path) -> Iterator[subprocess.Popen[bytes]]:
    path = program("vblade")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    peer = wire.target.popen([path, "7", "3", "aoe0", str(image)], **pipes)
    assert peer.stdout is not None
    peer.stdout.readline()
    yield peer
    peer.terminate()
    peer.wait(TIMEOUT)


@pytest.mark.usefixtures("vblade")
def test_vblade_has_its_known_deviations(wire: Wire, image: Path) -> None:
    content = image.read_bytes()
    report = checked(wire, 1, "--write", "--claim")
    wrong = [each for each in report["checks"] if each["verdict"] == "deviates"]
    must = {each["name"] for each in wrong if each["level"] == "must"}
    advice = {each["name"] for each in wrong if each["level"] == "advice"}
    assert must == set(VBLADE_MUST)
    assert advice == set(VBLADE_ADVICE)
    assert image.read_bytes() == content
    with client(wire) as asking:
        assert asking.ask(config(0))[30:32] == b"\0\0"
        assert asking.ask(frame(3, bytes(2)))[24:26] == b"\0\0"


def test_p63_the_crash_of_vblade_at_an_emptied_mask_list_is_reported(
    wire: Wire, vblade: subprocess.Popen[bytes]
) -> None:
    done = check(wire, *EVERYTHING, "--only", "P44,P61-P70")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    wrong = [line for line in lines if line.startswith("deviates")]
    assert [line.split()[2] for line in wrong] == ["P44", "P63"]
    named = [" ".join(line.split()) for line in lines if line.split()[0] == "rule"]
    assert named == [
        "rule P44 ATA commands to broadcast addresses",
        "rule P63 Edit of the mask list",
        "rule P67 Successful edit",
    ]
    assert "(the target is unreachable)" in done.stdout
    assert "aoe: e7.3: not restored: MAC mask list\n" in done.stderr
    assert vblade.wait(TIMEOUT) != 0
