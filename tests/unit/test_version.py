from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from aoe.common.version import release

CHECKOUT = Path(__file__).resolve().parents[2]


def test_release_is_that_of_the_installed_package() -> None:
    assert release() == importlib.metadata.version("pyaoe")


@pytest.mark.parametrize("program", ["target", "initiator"])
def test_release_of_a_checkout_that_is_not_installed_is_empty(program: str) -> None:
    # With -S, Python finds no installed packages.
    probe = (
        f"import {program}; from aoe.common.version import release; print(release())"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", probe],
        cwd=CHECKOUT,
        env={},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "\n"
