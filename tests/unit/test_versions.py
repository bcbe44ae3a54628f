"""scripts/versions: the Pythons that it finds, and what it prints of their tests."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


def add_python(path: Path, version: str, tests: str = "1 passed in 0.1s") -> None:
    """Create a program that answers the script as a Python of this version does.

    Args:
        path: the program.
        version: what it says its version is; empty makes it fail like a shim of pyenv.
        tests: the last line of the output of pytest.
    """
    minor = version.rpartition(".")[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "#!/bin/sh\n"
        f'[ -n "{version}" ] || exit 127\n'
        "case $1 in\n"
        f'-V) echo "Python {version}" ;;\n'
        f'-c) echo "{minor} {version} {path}" ;;\n'
        f'-m) echo "PATH=$PATH"; echo "{tests}"; ! echo "{tests}" | grep -q failed ;;\n'
        "esac\n"
    )
    path.chmod(0o755)


def is_readable(directory: str) -> bool:
    """Return True if its programs can be used: PATH may have a directory of root's."""
    return os.access(directory, os.R_OK | os.X_OK)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Create a home directory with the programs of the system in ``bin``."""
    (tmp_path / "bin").mkdir()
    for directory in filter(is_readable, os.environ["PATH"].split(":")):
        for program in Path(directory).glob("[!p]*"):
            link = tmp_path / "bin" / program.name
            if not link.is_symlink():
                link.symlink_to(program)
    return tmp_path


def versions(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", CHECKOUT / "scripts/versions", *words],
        env={"PATH": f"{home}/bin", "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


def install(home: Path, name: str, python: Path, **answers: str) -> None:
    """Create the environment of a Python, complete and current."""
    where = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHON": str(python)}
    shell = f'. "{CHECKOUT}/scripts/lib.sh"; user_cache'
    cache = subprocess.run(
        ["bash", "-c", shell], env=where, capture_output=True, text=True, check=True
    ).stdout.strip()
    venv = Path(cache, "versions", name)
    add_python(venv / "bin/python", **answers)
    shell = f'. "{CHECKOUT}/scripts/lib.sh"; fingerprint "{venv}" >"{venv}/stamp"'
    subprocess.run(["bash", "-c", shell], env=where, check=True)


def test_one_python_of_each_minor_version_is_found_oldest_first(home: Path) -> None:
    pyenv = home / ".pyenv/versions"
    add_python(home / "bin/python3.13", "3.13.5")
    add_python(home / "bin/python3.11", "3.11.2")
    add_python(home / "bin/python3.12", "")
    add_python(home / "bin/python3.11-config", "3.15.0")
    for version in ("3.11.9", "3.12.9", "3.12.10"):
        add_python(pyenv / version / "bin/python3", version)
    assert versions(home, "--list").stdout.splitlines() == [
        f"3.11 3.11.2 {home}/bin/python3.11",
        f"3.12 3.12.10 {pyenv}/3.12.10/bin/python3",
        f"3.13 3.13.5 {home}/bin/python3.13",
        f"lowest 3.11.2 {home}/bin/python3.11",
    ]


def test_a_machine_without_a_python_is_an_error_of_one_line(home: Path) -> None:
    done = versions(home)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("versions: no Python 3.11 or newer on PATH")
    assert done.stderr.count("\n") == 1


def test_an_unknown_version_is_an_error_that_lists_the_known_ones(home: Path) -> None:
    add_python(home / "bin/python3.11", "3.11.2")
    done = versions(home, "3.9")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "versions: 3.9: not found. Choose from: 3.11 lowest\n"


def test_each_environment_has_a_line_with_its_tests_and_time(home: Path) -> None:
    python = home / "bin/python3.11"
    add_python(python, "3.11.2")
    tests = "7 passed, 2 skipped in 3.21s (0:00:03)"
    install(home, "3.11", python, version="3.11.2", tests=tests)
    install(home, "lowest", python, version="3.11.2", tests="9 passed in 1.00s")
    done = versions(home)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert re.fullmatch(r"3\.11\.2 +ok  7 passed, 2 skipped, \d+\.\d s", first)
    assert re.fullmatch(r"3\.11\.2 lowest +ok  9 passed, \d+\.\d s", second)
    assert versions(home, "lowest").stdout.startswith("3.11.2 lowest ")


def test_a_failure_shows_all_output_and_does_not_stop_the_others(home: Path) -> None:
    python = home / "bin/python3.11"
    add_python(python, "3.11.2")
    tests = "1 failed, 8 passed in 3.21s"
    install(home, "3.11", python, version="3.11.2", tests=tests)
    install(home, "lowest", python, version="3.11.2")
    done = versions(home)
    assert done.returncode == 1
    path, output, first, second, last = done.stdout.splitlines()
    assert path.startswith(f"PATH={home}/.cache/pyaoe/")
    assert output == tests
    assert re.fullmatch(r"3\.11\.2 +FAILED  1 failed, 8 passed, \d+\.\d s", first)
    assert second.startswith("3.11.2 lowest   ok  1 passed, ")
    assert last == "FAILED: 3.11.2"
