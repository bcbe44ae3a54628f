"""NBD client based on libnbd: TLS, vsock, structured replies, old-style servers.

The Python binding is a system package (Debian: ``python3-libnbd``), not on PyPI, where
``nbd`` is an unrelated project. It is an extension module for one version of Python. A
virtual environment hides the system's packages, so the two modules of the binding, and
no others, are also searched for in the system's directories.

All calls honor the deadline, with one exception: for ``nbds://host`` libnbd resolves
the host name on each connect.
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
from target.disks.nbd.address import NbdAddress, StalledError, connect, remaining_time
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
    """Import libnbd's binding; return None if no usable one is installed."""
    for folders in (None, *([folder] for folder in _SYSTEM)):
        spec = PathFinder.find_spec("libnbdmod", folders)
        if spec is not None and spec.origin is not None:
            with suppress(ImportError):
                _load(spec)
                found = _load(
                    PathFinder.find_spec("nbd", [str(Path(spec.origin).parent)])
                )
                # aio_pread into a caller's buffer, as in ``_start``, needs 1.14.
                if hasattr(getattr(found, "Buffer", None), "from_buffer"):
                    return found
    return None


def _load(spec: ModuleSpec | None) -> ModuleType:
    # The two modules import each other, so each must be in sys.modules.
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
    """A ``Connection`` based on libnbd.

    Args:
        library: the binding's module.
        address: the server and export.
        deadline: of ``time.monotonic()``.

    Raises:
        OSError: the connection failed.
        AoEError: the server refuses the export, or is not an NBD server.
    """

    def __init__(
        self, library: ModuleType, address: NbdAddress, deadline: float
    ) -> None:
        self._library = library
        self._cookie = 0
        self._data = bytearray()
        self._handle = library.NBD()
        try:
            if address.endpoints:
                self._handle.set_export_name(address.export)
                sock = connect(address, deadline)
                self._handle.aio_connect_socket(sock.detach())
            else:
                # The URI is from the administrator: it may name local key files.
                self._handle.set_uri_allow_local_file(True)
                self._handle.aio_connect_uri(address.uri)
            while not self._handle.aio_is_ready():
                self._poll(deadline)
            self.export = self._export_info()
        except library.Error as error:
            self._handle = None
            raise _refusal(address, error) from error
        except BaseException:
            self._handle = None
            raise

    def _export_info(self) -> NbdExport:
        handle, library = self._handle, self._library
        supported = {
            NbdFlag.READ_ONLY: handle.is_read_only(),
            NbdFlag.FLUSH: handle.can_flush(),
            NbdFlag.FUA: handle.can_fua(),
            NbdFlag.TRIM: handle.can_trim(),
            NbdFlag.WRITE_ZEROES: handle.can_zero(),
        }
        flags = NbdFlag(sum(flag for flag, is_set in supported.items() if is_set))
        return NbdExport.bounded(
            size=handle.get_size(),
            flags=flags,
            block=handle.get_block_size(library.SIZE_MINIMUM),
            payload=handle.get_block_size(library.SIZE_MAXIMUM) or PAYLOAD,
        )

    def is_closed(self) -> bool:
        """Return True if the server has closed the connection, between requests."""
        with suppress(self._library.Error):
            self._handle.poll(0)
        return not self._handle.aio_is_ready()

    def request(self, request: NbdRequest, deadline: float) -> int:
        """Send a request, wait for the reply, return its error number, 0 for success.

        Raises:
            StalledError: there is no reply yet; continue with ``finish``.
            OSError: the connection failed, and is not usable afterwards.
        """
        try:
            self._cookie = self._start(request)
        except self._library.Error as error:
            raise _broken(error) from error
        result = self.finish(deadline)
        if request.into is not None and not result:
            request.into[:] = self._data
        return result

    def finish(self, deadline: float) -> int:
        """Wait for the reply to a stalled request; see ``request``."""
        try:
            while not self._handle.aio_command_completed(self._cookie):
                self._poll(deadline)
        except TimeoutError as failure:
            raise StalledError(errno.ETIMEDOUT, "the request timed out") from failure
        except self._library.Error as error:
            if self._handle.aio_is_ready():
                return int(error.errnum) or errno.EIO
            raise _broken(error) from error
        return 0

    def _start(self, request: NbdRequest) -> int:
        # libnbd accesses the data until the reply, which may be after ``request`` has
        # returned: a copy. It is passed directly: nbd.Buffer leaks a reference to it.
        handle, offset = self._handle, request.offset
        match request.command:
            case NbdCommand.READ:
                self._data = bytearray(request.length)
                started = handle.aio_pread(self._data, offset)
            case NbdCommand.WRITE:
                self._data = bytearray(request.data or b"")
                started = handle.aio_pwrite(self._data, offset, flags=request.flags)
            case NbdCommand.WRITE_ZEROES:
                started = handle.aio_zero(request.length, offset, flags=request.flags)
            case _:
                started = handle.aio_flush()
        return int(started)

    def _poll(self, deadline: float) -> None:
        self._handle.poll(math.ceil(remaining_time(deadline) * 1000))

    def close(self) -> None:
        """Send DISCONNECT and close the connection."""
        with suppress(self._library.Error):
            self._handle.aio_disconnect()
        self._handle = None

    def abandon(self) -> None:
        """Close the handle, so that libnbd does not write to a buffer any more."""
        self._handle = None


def _message(error: Exception) -> str:
    # "nbd_poll: connect: Connection refused": strip the name of the libnbd function.
    text = str(error.args[0])
    return text.partition(": ")[2] or text


def _broken(error: Exception) -> OSError:
    number = int(error.args[1])
    if number in (0, errno.ENOTCONN) or "invalid state" in _message(error):
        return ConnectionResetError(errno.ECONNRESET, "connection closed by the server")
    return OSError(number, os.strerror(number).lower())


def _refusal(address: NbdAddress, error: Exception) -> Exception:
    # Maps an error of the handshake to an error with a fix, where one is known.
    message, number = _message(error), int(error.args[1])
    if message.startswith("connect:"):
        return _broken(error)
    if number == errno.ENOENT and message.startswith("handshake:"):
        return no_such_export(address.export)
    if "requires TLS" in message:
        return AccessError(address.uri, "the server requires TLS", "Use nbds://")
    if "refused TLS" in message:
        return AccessError(address.uri, "the server does not support TLS", "Use nbd://")
    if "gnutls" in message or message.startswith("open:"):
        why = f"TLS handshake failed: {message}"
        return AccessError(address.uri, why, "Check the keys on both sides")
    return AoEError(address.uri, message)


def require_libnbd(what: str, why: str) -> ModuleType:
    """Return libnbd's binding.

    Args:
        what: the subject of the error message.
        why: the reason in the error message.

    Raises:
        NotFoundError: libnbd is not installed.
    """
    library = find_libnbd()
    if library is None:
        raise NotFoundError(what, why, FIX)
    return library
