"""libnbd as a client: TLS, vsock, structured replies, servers older than 2016.

Its Python binding comes with the system (Debian: ``python3-libnbd``) and never from
PyPI, whose ``nbd`` is another program. It is an extension module: it fits the Python
that it was built for, and an import hook knows which that is. A virtual environment
does not show the system's modules, so they are looked for where the system keeps them,
and these two alone are taken from there.

No call here waits for longer than the deadline, but one: for ``nbds://host`` libnbd
looks the host up whenever it connects.
"""

from __future__ import annotations

import errno
import math
import os
import sys
from contextlib import suppress
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aoe.common.nbd import PAYLOAD, NbdCommand, NbdFlag
from aoe.errors import AccessError, AoEError, NotFoundError
from target.disks.nbd.address import NbdAddress, dial, time_left
from target.disks.nbd.wire import NbdExport, NbdRequest, no_such_export

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

FIX: Final = "Install it with: apt install python3-libnbd"
_VERSION: Final = "python{}.{}".format(*sys.version_info)
_SYSTEM: Final = (
    "/usr/lib/python3/dist-packages",
    f"/usr/lib64/{_VERSION}/site-packages",
    f"/usr/lib/{_VERSION}/site-packages",
)


@cache
def find_libnbd() -> ModuleType | None:
    """Import libnbd's binding, from wherever one is that this Python can load."""
    for folders in (None, *([folder] for folder in _SYSTEM)):
        spec = PathFinder.find_spec("libnbdmod", folders)
        if spec is not None and spec.origin is not None:
            with suppress(ImportError):
                _load(spec)
                found = _load(
                    PathFinder.find_spec("nbd", [str(Path(spec.origin).parent)])
                )
                # Reading into buffers of ours, as in ``_start``, came with 1.14.
                if hasattr(getattr(found, "Buffer", None), "from_buffer"):
                    return found
    return None


def _load(spec: ModuleSpec | None) -> ModuleType:
    # Each of the two looks for the other among the modules that are loaded.
    if spec is None or spec.loader is None:
        raise ImportError
    loaded = sys.modules.get(spec.name)
    if loaded is not None:
        return loaded
    module = sys.modules[spec.name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


class LibnbdConnection:
    """A ``Connection`` by way of libnbd.

    Args:
        library: its binding.
        address: where to.
        deadline: of ``time.monotonic()``.

    Raises:
        OSError: no connection, or it broke.
        AoEError: the server refuses the export, or is none.
    """

    def __init__(
        self, library: ModuleType, address: NbdAddress, deadline: float
    ) -> None:
        self._library = library
        self._handle = library.NBD()
        try:
            if address.places:
                self._handle.set_export_name(address.export)
                line = dial(address, deadline)
                self._handle.aio_connect_socket(line.detach())
            else:
                # A URI comes from whoever started us: it may name keys.
                self._handle.set_uri_allow_local_file(True)
                self._handle.aio_connect_uri(address.uri)
            while not self._handle.aio_is_ready():
                self._advance(deadline)
            self.export = self._facts()
        except library.Error as error:
            self._handle = None
            raise _refusal(address, error) from error
        except BaseException:
            self._handle = None
            raise

    def _facts(self) -> NbdExport:
        handle, library = self._handle, self._library
        answers = {
            NbdFlag.READ_ONLY: handle.is_read_only(),
            NbdFlag.FLUSH: handle.can_flush(),
            NbdFlag.FUA: handle.can_fua(),
            NbdFlag.TRIM: handle.can_trim(),
            NbdFlag.WRITE_ZEROES: handle.can_zero(),
        }
        flags = NbdFlag(sum(flag for flag, is_so in answers.items() if is_so))
        return NbdExport.bounded(
            size=handle.get_size(),
            flags=flags,
            block=handle.get_block_size(library.SIZE_MINIMUM),
            payload=handle.get_block_size(library.SIZE_MAXIMUM) or PAYLOAD,
        )

    def request(self, request: NbdRequest, deadline: float) -> int:
        """Ask, wait for the answer, and return its error number, 0 for success.

        Raises:
            OSError: the connection broke, or took too long; it is of no more use.
        """
        try:
            cookie = self._start(request)
            while not self._handle.aio_command_completed(cookie):
                self._advance(deadline)
        except self._library.Error as error:
            if self._handle.aio_is_ready():
                return int(error.errnum) or errno.EIO
            raise _broken(error) from error
        return 0

    def _start(self, request: NbdRequest) -> int:
        handle, offset = self._handle, request.offset
        match request.command:
            case NbdCommand.READ:
                # No ``nbd.Buffer`` around it: that one is never let go of again.
                started = handle.aio_pread(request.into, offset)
            case NbdCommand.WRITE:
                started = handle.aio_pwrite(request.data, offset, flags=request.flags)
            case NbdCommand.WRITE_ZEROES:
                started = handle.aio_zero(request.length, offset, flags=request.flags)
            case _:
                started = handle.aio_flush()
        return int(started)

    def _advance(self, deadline: float) -> None:
        self._handle.poll(math.ceil(time_left(deadline) * 1000))

    def close(self) -> None:
        """Say goodbye and hang up."""
        with suppress(self._library.Error):
            self._handle.aio_disconnect()
        self._handle = None

    def abandon(self) -> None:
        """Hang up: with the handle goes what it would still have read into a buffer."""
        self._handle = None


def _words(error: Exception) -> str:
    # "nbd_poll: connect: Connection refused": the first name is of a function.
    said = str(error.args[0])
    return said.partition(": ")[2] or said


def _broken(error: Exception) -> OSError:
    number = int(error.args[1])
    if number in (0, errno.ENOTCONN) or "invalid state" in _words(error):
        return ConnectionResetError(errno.ECONNRESET, "the server hung up")
    return OSError(number, os.strerror(number).lower())


def _refusal(address: NbdAddress, error: Exception) -> Exception:
    # What a connection cannot be had for, in our own words where we have some.
    words, number = _words(error), int(error.args[1])
    if words.startswith("connect:"):
        return _broken(error)
    if number == errno.ENOENT and words.startswith("handshake:"):
        return no_such_export(address.export)
    if "requires TLS" in words:
        return AccessError(address.uri, "the server wants TLS", "Write it as nbds://")
    if "refused TLS" in words:
        return AccessError(address.uri, "the server has no TLS", "Write it as nbd://")
    if "gnutls" in words or words.startswith("open:"):
        why = f"no TLS with this server: {words}"
        return AccessError(address.uri, why, "Check the keys on both sides")
    return AoEError(address.uri, words)


def require_libnbd(what: str, why: str) -> ModuleType:
    """Return libnbd's binding.

    Raises:
        NotFoundError: there is none; ``what`` and ``why`` say who wants it.
    """
    library = find_libnbd()
    if library is None:
        raise NotFoundError(what, why, FIX)
    return library
