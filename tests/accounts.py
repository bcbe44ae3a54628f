"""Whom the tests can become, and whom they cannot."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Final

NOBODY: Final = pwd.getpwnam("nobody")
IS_ROOT: Final = os.geteuid() == 0
HAS_NOBODY: Final = any(
    int(first) <= NOBODY.pw_uid < int(first) + int(count)
    for first, _, count in map(
        str.split, Path("/proc/self/uid_map").read_text("ascii").splitlines()
    )
)
"""False in a user namespace with one user, where CI runs the tests too."""
SOMEBODY: Final = "nobody" if IS_ROOT and HAS_NOBODY else f"{os.getuid()}:{os.getgid()}"
"""Whom we can become, somebody else if there is one."""


def process_status(pid: int | str) -> dict[str, str]:
    """Return what /proc/PID/status says, spaces made one."""
    return read_status(Path(f"/proc/{pid}/status").read_text("utf-8"))


def read_status(text: str) -> dict[str, str]:
    """Return the lines of such a file by their names."""
    lines = (line.partition(":") for line in text.splitlines())
    return {name: " ".join(value.split()) for name, _, value in lines}
