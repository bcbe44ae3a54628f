"""What a target may do with a frame, whatever is in it: written anew, from the rules.

Nothing here asks the target what it thinks of a request. A ``Served`` has a model of
the disk, which follows the requests that were answered with success; each byte of each
reply is held to that, to the request and to what clients have set.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from target.protocol.exports import ClientState
    from target.protocol.target import Target
    from tests.fuzz_port import Fence

SECTOR = 512
READS = frozenset({0x20, 0x24, 0x25, 0xC8})
WRITES = frozenset({0x30, 0x34, 0x35, 0x3D, 0xCA})
LONG = frozenset({0x24, 0x25, 0x34, 0x35, 0x3D})
TRIM, SMART, POWER_MODE, IDENTIFY, SET_FEATURES = 0x06, 0xB0, 0xE5, 0xEC, 0xEF
FIXED_PART = {0: 36, 1: 32, 2: 28, 3: 26}
"""Bytes that a command needs at least (P17)."""
SETTLING = frozenset({0xE0, 0xE2, 0xE6, 0xE7, 0xEA})
"""STANDBY, SLEEP and FLUSH: what was written before is to be stable."""
DONE, FAULT = (0x40, 0), (0x61, 0x04)
FAILURES = frozenset({(0x41, 0x04), (0x41, 0x10), (0x41, 0x40), (0x61, 0x04)})
"""Status and error registers: aborted, not found, uncorrectable, device fault."""
NO_DISK, CONFIG_TAKEN, RESERVED = 3, 4, 6


class Change(NamedTuple):
    """Bytes of a disk that are written, or zeroed where there is no data."""

    offset: int
    length: int
    data: bytes | None = None


@dataclass(slots=True)
class Served:
    """A target, its disk behind a fence, and what should be on it."""

    target: Target
    disk: Fence
    model: bytearray

    def hears(self, request: bytes) -> bool:
        """Tell whether a frame's address is this target's, or for all (P8)."""
        shelf, slot = struct.unpack_from("!HB", request, 16)
        return shelf in (self.target.shelf, 0xFFFF) and slot in (self.target.slot, 0xFF)


def hold(
    served: Served, request: bytes, reply: bytes, before: ClientState, *, broken: bool
) -> None:
    """Hold a target to the rules, after it was handed a request that it hears.

    Args:
        served: the target; its model follows what has happened.
        request: the frame.
        reply: what came back, nothing for silence.
        before: what clients had set on it.
        broken: the disk has failed meanwhile, or what clients set could not be kept.
    """
    assert bool(reply) == is_answered(served, request, before), "silence"
    wanted = changes_of(served, request, before) if reply else []
    made = served.disk.take_changes()
    if not broken:
        is_done = bool(wanted) and (reply[14], reply[27]) == (0x18, 0x40)
        assert is_done or not wanted, "a good request failed"
    assert made == wanted[: len(made)], "the disk was changed otherwise than asked"
    assert broken or made == wanted, "not all was done"
    for offset, length, data in made:
        served.model[offset : offset + length] = data or bytes(length)
    after = served.target.export.state
    is_switch = broken and request[19] == 0 and request[27:28] == b"\xef"
    # A write cache that was switched off, and then could not be flushed, is off.
    if not is_switch or after != replace(before, write_cache=False):
        assert after == state_after(served, request, reply, before), "what is set"
    if reply:
        hold_reply(served, request, reply, broken=broken)


def asks_for_stability(request: bytes) -> bool:
    """Tell whether a request may not succeed while a flush has failed unheard (P46)."""
    if len(request) < 36 or request[14] >> 4 != 1 or request[19] != 0:
        return False
    return request[27] in SETTLING or (
        request[27] == SET_FEATURES and request[25] == 0x82
    )


def is_answered(served: Served, request: bytes, before: ClientState) -> bool:
    """Tell whether a request that a target hears deserves an answer."""
    is_request = request[12:14] == b"\x88\xa2" and not request[14] & 0x08
    if not is_request or (before.mask and request[6:12] not in before.mask):
        return False
    if request[14] >> 4 != 1:
        return True
    command = request[19]
    if len(request) < FIXED_PART.get(command, 24):
        return False
    if command == 1:
        return has_config(request, before)
    return command != 0 or not is_outgrown(served, request, before)


def is_outgrown(served: Served, request: bytes, before: ClientState) -> bool:
    """Tell whether a transfer would have fitted before the MTU became smaller (P37)."""
    target = served.target
    is_between = target.sector_limit < request[26] <= target.largest_advertised
    is_allowed = not is_fenced(request, before)
    return is_between and is_allowed and is_transfer(served, request)


def has_config(request: bytes, before: ClientState) -> bool:
    """Tell whether the config string passes a request's test, if it has one (P52)."""
    string, ccmd = asked_string(request), request[29] & 0x0F
    if string is None or ccmd not in (1, 2):
        return True
    current = before.config_string
    return current == string if ccmd == 1 else current.startswith(string)


