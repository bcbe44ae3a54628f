"""Files that both programs read and make stable."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def sync_directory(path: Path) -> None:
    """Make the names in a directory stable, after a rename for example.

    Raises:
        OSError: it cannot be opened or flushed.
    """
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_attribute(path: Path) -> str:
    """Return a file of /sys or /proc without the final newline; empty if unreadable."""
    try:
        return path.read_text(errors="surrogateescape").strip("\n")
    except OSError:
        return ""
