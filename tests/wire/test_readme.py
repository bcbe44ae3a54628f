"""What README shows is what one sees, and its examples are tests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.consoles import Console, is_like, steps
from tests.programs import AOE_TARGET
from tests.requirements import need, program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from initiator.pytest_plugin import ServedDisk

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.netns

CHECKOUT = Path(__file__).parents[2]
README = (CHECKOUT / "README.md").read_text()
API = (CHECKOUT / "initiator/README.md").read_text().partition("\n## API\n")[2]
PROGRAMS = re.findall(r"```python\n((?:from initiator|import).*?)```", API, re.DOTALL)


@pytest.mark.usefixtures("wire")  # where no namespaces can be made, it skips
def test_the_demo_looks_as_it_is_shown(tmp_path: Path) -> None:
    need("mkfs.ext4")
    (shown,) = re.findall(
        r"```text\n(1  Create two network namespaces.*?)```", README, re.DOTALL
    )
    # On a busy machine a frame may be sent again, and show; not each time.
    assert any(is_like(seen, shown) for seen in demos(tmp_path))


def demos(place: Path) -> Iterator[str]:
    """Run the demo up to three times and yield what it prints."""
    demo = str(CHECKOUT / "scripts/demo.py")
    for _ in range(3):
        yield subprocess.run(
            [sys.executable, demo, "--pcap", "demo.pcapng"],
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        ).stdout


def test_its_commands_print_what_it_says(tmp_path: Path) -> None:
    shown = list(steps(README))
    assert shown
    with Console(tmp_path) as console:
        for step in shown:
            printed = console.run(step)
            assert is_like(printed, step.printed), (step.command, printed)


def test_its_tests_pass(pytester: pytest.Pytester) -> None:
    (example,) = re.findall(r"```python\n(def test_.*?)```", README, re.DOTALL)
    pytester.makepyfile(example)
    pytester.runpytest_subprocess().assert_outcomes(passed=example.count("def test_"))


def test_its_python_runs(aoe_disk: ServedDisk) -> None:
    (example,) = re.findall(r"```python\n(from initiator.*?)```", README, re.DOTALL)
    here = example.replace('"eth0"', f'"{aoe_disk.interface}"')
    done = aoe_disk.run([sys.executable, "-c", here], cwd=CHECKOUT)
    assert done.stdout == f"{aoe_disk.size} b'hello'\n"


def test_the_tests_of_the_api_reference_pass(pytester: pytest.Pytester) -> None:
    (example,) = re.findall(r"```python\n(def test_.*?)```", API, re.DOTALL)
    pytester.makepyfile(example)
    pytester.runpytest_subprocess().assert_outcomes(passed=example.count("def test_"))


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_a_program_of_the_api_reference_runs(aoe_disk: ServedDisk, number: int) -> None:
    program = PROGRAMS[number].replace('"eth0"', f'"{aoe_disk.interface}"')
    with aoe_disk.path.open("r+b") as image:
        image.write(b"disk")
    done = aoe_disk.run([sys.executable, "-c", program], cwd=CHECKOUT)
    size = aoe_disk.size
    expected = {
        "disk.read(1000, 5)": f"{size} b'hello'\n",
        "file.read(5)": "b'hello'\n",
        "AsyncDisk.open": f"{size} b'hello'\n",
        "deadsecs=10": "b'disk'\n",
        "Wire(mtu=9000)": "aoe0@",
    }
    (printed,) = [text for part, text in expected.items() if part in program] or [""]
    assert printed in done.stdout


def test_the_api_reference_has_a_program_for_each_class() -> None:
    text = "".join(PROGRAMS).replace(".open", "")
    for name in ("Disk", "DiskFile", "AsyncDisk", "Options", "Wire"):
        assert f"{name}(" in text


def test_cap_net_raw_is_all_it_takes(aoe_disk: ServedDisk, tmp_path: Path) -> None:
    """As a container with --cap-add NET_RAW has it; the image is our own."""
    only = [program("setpriv"), "--bounding-set=-all,+net_raw", "--inh-caps=-all"]
    data, wire = tmp_path / "data", aoe_disk.wire
    data.write_bytes(b"x" * 4096)
    serve = [*AOE_TARGET, "serve", "e7.3", wire.interface, str(tmp_path / "disk")]
    target = wire.target.popen(
        [*only, *serve, "--create", "1M"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert target.stdout is not None
    assert target.stdout.readline().startswith("e7.3 ")
    done = aoe_disk.run([*only, "aoe", "copy", str(data), "e7.3", "--verify"])
    assert "verified" in done.stdout
    assert (tmp_path / "disk").read_bytes()[:4096] == data.read_bytes()
