from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from target.cli.commands.serve import serve
from tests.requirements import program

UNITS = Path(__file__).resolve().parents[2] / "target/systemd"
ONE, MANY = (UNITS / f"aoe-target{at}.service" for at in ("", "@"))
every_unit = pytest.mark.parametrize("unit", [ONE, MANY], ids=["one", "many"])


def values(unit: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit.read_text(), re.MULTILINE)


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("systemd-analyze"), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Return a directory with the units, with commands of this virtual environment.

    systemd searches only system directories for a command without a path.
    """
    here = Path(sys.executable).parent
    for unit in (ONE, MANY):
        text = unit.read_text()
        text = re.sub("^(Exec[A-Za-z]+=)", rf"\g<1>{here}/", text, flags=re.MULTILINE)
        (tmp_path / unit.name.replace("@", "@lab")).write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", ["aoe-target.service", "aoe-target@lab.service"])
def test_systemd_analyze_verify_accepts_the_units(installed: Path, name: str) -> None:
    done = analyze("verify", "--man=no", str(installed / name))
    assert done.stderr == ""
    assert done.returncode == 0


@every_unit
def test_systemd_analyze_security_score(unit: Path) -> None:
    # 2.0 of 10 is the score of raw sockets, network and block devices.
    done = analyze("security", "--offline=yes", "--threshold=20", str(unit))
    assert done.returncode == 0, done.stdout


def test_template_unit_differs_only_in_instance_paths() -> None:
    expected = (
        ONE.read_text()
        .replace("ATA over Ethernet target", "ATA over Ethernet target %I")
        .replace("/etc/aoe-target.toml", "/etc/aoe-target/%i.toml")
        .replace("/var/lib/aoe-target", "/var/lib/aoe-target-%i")
    )
    expected = re.sub(
        "(?<=Directory=)aoe-target$", "aoe-target-%i", expected, flags=re.MULTILINE
    )
    assert MANY.read_text() == expected


@every_unit
def test_unit_command_is_valid(unit: Path) -> None:
    [command] = values(unit, "ExecStart")
    program, verb, *words = command.split()
    assert (program, verb) == ("aoe-target", "serve")
    context = serve.make_context("serve", words)
    assert context.params["config"] is not None
