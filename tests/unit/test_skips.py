"""Skipped tests: their reasons, and the summary after all tests."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.requirements import LIBRARIES, PACKAGES, missing, need
from tests.skips import summary

CHECKOUT = Path(__file__).resolve().parents[2]
TESTS = CHECKOUT / "tests"
SKIPPING = """
import pytest
from tests import requirements

requirements.find_program = lambda name: None

@pytest.mark.parametrize("number", range(5))
def test_trace(number): requirements.need("strace")
def test_disk(): requirements.program("mkfs.ext4")
def test_both(): requirements.need("strace", "mkfs.ext4")
def test_kernel(): requirements.missing("token bucket filter", "modprobe sch_tbf")
def test_runs(): pass
"""


def run_pytest(directory: Path, *arguments: str) -> list[str]:
    """Run the tests above; return the lines between progress and totals."""
    (directory / "test_some.py").write_text(SKIPPING)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.skips", *arguments]
    done = subprocess.run(
        [*command, "--rootdir", directory, "-c", "/dev/null", directory],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    (end,) = (number for number, line in enumerate(lines) if "1 passed" in line)
    (start,) = (number for number, line in enumerate(lines) if "[100%]" in line)
    return lines[start + 1 : end]


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one", "many"])
def test_skips_are_summed_up_with_one_apt_line(
    tmp_path: Path, workers: tuple[str, ...]
) -> None:
    assert run_pytest(tmp_path, *workers) == [
        "7 tests skipped, which run after: apt install e2fsprogs strace",
        "      6  no strace",
        "      2  no mkfs.ext4",
        "1 test skipped: no token bucket filter: modprobe sch_tbf",
    ]


def test_nothing_is_printed_without_skips() -> None:
    assert list(summary([])) == []


def test_reasons_of_other_origin_are_listed_as_they_are() -> None:
    assert list(summary(["not today", "not today"])) == ["2 tests skipped: not today"]


def test_installed_programs_are_not_missing() -> None:
    need("setpriv", "mount")


def test_reason_names_the_missing_and_its_package() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"^no lock: modprobe lock$"):
        missing("lock", "modprobe lock")


def test_tests_skip_by_their_requirements_only() -> None:
    """Another skip would have no place in the summary, or a reason without a fix."""
    words = re.compile(r"pytest\.(skip|importorskip|mark\.skip(if)?)")
    found = {
        f"{path.relative_to(TESTS)}:{node.lineno}"
        for path in TESTS.rglob("*.py")
        if path.name != "requirements.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and words.fullmatch(ast.unparse(node.func))
    }
    assert found == set()


def test_ci_installs_what_tests_need() -> None:
    text = (CHECKOUT / ".ci/run").read_text()
    (listed,) = re.findall(r"^packages=\((.*?)\)", text, re.MULTILINE | re.DOTALL)
    essential = {"util-linux"}
    needed = {*PACKAGES.values(), *LIBRARIES.values()} - essential
    assert needed <= set(listed.split())
