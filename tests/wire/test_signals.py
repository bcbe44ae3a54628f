"""Programs that start with SIGINT and SIGHUP ignored, as nohup and scripts do."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from aoe.common.process.programs import program_command
from tests.accounts import process_status
from tests.serving import NO_PROBE, TIMEOUT, ready_line, serving

if TYPE_CHECKING:
    from pathlib import Path

    from aoe.net.netns import Namespace, Wire

pytestmark = pytest.mark.netns

IGNORING = ("env", "--ignore-signal=HUP,INT")


def start_ignoring(
    host: Namespace, program: str, *words: object
) -> subprocess.Popen[str]:
    command = [*IGNORING, *program_command(program), *map(str, words)]
    pipe = subprocess.PIPE
    process: subprocess.Popen[str] = host.popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    return process


def ignored(pid: int) -> set[int]:
    """Return the signals that a process ignores."""
    mask = int(process_status(pid)["SigIgn"], 16)
    return {int(each) for each in signal.Signals if mask >> (each - 1) & 1}


def assert_only_sigterm_ends(process: subprocess.Popen[str], *numbers: int) -> None:
    ready_line(process)
    assert {*numbers} <= ignored(process.pid)
    for number in numbers:
        process.send_signal(number)
    process.terminate()
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0


def test_a_target_keeps_sigint_ignored(wire: Wire, image: Path) -> None:
    words = ("serve", "e7.3", wire.interface, image, NO_PROBE)
    process = start_ignoring(wire.target, "aoe-target", *words)
    assert_only_sigterm_ends(process, signal.SIGINT)


def test_an_attached_disk_survives_sigint(
    wire: Wire, image: Path, tmp_path: Path
) -> None:
    with serving(wire, image, NO_PROBE):
        words = ("attach", "e7.3", "-i", wire.interface, "--nbd", tmp_path / "socket")
        process = start_ignoring(wire.initiator, "aoe", *words)
        assert_only_sigterm_ends(process, signal.SIGINT)


def test_a_check_keeps_sigint_and_sighup_ignored(wire: Wire, image: Path) -> None:
    with serving(wire, image, NO_PROBE):
        words = ("check", "e7.3", "-i", wire.interface)
        process = start_ignoring(wire.initiator, "aoe", *words)
        ready_line(process)
        assert {signal.SIGINT, signal.SIGHUP} <= ignored(process.pid)
        output, errors = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, errors) == (0, ""), output


def test_the_supervisor_of_a_command_keeps_sigint_ignored(
    wire: Wire, image: Path
) -> None:
    words = ("serve", "e7.3", wire.interface, image, NO_PROBE)
    command = "echo here; exec sleep 60"
    process = start_ignoring(wire.target, "aoe-target", *words, "--run", command)
    ready_line(process)
    assert signal.SIGINT in ignored(process.pid)
    process.terminate()
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + signal.SIGTERM
