"""Targets that get one thing wrong each, to see who notices.

Each is ours with somebody between it and the wire, who changes what it is asked, or
what it answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

MEANING = {1: 32, 2: 28, 3: 26}
"""Where the fixed part of a reply ends, by command; 36 for ATA."""


def unchanged(frame: bytes) -> bytes:
    return frame


def as_answered(request: bytes, response: bytes) -> bytes:
    del request
    return response


class Mutant(NamedTuple):
    """One way to be wrong.

    Args:
        rules: those whose checks have to notice.
        alter: changes a reply, by request and reply; nothing is silence.
        rewrite: changes a request before the target sees it.
    """

    rules: str
    alter: Callable[[bytes, bytes], bytes] = as_answered
    rewrite: Callable[[bytes], bytes] = unchanged


def put(offset: int, *values: int) -> Callable[[bytes, bytes], bytes]:
    """Write these bytes into every reply."""

    def alter(_: bytes, response: bytes) -> bytes:
        if not response:
            return response
        return response[:offset] + bytes(values) + response[offset + len(values) :]

    return alter


def only(
    condition: Callable[[bytes, bytes], bool],
    alter: Callable[[bytes, bytes], bytes],
) -> Callable[[bytes, bytes], bytes]:
    """Change those replies for which the condition holds."""

    def chosen(request: bytes, response: bytes) -> bytes:
        wanted = bool(response) and condition(request, response)
        return alter(request, response) if wanted else response

    return chosen


def asked(
    condition: Callable[[bytes], bool], rewrite: Callable[[bytes], bytes]
) -> Callable[[bytes], bytes]:
    """Change those requests for which the condition holds."""
    return lambda request: rewrite(request) if condition(request) else request


def set_byte(offset: int, value: int) -> Callable[[bytes], bytes]:
    return lambda frame: frame[:offset] + bytes((value,)) + frame[offset + 1 :]


def silent(_: bytes, __: bytes) -> bytes:
    return b""


def command(number: int) -> Callable[[bytes, bytes], bool]:
    return lambda request, _: request[19] == number


def opcode(*numbers: int) -> Callable[[bytes, bytes], bool]:
    return lambda request, _: request[19] == 0 and request[27] in numbers


def is_opcode(*numbers: int) -> Callable[[bytes], bool]:
    return lambda request: len(request) > 27 and opcode(*numbers)(request, b"")


def ccmd(*numbers: int) -> Callable[[bytes, bytes], bool]:
    return lambda request, _: request[19] == 1 and request[29] & 0xF in numbers


def failed(request: bytes, response: bytes) -> bool:
    return request[19] == 0 and not response[14] & 4 and bool(response[27] & 1)


def succeeded(request: bytes, response: bytes) -> bool:
    return request[19] == 0 and not response[14] & 4 and not response[27] & 1


def refused(request: bytes, response: bytes) -> bool:
    del request
    return bool(response[14] & 4)


def meaning(response: bytes) -> int:
    """Where a short reply stops meaning anything."""
    number, end = response[19], MEANING.get(response[19], 36)
    if number == 1:
        return end + int.from_bytes(response[30:32])
    return end + {2: 8 * response[27], 3: 6 * response[25]}.get(number, 0)


def answer_anyway(request: bytes, response: bytes) -> bytes:
    """Answer what should meet with silence."""
    if response or len(request) < 24:
        return response
    head = request[6:12] + request[:6] + request[12:14] + b"\x18\0\0\7\3"
    return (head + request[19:]).ljust(60, b"\0")[:60]


def unpadded(request: bytes, response: bytes) -> bytes:
    del request
    return response[: meaning(response)] if len(response) == 60 else response


def stale(request: bytes, response: bytes) -> bytes:
    """Leave the request's bytes where a reply is padded."""
    del request
    end = meaning(response)
    return response[:end].ljust(60, b"\xed") if len(response) == 60 else response


def error_two(request: bytes, response: bytes) -> bytes:
    """Tell of a failed ATA command with an AoE error."""
    return response[:14] + b"\x1c\x02" + request[16:36] + bytes(24)


def no_data(request: bytes, response: bytes) -> bytes:
    del request
    return response[:60]


def echo(offset: int, mask: int) -> Callable[[bytes, bytes], bytes]:
    """Send bits of the request's byte back."""

    def alter(request: bytes, response: bytes) -> bytes:
        byte = response[offset] | request[offset] & mask
        return response[:offset] + bytes((byte,)) + response[offset + 1 :]

    return alter


def flip(offset: int) -> Callable[[bytes, bytes], bytes]:
    """Turn a byte over."""

    def alter(_: bytes, response: bytes) -> bytes:
        if len(response) <= offset:
            return response
        return (
            response[:offset]
            + bytes((response[offset] ^ 0xFF,))
            + response[offset + 1 :]
        )

    return alter


def trailing(_: bytes, response: bytes) -> bytes:
    return response + b"\0" if len(response) > 60 else response


def own_address(frame: bytes) -> bytes:
    return frame[:16] + b"\0\7\3" + frame[19:]


def address_back(request: bytes, response: bytes) -> bytes:
    return response[:16] + request[16:19] + response[19:]