def asked_string(request: bytes) -> bytes | None:
    """Return the config string of a request; None if it is not whole (P56)."""
    (length,) = struct.unpack_from("!H", request, 30)
    string = request[32 : 32 + length]
    return string if len(string) == length <= 1024 else None


def is_fenced(request: bytes, before: ClientState) -> bool:
    """Tell whether the target is reserved for others (P74)."""
    return (
        bool(before.holders)
        and request[6:12] not in before.holders
        and request[27] != IDENTIFY
    )


def is_transfer(served: Served, request: bytes) -> bool:
    """Tell whether a READ or WRITE is one, but for its count and its address."""
    opcode, has_flag = request[27], bool(request[24] & 1)
    if opcode in READS:
        return not has_flag
    return opcode in WRITES and has_flag and may_write(served, request, request[26])


def may_write(served: Served, request: bytes, sectors: int) -> bool:
    """Not to a broadcast address, not read-only, and with all of its data (P39)."""
    is_broadcast = request[16:18] == b"\xff\xff" or request[18] == 0xFF
    is_whole = len(request) >= 36 + sectors * SECTOR
    return is_whole and not is_broadcast and not served.disk.read_only


def place_of(served: Served, request: bytes, limit: int) -> int | None:
    """Return the byte where a transfer begins; None if it has no place on the disk."""
    count, lba = request[26], int.from_bytes(request[28:34], "little")
    if not (request[24] & 0x40 or request[27] in LONG):
        lba &= (1 << 28) - 1
    if 1 <= count <= limit and (lba + count) * SECTOR <= len(served.model):
        return lba * SECTOR
    return None


def changes_of(served: Served, request: bytes, before: ClientState) -> list[Change]:
    """Say what a request has to change on the disk, in this order; often nothing."""
    is_ata = request[14] >> 4 == 1 and request[19] == 0 and len(request) >= 36
    if not is_ata or is_fenced(request, before):
        return []
    opcode, count = request[27], request[26]
    length = count * SECTOR
    data = request[36 : 36 + length]
    if opcode in WRITES and is_transfer(served, request):
        start = place_of(served, request, served.target.sector_limit)
        return [] if start is None else [Change(start, length, data)]
    is_trim = opcode == TRIM and request[24] & 1 and request[25] == 1
    if is_trim and count <= served.target.sector_limit:
        return trimmed(served, data) if may_write(served, request, count) else []
    return []


def trimmed(served: Served, data: bytes) -> list[Change]:
    """Say what a list of ranges zeroes: nothing if one reaches beyond the end."""
    entries = [entry for (entry,) in struct.iter_unpack("<Q", data) if entry >> 48]
    ranges = [
        Change((entry & (1 << 48) - 1) * SECTOR, (entry >> 48) * SECTOR)
        for entry in entries
    ]
    if any(offset + length > len(served.model) for offset, length, _ in ranges):
        return []
    return ranges


def is_spoilt(served: Served) -> bool:
    """Tell whether reads may fail, for WRITE UNCORRECTABLE has spoilt a sector."""
    return bool(served.target.export.uncorrectable)


def state_after(
    served: Served, request: bytes, reply: bytes, before: ClientState
) -> ClientState:
    """Say what clients have set after a request that got this reply."""
    if not reply or reply[14] != 0x18:
        return before
    command = request[19]
    if command == 1 and request[29] & 0x0F in (3, 4):
        return replace(before, config_string=asked_string(request) or b"")
    if command == 2 and request[25] == 1:
        return replace(before, mask=edited(served, request, before.mask)[0])
    if command == 3 and request[24] in (1, 2):
        macs = macs_of(request[26:], 6, request[25])
        return replace(before, holders=tuple(dict.fromkeys(macs)))
    if command == 0 and request[27] == SET_FEATURES and request[25] in (0x02, 0x82):
        is_done = (reply[27], reply[25]) == DONE
        return replace(before, write_cache=request[25] == 0x02) if is_done else before
    return before


