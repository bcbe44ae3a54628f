"""The disk images for the servers, created on first use."""

from __future__ import annotations

import os
from random import Random
from typing import TYPE_CHECKING, Final

from scripts.bench_load import ADDRESS

if TYPE_CHECKING:
    from pathlib import Path

DISK: Final = 128 << 20
"""Bytes of the disk under load."""
_BLOCK: Final = 1 << 20
_SLOTS: Final = 250
_HEAD: Final = 'force = true\n[defaults]\ninterfaces = ["aoe0"]\nkeep_state = false\n'


def memory_directory(size: int) -> str | None:
    """Return a directory in memory with ``size`` bytes free, or None.

    In memory, the speed of this machine's disk does not affect the comparison.
    """
    directory = "/dev/shm"  # noqa: S108 - the images go into a new directory inside
    if not os.access(directory, os.W_OK):
        return None
    status = os.statvfs(directory)
    return directory if status.f_bavail * status.f_frsize >= size else None


class Images:
    """Disk images in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def filled(self, size: int = DISK) -> Path:
        """Return an image of random data, so that copies cannot skip zeroes."""
        path = self.directory / f"filled-{size}.img"
        if not path.exists():
            block = Random(size).randbytes(_BLOCK)  # noqa: S311 - not for cryptography
            with path.open("wb") as file:
                for _ in range(size // _BLOCK):
                    file.write(block)
        return path

    def sparse(self, size: int, number: int = 0) -> Path:
        """Return a sparse image; ``number`` selects one of several of that size."""
        path = self.directory / f"sparse-{size}-{number}.img"
        if not path.exists():
            with path.open("wb") as file:
                file.truncate(size)
        return path

    def config(self, exports: int) -> Path:
        """Return a configuration file with ``exports`` exports; the last is loaded."""
        path = self.directory / f"{exports}.toml"
        shelf = int(ADDRESS.partition(".")[0])
        small = (
            _export(
                f"{shelf + 1 + number // _SLOTS}.{number % _SLOTS}",
                self.sparse(_BLOCK, number),
            )
            for number in range(exports - 1)
        )
        path.write_text(_HEAD + "".join(small) + _export(ADDRESS, self.filled()))
        return path


def _export(address: str, path: Path) -> str:
    return f'[[export]]\naddress = "e{address}"\npath = "{path}"\n'
