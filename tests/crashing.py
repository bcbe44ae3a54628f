"""A host of a target that crashes: it loses what was not flushed, and its boot ID.

The image is a file of a FUSE file system in this process, which keeps what was written
and not synced in memory. A crash kills the target, and drops a part of that at random.
"""

from __future__ import annotations

import subprocess
import threading
import uuid
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from aoe.errors import DeviceError
from initiator.export.fuse import FuseMount
from tests.programs import AOE_TARGET
from tests.serving import NO_PROBE, finish, ready_line, run
from tests.volatile_disk import VolatileDisk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from random import Random

    from aoe.net.netns import Wire
    from initiator.export.disk_thread import DiskThread

_STARTS = 2
"""How often the target can be started."""
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class VolatileFile:
    """The contents of the image; the interface that ``FuseMount`` needs of a disk."""

    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self.disk = SimpleNamespace(address="image", discard_zeroes_data=True)
        self.lost = 0
        """Sectors that crashes have lost."""
        self._volatile = VolatileDisk(self.size)
        self._volatile.stable[:] = self._volatile.cached[:] = content
        self._lock = threading.Lock()
        self._is_frozen = False

    @property
    def stable(self) -> bytes:
        return bytes(self._volatile.stable)

    def read(self, offset: int, length: int) -> bytearray:
        buffer = bytearray(length)
        with self._lock:
            self._volatile.read_into(offset, memoryview(buffer))
        return buffer

    def write(self, offset: int, data: bytes) -> None:
        with self._lock:
            self._volatile.write_from(offset, memoryview(data))

    def trim(self, offset: int, length: int) -> None:
        with self._lock:
            self._volatile.discard(offset, length)

    def flush(self) -> None:
        with self._lock:
            if self._is_frozen:
                # A killed process closes its files, which would flush them.
                raise DeviceError("image", "the host has crashed")
            self._volatile.flush()

    def freeze(self) -> None:
        """Make nothing stable any more, until ``lose``."""
        with self._lock:
            self._is_frozen = True

    def lose(self, rng: Random) -> None:
        """Lose a part of what is not stable."""
        with self._lock:
            volatile = self._volatile
            before = bytes(volatile.cached)
            volatile.lose_power(rng)
            self.lost += sum(
                before[at : at + 512] != volatile.stable[at : at + 512]
                for at in range(0, self.size, 512)
            )
            self._is_frozen = False


class CrashingHost:
    """A target, served from an image on a host that can crash.

    Args:
        wire: the target's network.
        directory: for the image and the boot ID.
        file: the contents of the image.
    """

    def __init__(self, wire: Wire, directory: Path, file: VolatileFile) -> None:
        self._wire = wire
        self._file = file
        self._boot = directory / "boot_id"
        self.image = directory / "image"
        self._process: subprocess.Popen[str] | None = None
        # Started before a client has a file of the target open: a new process closes
        # its copy, which flushes the file, and would wait for itself.
        self._waiting = [self._spawn() for _ in range(_STARTS)]

    def _spawn(self) -> subprocess.Popen[str]:
        script = f'read _ && mount --bind "$0" {_BOOT_ID} && exec "$@" <&-'
        serve = ["serve", "e7.3", self._wire.interface, self.image, NO_PROBE]
        words = [*AOE_TARGET, *map(str, serve), "--no-state"]
        command = ["unshare", "--mount", "sh", "-c", script, str(self._boot), *words]
        return run(self._wire.target, command, stdin=subprocess.PIPE)

    def boot(self) -> None:
        """Boot with a new boot ID, and start the target."""
        self._boot.write_text(f"{uuid.uuid4()}\n")
        self.start()

    def start(self) -> None:
        """Start the target."""
        self._process = self._waiting.pop()
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        ready_line(self._process)

    def kill(self) -> None:
        """Kill the target; its host goes on, and loses nothing."""
        if self._process is not None:
            self._process.kill()
            finish(self._process)
            self._process = None

    def close(self) -> None:
        """Kill the target, and all that were not started."""
        self.kill()
        for process in self._waiting:
            process.kill()
            finish(process)

    def crash(self, rng: Random) -> None:
        """Crash the host."""
        self._file.freeze()
        self.kill()
        self._file.lose(rng)


@contextmanager
def crashing_host(
    wire: Wire, directory: Path, file: VolatileFile
) -> Iterator[CrashingHost]:
    """Boot a host with this image; crash it at the end."""
    mount = FuseMount(
        cast("DiskThread", file),
        directory / "image",
        read_only=False,
        on_last_close=lambda: None,
        on_unmount=lambda: None,
    )
    host = CrashingHost(wire, directory, file)
    try:
        host.boot()
        yield host
    finally:
        host.close()
        # It ends when no mount namespace has a copy of it; that is not waited for.
        mount.unmount(lazy=True)
