"""Plug-ins of the lab: names from a Python file, and the list of all names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MAIN = "from initiator.cli.main import main; main()"
EXAMPLE = Path(__file__).parents[1] / "lab_plugin.py"


def aoe_lab(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MAIN, "lab", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("a+wait/pagecache/stale_clone+rewrite_in_place/SG", "Outcome: ok"),
        ("a+wait/rawalloc_highorder_tail/late_txdone/COW", "Outcome: ok"),
        ("none/log_header/clean/SG", "512 bytes from 512"),
        ("none/pagecache/lost_twice/SG", "clone 2"),
        ("mydisk@6.1/rawalloc_highorder_tail/clean/SG", "Outcome: ok (copied)"),
    ],
)
def test_the_example_adds_a_name_to_each_axis(case: str, expected: str) -> None:
    done = aoe_lab("--plugin", str(EXAMPLE), "explain", case)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    assert aoe_lab("explain", case).returncode == 2


def test_help_lists_each_name_with_one_line() -> None:
    lines = aoe_lab("--plugin", str(EXAMPLE), "--help").stdout.splitlines()
    for name in (
        *("a+wait", "log_header", "lost_twice", "mydisk@6.1", "b+", "nvme-tcp@5.9"),
        *("jbd_kmalloc", "late_txdone+free", "NOSG", "6.14"),
    ):
        assert len([line for line in lines if line.split()[:1] == [name]]) == 1, name


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "FileNotFoundError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        (
            "import initiator.lab.plugins as p; p.register(p.Event('clean', 'mine'))",
            "clean: the lab has this name",
        ),
    ],
)
def test_a_bad_plugin_is_an_error_of_one_line(
    tmp_path: Path, text: str | None, why: str
) -> None:
    file = tmp_path / "my.py"
    if text is not None:
        file.write_text(text, "utf-8")
    done = aoe_lab("--plugin", str(file), "explain", "none/pagecache/clean/SG")
    assert done.returncode == 2
    assert why in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr


def test_a_package_adds_names_by_an_entry_point(tmp_path: Path) -> None:
    (tmp_path / "mylab.py").write_text(EXAMPLE.read_text("utf-8"), "utf-8")
    info = tmp_path / "mylab-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mylab\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[pyaoe.lab]\nmine = mylab\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r});"
        "from initiator.cli.main import main;"
        "sys.argv = ['aoe', 'lab', 'explain', 'a+wait/pagecache/clean/SG']; main()"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Outcome: ok" in done.stdout, done.stderr