def or_byte(offset: int, bits: int) -> Callable[[bytes], bytes]:
    return lambda frame: set_byte(offset, frame[offset] | bits)(frame)


def and_byte(offset: int, bits: int) -> Callable[[bytes], bytes]:
    return lambda frame: set_byte(offset, frame[offset] & bits)(frame)


def becomes(number: int) -> Callable[[bytes], bytes]:
    """Take one ATA command for another."""
    return set_byte(27, number)


def our_version(frame: bytes) -> bytes:
    return set_byte(14, 0x10 | frame[14] & 0x0F)(frame)


def is_longer(length: int) -> Callable[[bytes, bytes], bool]:
    return lambda request, _: len(request) > length and request[27] not in WRITES


def more_sectors(_: bytes, response: bytes) -> bytes:
    """Tell of one sector more than there is."""
    if len(response) < 548:
        return response
    words = bytearray(response)
    words[36 + 120] += 1
    words[36 + 200] += 1
    return bytes(words)


def no_spaces(_: bytes, response: bytes) -> bytes:
    return response[:36] + response[36:].replace(b" ", b"\0")


def without_range_check(frame: bytes) -> bytes:
    """Come around at the end of the disk."""
    lba = int.from_bytes(frame[28:34], "little") % 2048
    return frame[:28] + lba.to_bytes(6, "little") + frame[34:]


def cut_at_end(frame: bytes) -> bytes:
    """Do as much as there is room for."""
    lba = int.from_bytes(frame[28:34], "little")
    return set_byte(26, 1)(frame) if lba == 2047 else frame


def filled_up(frame: bytes) -> bytes:
    """Take what is missing from elsewhere."""
    return frame.ljust(36 + 512 * frame[26], b"\xee")


def length_as_it_is(frame: bytes) -> bytes:
    """Believe the frame, not its length field."""
    length = min(int.from_bytes(frame[30:32]), len(frame) - 32, 1024)
    return frame[:30] + length.to_bytes(2) + frame[32:]


def cut_at_zero(frame: bytes) -> bytes:
    length = int.from_bytes(frame[30:32])
    string = frame[32 : 32 + length].partition(b"\0")[0]
    return frame[:30] + len(string).to_bytes(2) + string


def all_of_it(frame: bytes) -> bytes:
    return frame[:30] + (len(frame) - 32).to_bytes(2) + frame[32:]


def numbers_back(request: bytes, response: bytes) -> bytes:
    return (
        response[:24] + request[24:28] + response[28:]
        if any(request[24:28])
        else response
    )


def from_third(frame: bytes) -> bytes:
    """Take everybody for the third client."""
    return frame[:6] + b"\x02\xae\x02" + frame[9:]


def from_client(frame: bytes) -> bytes:
    """Take everybody for one and the same client."""
    return frame[:6] + b"\x52\x54\x00" + frame[9:]


def to_asker(request: bytes, response: bytes) -> bytes:
    return request[6:12] + response[6:] if response else response


def sorted_macs(frame: bytes) -> bytes:
    macs = sorted(frame[26 + 6 * i : 32 + 6 * i] for i in range(frame[25]))
    return frame[:26] + b"".join(macs) + frame[26 + 6 * len(macs) :]


def held_macs(frame: bytes) -> bytes:
    return set_byte(25, min(frame[25], (len(frame) - 26) // 6))(frame)


def is_for_strangers(request: bytes) -> bool:
    if not is_reserve(1)(request):
        return False
    macs = [request[26 + 6 * i : 32 + 6 * i] for i in range(request[25])]
    return request[6:12] not in macs


def is_reserve(*rcmds: int) -> Callable[[bytes], bool]:
    return lambda request: request[19] == 3 and request[24] in rcmds


def is_edit(request: bytes) -> bool:
    return request[19] == 2 and request[25] == 1


def bad_one_alone(frame: bytes) -> bytes:
    """Undo what stood before a bad directive."""
    if 9 in (frame[29 + 8 * i] for i in range(min(frame[27], 3))):
        return frame[:27] + b"\1" + frame[36:44] + bytes(16)
    return frame


def from_memory(frame: bytes) -> bytes:
    """Find a directive behind the end of the frame."""
    if frame[27] < 150:
        return frame
    return frame[:27] + b"\2" + frame[28:36] + b"\0\1\2\xae\1\0\0\1"


def merror(request: bytes, response: bytes) -> bool:
    return is_edit(request) and bool(response[26])


class WhileSet:
    """Changes replies for as long as a list is not empty.

    Args:
        number: the command of the list.
        count: where its replies have the count.
        condition: which replies.
        alter: how.
    """

    def __init__(
        self,
        number: int,
        count: int,
        condition: Callable[[bytes, bytes], bool],
        alter: Callable[[bytes, bytes], bytes],
    ) -> None:
        self._number, self._count = number, count
        self._alter = only(condition, alter)
        self._is_set = False

    def __call__(self, request: bytes, response: bytes) -> bytes:
        if response and request[19] == self._number:
            self._is_set = response[self._count] > 0
            return response
        return self._alter(request, response) if self._is_set else response


READS, WRITES = (0x20, 0x24), (0x30, 0x34)
is_read, is_write = is_opcode(*READS), is_opcode(*WRITES)
