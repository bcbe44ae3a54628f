"""Filters on a real wire: their effect on clients, and recovery of the initiator."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.asking import ata, ata_response, config, response_frame, sector
from tests.programs import AOE, AOE_TARGET
from tests.serving import TIMEOUT, client, finish, ready_line, serving, start

if TYPE_CHECKING:
    from pathlib import Path

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns

READ, WRITE = 0x24, 0x34
QUIET_TIME = 0.3
SIZE = 2 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(sector(number) for number in range(SIZE // 512)))
    return path


def with_filters(*filters: str) -> list[str]:
    return [word for text in filters for word in ("--filter", text)]


def write(lba: int, data: bytes) -> bytes:
    return ata(WRITE, lba, aflags=0x41, data=data)


def start_aoe(wire: Wire, *words: object) -> subprocess.Popen[str]:
    command = [*AOE, *map(str, words), "-i", "aoe0"]
    return wire.initiator.popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    "filters",
    [
        ("drop:probability=0.03,seed=1",),
        ("duplicate:probability=0.1,seed=2", "reorder:probability=0.1,seed=3"),
        (
            "delay:probability=0.1,seconds=2ms,direction=both,seed=4",
            "drop:probability=0.02,seed=5",
            "duplicate:probability=0.05,seed=6",
            "reorder:probability=0.05,seed=7",
        ),
    ],
    ids=["loss", "disorder", "all"],
)
def test_copy_succeeds_despite_wire_filters(
    wire: Wire, image: Path, tmp_path: Path, filters: tuple[str, ...]
) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(SIZE))
    with serving(wire, image, *with_filters(*filters)):
        copying = start_aoe(wire, "copy", source, "e7.3", "--verify", "--json")
        out, err = copying.communicate(timeout=120)
    assert copying.returncode == 0, err
    report = json.loads(out)
    assert report["verified"]
    if any(text.startswith("drop") for text in filters):
        assert report["retransmits"] > 0
    assert image.read_bytes() == source.read_bytes()


def wait_for_a_repeated_write(target: subprocess.Popen[str]) -> None:
    """Read a target's log until a write is repeated."""
    assert target.stderr is not None
    seen: set[str] = set()
    for line in target.stderr:
        (lba,) = re.findall(r"WRITE EXT e7.3 lba (\d+)", line)
        if lba in seen:
            return
        seen.add(lba)


def test_copy_waits_while_the_trigger_file_exists(
    wire: Wire, image: Path, tmp_path: Path
) -> None:
    source, trigger = tmp_path / "source", tmp_path / "lose-writes"
    source.write_bytes(os.urandom(SIZE))
    trigger.touch()
    before = image.read_bytes()
    which = f"on=write,direction=in,file={trigger}"
    filters = with_filters(f"log:{which}", f"drop:{which}")
    with serving(wire, image, *filters) as target:
        copying = start_aoe(wire, "copy", source, "e7.3", "--json")
        wait_for_a_repeated_write(target)
        assert copying.poll() is None
        assert image.read_bytes() == before
        trigger.unlink()
        out, err = copying.communicate(timeout=120)
    assert copying.returncode == 0, err
    assert json.loads(out)["retransmits"] > 0
    assert image.read_bytes() == source.read_bytes()


def test_trigger_file_enables_and_disables_a_filter(
    wire: Wire, image: Path, tmp_path: Path
) -> None:
    trigger = tmp_path / "lose"
    served = serving(wire, image, "--filter", f"drop:file={trigger}")
    with served, client(wire) as asking:
        for _ in range(2):
            assert asking.ask(config(0))
            trigger.touch()
            assert asking.ask(config(0), QUIET_TIME) == b""
            trigger.unlink()
        assert asking.ask(config(0))


