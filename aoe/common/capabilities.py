"""What the kernel lets this process do beyond an ordinary user's rights.

See capabilities(7), capset(2) and prctl(2). Python has no words for them; the C library
has. All of it is about the calling thread, and threads that it starts later.
"""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import suppress
from enum import IntFlag
from typing import Final, NamedTuple

# linux/capability.h
_VERSION_3: Final = 0x2008_0522
_LIMIT: Final = 64

# linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_KEEPCAPS: Final = 8
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38


class Capability(IntFlag):
    """Those that matter here, as bits of a set (linux/capability.h)."""

    DAC_OVERRIDE = 1 << 1
    SETGID = 1 << 6
    SETUID = 1 << 7
    NET_ADMIN = 1 << 12
    NET_RAW = 1 << 13


class CapabilitySets(NamedTuple):
    """The sets of a thread, each an ``int`` with a bit for every capability."""

    effective: int
    permitted: int
    inheritable: int


def capability_sets() -> CapabilitySets:
    """Read the sets of the calling thread."""
    data = ctypes.create_string_buffer(24)
    _call("capget", _header(), data)
    low, high = struct.iter_unpack("=III", data.raw)
    return CapabilitySets(*(a | b << 32 for a, b in zip(low, high, strict=True)))


def set_capabilities(sets: CapabilitySets) -> None:
    """Replace the sets of the calling thread; ambient ones go with inheritable ones.

    Raises:
        OSError: something is asked for that is not permitted.
    """
    halves = [(s & 0xFFFF_FFFF, s >> 32) for s in sets]
    low, high = zip(*halves, strict=True)
    data = struct.pack("=IIIIII", *low, *high)
    _call("capset", _header(), ctypes.create_string_buffer(data, len(data)))


def drop_from_bounding_set(keep: int) -> None:
    """Let no program that is started from here on have more than ``keep``.

    This takes CAP_SETPCAP. Without it ``forbid_new_privileges`` has the same effect
    on all but programs that are traced.
    """
    for number in range(_LIMIT):
        if not keep & 1 << number:
            with suppress(OSError):
                _prctl(_PR_CAPBSET_DROP, number)


def set_keep_capabilities(*, keep: bool) -> None:
    """Keep the permitted set when the last user id that is 0 changes."""
    _prctl(_PR_SET_KEEPCAPS, int(keep))


def set_no_new_privileges() -> None:
    """Let no program that is started gain any rights, not by set-user-ID either."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def set_parent_death_signal(number: int) -> None:
    """Have the kernel send us a signal when the thread that started us ends.

    A later change of user or group cancels it.
    """
    _prctl(_PR_SET_PDEATHSIG, number)


def _header() -> ctypes.Array[ctypes.c_char]:
    header = struct.pack("=Ii", _VERSION_3, 0)
    return ctypes.create_string_buffer(header, len(header))


def _prctl(option: int, argument: int) -> int:
    rest = (ctypes.c_ulong(0),) * 3
    return _call("prctl", option, ctypes.c_ulong(argument), *rest)


def _call(name: str, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(getattr(libc, name)(*arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
