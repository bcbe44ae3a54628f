"""``aoe`` commands for disks and paths on a veth pair, compared with aoetools."""

from __future__ import annotations

import json
import os
import re
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from aoe.capture.annotated import read_capture
from aoe.describe import describe
from aoe.net.netns import Switch
from tests.programs import AOE
from tests.requirements import need_namespaces, program
from tests.serving import NO_PROBE, finish, ready_line, serving, start
from tests.tools import aoe, aoe_json, call, vblade_serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aoe.net.netns import Namespace, Wire
    from tests.conftest import MakeWire

pytestmark = pytest.mark.netns

MIB = 1 << 20
OTHER = "52:54:00:00:00:07"


@pytest.fixture
def switch() -> Iterator[Switch]:
    need_namespaces()
    with Switch(9000) as made:
        yield made


# --- the disk -------------------------------------------------------------------------


def test_identify_reads_the_same_page_as_aoeping(served: Wire) -> None:
    aoeping = program("aoeping")
    theirs = served.initiator.run(
        [aoeping, "-i", "7", "3", "aoe0"], capture_output=True, text=True, timeout=20
    ).stdout
    command = ("identify", "e7.3", "-i", "aoe0", "--raw")
    ours: Any = call(served.initiator, *command, text=False)
    assert ours.stdout.hex() == "".join(theirs.splitlines()[1:]).replace(" ", "")
    fields = aoe_json(served, "identify", "e7.3")
    assert (fields["serial"], fields["size_bytes"]) == ("S-7", MIB)
    assert fields["checksum"] == "right"
    assert fields["page"] == ours.stdout.hex()


def test_p74_identify_works_on_a_reserved_disk_and_smart_does_not(
    served: Wire,
) -> None:
    aoe(served, "reserve", "force", "e7.3", OTHER)
    assert aoe(served, "identify", "e7.3")[0] == 0
    code, text = aoe(served, "smart", "e7.3")
    assert (code, f"reserved for {OTHER}" in text) == (5, True)


def test_smart_reads_the_same_page_as_aoeping(served: Wire) -> None:
    aoeping = program("aoeping")
    aoe(served, "read", "e7.3", "/dev/null", "--length", "8K")
    out = served.initiator.run(
        [aoeping, "-s", "5", "-S", "read_data", "7", "3", "aoe0"],
        capture_output=True,
        text=True,
        timeout=20,
    ).stdout
    page = bytes.fromhex("".join(re.findall(r"\b[0-9a-f]{2}\b", out)))
    found = aoe_json(served, "smart", "e7.3")
    assert found["health"] == "passed"
    raws = {each["name"]: each["raw"] for each in found["attributes"]}
    # More if frames were retransmitted, on a busy machine.
    assert raws["total LBAs read"] >= 16
    offsets = range(2, 38, 12)
    theirs = {
        page[at]: int.from_bytes(page[at + 5 : at + 11], "little") for at in offsets
    }
    assert {each["id"]: each["raw"] for each in found["attributes"]} == theirs


def test_smart_can_be_disabled_and_enabled(served: Wire) -> None:
    assert aoe(served, "smart", "e7.3", "--disable") == (0, "SMART is disabled\n")
    code, text = aoe(served, "smart", "e7.3")
    assert (code, text.endswith("Enable it: aoe smart e7.3 --enable\n")) == (1, True)
    assert aoe(served, "smart", "e7.3", "--enable")[0] == 0


def test_smart_of_a_disk_without_smart_is_an_error(vblade: Wire) -> None:
    text = "aoe: e7.3: its disk does not support SMART\n"
    assert aoe(vblade, "smart", "e7.3") == (1, text)


def test_p46_flush_reaches_the_disk(served: Wire, tmp_path: Path) -> None:
    pcap = tmp_path / "flush.pcapng"
    code, text = aoe(served, "flush", "e7.3", "--pcap", pcap)
    assert (code, text.startswith("e7.3: flushed in ")) == (0, True)
    frames = [describe(frame.data) for frame in read_capture(pcap)]
    assert any(each.startswith("FLUSH e7.3") for each in frames)


def test_partial_sectors_are_read_and_written(served: Wire, image: Path) -> None:
    """The rest of each partial sector is preserved."""
    before = image.read_bytes()
    words = ("write", "e7.3", "-", "--offset", 1000)
    assert aoe(served, *words, input="any byte") == (0, "")
    assert image.read_bytes() == before[:1000] + b"any byte" + before[1008:]
    read = ("read", "e7.3", "-", "--offset", 1003, "--length", 5)
    assert aoe(served, *read) == (0, " byte")


def test_unaligned_chunks_that_share_sectors_are_read_and_written(
    wire: Wire, image: Path, tmp_path: Path
) -> None:
    """Each chunk shares a sector with the next, and the last chunk is short."""
    whole = os.urandom(4 * MIB)
    image.write_bytes(whole)
    part, back = tmp_path / "part", tmp_path / "back"
    part.write_bytes(whole[:-1001][::-1])
    length = ("--offset", 1, "--length", part.stat().st_size)
    with serving(wire, image, NO_PROBE, "--no-state"):
        assert aoe(wire, "write", "e7.3", part, "--offset", 1) == (0, "")
        assert aoe(wire, "read", "e7.3", back, *length) == (0, "")
    assert image.read_bytes() == whole[:1] + part.read_bytes() + whole[-1000:]
    assert back.read_bytes() == part.read_bytes()


