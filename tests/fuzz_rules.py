"""An independent implementation of the protocol's rules, as the oracle of the fuzzer.

It does not use the target's own parsing. ``Served`` has a model of the disk, updated by
successful requests. Every byte of every response is checked against that model, the
request and the state that clients have set.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from target.protocol.engine import Engine
    from target.protocol.exports import ClientState
    from tests.fuzz_port import CheckedDisk

SECTOR = 512
READS = frozenset({0x20, 0x24, 0x25, 0xC8})
WRITES = frozenset({0x30, 0x34, 0x35, 0x3D, 0xCA})
LONG = frozenset({0x24, 0x25, 0x34, 0x35, 0x3D})
TRIM, SMART, POWER_MODE, IDENTIFY, SET_FEATURES = 0x06, 0xB0, 0xE5, 0xEC, 0xEF
FIXED_PART = {0: 36, 1: 32, 2: 28, 3: 26}
"""Minimum length of a frame, by command (P17)."""
FLUSHING = frozenset({0xE0, 0xE2, 0xE6, 0xE7, 0xEA})
"""STANDBY, SLEEP and FLUSH, which make earlier writes durable."""
DONE, FAULT = (0x40, 0), (0x61, 0x04)
FAILURES = frozenset({(0x41, 0x04), (0x41, 0x10), (0x41, 0x40), (0x61, 0x04)})
"""Status and error registers: aborted, not found, uncorrectable, device fault."""
NO_DISK, CONFIG_TAKEN, RESERVED = 3, 4, 6


class Change(NamedTuple):
    """A range of bytes of a disk that is written, or zeroed if ``data`` is None."""

    offset: int
    length: int
    data: bytes | None = None


@dataclass(slots=True)
class Served:
    """A target, its disk, and a model of the disk's contents.

    Args:
        target: the target.
        disk: its disk.
        model: the contents that the disk must have.
        mac: the address of its interface.
        mtu: the MTU of its interface.
        initial_mtu: the MTU when the target was added.
    """

    target: Engine
    disk: CheckedDisk
    model: bytearray
    mac: bytes
    mtu: int
    initial_mtu: int

    @property
    def address(self) -> bytes:
        """Shelf and slot, as in a header."""
        return struct.pack("!HB", *self.target.export.address)

    @property
    def frame_limit(self) -> int:
        """Length of the longest frame."""
        return 14 + self.mtu

    @property
    def sector_limit(self) -> int:
        """Most sectors in a frame."""
        return min((self.frame_limit - 36) // SECTOR, 255)

    @property
    def largest_advertised(self) -> int:
        """The largest sector count that the target has advertised."""
        return min((max(self.mtu, self.initial_mtu) - 36) // SECTOR, 255)

    def is_addressed(self, request: bytes) -> bool:
        """Return True if the frame is for this target or a broadcast address (P8)."""
        shelf, slot = struct.unpack_from("!HB", request, 16)
        own_shelf, own_slot = self.target.export.address
        return shelf in (own_shelf, 0xFFFF) and slot in (own_slot, 0xFF)


def check_request(
    served: Served,
    request: bytes,
    response: bytes,
    before: ClientState,
    *,
    has_fault: bool,
) -> None:
    """Check all rules for a request that is addressed to a target.

    Args:
        served: the target; its model is updated.
        request: the frame.
        response: the response, b"" if there is none.
        before: the state that clients had set before.
        has_fault: the disk has failed, or the state could not be saved.
    """
    assert bool(response) == expects_response(served, request, before), "response"
    expected = expected_changes(served, request, before) if response else []
    changes = served.disk.take_changes()
    if not has_fault:
        is_done = bool(expected) and (response[14], response[27]) == (0x18, 0x40)
        assert is_done or not expected, "a valid request failed"
    assert changes == expected[: len(changes)], "a wrong change of the disk"
    assert has_fault or changes == expected, "a missing change of the disk"
    for offset, length, data in changes:
        served.model[offset : offset + length] = data or bytes(length)
    after = served.target.export.state
    is_set_features = has_fault and request[19] == 0 and request[27:28] == b"\xef"
    # Disabling the write cache takes effect even if the flush that follows fails.
    if not is_set_features or after != replace(before, write_cache=False):
        assert after == state_after(served, request, response, before), "client state"
    if response:
        check_response(served, request, response, has_fault=has_fault)


def needs_flush(request: bytes) -> bool:
    """Return True if a request must report an unreported failed flush (P46)."""
    if len(request) < 36 or request[14] >> 4 != 1 or request[19] != 0:
        return False
    return request[27] in FLUSHING or (
        request[27] == SET_FEATURES and request[25] == 0x82
    )


def expects_response(served: Served, request: bytes, before: ClientState) -> bool:
    """Return True if an addressed frame must get a response."""
    is_request = request[12:14] == b"\x88\xa2" and not request[14] & 0x08
    if not is_request or (before.mask and request[6:12] not in before.mask):
        return False
    if request[14] >> 4 != 1:
        return True
    command = request[19]
    if len(request) < FIXED_PART.get(command, 24):
        return False
    if command == 1:
        return config_matches(request, before)
    return command != 0 or not exceeds_new_mtu(served, request, before)


def exceeds_new_mtu(served: Served, request: bytes, before: ClientState) -> bool:
    """Return True if a transfer only fitted the MTU before it was reduced (P37)."""
    is_between = served.sector_limit < request[26] <= served.largest_advertised
    is_allowed = not is_reserved(request, before)
    return is_between and is_allowed and is_transfer(served, request)


def config_matches(request: bytes, before: ClientState) -> bool:
    """Return True unless the request tests the config string and it differs (P52)."""
    string, ccmd = requested_string(request), request[29] & 0x0F
    if string is None or ccmd not in (1, 2):
        return True
    current = before.config_string
    return current == string if ccmd == 1 else current.startswith(string)


def requested_string(request: bytes) -> bytes | None:
    """Return the config string of a request; None if it is truncated (P56)."""
    (length,) = struct.unpack_from("!H", request, 30)
    string = request[32 : 32 + length]
    return string if len(string) == length <= 1024 else None


def is_reserved(request: bytes, before: ClientState) -> bool:
    """Return True if the target is reserved for other clients (P74)."""
    return (
        bool(before.holders)
        and request[6:12] not in before.holders
        and request[27] != IDENTIFY
    )


def is_transfer(served: Served, request: bytes) -> bool:
    """Return True for a valid READ or WRITE, apart from its count and LBA."""
    opcode, has_flag = request[27], bool(request[24] & 1)
    if opcode in READS:
        return not has_flag
    return opcode in WRITES and has_flag and may_write(served, request, request[26])


def may_write(served: Served, request: bytes, sectors: int) -> bool:
    """Return True if writes are allowed: unicast, writable, data complete (P39)."""
    is_broadcast = request[16:18] == b"\xff\xff" or request[18] == 0xFF
    is_complete = len(request) >= 36 + sectors * SECTOR
    return is_complete and not is_broadcast and not served.disk.read_only


def offset_of(served: Served, request: bytes, limit: int) -> int | None:
    """Return the byte offset of a transfer; None if it is out of range."""
    count, lba = request[26], int.from_bytes(request[28:34], "little")
    if not (request[24] & 0x40 or request[27] in LONG):
        lba &= (1 << 28) - 1
    if 1 <= count <= limit and (lba + count) * SECTOR <= len(served.model):
        return lba * SECTOR
    return None


def expected_changes(
    served: Served, request: bytes, before: ClientState
) -> list[Change]:
    """Return the changes that a request must make on the disk, in order."""
    is_ata = request[14] >> 4 == 1 and request[19] == 0 and len(request) >= 36
    if not is_ata or is_reserved(request, before):
        return []
    opcode, count = request[27], request[26]
    length = count * SECTOR
    data = request[36 : 36 + length]
    if opcode in WRITES and is_transfer(served, request):
        start = offset_of(served, request, served.sector_limit)
        return [] if start is None else [Change(start, length, data)]
    is_trim = opcode == TRIM and request[24] & 1 and request[25] == 1
    if is_trim and count <= served.sector_limit:
        return trimmed_ranges(served, data) if may_write(served, request, count) else []
    return []


def trimmed_ranges(served: Served, data: bytes) -> list[Change]:
    """Return the ranges that a TRIM zeroes: none if one extends beyond the end."""
    entries = [entry for (entry,) in struct.iter_unpack("<Q", data) if entry >> 48]
    ranges = [
        Change((entry & (1 << 48) - 1) * SECTOR, (entry >> 48) * SECTOR)
        for entry in entries
    ]
    if any(offset + length > len(served.model) for offset, length, _ in ranges):
        return []
    return ranges


def has_uncorrectable(served: Served) -> bool:
    """Return True if reads may fail because of WRITE UNCORRECTABLE."""
    return bool(served.target.export.uncorrectable)


def state_after(
    served: Served, request: bytes, response: bytes, before: ClientState
) -> ClientState:
    """Return the client state that is expected after a request with this response."""
    if not response or response[14] != 0x18:
        return before
    command = request[19]
    if command == 1 and request[29] & 0x0F in (3, 4):
        return replace(before, config_string=requested_string(request) or b"")
    if command == 2 and request[25] == 1:
        return replace(before, mask=edited_mask(served, request, before.mask)[0])
    if command == 3 and request[24] in (1, 2):
        macs = macs_of(request[26:], 6, request[25])
        return replace(before, holders=tuple(dict.fromkeys(macs)))
    if command == 0 and request[27] == SET_FEATURES and request[25] in (0x02, 0x82):
        is_done = (response[27], response[25]) == DONE
        return replace(before, write_cache=request[25] == 0x02) if is_done else before
    return before


def macs_of(body: bytes, width: int, count: int) -> list[bytes]:
    """Split a list into entries: complete ones, at most ``count``."""
    number = min(count, len(body) // width)
    return [body[index * width : (index + 1) * width] for index in range(number)]


def edited_mask(
    served: Served, request: bytes, mask: tuple[bytes, ...]
) -> tuple[tuple[bytes, ...], int, int]:
    """Apply the directives of a mask list edit (P63 to P66).

    Returns:
        The new list, the error, and how many directives were applied.
    """
    macs, limit = list(mask), mask_limit(served)
    entries = macs_of(request[28:], 8, request[27])
    for done, entry in enumerate(entries):
        directive, mac = entry[1], entry[2:]
        if directive > 2:
            return tuple(macs), 2, done
        if directive == 1 and mac not in macs:
            if len(macs) >= limit:
                return tuple(macs), 3, done
            macs.append(mac)
        elif directive == 2 and mac in macs:
            macs.remove(mac)
    return tuple(macs), 0, len(entries)


def mask_limit(served: Served) -> int:
    """Return how many entries of a mask list fit into a frame."""
    return min((served.frame_limit - 28) // 8, 255)


# --- responses ----------------------------------------------------------------------


def check_response(
    served: Served, request: bytes, response: bytes, *, has_fault: bool
) -> None:
    """Check every byte of a response, so that none leaks old memory."""
    assert 60 <= len(response) <= served.frame_limit, "length"
    assert response[:14] == request[6:12] + served.mac + b"\x88\xa2", "Ethernet header"
    code = response[15]
    if response[14] == 0x18:
        assert code == 0, "an error code without its flag"
    else:
        assert response[14] == 0x1C, "flags"
        assert 1 <= code <= 6, "error code"
        assert code != NO_DISK or has_fault, "the disk was available"
    assert response[16:19] == served.address, "address"
    assert response[19:24] == request[19:24], "command and tag"
    body = body_of(served, request, response, code, has_fault=has_fault)
    assert response[24:] == body.ljust(36, b"\0"), "body"


def body_of(
    served: Served, request: bytes, response: bytes, code: int, *, has_fault: bool
) -> bytes:
    """Return the bytes expected after the header of a response."""
    command, limit = request[19], served.frame_limit
    if request[14] >> 4 != 1 or command > 3:
        assert code == (5 if request[14] >> 4 != 1 else 1), "error code"
        return request[24:limit]
    if command == 0:
        if code:
            assert code in (NO_DISK, RESERVED), "error code"
            return request[24:36]
        return registers_of(served, request, response, has_fault=has_fault)
    if command == 1:
        return config_of(served, request, code)
    if command == 2:
        return mask_of(served, request, response, code)
    assert code in (0, 2, NO_DISK, RESERVED), "error code"
    room = (limit - 26) // 6
    macs = served.target.export.state.holders[:room]
    return bytes((request[24], len(macs))) + b"".join(macs)


def config_of(served: Served, request: bytes, code: int) -> bytes:
    """Return the expected body of a query config response (P50)."""
    assert code in (0, 2, NO_DISK, CONFIG_TAKEN), "error code"
    export, ccmd = served.target.export, request[29] & 0x0F
    string = export.state.config_string[: served.frame_limit - 32]
    assert ccmd < 5 or code == 2, "an unknown config command was executed"
    fixed = (
        export.buffer_count,
        export.firmware_number,
        min((served.frame_limit - 50) // SECTOR, 255),
        0x10 | ccmd,
        len(string),
    )
    return struct.pack("!HHBBH", *fixed) + string


def mask_of(served: Served, request: bytes, response: bytes, code: int) -> bytes:
    """Return the expected body of a mask list response."""
    if code == 2:
        return request[24 : served.frame_limit]
    assert code in (0, NO_DISK), "error code"
    if response[26]:
        entries = macs_of(request[28:], 8, request[27])[: mask_limit(served)]
        # The list before the edit is not known here, so the index of the failed
        # directive is only checked for its range.
        assert response[26] in (2, 3), "mask error"
        head = bytes((0, request[25], response[26], response[27]))
        assert response[27] < request[27], "index of a directive"
        return head + b"".join(bytes((0, entry[1])) + entry[2:] for entry in entries)
    macs = served.target.export.state.mask[: mask_limit(served)]
    listed = b"".join(b"\0\0" + mac for mac in macs)
    return bytes((0, request[25], 0, len(macs))) + listed


def registers_of(
    served: Served, request: bytes, response: bytes, *, has_fault: bool
) -> bytes:
    """Return the expected body of an ATA response, including data."""
    registers, opcode = (response[27], response[25]), request[27]
    count, data = request[26], b""
    if registers == DONE:
        count = 0xFF if opcode == POWER_MODE else 0
        data = data_of(served, request, response)
    else:
        assert registers in FAILURES, "registers"
        assert has_fault or registers != (0x61, 0x04), "device fault without a fault"
        may_fail = has_fault or has_uncorrectable(served)
        assert may_fail or registers != (0x41, 0x40), "uncorrectable without a fault"
        is_read = opcode in READS and is_transfer(served, request)
        offset = offset_of(served, request, served.sector_limit)
        is_valid = is_read and offset is not None
        assert may_fail or not is_valid, "a valid request failed"
    head = bytes((request[24] & 0x53, registers[1], count, registers[0]))
    return head + request[28:34] + bytes(2) + data


def data_of(served: Served, request: bytes, response: bytes) -> bytes:
    """Return the expected data of a successful ATA response."""
    opcode = request[27]
    if opcode in READS:
        assert is_transfer(served, request), "an invalid READ succeeded"
        start = offset_of(served, request, served.sector_limit)
        assert start is not None, "a READ beyond the end succeeded"
        return bytes(served.model[start : start + request[26] * SECTOR])
    if opcode == IDENTIFY:
        assert request[26] == 1, "IDENTIFY with another count succeeded"
        page = response[36:]
        assert len(page) == SECTOR
        assert page[510] == 0xA5
        assert sum(page) % 256 == 0, "checksum"
        assert page[200:208] == struct.pack("<Q", len(served.model) // SECTOR)
        return served.target.export.identity_page
    if opcode == SMART and request[25] == 0xD0:
        page = response[36:]
        assert len(page) == SECTOR
        assert sum(page) % 256 == 0, "checksum"
        assert not any(page[38:511]), "unknown bytes in the SMART page"
        return page
    return b""
