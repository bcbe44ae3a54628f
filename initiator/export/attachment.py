"""Expose a disk as a file, a block device or a mount, and undo that.

::

    DiskThread -> FuseMount -> LoopDevice -> mount
       e0.0        a file      /dev/loop0    a directory

Each layer needs the ones to its left. ``attach`` builds them from left to right,
``detach`` removes them from right to left. ``detach`` also runs when a user unmounts
the directory. It changes nothing while a process has the disk in use.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from initiator.export.fuse import FuseMount
from initiator.export.loop import LoopDevice
from initiator.export.mounts import busy_error, is_in_use, mount, mounts_of, unmount

if TYPE_CHECKING:
    from collections.abc import Callable

    from initiator.export.disk_thread import DiskThread

_RUN: Final = Path("/run")
_LOOP_TIMEOUT: Final = 10.0
"""Seconds for a loop device to close its backing file after its last close."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachSpec:
    """The options of an attachment.

    Args:
        file: path of the FUSE file; None: a file in a temporary directory.
        loop: set up a loop device as well.
        directory: where to mount the file system; None: do not mount.
        fstype: type of the file system; empty: mount(8) detects it.
        options: options for mount(8), separated by commas.
        read_only: refuse writes.
    """

    file: Path | None = None
    loop: bool = False
    directory: Path | None = None
    fstype: str = ""
    options: str = ""
    read_only: bool = False


class Attachment:
    """A disk that is exposed from ``attach`` to ``detach``.

    Args:
        disk: the disk; its thread is running.
        spec: what to set up.
        on_unmount: called, in any thread, when another program has unmounted it.

    Attributes:
        file: path of the FUSE file.
        device: path of the loop device, or None.
    """

    def __init__(
        self, disk: DiskThread, spec: AttachSpec, on_unmount: Callable[[], None]
    ) -> None:
        self.file: Path | None = None
        self.device: Path | None = None
        self._disk = disk
        self._spec = spec
        self._on_unmount = on_unmount
        self._temporary: Path | None = None
        self._fuse: FuseMount | None = None
        self._loop: LoopDevice | None = None

    def attach(self) -> None:
        """Set up all layers; remove those that exist if one fails.

        Raises:
            AoEError: a layer could not be set up.
        """
        spec = self._spec
        try:
            self.file = spec.file or self._make_temporary()
            self._fuse = FuseMount(
                self._disk,
                self.file,
                read_only=spec.read_only,
                on_last_close=self._on_last_close,
                on_unmount=self._on_unmount,
            )
            if spec.loop or spec.directory is not None:
                self._loop = LoopDevice(self.file, read_only=spec.read_only)
                self.device = self._loop.path
                self._mount(self.device)
        except BaseException:
            self._undo()
            raise

    def _make_temporary(self) -> Path:
        parent = _RUN if os.access(_RUN, os.W_OK) else None
        self._temporary = Path(tempfile.mkdtemp(prefix="aoe-", dir=parent))
        return self._temporary / str(self._disk.disk.address)

    def _mount(self, device: Path) -> None:
        spec = self._spec
        if spec.directory is None:
            return
        mount(
            device,
            spec.directory,
            fstype=spec.fstype,
            options=spec.options,
            read_only=spec.read_only,
        )
        if self._loop is not None and not spec.loop:
            # The mount is now the only user of the loop device, which therefore
            # disappears on umount (LO_FLAGS_AUTOCLEAR).
            self._loop.close()

    def _on_last_close(self) -> None:
        if self._spec.directory is not None and not self._is_mounted():
            self._on_unmount()

    def _is_mounted(self) -> bool:
        directory, device = self._spec.directory, self.device
        return directory is not None and directory in mounts_of(device)

    def detach(self, *, lazy: bool = False) -> None:
        """Remove all layers. Do nothing if they are removed already.

        Args:
            lazy: detach from the directory tree now, and remove the layers after the
                last close; ``join`` waits for that.

        Raises:
            BusyError: a process has it in use. Nothing has changed, except that the
                directory may be unmounted here and still be mounted in another mount
                namespace; the message says so.
            AoEError: umount failed.
        """
        if self._fuse is None:
            return
        if not lazy:
            self._check_unused()
        directory = self._spec.directory
        if directory is not None and self._is_mounted():
            unmount(directory, lazy=lazy)
        if self._loop is not None:
            self._loop.close()
        if not lazy and self.device is not None and not self._fuse.wait(_LOOP_TIMEOUT):
            raise busy_error(self.device)
        self._fuse.unmount(lazy=lazy)
        if not lazy:
            self.join()

    def _check_unused(self) -> None:
        for path in (self.device, self.file):
            if path is not None and is_in_use(path, except_mount=self._spec.directory):
                raise busy_error(path)

    def join(self) -> None:
        """Wait for the last close, then remove file and temporary directory."""
        if self._fuse is not None:
            self._fuse.join()
            self._fuse = None
        if self._temporary is not None:
            self._temporary.rmdir()
            self._temporary = None

    def _undo(self) -> None:
        if self._loop is not None:
            self._loop.close()
        if self._fuse is not None:
            self._fuse.wait(_LOOP_TIMEOUT)
            self._fuse.unmount(lazy=True)
        self.join()
