"""Each rule of the protocol that frames can show has a test on a real wire."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
LAST = 79
"""Those behind it, P80 to P83, are about the identity page alone."""


def wire_tests() -> list[str]:
    """Return the names of all tests that send real frames, parameters included."""
    options = ["--collect-only", "-q", "-m", "netns", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, "tests/wire"]
    done = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (line.partition("::") for line in done.stdout.splitlines())
    return [name for _, separator, name in lines if separator]


def test_every_rule_has_a_wire_test_with_its_number_in_the_name() -> None:
    tested = {
        int(number)
        for name in wire_tests()
        for number in re.findall(r"(?<![a-z0-9])p([0-9]+)(?![a-z0-9])", name)
    }
    assert set(range(1, LAST + 1)) - tested == set()
