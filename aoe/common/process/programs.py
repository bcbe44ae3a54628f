"""The command lines of pyaoe's own programs, for child processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).parents[3]
_PACKAGES: Final = {"aoe": "initiator", "aoe-target": "target"}


def program_command(name: str) -> list[str]:
    """Return the command that runs ``aoe`` or ``aoe-target`` with this Python.

    It runs the files that this process has imported, and imports nothing from the
    working directory: ``-m`` would prefer a ``target.py`` or ``select.py`` there.
    """
    return [sys.executable, "-P", str(_ROOT / _PACKAGES[name] / "__main__.py")]
