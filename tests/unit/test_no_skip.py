"""The pytest plugin that makes skipped tests fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
TESTS = """
import pytest

def test_runs(): pass
def test_skips_itself(): pytest.skip("no such program")
@pytest.mark.skip(reason="not today")
def test_is_marked(): pass
@pytest.mark.xfail(reason="known")
def test_is_expected_to_fail(): assert False
"""
SKIPPED_MODULE = "import pytest\npytest.skip('no module', allow_module_level=True)\n"


def run_pytest(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:hypothesispytest"]
    return subprocess.run(
        [*command, *arguments, "--rootdir", directory, "-c", "/dev/null", directory],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_skipped_test_fails_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    result = run_pytest(tmp_path, "-p", "tests.no_skip")
    assert result.returncode == 1
    # A skip mark takes effect during setup, where pytest reports a failure as an error.
    assert "1 failed, 1 passed, 1 xfailed, 1 error" in result.stdout
    assert "no such program" in result.stdout
    assert "not today" in result.stdout


def test_skipped_module_fails_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(SKIPPED_MODULE)
    result = run_pytest(tmp_path, "-p", "tests.no_skip")
    assert result.returncode != 0
    assert "no module" in result.stdout


def test_without_the_plugin_a_skipped_test_passes(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    assert run_pytest(tmp_path).returncode == 0
