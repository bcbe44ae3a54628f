"""The client's side of NBD, without a socket: fixed newstyle, GO, simple replies.

::

    server  NBDMAGIC IHAVEOPT flags            request  magic flags type handle
    client  flags, IHAVEOPT GO name            (28)     offset length [data]
    server  INFO size, INFO blocks, ACK        reply    magic error handle [data]

From the NBD protocol's own document (NetworkBlockDevice/nbd, doc/proto.md).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import TYPE_CHECKING, Final

from aoe.errors import AccessError, AoEError, DecodeError, NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Generator

REPLY_LENGTH: Final = 16
_GREETING: Final = Struct("!8s8sH")
_OPTION: Final = Struct("!8sII")
_OPTION_REPLY: Final = Struct("!QIII")
_REQUEST: Final = Struct("!IHHQQI")
_REPLY: Final = Struct("!IIQ")
_INFO_EXPORT: Final = Struct("!HQH")
_INFO_BLOCKS: Final = Struct("!HIII")

_INIT: Final = b"NBDMAGIC"
_HAVE_OPTION: Final = b"IHAVEOPT"
_OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
_REQUEST_MAGIC: Final = 0x25609513
_REPLY_MAGIC: Final = 0x67446698
_FIXED_NEWSTYLE: Final = 1
_NO_ZEROES: Final = 2
_GO: Final = 7
_ACK: Final = 1
_INFO: Final = 3
_ERROR: Final = 1 << 31
_BLOCK_SIZES: Final = 3
_TEXT_LIMIT: Final = 4096
PAYLOAD: Final = 32 << 20
"""Bytes in a request, where the server says nothing else."""


class NbdCommand(IntEnum):
    """What a request asks for."""

    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6


class NbdFlag(IntFlag):
    """What a server says of its export."""

    READ_ONLY = 1 << 1
    FLUSH = 1 << 2
    FUA = 1 << 3
    TRIM = 1 << 5
    WRITE_ZEROES = 1 << 6


FUA: Final = 1
"""The flag of a request whose answer means stable storage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NbdExport:
    """What the handshake tells of an export.

    Args:
        size: bytes.
        flags: what the server can.
        block: offsets and lengths must be multiples of this, bytes.
        payload: a request's data at most, bytes.
    """

    size: int
    flags: NbdFlag
    block: int = 1
    payload: int = PAYLOAD

    @classmethod
    def bounded(cls, size: int, flags: NbdFlag, block: int, payload: int) -> NbdExport:
        """Make sense of block sizes as a server tells them, 0 for what it does not."""
        block = max(block, 1)
        payload = min(payload, PAYLOAD) // block * block
        return cls(
            size=size, flags=flags, block=block, payload=max(payload, block, 512)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NbdRequest:
    """What is asked of a server.

    Args:
        command: what to do.
        offset: where, bytes.
        length: how much, bytes.
        flags: 0 or ``FUA``.
        data: what a WRITE carries.
        into: where a READ's data goes.
    """

    command: NbdCommand
    offset: int = 0
    length: int = 0
    flags: int = 0
    data: memoryview | None = None
    into: memoryview | None = None


def handshake(name: str) -> Generator[bytes | int, bytes, NbdExport]:
    """Negotiate: yields bytes to send, and numbers of bytes to be given back.

    Args:
        name: of the export; the empty one is the server's default.

    Raises:
        DecodeError: this is no NBD server, or one from before 2016.
        NotFoundError: it has no such export.
        AccessError: it does not let us, or only with TLS.
    """
    init, have_option, flags = _GREETING.unpack((yield _GREETING.size))
    if init != _INIT or have_option != _HAVE_OPTION or not flags & _FIXED_NEWSTYLE:
        raise DecodeError("NBD server", "does not greet as one")
    raw = name.encode()
    # The block sizes are asked for: a server may insist that its client knows them.
    wish = len(raw).to_bytes(4, "big") + raw + b"\0\1\0\3"
    yield (
        (_FIXED_NEWSTYLE | flags & _NO_ZEROES).to_bytes(4, "big")
        + _OPTION.pack(_HAVE_OPTION, _GO, len(wish))
        + wish
    )
    export: NbdExport | None = None
    block, payload = 1, PAYLOAD
    while True:
        magic, option, kind, length = _OPTION_REPLY.unpack((yield _OPTION_REPLY.size))
        if magic != _OPTION_REPLY_MAGIC or option != _GO or length > 4 * _TEXT_LIMIT:
            raise DecodeError("NBD server", "an answer that is none")
        data = (yield length) if length else b""
        if kind & _ERROR:
            raise _refusal(name, kind, data)
        if kind == _ACK:
            break
        if kind == _INFO and len(data) == _INFO_EXPORT.size and data[:2] == b"\0\0":
            _, size, bits = _INFO_EXPORT.unpack(data)
            export = NbdExport(size=size, flags=NbdFlag(bits))
        elif (
            kind == _INFO and len(data) == _INFO_BLOCKS.size and data[1] == _BLOCK_SIZES
        ):
            _, block, _, payload = _INFO_BLOCKS.unpack(data)
    if export is None:
        raise DecodeError("NBD server", "does not say how large the export is")
    return NbdExport.bounded(export.size, export.flags, block, payload)


def _refusal(name: str, kind: int, data: bytes) -> AoEError:
    text = data.decode(errors="replace").strip()
    what = f"NBD export {name or '(default)'}"
    words = f" ({text})" if text and text.isprintable() else ""
    match kind & ~_ERROR:
        case 1:
            return DecodeError(what, f"the server is too old{words}")
        case 2:
            return AccessError(what, f"the server refuses it{words}")
        case 5:
            return AccessError(
                what, f"the server wants TLS{words}", "Write it as nbds://"
            )
        case 6:
            return no_such_export(name, words)
    return UsageError(what, f"the server refuses it, reason {kind & ~_ERROR}{words}")


def no_such_export(name: str, words: str = "") -> NotFoundError:
    """Return the error for a name that a server does not know."""
    return NotFoundError(
        f"NBD export {name or '(default)'}",
        f"the server has no such export{words}",
        "Ask: nbdinfo --list URI",
    )


def pack_request(request: NbdRequest, handle: int) -> bytes:
    """Return a request's header; a WRITE's data follows it."""
    return _REQUEST.pack(
        _REQUEST_MAGIC,
        request.flags,
        request.command,
        handle,
        request.offset,
        request.length,
    )


def parse_reply(raw: bytes, handle: int) -> int:
    """Return the error number of a reply, 0 for success.

    Raises:
        DecodeError: no reply, or not to this request.
    """
    magic, error, found = _REPLY.unpack(raw)
    if magic != _REPLY_MAGIC or found != handle:
        raise DecodeError("NBD server", "an answer that is none")
    # The protocol's numbers are Linux's; what is none of them says that it failed.
    return error if error in errno.errorcode else errno.EIO if error else 0