def test_delayed_write_does_not_block_others(wire: Wire, image: Path) -> None:
    served = serving(wire, image, "--filter", "delay:seconds=0.5,on=write,direction=in")
    with served, client(wire) as asking:
        data = b"\x77" * 512
        began = time.monotonic()
        asking.send(write(5, data))
        assert asking.ask(ata(READ, 5)) == ata_response(0x40, lba=5, data=sector(5))
        assert asking.receive() == ata_response(0x40, lba=5, aflags=0x41)
        assert time.monotonic() - began >= 0.5
        assert asking.ask(ata(READ, 5)) == ata_response(0x40, lba=5, data=data)


def test_duplicated_response_is_sent_twice(wire: Wire, image: Path) -> None:
    served = serving(wire, image, "--filter", "duplicate:direction=out")
    with served, client(wire) as asking:
        expected = ata_response(0x40, lba=9, data=sector(9))
        assert asking.ask(ata(READ, 9)) == expected
        assert asking.receive() == expected
        assert asking.receive(QUIET_TIME) == b""


def test_reordered_requests_are_answered_in_reverse_order(
    wire: Wire, image: Path
) -> None:
    filters = with_filters("reorder:direction=in,hold=5,count=1")
    with serving(wire, image, *filters), client(wire) as asking:
        first, second = asking.ask_all([ata(READ, 1), ata(READ, 2)])
        assert first == ata_response(0x40, lba=2, data=sector(2))
        assert second == ata_response(0x40, lba=1, data=sector(1))


@pytest.mark.parametrize(
    ("on", "request_", "status", "error"),
    [
        ("read", ata(READ, 5), 0x41, 0x40),
        ("write", write(5, bytes(512)), 0x61, 0x04),
        ("flush", ata(0xEA, 5), 0x61, 0x04),
    ],
)
def test_disk_error_is_reported_in_the_ata_registers_p15_p41(
    wire: Wire, image: Path, on: str, request_: bytes, status: int, error: int
) -> None:
    served = serving(wire, image, "--filter", f"error:on={on},errno=ENOSPC,count=1")
    with served, client(wire) as asking:
        aflags = request_[24]
        assert asking.ask(request_) == ata_response(
            status, error, count=1, lba=5, aflags=aflags
        )
        # What a failed flush should have covered stays lost.
        again = status if on == "flush" else 0x40
        assert asking.ask(request_)[27] == again


def test_missing_device_is_aoe_error_3_p41(wire: Wire, image: Path) -> None:
    served = serving(wire, image, "--filter", "error:errno=ENODEV,count=1")
    with served, client(wire) as asking:
        request = ata(READ, 5)
        expected = response_frame(0, request[24:36], verfl=0x1C, error=3)
        assert asking.ask(request) == expected
        assert asking.ask(request) == ata_response(0x40, lba=5, data=sector(5))


def test_read_error_is_reported_by_the_initiator_p41(wire: Wire, image: Path) -> None:
    with serving(wire, image, "--filter", "error:on=read"):
        reading = start_aoe(wire, "read", "e7.3", "--length", "512")
        out, err = reading.communicate(timeout=TIMEOUT * 3)
    assert reading.returncode == 1
    assert out == ""
    assert "uncorrectable data" in err


def test_readonly_can_be_switched_under_load_p40(
    wire: Wire, image: Path, tmp_path: Path
) -> None:
    trigger = tmp_path / "read-only"
    served = serving(wire, image, "--filter", f"readonly:file={trigger}")
    request = write(5, b"\x77" * 512)
    done = ata_response(0x40, lba=5, aflags=0x41)
    refused = ata_response(0x41, 0x04, count=1, lba=5, aflags=0x41)
    with served, client(wire) as asking:
        assert asking.ask(request) == done
        trigger.touch()
        assert asking.ask(request) == refused
        assert asking.ask(ata(READ, 6)) == ata_response(0x40, lba=6, data=sector(6))
        trigger.unlink()
        assert asking.ask(request) == done


def test_copy_with_verify_detects_corrupt_data(
    wire: Wire, image: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(SIZE))
    with serving(wire, image, "--filter", "corrupt:on=write,count=1,after=100"):
        copying = start_aoe(wire, "copy", source, "e7.3", "--verify")
        _, err = copying.communicate(timeout=120)
    assert copying.returncode == 1
    assert "differ" in err
    there, here = (int.from_bytes(p.read_bytes(), "big") for p in (source, image))
    assert (there ^ here).bit_count() == 1


