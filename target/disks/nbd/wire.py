"""The NBD client protocol without I/O: fixed newstyle, GO, simple replies.

::

    server  NBDMAGIC IHAVEOPT flags            request  magic flags type handle
    client  flags, IHAVEOPT GO name            (28)     offset length [data]
    server  INFO size, INFO blocks, ACK        reply    magic error handle [data]

See ``aoe.common.nbd`` for the layouts.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aoe.common.nbd import (
    FIXED_NEWSTYLE,
    GREETING,
    HAVE_OPTION,
    INFO_BLOCKS,
    INFO_EXPORT,
    INIT,
    NO_ZEROES,
    OPTION,
    OPTION_ERROR,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    PAYLOAD,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    NbdCommand,
    NbdFlag,
    NbdInfo,
    NbdOption,
    NbdOptionReply,
)
from aoe.errors import AccessError, AoEError, DecodeError, NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Generator

REPLY_LENGTH: Final = SIMPLE_REPLY.size
_TEXT_LIMIT: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class NbdExport:
    """The properties of an export, from the handshake.

    Args:
        size: bytes.
        flags: the transmission flags.
        block: the minimum block size: offsets and lengths are multiples of it, bytes.
        payload: the maximum payload of a request, bytes.
    """

    size: int
    flags: NbdFlag
    block: int = 1
    payload: int = PAYLOAD

    @classmethod
    def bounded(cls, size: int, flags: NbdFlag, block: int, payload: int) -> NbdExport:
        """Return an export with valid block sizes; 0 means that none was sent."""
        block = max(block, 1)
        payload = min(payload, PAYLOAD) // block * block
        return cls(
            size=size, flags=flags, block=block, payload=max(payload, block, 512)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NbdRequest:
    """A request to a server.

    Args:
        command: the command.
        offset: bytes.
        length: bytes.
        flags: of ``NbdCommandFlag``.
        data: the payload of a WRITE.
        into: the buffer for the data of a READ.
    """

    command: NbdCommand
    offset: int = 0
    length: int = 0
    flags: int = 0
    data: memoryview | None = None
    into: memoryview | None = None


def handshake(name: str) -> Generator[bytes | int, bytes, NbdExport]:
    """Negotiate an export: yield bytes to send, or the number of bytes to receive.

    The bytes that were received are passed to ``send()``.

    Args:
        name: the export's name; empty selects the server's default.

    Raises:
        DecodeError: not an NBD server, or one without GO (before 2016).
        NotFoundError: the server has no such export.
        AccessError: the server refuses the client, or requires TLS.
    """
    init, have_option, flags = GREETING.unpack((yield GREETING.size))
    if init != INIT or have_option != HAVE_OPTION or not flags & FIXED_NEWSTYLE:
        raise DecodeError("NBD server", "no NBD greeting")
    raw = name.encode()
    # Block sizes are requested: without that a server may refuse the export
    # (NBD_REP_ERR_BLOCK_SIZE_REQD).
    go_data = len(raw).to_bytes(4, "big") + raw + b"\0\1\0\3"
    yield (
        (FIXED_NEWSTYLE | flags & NO_ZEROES).to_bytes(4, "big")
        + OPTION.pack(HAVE_OPTION, NbdOption.GO, len(go_data))
        + go_data
    )
    export: NbdExport | None = None
    block, payload = 1, PAYLOAD
    while True:
        magic, option, kind, length = OPTION_REPLY.unpack((yield OPTION_REPLY.size))
        if (
            magic != OPTION_REPLY_MAGIC
            or option != NbdOption.GO
            or length > 4 * _TEXT_LIMIT
        ):
            raise DecodeError("NBD server", "malformed option reply")
        data = (yield length) if length else b""
        if kind & OPTION_ERROR:
            raise _refusal(name, kind, data)
        if kind == NbdOptionReply.ACK:
            break
        info = int.from_bytes(data[:2], "big") if kind == NbdOptionReply.INFO else -1
        if info == NbdInfo.EXPORT and len(data) == INFO_EXPORT.size:
            _, size, bits = INFO_EXPORT.unpack(data)
            export = NbdExport(size=size, flags=NbdFlag(bits))
        elif info == NbdInfo.BLOCK_SIZE and len(data) == INFO_BLOCKS.size:
            _, block, _, payload = INFO_BLOCKS.unpack(data)
    if export is None:
        raise DecodeError("NBD server", "no size in the reply to GO")
    return NbdExport.bounded(export.size, export.flags, block, payload)


def _refusal(name: str, kind: int, data: bytes) -> AoEError:
    text = data.decode(errors="replace").strip()
    what = f"NBD export {name or '(default)'}"
    detail = f" ({text})" if text and text.isprintable() else ""
    match kind:
        case NbdOptionReply.UNSUPPORTED:
            return DecodeError(what, f"the server is too old{detail}")
        case NbdOptionReply.POLICY:
            return AccessError(what, f"the server refuses it{detail}")
        case NbdOptionReply.TLS_REQUIRED:
            return AccessError(what, f"the server requires TLS{detail}", "Use nbds://")
        case NbdOptionReply.UNKNOWN:
            return no_such_export(name, detail)
    return UsageError(
        what, f"the server refuses it, reason {kind & ~OPTION_ERROR}{detail}"
    )


def no_such_export(name: str, detail: str = "") -> NotFoundError:
    """Return the error for an export name that does not exist on the server."""
    return NotFoundError(
        f"NBD export {name or '(default)'}",
        f"the server has no such export{detail}",
        "List them with: nbdinfo --list URI",
    )


def pack_request(request: NbdRequest, handle: int) -> bytes:
    """Return the header of a request; the data of a WRITE is sent after it."""
    return REQUEST.pack(
        REQUEST_MAGIC,
        request.flags,
        request.command,
        handle,
        request.offset,
        request.length,
    )


def parse_reply(raw: bytes, handle: int) -> int:
    """Return the error number of a reply, 0 for success.

    Raises:
        DecodeError: not a reply, or not to this request.
    """
    magic, error, found = SIMPLE_REPLY.unpack(raw)
    if magic != SIMPLE_REPLY_MAGIC or found != handle:
        raise DecodeError("NBD server", "malformed reply")
    # NBD error numbers are those of Linux; an unknown one is EIO.
    return error if error in errno.errorcode else errno.EIO if error else 0
