"""Shell completion in bash, zsh and fish."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from aoe.common.completion import completion_script
from initiator.cli.main import cli as aoe
from target.cli.main import cli as aoe_target
from target.filters.settings import FILTERS
from tests.completing import completed, environment, typed
from tests.requirements import need

if TYPE_CHECKING:
    from pathlib import Path

    import click

CLIS = {"aoe": aoe, "aoe-target": aoe_target}
both = pytest.mark.parametrize("program", CLIS)
INTERFACES = [name for _, name in socket.if_nameindex()]


def options(*path: str) -> set[str]:
    command: click.Command = CLIS[path[0]]
    for name in path[1:]:
        command = command.commands[name]  # type: ignore[attr-defined] # a group
    return {
        name
        for parameter in command.params
        for name in parameter.opts
        if name.startswith("--")
    }


def test_commands_are_completed() -> None:
    assert completed("aoe", "dis") == ["discover"]
    assert completed("aoe-target", "clear-") == [
        "clear-config",
        "clear-mask",
        "clear-reserve",
    ]
    assert completed("aoe-target", "overlay", "") == ["commit", "reset", "status"]


@pytest.mark.parametrize("path", [("aoe", "copy"), ("aoe-target", "serve")])
def test_options_are_completed(path: tuple[str, ...]) -> None:
    assert set(completed(*path, "--")) == options(*path) | {"--help"}


@pytest.mark.parametrize(
    "words",
    [
        ("aoe", "read", "-i"),
        ("aoe", "discover", "--interface"),
        ("aoe", "lab", "run", "-i"),
        ("aoe-target", "doctor"),
        ("aoe-target", "serve", "e0.0"),
        ("aoe-target", "serve", "0", "0"),
    ],
)
def test_interfaces_are_completed(words: tuple[str, ...]) -> None:
    assert completed(*words, "") == INTERFACES
    assert completed(*words, INTERFACES[0]) == [
        name for name in INTERFACES if name.startswith(INTERFACES[0])
    ]
    assert completed(*words, "no-such-interface") == []


def test_a_list_of_interfaces_is_completed_without_those_already_in_it() -> None:
    others = [name for name in INTERFACES if name != "lo"]
    offered = completed("aoe", "discover", "-i", "lo,")
    assert offered == [f"lo,{name}" for name in others]


def test_values_are_completed() -> None:
    assert completed("aoe", "copy", "--timing", "k") == ["kernel"]
    assert completed("aoe-target", "serve", "--filter", "") == list(FILTERS)
    assert completed("aoe", "lab", "matrix", "-n", "NO") == ["NOSG"]
    assert completed("aoe", "lab", "explore", "-p", "e") == ["e"]


@pytest.mark.parametrize(
    "words",
    [
        ("check",),
        ("serve", "--config"),
        ("serve", "e0.0", "eth0"),
        ("serve", "0", "0", "eth0"),
        ("serve", "--overlay"),
        ("overlay", "status"),
        ("doctor", "--path"),
    ],
)
def test_files_are_completed_by_the_shell(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").touch()
    line = f"aoe-target {' '.join(words)} mine.toml "
    assert line in typed("aoe-target", f"{line[:-7]}\t", tmp_path, until=line)


def test_source_and_destination_of_a_copy_complete_to_files(tmp_path: Path) -> None:
    (tmp_path / "mine.img").touch()
    line = "aoe copy mine.img mine.img "
    assert line in typed("aoe", "aoe copy mi\tmi\t", tmp_path, until=line)


def test_without_the_capability_there_are_no_addresses_and_no_error() -> None:
    without = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw")
    assert completed("aoe", "read", "-i", "lo", "e", before=without) == []
    assert completed("aoe", "read", "-i", "no-such-interface", "e") == []


@both
def test_zsh_and_fish_accept_their_scripts(program: str) -> None:
    need("zsh", "fish")
    for shell in ("zsh", "fish"):
        checked = subprocess.run(
            [shell, "-n"],
            input=completion_script(CLIS[program], program, shell),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (checked.returncode, checked.stderr) == (0, "")


@both
def test_fish_completes(program: str) -> None:
    need("fish")
    script = f"{program} completion fish | source; complete -C '{program} compl'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    # A tab separates the candidate from its help.
    assert done.stdout.partition("\t")[0] == "completion"


@both
def test_completion_imports_no_slow_library(program: str) -> None:
    package = {"aoe": "initiator", "aoe-target": "target"}[program]
    variable = f"_{program}_COMPLETE".replace("-", "_").upper()
    words = {"aoe": "aoe read -i lo e", "aoe-target": "aoe-target clear-mask e"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", package],
        env={
            **environment(),
            variable: "bash_complete",
            "COMP_WORDS": words[program],
            "COMP_CWORD": str(words[program].count(" ")),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "click.shell_completion" in imported
    assert imported & {"scapy", "rich", "pyroute2", "prometheus_client"} == set()