def test_active_filters_are_shown(wire: Wire, image: Path) -> None:
    filters = with_filters("log:where=disk", "log:on=read", "drop:on=write,count=1")
    process = start(wire.target, "serve", "e7.3", "aoe0", image, "-v", *filters)
    assert ready_line(process).endswith(f"from {image} [3 filters: log, log, drop]\n")
    with client(wire) as asking:
        asking.ask(write(5, bytes(512)), QUIET_TIME)
        asking.ask(ata(READ, 8))
        me = "52:54:00:ae:00:02"
    assert ask_target(wire, "status").splitlines()[-3:] == [
        "  filter log:where=disk triggered 1 time",
        "  filter log:on=read triggered 2 times",
        "  filter drop:count=1,on=write triggered 1 time",
    ]
    lines = finish(process, signal.SIGTERM).splitlines()
    messages = [line.removeprefix("aoe-target: ") for line in lines]
    there, back = (
        f"from={me} to=52:54:00:ae:00:01",
        f"from=52:54:00:ae:00:01 to={me}",
    )
    tag, head = "tag 0x11223344", "filter=log export=e7.3"
    assert messages[:3] == [
        f'{head} wire=in {there} length=36 frame="READ EXT e7.3 lba 8 x1 {tag}"',
        f"{head} disk=read offset=4096 length=512 result=ok",
        (
            f'{head} wire=out {back} length=548 frame="response ok e7.3 lba 8 x0, '
            f'512 bytes {tag}"'
        ),
    ]
    assert messages[-3:] == [
        "e7.3: filter log:where=disk triggered 1 time",
        "e7.3: filter log:on=read triggered 2 times",
        "e7.3: filter drop:count=1,on=write triggered 1 time",
    ]


def ask_target(wire: Wire, *words: object) -> str:
    command = [*AOE_TARGET, *map(str, words)]
    done = wire.target.run(command, capture_output=True, text=True, check=True)
    return str(done.stdout)


def test_reload_adds_and_removes_filters(
    wire: Wire, image: Path, tmp_path: Path
) -> None:
    path = tmp_path / "target.toml"
    plain = f'[[export]]\naddress = "e7.3"\ninterfaces = "aoe0"\npath = "{image}"\n'
    path.write_text(plain)
    process = start(wire.target, "serve", "--config", path)
    ready_line(process)
    with client(wire) as asking:
        assert asking.ask(ata(READ, 5))[27] == 0x40
        path.write_text(plain + '[[export.filter]]\nname = "error"\ncount = 2\n')
        ask_target(wire, "reload")
        assert asking.receive()[19] == 1
        assert [asking.ask(ata(READ, 5))[27] for _ in range(3)] == [0x41, 0x41, 0x40]
        (served,) = json.loads(ask_target(wire, "status", "--json"))["targets"]
        assert served["exports"][0]["filters"] == [
            {"filter": "error:count=2", "triggered": 2}
        ]
        path.write_text(plain)
        ask_target(wire, "reload")
        assert asking.receive()[19] == 1
        (served,) = json.loads(ask_target(wire, "status", "--json"))["targets"]
        assert served["exports"][0]["filters"] == []
    finish(process, signal.SIGTERM)


def test_filter_count_is_kept_across_a_resize(wire: Wire, image: Path) -> None:
    with (
        serving(wire, image, "--filter", "error:on=read,count=2"),
        client(wire) as asking,
    ):
        assert asking.ask(ata(READ, 5))[27] == 0x41
        os.truncate(image, SIZE * 2)
        ask_target(wire, "reload")
        assert asking.receive()[19] == 1
        grown = ata(READ, SIZE // 512)
        assert [asking.ask(grown)[27] for _ in range(2)] == [0x41, 0x40]