def test_pad_fills_the_last_sector_with_zeroes(served: Wire, image: Path) -> None:
    before = image.read_bytes()
    assert aoe(served, "write", "e7.3", "--pad", input="x") == (0, "")
    assert image.read_bytes() == b"x" + bytes(511) + before[512:]


def test_trim_discards_the_given_range_only_and_needs_destroy(
    served: Wire, image: Path
) -> None:
    before = image.read_bytes()
    part = ("--offset", "256K", "--length", "128K")
    assert aoe(served, "trim", "e7.3", *part)[0] == 2
    assert image.read_bytes() == before
    code, text = aoe(served, "trim", "e7.3", *part, "--destroy")
    assert (code, text) == (0, "e7.3: 128 KiB (131,072 bytes) trimmed\n")
    first, end = 256 << 10, 384 << 10
    assert image.read_bytes() == before[:first] + bytes(end - first) + before[end:]
    code, text = aoe(served, "trim", "e7.3", "--length", "2M", "--destroy")
    assert (code, "reach beyond its 1048576 bytes" in text) == (2, True)


def test_trim_of_a_disk_without_trim_is_an_error(vblade: Wire) -> None:
    code, text = aoe(vblade, "trim", "e7.3", "--destroy")
    assert (code, text.startswith("aoe: e7.3: ")) == (1, True)


# --- bench ----------------------------------------------------------------------------


def test_a_read_bench_does_not_modify_the_disk(served: Wire, image: Path) -> None:
    before = image.read_bytes()
    found = aoe_json(served, "bench", "e7.3", "randread", "--seconds", "0.3")
    assert image.read_bytes() == before
    (kind,) = found["kinds"]
    assert kind == "read"
    reads = found["kinds"]["read"]
    assert reads["operations"] == found["operations"] > 0
    latency = reads["latency_seconds"]
    order = [latency[name] for name in ("min", "p50", "p90", "p99", "p999", "max")]
    assert order == sorted(order)
    assert order[0] > 0
    assert found["bytes_per_second"] == pytest.approx(found["iops"] * 4096, rel=0.01)
    assert found["retransmits"] >= 0


def test_a_write_bench_modifies_the_given_range_only_and_needs_destroy(
    served: Wire, image: Path
) -> None:
    before = image.read_bytes()
    part = ("--offset", "256K", "--size", "128K")
    code, text = aoe(served, "bench", "e7.3", "write", *part, "--seconds", "0.3")
    assert (code, "--destroy" in text) == (2, True)
    assert image.read_bytes() == before
    words = ("bench", "e7.3", "mix", *part, "--seconds", "0.3", "--destroy")
    found = aoe_json(served, *words)
    assert set(found["kinds"]) == {"read", "write"}
    after = image.read_bytes()
    first, end = 256 << 10, 384 << 10
    assert after[first:end] != before[first:end]
    assert after[:first] + after[end:] == before[:first] + before[end:]


def test_a_bench_of_a_reserved_disk_exits_with_5(served: Wire) -> None:
    aoe(served, "reserve", "force", "e7.3", OTHER)
    code, text = aoe(served, "bench", "e7.3", "--seconds", "5")
    assert code == 5, text


def test_a_bench_beyond_the_end_of_the_disk_is_refused(served: Wire) -> None:
    code, text = aoe(served, "bench", "e7.3", "--offset", "512K", "--size", "1M")
    assert (code, "reach beyond its 1048576 bytes" in text) == (2, True)


# --- paths ----------------------------------------------------------------------------


def findings(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(each["subject"], each["check"]): each for each in document["findings"]}


def test_sancheck_prints_the_same_row_as_aoe_sancheck(
    make_wire: MakeWire, image: Path
) -> None:
    sancheck = program("aoe-sancheck")
    wire = make_wire(4200)
    with serving(wire, image, NO_PROBE, "--no-state"):
        theirs = wire.initiator.run(
            [sancheck], capture_output=True, text=True, timeout=60
        ).stdout
        ours = call(wire.initiator, "sancheck").stdout
    pattern = r"^e7\.3\s+(\d+)\s+(\d+)\s+(\S+)$"
    (their_row,) = re.findall(pattern, theirs, re.MULTILINE)
    (our_row,) = re.findall(pattern, ours, re.MULTILINE)
    assert our_row == their_row == ("1", "4096", "aoe0")


@pytest.fixture
def narrow(switch: Switch, image: Path) -> Iterator[Namespace]:
    """Serve with an MTU of 9000 behind a switch port with an MTU of 4200."""
    server, here = switch.add_host(), switch.add_host()
    words = ("aoe0", image, "--no-state", "--force")
    process = start(server, "serve", "e7.3", *words)
    ready_line(process)
    switch.limit_mtu(here, 4200)
    yield here
    finish(process, 15)


