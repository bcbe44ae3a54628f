"""The tutorials, typed word for word into one shell each."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

import pytest

from tests.consoles import TIMEOUT, Console, Step, is_like, steps

pytestmark = pytest.mark.netns

TUTORIALS = Path(__file__).parents[1] / "tutorials"
NEEDED = {
    "1-serve-and-attach.md": {"mkfs.ext4": "e2fsprogs", "qemu-img": "qemu-utils"},
    "4-netboot.md": {"mkfs.ext4": "e2fsprogs", "dnsmasq": "dnsmasq-base"},
    "5-what-nbd-has.md": {"qemu-nbd": "qemu-utils", "nbdkit": "nbdkit"},
}
"""What the tutorials say they need, and Debian's packages of it."""
SAID = "e0.0 1 GiB on eth0 (52:54:00:ae:00:01) in 0.24 s, 7 frames sent again, verified"


@pytest.mark.parametrize(
    "path", sorted(TUTORIALS.glob("[0-9]*.md")), ids=lambda p: p.stem
)
@pytest.mark.usefixtures("wire")  # where no namespaces can be made, it skips
def test_a_tutorial_does_what_it_says(path: Path, tmp_path: Path) -> None:
    for name, package in NEEDED.get(path.name, {}).items():
        if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            pytest.skip(f"no {name}; apt install {package}")
    with Console(tmp_path) as console:
        for step in steps(path.read_text()):
            printed = console.run(step)
            assert is_like(printed, step.printed), (step.line, step.command, printed)


def test_the_list_of_tutorials_names_each_once() -> None:
    text = (TUTORIALS / "README.md").read_text()
    listed = re.findall(r"\]\((\S+\.md)\)", text)
    assert listed == sorted(path.name for path in TUTORIALS.glob("[0-9]*.md"))


@pytest.mark.parametrize(
    "other",
    [
        SAID.replace("52:54", "aa:bb").replace("0.24", "12"),
        SAID.replace("7 frames sent again, ", ""),
        SAID.replace(" in ", "    in "),
    ],
)
def test_what_differs_between_runs_is_no_difference(other: str) -> None:
    assert is_like(other, SAID)
    assert is_like(SAID, other)


@pytest.mark.parametrize(
    "change", [("e0.0", "e0.1"), ("1 GiB", "2 GiB"), (", v", " v")]
)
def test_what_has_to_be_the_same_is_compared(change: tuple[str, str]) -> None:
    assert not is_like(SAID.replace(*change), SAID)


def test_a_command_that_fails_is_noticed(tmp_path: Path) -> None:
    with Console(tmp_path) as console, pytest.raises(AssertionError):
        console.run(Step(1, "false", ""))


def test_nothing_that_went_to_the_background_stays(tmp_path: Path) -> None:
    with Console(tmp_path) as console:
        pid = console.run(Step(1, "setsid sleep 600 >/dev/null 2>&1 & echo $!", ""))
        assert Path(f"/proc/{pid}/stat").exists()
    end = time.monotonic() + TIMEOUT
    while _lives(int(pid)):
        assert time.monotonic() < end
        time.sleep(0.01)


def _lives(pid: int) -> bool:
    # What was killed may wait a moment for its parent to look.
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
