"""Socket filter (classic BPF) that selects the frames a packet socket receives.

See linux/filter.h, linux/bpf_common.h and packet(7).
"""

from __future__ import annotations

import struct
from typing import Final

from aoe.header import ETHERNET_LENGTH, Flag

INSTRUCTION_LENGTH: Final = 8

_LOAD_WORD: Final = 0x20
_LOAD_BYTE: Final = 0x30
_IF_GREATER: Final = 0x25
_IF_BITS: Final = 0x45
_RETURN: Final = 0x06
_PACKET_TYPE: Final = 0xFFFF_F000 + 4
_PACKET_MULTICAST: Final = 2
"""Higher packet types are PACKET_OTHERHOST and PACKET_OUTGOING."""
_PACKET_OTHERHOST: Final = 3
_INSTRUCTION: Final = struct.Struct("=HBBI")


def build_filter(*, responses: bool | None, promiscuous: bool = False) -> bytes:
    """Build the filter program for an AoE socket.

    Args:
        responses: True accepts only frames with the R flag, False only those without
            (P7), None both.
        promiscuous: accept PACKET_OTHERHOST too: frames for other hosts, and frames of
            VLANs without an interface, which the kernel untags and marks as such.
    """
    # Jump offsets count the instructions that are skipped.
    limit = _PACKET_OTHERHOST if promiscuous else _PACKET_MULTICAST
    program = [
        (_LOAD_WORD, 0, 0, _PACKET_TYPE),
        (_IF_GREATER, 0, 1, limit),
        (_RETURN, 0, 0, 0),
    ]
    if responses is not None:
        program += [
            (_LOAD_BYTE, 0, 0, ETHERNET_LENGTH),
            (_IF_BITS, int(responses), int(not responses), Flag.RESPONSE),
            (_RETURN, 0, 0, 0),
        ]
    program.append((_RETURN, 0, 0, 0xFFFF_FFFF))
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)