def macs_of(body: bytes, width: int, count: int) -> list[bytes]:
    """Cut the entries of a list apart: those that are whole, at most ``count``."""
    held = min(count, len(body) // width)
    return [body[place * width : (place + 1) * width] for place in range(held)]


def edited(
    served: Served, request: bytes, mask: tuple[bytes, ...]
) -> tuple[tuple[bytes, ...], int, int]:
    """Follow the directives of an edit (P63 to P66).

    Returns:
        The list afterwards, the error, and how many directives were done.
    """
    macs, limit = list(mask), room_for_mask(served)
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


def room_for_mask(served: Served) -> int:
    """Entries of a mask list that one frame holds."""
    return min((served.target.frame_limit - 28) // 8, 255)


# --- replies ------------------------------------------------------------------------


def hold_reply(served: Served, request: bytes, reply: bytes, *, broken: bool) -> None:
    """Account for every byte of a reply: none is anybody else's memory."""
    target = served.target
    assert 60 <= len(reply) <= target.frame_limit, "length"
    assert reply[:14] == request[6:12] + target.mac + b"\x88\xa2", "Ethernet header"
    code = reply[15]
    if reply[14] == 0x18:
        assert code == 0, "an error code without its flag"
    else:
        assert reply[14] == 0x1C, "flags"
        assert 1 <= code <= 6, "error code"
        assert code != NO_DISK or broken, "the disk was there"
    assert reply[16:19] == struct.pack("!HB", target.shelf, target.slot), "address"
    assert reply[19:24] == request[19:24], "command and tag"
    body = body_of(served, request, reply, code, broken=broken)
    assert reply[24:] == body.ljust(36, b"\0"), "body"


def body_of(
    served: Served, request: bytes, reply: bytes, code: int, *, broken: bool
) -> bytes:
    """Say what must follow the header of a reply with this error code."""
    command, limit = request[19], served.target.frame_limit
    if request[14] >> 4 != 1 or command > 3:
        assert code == (5 if request[14] >> 4 != 1 else 1), "error code"
        return request[24:limit]
    if command == 0:
        if code:
            assert code in (NO_DISK, RESERVED), "error code"
            return request[24:36]
        return registers_of(served, request, reply, broken=broken)
    if command == 1:
        return config_of(served, request, code)
    if command == 2:
        return mask_of(served, request, reply, code)
    assert code in (0, 2, NO_DISK, RESERVED), "error code"
    room = (limit - 26) // 6
    macs = served.target.export.state.holders[:room]
    return bytes((request[24], len(macs))) + b"".join(macs)


def config_of(served: Served, request: bytes, code: int) -> bytes:
    """The body of a query config reply (P50)."""
    assert code in (0, 2, NO_DISK, CONFIG_TAKEN), "error code"
    target, ccmd = served.target, request[29] & 0x0F
    string = target.export.state.config_string[: target.frame_limit - 32]
    assert ccmd < 5 or code == 2, "an unknown config command was executed"
    fixed = (
        target.export.buffer_count,
        target.export.firmware_number,
        min((target.frame_limit - 50) // SECTOR, 255),
        0x10 | ccmd,
        len(string),
    )
    return struct.pack("!HHBBH", *fixed) + string


def mask_of(served: Served, request: bytes, reply: bytes, code: int) -> bytes:
    """The body of a mask list reply: an echo, an error's, or the list."""
    if code == 2:
        return request[24 : served.target.frame_limit]
    assert code in (0, NO_DISK), "error code"
    if reply[26]:
        entries = macs_of(request[28:], 8, request[27])[: room_for_mask(served)]
        # What was set before is gone by now: the index of the one that failed is not
        # known any more if the list was full.
        assert reply[26] in (2, 3), "mask error"
        head = bytes((0, request[25], reply[26], reply[27]))
        assert reply[27] < request[27], "index of a directive"
        return head + b"".join(bytes((0, entry[1])) + entry[2:] for entry in entries)
    macs = served.target.export.state.mask[: room_for_mask(served)]
    listed = b"".join(b"\0\0" + mac for mac in macs)
    return bytes((0, request[25], 0, len(macs))) + listed


def registers_of(
    served: Served, request: bytes, reply: bytes, *, broken: bool
) -> bytes:
    """The body of a reply to an ATA command, its data included."""
    told, opcode = (reply[27], reply[25]), request[27]
    count, data = request[26], b""
    if told == DONE:
        count = 0xFF if opcode == POWER_MODE else 0
        data = data_of(served, request, reply)
    else:
        assert told in FAILURES, "registers"
        assert broken or told != (0x61, 0x04), "the disk is in order"
        assert broken or told != (0x41, 0x40) or is_spoilt(served), "it can be read"
        is_read = opcode in READS and is_transfer(served, request)
        place = place_of(served, request, served.target.sector_limit)
        is_good = is_read and place is not None
        assert broken or not is_good or is_spoilt(served), "a good request failed"
    head = bytes((request[24] & 0x53, told[1], count, told[0]))
    return head + request[28:34] + bytes(2) + data


def data_of(served: Served, request: bytes, reply: bytes) -> bytes:
    """The data of a reply to an ATA command that went well."""
    opcode = request[27]
    if opcode in READS:
        assert is_transfer(served, request), "a READ that is none"
        start = place_of(served, request, served.target.sector_limit)
        assert start is not None, "a READ beyond the end"
        return bytes(served.model[start : start + request[26] * SECTOR])
    if opcode == IDENTIFY:
        assert request[26] == 1, "IDENTIFY of another length"
        page = reply[36:]
        assert len(page) == SECTOR
        assert page[510] == 0xA5
        assert sum(page) % 256 == 0, "checksum"
        assert page[200:208] == struct.pack("<Q", len(served.model) // SECTOR)
        return served.target.export.identity_page
    if opcode == SMART and request[25] == 0xD0:
        page = reply[36:]
        assert len(page) == SECTOR
        assert sum(page) % 256 == 0, "checksum"
        assert not any(page[38:511]), "more in the SMART page than is known"
        return page
    return b""