def test_p23_a_narrow_path_is_found_without_writing(
    narrow: Namespace, image: Path, tmp_path: Path
) -> None:
    before = image.read_bytes()
    pcap = tmp_path / "san.pcapng"
    done = call(narrow, "sancheck", "--json", "--pcap", pcap)
    assert done.returncode == 1
    document = json.loads(done.stdout)
    found = findings(document)["e7.3", "path"]
    assert found["verdict"] == "fail"
    assert "carries only 4 KiB to the target and 4 KiB from the target" in found["text"]
    (device,) = document["devices"]
    (path,) = device["paths"]
    assert (path["to_target_bytes"], path["from_target_bytes"]) == (4096, 4096)
    assert path["payload_bytes"] == 8704
    assert image.read_bytes() == before
    frames = [describe(frame.data) for frame in read_capture(pcap)]
    assert not [each for each in frames if "WRITE" in each]


@pytest.mark.parametrize("mtu", [1500, 4200])
def test_p23_disks_are_used_on_a_narrow_path(
    switch: Switch, image: Path, tmp_path: Path, mtu: int
) -> None:
    """What both ends announce is lost; the time includes that of the copy."""
    server, here = switch.add_host(), switch.add_host()
    process = start(server, "serve", "e7.3", "aoe0", image, "--no-state", "--force")
    ready_line(process)
    switch.limit_mtu(here, mtu)
    copied = tmp_path / "copied"
    sectors = (mtu - 36) // 512
    for source, destination in (("e7.3", copied), (copied, "e7.3")):
        done = call(here, "copy", source, destination, "-i", "aoe0", timeout=10)
        assert done.returncode == 0
        assert done.stderr.startswith("aoe: e7.3: aoe0 to ")
        assert f"carries {sectors * 512} bytes of data per frame, both" in done.stderr
        assert copied.read_bytes() == image.read_bytes()
        copied.write_bytes(os.urandom(MIB))
    nbd = ("attach", "e7.3", "-i", "aoe0", "--nbd", tmp_path / "nbd")
    run = f'{program("nbdcopy")} "$uri" {shlex.quote(str(copied))}'
    assert call(here, *nbd, "--run", run, timeout=10).returncode == 0
    assert copied.read_bytes() == image.read_bytes()
    finish(process, 15)


def test_p23_doctor_and_stat_report_a_narrow_path_too(narrow: Namespace) -> None:
    done = call(narrow, "doctor", "-i", "aoe0")
    assert done.returncode == 1
    (line,) = [each for each in done.stdout.splitlines() if ": path: " in each]
    assert line.startswith("fail  e7.3: path: aoe0 to ")
    done = call(narrow, "stat", "--probe", "--json")
    assert done.returncode == 0
    (device,) = json.loads(done.stdout)["devices"]
    assert device["paths"][0]["to_target_bytes"] == 4096
    assert (
        "paths" not in json.loads(call(narrow, "stat", "--json").stdout)["devices"][0]
    )


# --- doctor ---------------------------------------------------------------------------


def test_doctor_checks_host_interface_target_and_path(
    served: Wire, tmp_path: Path
) -> None:
    pcap = tmp_path / "doctor.pcapng"
    document = aoe_json(served, "doctor", "--pcap", pcap)
    found = findings(document)
    assert {each["verdict"] for each in found.values()} <= {"ok", "warn"}
    assert {subject for subject, _ in found} == {"host", "aoe0", "e7.3"}
    assert found["host", "capabilities"]["verdict"] == "ok"
    assert ("host", "kernel driver") in found
    assert found["e7.3", "targets"]["text"].startswith(
        "on aoe0, 52:54:00:ae:00:01: 64 "
    )
    assert "carries 1 KiB in both directions" in found["e7.3", "path"]["text"]
    assert list(read_capture(pcap))


def test_doctor_warns_if_no_target_answers(wire: Wire) -> None:
    found = findings(aoe_json(wire, "doctor", "-t", "0.3"))["aoe0", "targets"]
    assert (found["verdict"], found["text"]) == ("warn", "no target answers")
    assert "MAC mask list" in found["fix"]


def test_p60_doctor_warns_about_a_target_with_one_buffer(
    wire: Wire, image: Path
) -> None:
    with vblade_serving(wire, image, "-b", "1"):
        found = findings(aoe_json(wire, "doctor"))["e7.3", "targets"]
    assert found["verdict"] == "warn"
    assert "Linux cannot use a disk with fewer than 2 buffers" in found["text"]


def test_doctor_reports_a_missing_capability_and_runs_the_other_checks(
    wire: Wire,
) -> None:
    bare = [program("setpriv"), "--bounding-set=-all", "--inh-caps=-all"]
    done = wire.initiator.run(
        [*bare, *AOE, "doctor", "--json"],
        capture_output=True,
        text=True,
    )
    found = findings(json.loads(done.stdout))
    assert done.returncode == 1
    assert found["host", "capabilities"]["verdict"] == "fail"
    assert found["aoe0", "state"]["verdict"] == "ok"
