"""User accounts for tests of privileges, and /proc/PID/status."""

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
"""False in a user namespace that maps a single uid, where CI also runs the tests."""
OTHER_USER: Final = (
    "nobody" if IS_ROOT and HAS_NOBODY else f"{os.getuid()}:{os.getgid()}"
)
"""A user that the tests can change to: nobody, or if not permitted the current one."""


def process_status(pid: int | str) -> dict[str, str]:
    """Return /proc/PID/status as a dict; runs of spaces become one."""
    return read_status(Path(f"/proc/{pid}/status").read_text("utf-8"))


def read_status(text: str) -> dict[str, str]:
    """Parse the text of such a file."""
    lines = (line.partition(":") for line in text.splitlines())
    return {name: " ".join(value.split()) for name, _, value in lines}
