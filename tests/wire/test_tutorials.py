"""The tutorials: each runs in a shell, and its output is compared."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.consoles import TIMEOUT, Console, Step, is_like, steps
from tests.requirements import need

pytestmark = pytest.mark.netns

TUTORIALS = Path(__file__).parents[1] / "tutorials"
NEEDED = {
    "1-serve-and-attach.md": ("mkfs.ext4", "qemu-img"),
    "4-netboot.md": ("mkfs.ext4", "dnsmasq"),
    "5-what-nbd-has.md": ("qemu-nbd", "nbdkit"),
}
"""Programs that the tutorials run."""
LINE = "e0.0 1 GiB (52:54:00:ae:00:01) in 0.24 s, 7 frames retransmitted, verified"


@pytest.mark.parametrize(
    "path", sorted(TUTORIALS.glob("[0-9]*.md")), ids=lambda p: p.stem
)
@pytest.mark.usefixtures("wire")  # skips if namespaces are not permitted
def test_tutorial_prints_its_output(path: Path, tmp_path: Path) -> None:
    need(*NEEDED.get(path.name, ()))
    with Console(tmp_path) as console:
        for step in steps(path.read_text()):
            printed = console.run(step)
            assert is_like(printed, step.printed), (step.line, step.command, printed)


def test_readme_lists_each_tutorial_once() -> None:
    text = (TUTORIALS / "README.md").read_text()
    listed = re.findall(r"\]\((\S+\.md)\)", text)
    assert listed == sorted(path.name for path in TUTORIALS.glob("[0-9]*.md"))


@pytest.mark.parametrize(
    "other",
    [
        LINE.replace("52:54", "aa:bb").replace("0.24", "12"),
        LINE.replace("7 frames retransmitted, ", ""),
        LINE.replace(" in ", "    in "),
    ],
)
def test_times_counters_and_macs_are_compared_by_format(other: str) -> None:
    assert is_like(other, LINE)
    assert is_like(LINE, other)


@pytest.mark.parametrize(
    "change", [("e0.0", "e0.1"), ("1 GiB", "2 GiB"), (", v", " v")]
)
def test_other_differences_are_detected(change: tuple[str, str]) -> None:
    assert not is_like(LINE.replace(*change), LINE)


def test_failing_command_is_detected(tmp_path: Path) -> None:
    with Console(tmp_path) as console, pytest.raises(AssertionError):
        console.run(Step(1, "false", ""))


def test_background_processes_end_with_the_console(tmp_path: Path) -> None:
    with Console(tmp_path) as console:
        pid = console.run(Step(1, "setsid sleep 600 >/dev/null 2>&1 & echo $!", ""))
        assert Path(f"/proc/{pid}/stat").exists()
    end = time.monotonic() + TIMEOUT
    while _is_alive(int(pid)):
        assert time.monotonic() < end
        time.sleep(0.01)


def _is_alive(pid: int) -> bool:
    # A killed process is a zombie until its parent has waited for it.
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
