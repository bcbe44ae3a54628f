"""Capabilities and related process attributes, through ctypes.

See capabilities(7), capset(2) and prctl(2); Python's standard library does not wrap
them. Everything here applies to the calling thread and is inherited by the threads that
it starts later.
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
    """The capabilities that pyaoe uses, as bits of a set (linux/capability.h)."""

    DAC_OVERRIDE = 1 << 1
    SETGID = 1 << 6
    SETUID = 1 << 7
    NET_ADMIN = 1 << 12
    NET_RAW = 1 << 13


class CapabilitySets(NamedTuple):
    """The capability sets of a thread, each an ``int`` with a bit per capability."""

    effective: int
    permitted: int
    inheritable: int


def capability_sets() -> CapabilitySets:
    """Return the capability sets of the calling thread (capget)."""
    data = ctypes.create_string_buffer(24)
    _call("capget", _header(), data)
    low, high = struct.iter_unpack("=III", data.raw)
    return CapabilitySets(*(a | b << 32 for a, b in zip(low, high, strict=True)))


def set_capabilities(sets: CapabilitySets) -> None:
    """Replace the capability sets of the calling thread (capset).

    The kernel also removes from the ambient set what is not inheritable any more.

    Raises:
        OSError: a capability is requested that the thread is not permitted to have.
    """
    halves = [(s & 0xFFFF_FFFF, s >> 32) for s in sets]
    low, high = zip(*halves, strict=True)
    data = struct.pack("=IIIIII", *low, *high)
    _call("capset", _header(), ctypes.create_string_buffer(data, len(data)))


def drop_from_bounding_set(keep: int) -> None:
    """Drop all capabilities but ``keep`` from the bounding set (PR_CAPBSET_DROP).

    Programs executed later cannot gain the dropped capabilities. This needs CAP_SETPCAP
    and is skipped without it; ``set_no_new_privileges`` then has the same effect,
    except for programs that are traced.
    """
    for number in range(_LIMIT):
        if not keep & 1 << number:
            with suppress(OSError):
                _prctl(_PR_CAPBSET_DROP, number)


def set_keep_capabilities(*, keep: bool) -> None:
    """Set PR_SET_KEEPCAPS: keep the permitted set when the last user ID 0 changes."""
    _prctl(_PR_SET_KEEPCAPS, int(keep))


def set_no_new_privileges() -> None:
    """Keep programs executed later from gaining privileges, e.g. by set-user-ID.

    Sets PR_SET_NO_NEW_PRIVS, which cannot be undone.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def set_parent_death_signal(number: int) -> None:
    """Request a signal when the thread that forked this process ends.

    Sets PR_SET_PDEATHSIG, which a later change of user or group ID clears.
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
