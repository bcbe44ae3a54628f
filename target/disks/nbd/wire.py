"""The client's side of NBD, without a socket: fixed newstyle, GO, simple replies.

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
        flags: of ``NbdCommandFlag``.
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
    init, have_option, flags = GREETING.unpack((yield GREETING.size))
    if init != INIT or have_option != HAVE_OPTION or not flags & FIXED_NEWSTYLE:
        raise DecodeError("NBD server", "does not greet as one")
    raw = name.encode()
    # The block sizes are asked for: a server may insist that its client knows them.
    wish = len(raw).to_bytes(4, "big") + raw + b"\0\1\0\3"
    yield (
        (FIXED_NEWSTYLE | flags & NO_ZEROES).to_bytes(4, "big")
        + OPTION.pack(HAVE_OPTION, NbdOption.GO, len(wish))
        + wish
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
            raise DecodeError("NBD server", "an answer that is none")
        data = (yield length) if length else b""
        if kind & OPTION_ERROR:
            raise _refusal(name, kind, data)
        if kind == NbdOptionReply.ACK:
            break
        told = int.from_bytes(data[:2], "big") if kind == NbdOptionReply.INFO else -1
        if told == NbdInfo.EXPORT and len(data) == INFO_EXPORT.size:
            _, size, bits = INFO_EXPORT.unpack(data)
            export = NbdExport(size=size, flags=NbdFlag(bits))
        elif told == NbdInfo.BLOCK_SIZE and len(data) == INFO_BLOCKS.size:
            _, block, _, payload = INFO_BLOCKS.unpack(data)
    if export is None:
        raise DecodeError("NBD server", "does not say how large the export is")
    return NbdExport.bounded(export.size, export.flags, block, payload)


def _refusal(name: str, kind: int, data: bytes) -> AoEError:
    text = data.decode(errors="replace").strip()
    what = f"NBD export {name or '(default)'}"
    words = f" ({text})" if text and text.isprintable() else ""
    match kind:
        case NbdOptionReply.UNSUPPORTED:
            return DecodeError(what, f"the server is too old{words}")
        case NbdOptionReply.POLICY:
            return AccessError(what, f"the server refuses it{words}")
        case NbdOptionReply.TLS_REQUIRED:
            return AccessError(
                what, f"the server wants TLS{words}", "Write it as nbds://"
            )
        case NbdOptionReply.UNKNOWN:
            return no_such_export(name, words)
    return UsageError(
        what, f"the server refuses it, reason {kind & ~OPTION_ERROR}{words}"
    )


def no_such_export(name: str, words: str = "") -> NotFoundError:
    """Return the error for a name that a server does not know."""
    return NotFoundError(
        f"NBD export {name or '(default)'}",
        f"the server has no such export{words}",
        "Ask: nbdinfo --list URI",
    )


def pack_request(request: NbdRequest, handle: int) -> bytes:
    """Return a request's header; a WRITE's data follows it."""
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
        DecodeError: no reply, or not to this request.
    """
    magic, error, found = SIMPLE_REPLY.unpack(raw)
    if magic != SIMPLE_REPLY_MAGIC or found != handle:
        raise DecodeError("NBD server", "an answer that is none")
    # The protocol's numbers are Linux's; what is none of them says that it failed.
    return error if error in errno.errorcode else errno.EIO if error else 0
