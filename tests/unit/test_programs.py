"""Our programs import our modules, whatever is in the working directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import AOE, AOE_TARGET

CHECKOUT = Path(__file__).resolve().parents[2]
AS_CHILDREN = {"aoe": AOE, "aoe-target": AOE_TARGET}
TYPED = {
    "-m initiator": [sys.executable, "-m", "initiator"],
    "-m target": [sys.executable, "-m", "target"],
    "target/__main__.py": [sys.executable, str(CHECKOUT / "target/__main__.py")],
}
OURS = ("aoe", "initiator", "target")
COMMON = ("bisect", "hashlib", "json", "nt", "select", "signal", "socket", "click")


def leave_modules(directory: Path, *names: str) -> None:
    """Create modules that must not be imported."""
    for name in names:
        path = directory / f"{name}.py"
        path.write_text(f"raise SystemExit({f'{name} of the user'!r})\n")


def run(directory: Path, *command: str, path: Path = CHECKOUT) -> str:
    """Run a command that prints the version; return the modules that it loads."""
    done = subprocess.run(
        [*command, "--version"],
        cwd=directory,
        env={"PYTHONPATH": str(path), "PYTHONVERBOSE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-200:]
    assert "version" in done.stdout
    return done.stderr


@pytest.mark.parametrize("name", AS_CHILDREN)
def test_child_imports_nothing_from_the_working_directory(
    tmp_path: Path, name: str
) -> None:
    leave_modules(tmp_path, *sys.stdlib_module_names, *OURS, "click", "msgspec")
    run(tmp_path, *AS_CHILDREN[name])


@pytest.mark.parametrize("name", TYPED)
def test_typed_command_imports_nothing_else_from_the_working_directory(
    tmp_path: Path, name: str
) -> None:
    """Python itself looks there for the package that -m names."""
    leave_modules(tmp_path, *COMMON)
    run(tmp_path, *TYPED[name])


@pytest.mark.parametrize("name", [*AS_CHILDREN, *TYPED])
def test_command_of_a_checkout_runs_the_files_of_that_checkout(
    tmp_path: Path, name: str
) -> None:
    """Without being installed: by its path, or with -m in its directory."""
    for package in OURS:
        (tmp_path / package).symlink_to(CHECKOUT / package)
    *python, main = (AS_CHILDREN | TYPED)[name]
    there = main.replace(str(CHECKOUT), str(tmp_path))
    loaded = run(tmp_path, *python, there, path=tmp_path / "none")
    assert f"{tmp_path}/aoe/errors.py" in loaded
