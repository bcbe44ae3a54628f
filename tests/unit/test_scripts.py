"""The shell library of the scripts, get_pip, and shellcheck."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import get_pip
from tests.requirements import need_user_namespaces, program
from tests.serving import TIMEOUT

CHECKOUT = Path(__file__).resolve().parents[2]
SHELL = (
    *(f"scripts/{name}" for name in ("lib.sh", "venv", "test", "check", "demo")),
    *("scripts/bench", "scripts/diagrams", "scripts/frozen", "scripts/fuzz"),
    *("scripts/fuzz_answers", "scripts/killtest", "scripts/manpages"),
    *("scripts/commit_msg", "scripts/mutants", "scripts/release"),
    *("scripts/rule_index", "scripts/soak", "scripts/versions"),
    ".ci/run",
)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Create an index in a directory, with an empty page for pip."""
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip/index.html").touch()
    return tmp_path


def offer(index: Path, name: str, attributes: str = "") -> None:
    """Add a link to the index's page."""
    with (index / "pip/index.html").open("a") as page:
        page.write(f'<a href="../files/{name}" {attributes}>{name}</a>\n')


def run_lib(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a shell that has sourced scripts/lib.sh."""
    return subprocess.run(
        ["bash", "-euc", f'. "{CHECKOUT}/scripts/lib.sh"; {command}'],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_newest_release_of_pip_is_selected(index: Path) -> None:
    for version in ("9.0.3", "25.1", "26.3", "27.0b1", "26.2.1"):
        offer(index, f"pip-{version}-py3-none-any.whl")
    offer(index, "pip-99.0.tar.gz")
    wheel = get_pip.newest_wheel(index.as_uri())
    assert wheel.version == (26, 3)
    assert wheel.url == f"{index.as_uri()}/files/pip-26.3-py3-none-any.whl"


def test_yanked_and_incompatible_releases_are_ignored(index: Path) -> None:
    offer(index, "pip-25.1-py3-none-any.whl", 'data-requires-python="&gt;=3.9"')
    offer(index, "pip-26.0-py3-none-any.whl", 'data-yanked="broken"')
    offer(index, "pip-27.0-py3-none-any.whl", 'data-requires-python="&gt;=3.99"')
    assert get_pip.newest_wheel(index.as_uri()).version == (25, 1)


def test_index_without_pip_is_an_error(index: Path) -> None:
    with pytest.raises(ValueError, match="no pip for this Python"):
        get_pip.newest_wheel(index.as_uri())


def test_wheel_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "pip-26.3-py3-none-any.whl"
    wheel.write_bytes(b"as published")
    digest = hashlib.sha256(b"as published").hexdigest()
    assert get_pip.download(f"{wheel.as_uri()}#sha256={digest}") == b"as published"
    wheel.write_bytes(b"modified")
    with pytest.raises(ValueError, match="checksum"):
        get_pip.download(f"{wheel.as_uri()}#sha256={digest}")


def test_configured_index_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    assert get_pip.setting("index-url", get_pip.PYPI) == "https://pypi.org/simple"
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://from.file/simple\n"
    )
    assert get_pip.setting("index-url") == "https://from.file/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "https://from.environment/simple")
    assert get_pip.setting("index-url") == "https://from.environment/simple"


def test_unreachable_index_is_a_one_line_error_with_a_fix(tmp_path: Path) -> None:
    # get_pip runs with the Python of an environment; this one is created without pip.
    command = [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")]
    subprocess.run(command, check=True)
    result = subprocess.run(
        [tmp_path / "venv/bin/python", CHECKOUT / "scripts/get_pip.py"],
        env={"PIP_INDEX_URL": (tmp_path / "nowhere").as_uri()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(
        f"get_pip: cannot download pip from {tmp_path.as_uri()}/nowhere: "
    )
    assert line.endswith("Or install ensurepip with: apt install python3-venv")


def test_successful_step_prints_one_line() -> None:
    result = run_lib("step lint echo much to say")
    assert result.returncode == 0
    assert re.fullmatch(r"lint +ok +\d+\.\d s\n", result.stdout)


def test_failed_step_prints_its_output() -> None:
    result = run_lib("step lint sh -c 'echo here; echo there >&2; exit 3'")
    assert result.returncode == 3
    line, *output = result.stdout.splitlines()
    assert re.fullmatch(r"lint +FAILED +\d+\.\d s", line)
    assert output == ["here", "there"]


def test_user_cache_is_in_the_cache_directory(tmp_path: Path) -> None:
    cache = run_lib("user_cache", HOME=str(tmp_path)).stdout.strip()
    assert Path(cache).is_dir()
    assert Path(cache).parent == tmp_path / ".cache/pyaoe"
    result = run_lib("user_cache", HOME="/", XDG_CACHE_HOME=str(tmp_path))
    assert Path(result.stdout.strip()).parent == tmp_path / "pyaoe"


def test_user_cache_fails_without_a_home() -> None:
    result = run_lib("user_cache")
    assert (result.returncode, result.stdout) == (1, "")


def test_environment_is_stale_after_python_or_requirements_changed(
    tmp_path: Path,
) -> None:
    root, venv = tmp_path / "checkout", tmp_path / "venv"
    root.mkdir()
    (root / "pyproject.toml").write_text("one")
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to(sys.executable)
    here = f"root='{root}'; venv='{venv}'; "
    assert run_lib(f'{here} fresh "$venv"').returncode == 1
    assert run_lib(f'{here} fingerprint "$venv" >"$venv/stamp"').returncode == 0
    assert run_lib(f'{here} fresh "$venv"').returncode == 0
    (root / "pyproject.toml").write_text("two")
    assert run_lib(f'{here} fresh "$venv"').returncode == 1
    (root / "pyproject.toml").write_text("one")
    assert run_lib(f'{here} fresh "$venv"').returncode == 0
    (venv / "bin/python").unlink()
    assert run_lib(f'{here} fresh "$venv"').returncode == 1


def test_read_only_checkout_has_its_environment_in_the_cache_directory(
    tmp_path: Path,
) -> None:
    need_user_namespaces()
    scripts = tmp_path / "checkout/scripts"
    scripts.mkdir(parents=True)
    shutil.copy(CHECKOUT / "scripts/lib.sh", scripts)
    # Without the last two functions it would be created.
    script = """
        mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"
        . "$1/scripts/lib.sh"
        fresh() { return 1; }
        step() { echo "$1"; }
        prepare
        echo "$VIRTUAL_ENV"
    """
    done = subprocess.run(
        [*("unshare", "-Urm", "bash", "-euc"), script, "bash", scripts.parent],
        env={"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    step, venv = done.stdout.splitlines()
    assert step == "environment"
    assert Path(venv).is_relative_to(tmp_path / "cache/pyaoe")


FAKE_PYTHON = """#!/bin/sh
case "$*" in
    -V) echo Python 3.11.0 ;;
    -c*) echo "$0" ;;
    "-m venv"*) mkdir -p "$5/bin" && cp "$0" "$5/bin/python" ;;
    *--editable*) sleep 0.5; echo installed >>"$LOG" ;;
esac
"""


def test_two_first_runs_at_once_create_one_environment(tmp_path: Path) -> None:
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    command = [CHECKOUT / "scripts/venv", tmp_path / "venv"]
    variables = {"PATH": os.environ["PATH"], "PYTHON": str(python), "LOG": str(log)}
    runs = [subprocess.Popen(command, env=variables) for _ in range(2)]
    assert [run.wait(TIMEOUT) for run in runs] == [0, 0]
    assert log.read_text() == "installed\n"


@pytest.mark.parametrize("script", SHELL)
def test_shellcheck_finds_nothing(script: str) -> None:
    command = [program("shellcheck"), script]
    result = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert result.stdout == ""
    assert result.returncode == 0
