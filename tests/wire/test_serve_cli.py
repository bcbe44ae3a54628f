from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from aoe.capture.annotated import Direction, read_capture
from tests.asking import ata, config
from tests.programs import AOE_TARGET
from tests.requirements import program
from tests.serving import TIMEOUT, client, finish, ready_line, serving, start

if TYPE_CHECKING:
    from pathlib import Path

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def failure(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate(timeout=TIMEOUT)
    assert out == ""
    assert err.startswith("aoe-target: ")
    assert err.count("\n") == 1
    return process.returncode, err.removeprefix("aoe-target: ").rstrip("\n")


def test_the_ready_line_describes_disk_and_interface(
    wire: Wire, tmp_path: Path
) -> None:
    path = tmp_path / "new.img"
    words = ("serve", "0", "0", wire.interface, path, "--create", "64M", "-r", "-s")
    process = start(wire.target, *words)
    assert ready_line(process) == (
        "e0.0 64 MiB on aoe0 (52:54:00:ae:00:01, MTU 1500, 2 sectors a frame) "
        f"from {path} [read-only, sync]\n"
    )
    assert finish(process, signal.SIGTERM) == ""
    assert path.stat().st_size == 64 << 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_target_after_logging_statistics(
    wire: Wire, image: Path, number: signal.Signals
) -> None:
    with client(wire) as asking:
        process = start(wire.target, "serve", "e7.3", wire.interface, image, "-v")
        ready_line(process)
        assert asking.receive()
        asking.ask(ata(0x24, count=2))
        assert finish(process, number).splitlines() == [
            (
                "aoe-target: e7.3 on aoe0: 1 requests, 1 reads (1 KiB), "
                "0 writes (0 bytes), 0 flushes"
            ),
            "aoe-target: aoe0: 1 received, 2 sent, 0 dropped, 0 truncated, 0 unsent",
        ]
    assert process.returncode == 0


def test_usr1_logs_statistics_and_serving_goes_on(wire: Wire, image: Path) -> None:
    with serving(wire, image) as process, client(wire) as asking:
        process.send_signal(signal.SIGUSR1)
        assert process.stderr is not None
        assert process.stderr.readline() == (
            "aoe-target: e7.3 on aoe0: 0 requests, 0 reads (0 bytes), "
            "0 writes (0 bytes), 0 flushes\n"
        )
        assert asking.ask(config(0))


def test_ready_fd_gets_ready_1_and_is_closed(wire: Wire, image: Path) -> None:
    read_end, write_end = os.pipe()
    words = ("serve", "e7.3", wire.interface, image, "--ready-fd", str(write_end))
    process = start(wire.target, *words, pass_fds=[write_end])
    os.close(write_end)
    with os.fdopen(read_end) as file:
        # Returns only when the target has closed its end.
        assert file.read() == "READY=1\n"
    finish(process, signal.SIGTERM)


def test_an_address_served_by_another_process_of_the_host_is_busy(
    wire: Wire, image: Path, tmp_path: Path
) -> None:
    # A process does not receive the frames that its own host sends, so that a query
    # would not find the other target.
    words = ("serve", "e7.3", wire.interface, tmp_path / "b.img", "--create", "1M")
    with serving(wire, image) as first:
        assert failure(start(wire.target, *words)) == (
            5,
            (
                f"e7.3: already served on aoe0 by process {first.pid}. "
                "Choose another address, or --force"
            ),
        )
        forced = start(wire.target, *words, "--force")
        ready_line(forced)
        finish(forced, signal.SIGTERM)
    again = start(wire.target, *words)
    ready_line(again)
    finish(again, signal.SIGTERM)


def test_an_address_served_by_another_host_is_busy(
    wire: Wire, image: Path, tmp_path: Path
) -> None:
    words = ("serve", "e7.3", wire.interface, tmp_path / "b.img", "--create", "1M")
    with serving(wire, image):
        assert failure(start(wire.initiator, *words)) == (
            5,
            (
                "e7.3: already served on aoe0 by 52:54:00:ae:00:01. "
                "Choose another address, or --force"
            ),
        )
        other = start(wire.initiator, *words[:1], "e7.4", *words[2:])
        ready_line(other)
        finish(other, signal.SIGTERM)


def test_an_address_served_by_vblade_is_busy(
    wire: Wire, image: Path, tmp_path: Path
) -> None:
    vblade = program("vblade")
    other = wire.target.popen(
        [vblade, "7", "3", wire.interface, str(image)], stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    other.stdout.readline()
    words = ("serve", "e7.3", wire.interface, tmp_path / "b.img", "--create", "1M")
    code, message = failure(start(wire.initiator, *words))
    assert code == 5
    assert "already served on aoe0 by 52:54:00:ae:00:01" in message


def test_an_image_that_is_served_already_is_busy(wire: Wire, image: Path) -> None:
    with serving(wire, image):
        process = start(wire.target, "serve", "e7.4", wire.interface, image)
        assert failure(process) == (
            5,
            (
                f"{image}: served or in use by another program. "
                "Stop it first, or use --force"
            ),
        )


def test_an_interface_that_is_down_is_refused_with_a_fix(
    wire: Wire, image: Path
) -> None:
    wire.target.run(["ip", "link", "set", wire.interface, "down"], check=True)
    assert failure(start(wire.target, "serve", "e7.3", wire.interface, image)) == (
        1,
        "aoe0: interface is down. Bring it up with: ip link set aoe0 up",
    )


def test_an_mtu_too_small_for_a_sector_is_refused(wire: Wire, image: Path) -> None:
    wire.target.run(["ip", "link", "set", wire.interface, "mtu", "500"], check=True)
    assert failure(start(wire.target, "serve", "e7.3", wire.interface, image)) == (
        2,
        (
            "aoe0: an MTU of 500 has no room for a sector. "
            "Raise it with: ip link set aoe0 mtu 1500"
        ),
    )


def test_a_missing_capability_is_an_error_with_code_4(wire: Wire, image: Path) -> None:
    setpriv = program("setpriv")
    serve = [*AOE_TARGET, "serve", "e7.3", wire.interface]
    process = wire.target.popen(
        [setpriv, "--bounding-set=-all", "--inh-caps=-all", *serve, str(image)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    code, message = failure(process)
    assert code == 4
    assert message.startswith("aoe0: raw sockets need CAP_NET_RAW. Run as root, ")


def test_pcap_records_all_frames(wire: Wire, image: Path, tmp_path: Path) -> None:
    path = tmp_path / "frames.pcapng"
    with serving(wire, image, "--pcap", path), client(wire) as asking:
        response = asking.ask(ata(0x24, lba=5))
    frames = list(read_capture(path))
    assert [frame.direction for frame in frames][-2:] == [Direction.IN, Direction.OUT]
    assert frames[-1].data[12:] == response[12:]
    assert "READ" in frames[-2].comment
    assert len(frames) == 3


def test_a_closed_standard_output_exits_with_1_without_a_traceback(
    wire: Wire, image: Path
) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    words = ("serve", "e7.3", wire.interface, image)
    process = start(wire.target, *words, stdout=write_end)
    os.close(write_end)
    assert process.communicate(timeout=TIMEOUT)[1] == ""
    assert process.returncode == 1
