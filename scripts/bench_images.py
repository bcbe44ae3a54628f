"""The disk images that are served, made when they are first asked for."""

from __future__ import annotations

import os
from random import Random
from typing import TYPE_CHECKING, Final

from scripts.bench_load import ADDRESS

if TYPE_CHECKING:
    from pathlib import Path

DISK: Final = 128 << 20
"""Bytes of the disk that is loaded."""
_BLOCK: Final = 1 << 20
_SLOTS: Final = 250
_HEAD: Final = 'force = true\n[defaults]\ninterfaces = ["aoe0"]\nkeep_state = false\n'


def memory_place(room: int) -> str | None:
    """Return a directory in memory with so many bytes to spare, if there is one.

    There the peers are compared, and not how a disk of this machine feels today.
    """
    place = "/dev/shm"  # noqa: S108 - where a directory of our own is made
    if not os.access(place, os.W_OK):
        return None
    there = os.statvfs(place)
    return place if there.f_bavail * there.f_frsize >= room else None


class Images:
    """Disk images in a directory of ours."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def filled(self, size: int = DISK) -> Path:
        """Return an image that has no zeroes that could be left out."""
        path = self.directory / f"filled-{size}.img"
        if not path.exists():
            block = Random(size).randbytes(_BLOCK)  # noqa: S311 - any bytes will do
            with path.open("wb") as file:
                for _ in range(size // _BLOCK):
                    file.write(block)
        return path

    def sparse(self, size: int, number: int = 0) -> Path:
        """Return an image that is all hole, one of several of that size."""
        path = self.directory / f"sparse-{size}-{number}.img"
        if not path.exists():
            with path.open("wb") as file:
                file.truncate(size)
        return path

    def config(self, exports: int) -> Path:
        """Return a configuration of so many exports, of which the last is loaded."""
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
