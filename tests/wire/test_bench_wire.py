"""Short runs of scripts/bench as a command; speeds are not checked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.programs import SIGNALLED
from tests.requirements import need_namespaces, need_user_namespaces, program

pytestmark = pytest.mark.netns

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/bench.py"
TIMEOUT = 120
FAKE_LOAD = """#!/bin/sh
echo "$@" >>"$0.log"
echo '{"iops": 1000, "MBs": 4, "p50": 10, "p99": 20, "retx": 0, "bad": 0, "err": 0}'
"""
FAKE_ECHO = """#!/bin/sh
exec sleep 60
"""


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    """Skip if no namespaces can be created, as root or in a user namespace."""
    if os.geteuid():
        need_user_namespaces()
    else:
        need_namespaces()


def start(*words: object, **variables: str) -> subprocess.Popen[str]:
    command = [*SIGNALLED, sys.executable, str(SCRIPT), *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        stdout=pipe,
        stderr=pipe,
        text=True,
        env={**os.environ, **variables},
        start_new_session=True,
    )


def run(directory: Path, *words: object) -> tuple[str, dict[str, Any]]:
    """Run it with images in a directory; return its table and its JSON."""
    document = directory / "out.json"
    options = ("--quick", "--dir", directory, "--json", document)
    with start(*options, *words) as process:
        output, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, errors) == (0, "")
    # The images are removed.
    assert [path for path in directory.iterdir() if path.is_dir()] == []
    return output, json.loads(document.read_bytes())


def write_program(path: Path, content: str) -> Path:
    path.write_text(content)
    path.chmod(0o755)
    return path


def test_target_and_vblade_are_compared(tmp_path: Path) -> None:
    program("vblade")
    chart = tmp_path / "out.svg"
    output, document = run(tmp_path, "--only", "read-16", "--svg", chart)
    (cell,) = document["results"]
    assert [side["name"] for side in cell["series"]] == ["pyaoe", "vblade"]
    for side in cell["series"]:
        (sample,) = side["samples"]
        assert sample["value"] > 0
        assert sample["details"]["server_cpu_seconds_per_request"] > 0
    (goal,) = cell["goals"]
    assert goal["value"] > 0
    assert f">{goal['value']:.2f}" in chart.read_text()
    assert "4 KiB read, 16 deep, MTU 9000\n  pyaoe " in output


def test_copy_is_compared_with_nbdcopy(tmp_path: Path) -> None:
    program("nbdkit")
    program("nbdcopy")
    _, document = run(tmp_path, "--only", "copy-65535")
    (cell,) = document["results"]
    assert [side["name"] for side in cell["series"]] == ["pyaoe", "nbdcopy"]
    assert all(side["median"] > 0 for side in cell["series"])


def test_cells_without_a_peer(tmp_path: Path) -> None:
    words = ("--only", "memory", "--only", "idle")
    _, document = run(tmp_path, *words)
    memory, idle = document["results"]
    names = ["1 export", "256 exports", "1 TiB"]
    assert [side["name"] for side in memory["series"]] == names
    assert all(side["median"] > 1 << 20 for side in memory["series"])
    assert 0 <= idle["series"][0]["median"] <= 100


def test_external_load_generator_and_echo_target(tmp_path: Path) -> None:
    program("vblade")
    load = write_program(tmp_path / "load", FAKE_LOAD)
    echo = write_program(tmp_path / "echo", FAKE_ECHO)
    words = ("--load", load, "--echo", echo, "--only", "small-64")
    _, document = run(tmp_path, *words)
    (cell,) = document["results"]
    assert [side["name"] for side in cell["series"]] == ["pyaoe", "vblade", "echo"]
    assert [goal["value"] for goal in cell["goals"]] == [1.0, 1.0]
    calls = Path(f"{load}.log").read_text().splitlines()
    assert calls == 3 * [
        "-i aoe0 -t 7.3 -q 64 -n 2 -o read -p rand -S 262144 -T 0.2 -V 0"
    ]


def test_failing_load_generator_is_a_one_line_error(tmp_path: Path) -> None:
    load = write_program(tmp_path / "load", "#!/bin/sh\necho no target >&2; exit 2\n")
    with start(
        "--quick", "--dir", tmp_path, "--load", load, "--only", "exp"
    ) as process:
        _, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, errors) == (1, "bench: load: no target\n")


def processes_with(mark: str) -> list[str]:
    """Return the command lines of processes whose environment contains ``mark``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().decode())
        except OSError:
            continue  # It has exited, or belongs to another user.
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signal_leaves_no_processes_and_no_images(
    tmp_path: Path, number: signal.Signals
) -> None:
    load = write_program(
        tmp_path / "load", '#!/bin/sh\necho >"$0.here"\nexec sleep 600\n'
    )
    words = ("--dir", tmp_path, "--load", load, "--only", "exports")
    with start(*words, PYAOE_MARK=str(tmp_path)) as process:
        while not Path(f"{load}.here").exists():
            assert process.poll() is None
            time.sleep(0.01)
        processes = " ".join(processes_with(f"PYAOE_MARK={tmp_path}"))
        assert "target/__main__.py" in processes
        process.send_signal(number)
        process.communicate(timeout=TIMEOUT)
    expected = {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -number)
    assert process.returncode == expected
    end = time.monotonic() + TIMEOUT
    while remaining := processes_with(f"PYAOE_MARK={tmp_path}"):
        assert time.monotonic() < end, remaining
        time.sleep(0.05)
    if number != signal.SIGKILL:
        assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
