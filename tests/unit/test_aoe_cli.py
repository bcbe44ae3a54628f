"""Help and usage errors of the ``aoe`` command, without a network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import click
import pytest

from aoe.errors import DeviceError, NotFoundError, UnsupportedError
from initiator.cli.commands import io
from initiator.cli.main import ENTRIES, cli
from tests.programs import AOE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click import Command

    from initiator.disk.disk import Disk


def aoe(
    *words: str, stdout: IO[str] | int = subprocess.PIPE, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = [*AOE, *words]
    return subprocess.run(
        command,
        check=False,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
    )


@pytest.mark.parametrize("time", ["nan", "inf", "-1", "1e300", "soon"])
@pytest.mark.parametrize("option", ["--timeout", "--interval"])
def test_a_time_that_is_not_a_number_of_seconds_is_refused(
    option: str, time: str
) -> None:
    done = aoe("ping", "e0.0", f"{option}={time}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{time}: not a time. Write seconds" in done.stderr


@pytest.mark.parametrize("words", [("-", "e0.0"), ("e0.0", "-")])
def test_copy_refuses_dash_and_creates_no_file(
    words: tuple[str, str], tmp_path: Path
) -> None:
    done = aoe("copy", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert "Use aoe read, aoe write" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_name_like_an_address_can_be_written_with_a_directory() -> None:
    done = aoe("copy", "e2fs.img", "e0.0")
    assert done.returncode == 2
    assert done.stderr.endswith(", or a file as ./e2fs.img\n")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "ADDRESS: missing. Give an address, as e7.3, or --list"),
        (
            ["e7.3", "--only", "P24"],
            "P24: no check tests it. List the checks with: --list",
        ),
        (["--only", "19x"], "19x: not a rule. Write P38,P52 or P61-P70"),
    ],
)
def test_check_needs_an_address_and_existing_rules(words: list[str], line: str) -> None:
    done = aoe("check", *words)
    assert done.returncode == 2
    assert line in done.stderr


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["config", "set", "e0.0"], 'STRING: missing. Give one of STRING (""'),
        (["config", "set", "e0.0", "a", "--hex", "00"], "STRING: given twice"),
        (["config", "set", "e0.0", "--hex", "0g"], "0g: not hexadecimal"),
        (["config", "set", "e0.0", "x" * 1025], "1025 bytes, at most 1024 are"),
        (["config", "set", "all", "x"], "all: needs one target"),
        (["config", "read", "all", "--raw"], "--raw: needs one target"),
        (["mask", "add", "e0.0", "52:54"], "52:54: not a MAC address"),
        (["mask", "add", "e0.0"], "Missing argument 'MAC...'"),
        (["smart", "e0.0", "--enable", "--disable"], "exclude each other"),
        (["bench", "e0.0", "write"], "e0.0: write overwrites data on the disk"),
        (["trim", "e0.0"], "e0.0: trim discards data on the disk"),
        (["bench", "e0.0", "mix"], "To allow that, add --destroy"),
    ],
)
def test_usage_errors_are_reported_before_any_frame_is_sent(
    words: list[str], line: str
) -> None:
    done = aoe(*words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert line in done.stderr


def commands(group: click.Group, path: str = "aoe") -> Iterator[tuple[str, Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


COMMANDS = dict(commands(cli))


@pytest.mark.parametrize("path", COMMANDS)
def test_commands_that_send_frames_have_pcap_and_json(path: str) -> None:
    options = {name for each in COMMANDS[path].params for name in each.opts}
    silent = ("aoe decode", "aoe completion", "aoe detach", "aoe rule")
    sends_frames = path not in silent
    if sends_frames and not path.startswith("aoe lab "):
        assert "--pcap" in options
        # What these move goes to standard output, or comes from it, or goes on.
        streams = ("aoe read", "aoe write", "aoe attach", "aoe scapy")
        assert "--json" in options or path in streams


def test_help_lists_every_command_once() -> None:
    done = aoe("--help")
    for name in cli.commands:
        assert len(re.findall(rf"^  {name} ", done.stdout, re.MULTILINE)) == 1


@pytest.mark.parametrize("name", ENTRIES)
def test_the_summary_of_a_command_is_the_first_sentence_of_its_help(name: str) -> None:
    command = cli.commands[name]
    found = (command.name, command.get_short_help_str(limit=100))
    assert found == (name, ENTRIES[name].summary)


def test_help_imports_no_command() -> None:
    probe = (
        "import sys, initiator.cli.main as c\n"
        "c.cli.main(['--help'], standalone_mode=False)\n"
        "sys.exit(' '.join(m for m in sys.modules if m.startswith('initiator.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=False
    )
    assert done.stderr.split() == ["initiator.cli", "initiator.cli.main"]


def test_no_command_shows_the_help() -> None:
    done = aoe()
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: aoe ")
    assert "aoe --help" not in done.stderr


def test_a_full_standard_output_is_a_one_line_error() -> None:
    with Path("/dev/full").open("w") as full:
        done = aoe("--version", stdout=full)
    assert done.returncode == 1
    assert done.stderr == "aoe: standard output: no space left on device\n"


class Unflushed:
    """A disk whose flush fails."""

    address = "e0.0"

    def __init__(self, error: Exception) -> None:
        self._error = error

    def flush(self) -> None:
        raise self._error


@pytest.mark.parametrize("kind", [DeviceError, NotFoundError])
def test_a_failed_flush_after_a_write_is_an_error(kind: type[Exception]) -> None:
    disk = cast("Disk", Unflushed(kind("e0.0", "device fault", "")))
    with pytest.raises(kind, match="written, but not flushed: device fault"):
        io.flush(disk)


def test_a_target_without_flush_gives_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    io.flush(cast("Disk", Unflushed(UnsupportedError("e0.0", "aborted", ""))))
    assert "warning: not flushed: aborted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            [],
            (
                "attach: no option says how to attach. "
                "Add one of --nbd SOCKET, --mount DIR, --loop and --fuse FILE"
            ),
        ),
        (
            ["--nbd", "s", "--loop"],
            ("--nbd: excludes --mount, --loop and --fuse. Choose one of them"),
        ),
        (
            ["--loop", "--fstype", "xfs"],
            "--fstype, --mount-options: need --mount. Add --mount DIR",
        ),
        (["--loop", "--run", "true"], "--run: needs --nbd. Add --nbd SOCKET"),
        (
            ["--nbd", "s", "--run", "true", "--background"],
            "attach: --run and --background exclude each other. Choose one of them",
        ),
        (["--nbd", "h:99999"], "h:99999: no such port. Write HOST:PORT, 1 to 65535"),
    ],
)
def test_usage_errors_of_attach_have_a_fix(words: list[str], line: str) -> None:
    done = aoe("attach", "e7.3", *words)
    assert (done.returncode, done.stderr) == (2, f"aoe: {line}\n")
