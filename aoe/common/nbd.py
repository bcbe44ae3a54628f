"""Constants and message layouts of NBD (fixed newstyle), for clients and servers.

::

    greeting        "NBDMAGIC"(8)  "IHAVEOPT"(8)  flags(2)
    option          "IHAVEOPT"(8)  option(4)  length(4)  data
    option reply    magic(8)  option(4)  type(4)  length(4)  data
    request         magic(4)  flags(2)  command(2)  cookie(8)  offset(8)  length(4)
                    data
    simple reply    magic(4)  error(4)  cookie(8)  data
    chunk           magic(4)  flags(2)  type(2)  cookie(8)  length(4)  data

See the protocol specification (NetworkBlockDevice/nbd, doc/proto.md).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final

GREETING: Final = Struct("!8s8sH")
OPTION: Final = Struct("!8sII")
OPTION_REPLY: Final = Struct("!QIII")
REQUEST: Final = Struct("!IHHQQI")
SIMPLE_REPLY: Final = Struct("!IIQ")
CHUNK: Final = Struct("!IHHQI")
INFO_EXPORT: Final = Struct("!HQH")
"""NBD_INFO_EXPORT: information type, size in bytes, transmission flags."""
INFO_BLOCKS: Final = Struct("!HIII")
"""NBD_INFO_BLOCK_SIZE: type; minimum, preferred and maximum block size in bytes."""

INIT: Final = b"NBDMAGIC"
HAVE_OPTION: Final = b"IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
CHUNK_MAGIC: Final = 0x668E33EF
FIXED_NEWSTYLE: Final = 1
NO_ZEROES: Final = 2
OPTION_ERROR: Final = 1 << 31
"""The bit that is set in the type of an option's error reply."""
PAYLOAD: Final = 32 << 20
"""The largest payload of a request in bytes, unless the server advertises another."""


class NbdOption(IntEnum):
    """The options of the handshake (NBD_OPT_*)."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8


class NbdInfo(IntEnum):
    """The types of information about an export (NBD_INFO_*)."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class NbdOptionReply(IntEnum):
    """The types of an option reply (NBD_REP_*)."""

    ACK = 1
    SERVER = 2
    INFO = 3
    UNSUPPORTED = OPTION_ERROR | 1
    POLICY = OPTION_ERROR | 2
    INVALID = OPTION_ERROR | 3
    TLS_REQUIRED = OPTION_ERROR | 5
    UNKNOWN = OPTION_ERROR | 6
    TOO_BIG = OPTION_ERROR | 9


class NbdCommand(IntEnum):
    """The types of a request (NBD_CMD_*)."""

    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6


class NbdFlag(IntFlag):
    """The transmission flags of an export (NBD_FLAG_*)."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    FLUSH = 1 << 2
    FUA = 1 << 3
    TRIM = 1 << 5
    WRITE_ZEROES = 1 << 6
    DONT_FRAGMENT = 1 << 7
    MULTI_CONN = 1 << 8
    FAST_ZERO = 1 << 11


class NbdCommandFlag(IntFlag):
    """The flags of a request (NBD_CMD_FLAG_*)."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DONT_FRAGMENT = 1 << 2
    FAST_ZERO = 1 << 4


class NbdChunk(IntEnum):
    """The types of a structured reply chunk (NBD_REPLY_TYPE_*)."""

    NONE = 0
    DATA = 1
    ERROR = 1 << 15 | 1


CHUNK_DONE: Final = 1
"""NBD_REPLY_FLAG_DONE: set in the last chunk of a reply."""
