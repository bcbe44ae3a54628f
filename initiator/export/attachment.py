"""A disk put where programs find it, and taken away again.

::

    DiskThread -> FuseMount -> LoopDevice -> mount
       e0.0        a file      /dev/loop0    a directory

What stands on the right needs all to its left. It is made from left to right, and
undone from right to left: for any reason, a user who unmounts the directory by himself
among them. Who uses it keeps it: then nothing is undone at all.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from initiator.export.fuse import FuseMount
from initiator.export.loop import LoopDevice
from initiator.export.mounts import busy, has_users, mount, mounts_of, unmount

if TYPE_CHECKING:
    from collections.abc import Callable

    from initiator.export.disk_thread import DiskThread

_RUN: Final = Path("/run")
_RELEASE: Final = 10.0
"""Seconds that a loop device gets to go when its last user has gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a disk is to be found.

    Args:
        file: a file that is the disk; one of our own, if None.
        loop: as a block device, too.
        directory: mounted there; None for nowhere.
        fstype: of what kind the file system is; empty is what mount(8) finds.
        options: for mount(8), separated by commas.
        read_only: nothing may be written.
    """

    file: Path | None = None
    loop: bool = False
    directory: Path | None = None
    fstype: str = ""
    options: str = ""
    read_only: bool = False


class Attachment:
    """A disk at its place, from ``attach`` to ``detach``.

    Args:
        disk: the disk, whose thread runs.
        place: where to.
        left: called, in some thread, when others have unmounted what was attached.

    Attributes:
        file: the file that is the disk.
        device: the block device, if there is one.
    """

    def __init__(
        self, disk: DiskThread, place: Place, left: Callable[[], None]
    ) -> None:
        self.file: Path | None = None
        self.device: Path | None = None
        self._disk = disk
        self._place = place
        self._left = left
        self._room: Path | None = None
        self._fuse: FuseMount | None = None
        self._loop: LoopDevice | None = None

    def attach(self) -> None:
        """Make it all, or nothing.

        Raises:
            AoEError: something could not be made.
        """
        place = self._place
        try:
            self.file = place.file or self._make_room()
            self._fuse = FuseMount(
                self._disk,
                self.file,
                read_only=place.read_only,
                closed=self._closed,
                ended=self._left,
            )
            if place.loop or place.directory is not None:
                self._loop = LoopDevice(self.file, read_only=place.read_only)
                self.device = self._loop.path
                self._mount(self.device)
        except BaseException:
            self._undo()
            raise

    def _make_room(self) -> Path:
        where = _RUN if os.access(_RUN, os.W_OK) else None
        self._room = Path(tempfile.mkdtemp(prefix="aoe-", dir=where))
        return self._room / str(self._disk.disk.address)

    def _mount(self, device: Path) -> None:
        place = self._place
        if place.directory is None:
            return
        mount(
            device,
            place.directory,
            fstype=place.fstype,
            options=place.options,
            read_only=place.read_only,
        )
        if self._loop is not None and not place.loop:
            # From now on the mount keeps it; and it goes with the mount.
            self._loop.close()

    def _closed(self) -> None:
        if self._place.directory is not None and not self._is_mounted():
            self._left()

    def _is_mounted(self) -> bool:
        directory, device = self._place.directory, self.device
        return directory is not None and directory in mounts_of(device)

    def detach(self, *, lazy: bool = False) -> None:
        """Undo it all, or nothing. Once it is done, do it again for no effect.

        Args:
            lazy: out of sight at once, and gone with the last user: see ``join``.

        Raises:
            BusyError: somebody uses it. Nothing has changed; unless, as it says, the
                directory is unmounted here and is not elsewhere.
            AoEError: umount failed.
        """
        if self._fuse is None:
            return
        if not lazy:
            self._look_for_users()
        directory = self._place.directory
        if directory is not None and self._is_mounted():
            unmount(directory, lazy=lazy)
        if self._loop is not None:
            self._loop.close()
        if not lazy and self.device is not None and not self._fuse.wait(_RELEASE):
            raise busy(self.device)
        self._fuse.unmount(lazy=lazy)
        if not lazy:
            self.join()

    def _look_for_users(self) -> None:
        for path in (self.device, self.file):
            if path is not None and has_users(path, but=self._place.directory):
                raise busy(path)

    def join(self) -> None:
        """Wait until the last user is gone, and take away what was made."""
        if self._fuse is not None:
            self._fuse.join()
            self._fuse = None
        if self._room is not None:
            self._room.rmdir()
            self._room = None

    def _undo(self) -> None:
        if self._loop is not None:
            self._loop.close()
        if self._fuse is not None:
            self._fuse.wait(_RELEASE)
            self._fuse.unmount(lazy=True)
        self.join()
