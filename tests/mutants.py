"""Mutants of our target, each with one deviation from the protocol.

A mutant alters the requests to the target or its responses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

FIXED_END = {1: 32, 2: 28, 3: 26}
"""Where the fixed part of a response ends, by command; 36 for ATA."""


def unchanged(frame: bytes) -> bytes:
    return frame


def unaltered(request: bytes, response: bytes) -> bytes:
    del request
    return response


class Mutant(NamedTuple):
    """A deviation from the protocol.

    Args:
        checks: names of the checks that must fail.
        alter: returns the altered response, given request and response; b"" drops it.
        rewrite: returns the altered request.
    """

    checks: str
    alter: Callable[[bytes, bytes], bytes] = unaltered
    rewrite: Callable[[bytes], bytes] = unchanged


def put_bytes(offset: int, *values: int) -> Callable[[bytes, bytes], bytes]:
    """Write these bytes into every response."""

    def alter(_: bytes, response: bytes) -> bytes:
        if not response:
            return response
        return response[:offset] + bytes(values) + response[offset + len(values) :]

    return alter


def only(
    condition: Callable[[bytes, bytes], bool],
    alter: Callable[[bytes, bytes], bytes],
) -> Callable[[bytes, bytes], bytes]:
    """Alter the responses that satisfy a condition."""

    def chosen(request: bytes, response: bytes) -> bytes:
        wanted = bool(response) and condition(request, response)
        return alter(request, response) if wanted else response

    return chosen


def only_requests(
    condition: Callable[[bytes], bool], rewrite: Callable[[bytes], bytes]
) -> Callable[[bytes], bytes]:
    """Rewrite the requests that satisfy a condition."""
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


def message_end(response: bytes) -> int:
    """Return where the message of a short response ends."""
    number, end = response[19], FIXED_END.get(response[19], 36)
    if number == 1:
        return end + int.from_bytes(response[30:32])
    return end + {2: 8 * response[27], 3: 6 * response[25]}.get(number, 0)


def respond_anyway(request: bytes, response: bytes) -> bytes:
    """Respond to a request that should be ignored."""
    if response or len(request) < 24:
        return response
    head = request[6:12] + request[:6] + request[12:14] + b"\x18\0\0\7\3"
    return (head + request[19:]).ljust(60, b"\0")[:60]


def unpadded(request: bytes, response: bytes) -> bytes:
    del request
    return response[: message_end(response)] if len(response) == 60 else response


def stale(request: bytes, response: bytes) -> bytes:
    """Fill the padding of a response with stale bytes."""
    del request
    end = message_end(response)
    return response[:end].ljust(60, b"\xed") if len(response) == 60 else response


def error_two(request: bytes, response: bytes) -> bytes:
    """Report a failed ATA command by an AoE error."""
    return response[:14] + b"\x1c\x02" + request[16:36] + bytes(24)


def no_data(request: bytes, response: bytes) -> bytes:
    del request
    return response[:60]


def echo(offset: int, mask: int) -> Callable[[bytes, bytes], bytes]:
    """Copy bits of a byte from the request."""

    def alter(request: bytes, response: bytes) -> bytes:
        byte = response[offset] | request[offset] & mask
        return response[:offset] + bytes((byte,)) + response[offset + 1 :]

    return alter


def flip(offset: int) -> Callable[[bytes, bytes], bytes]:
    """Invert a byte."""

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


def echo_address(request: bytes, response: bytes) -> bytes:
    return response[:16] + request[16:19] + response[19:]


def or_byte(offset: int, bits: int) -> Callable[[bytes], bytes]:
    return lambda frame: set_byte(offset, frame[offset] | bits)(frame)


def and_byte(offset: int, bits: int) -> Callable[[bytes], bytes]:
    return lambda frame: set_byte(offset, frame[offset] & bits)(frame)


def replace_opcode(number: int) -> Callable[[bytes], bytes]:
    """Replace the ATA command."""
    return set_byte(27, number)


def version_1(frame: bytes) -> bytes:
    return set_byte(14, 0x10 | frame[14] & 0x0F)(frame)


def is_longer(length: int) -> Callable[[bytes, bytes], bool]:
    return lambda request, _: len(request) > length and request[27] not in WRITES


def more_sectors(_: bytes, response: bytes) -> bytes:
    """Report one sector too many."""
    if len(response) < 548:
        return response
    words = bytearray(response)
    words[36 + 120] += 1
    words[36 + 200] += 1
    return bytes(words)


def nul_padded(_: bytes, response: bytes) -> bytes:
    return response[:36] + response[36:].replace(b" ", b"\0")


def wrap_around(frame: bytes) -> bytes:
    """Wrap around at the end of the disk."""
    lba = int.from_bytes(frame[28:34], "little") % 2048
    return frame[:28] + lba.to_bytes(6, "little") + frame[34:]


def truncate_at_end(frame: bytes) -> bytes:
    """Truncate a request at the end of the disk."""
    lba = int.from_bytes(frame[28:34], "little")
    return set_byte(26, 1)(frame) if lba == 2047 else frame


def pad_data(frame: bytes) -> bytes:
    """Pad a request with missing data."""
    return frame.ljust(36 + 512 * frame[26], b"\xee")


def limit_length(frame: bytes) -> bytes:
    """Limit the string length to the length of the frame."""
    length = min(int.from_bytes(frame[30:32]), len(frame) - 32, 1024)
    return frame[:30] + length.to_bytes(2) + frame[32:]


def cut_at_nul(frame: bytes) -> bytes:
    length = int.from_bytes(frame[30:32])
    string = frame[32 : 32 + length].partition(b"\0")[0]
    return frame[:30] + len(string).to_bytes(2) + string


def length_of_frame(frame: bytes) -> bytes:
    return frame[:30] + (len(frame) - 32).to_bytes(2) + frame[32:]


def echo_numbers(request: bytes, response: bytes) -> bytes:
    return (
        response[:24] + request[24:28] + response[28:]
        if any(request[24:28])
        else response
    )


def from_third(frame: bytes) -> bytes:
    """Treat every client as the third one."""
    return frame[:6] + b"\x02\xae\x02" + frame[9:]


def from_client(frame: bytes) -> bytes:
    """Treat every client as the same one."""
    return frame[:6] + b"\x52\x54\x00" + frame[9:]


def to_requester(request: bytes, response: bytes) -> bytes:
    return request[6:12] + response[6:] if response else response


def sorted_macs(frame: bytes) -> bytes:
    macs = sorted(frame[26 + 6 * i : 32 + 6 * i] for i in range(frame[25]))
    return frame[:26] + b"".join(macs) + frame[26 + 6 * len(macs) :]


def count_present(frame: bytes) -> bytes:
    return set_byte(25, min(frame[25], (len(frame) - 26) // 6))(frame)


def is_set_by_non_holder(request: bytes) -> bool:
    if not is_reserve(1)(request):
        return False
    macs = [request[26 + 6 * i : 32 + 6 * i] for i in range(request[25])]
    return request[6:12] not in macs


def is_reserve(*rcmds: int) -> Callable[[bytes], bool]:
    return lambda request: request[19] == 3 and request[24] in rcmds


def is_edit(request: bytes) -> bool:
    return request[19] == 2 and request[25] == 1


def drop_before_bad(frame: bytes) -> bytes:
    """Drop the directives before a bad one."""
    if 9 in (frame[29 + 8 * i] for i in range(min(frame[27], 3))):
        return frame[:27] + b"\1" + frame[36:44] + bytes(16)
    return frame


def read_beyond_frame(frame: bytes) -> bytes:
    """Read a directive from beyond the end of the frame."""
    if frame[27] < 150:
        return frame
    return frame[:27] + b"\2" + frame[28:36] + b"\0\1\2\xae\1\0\0\1"


def merror(request: bytes, response: bytes) -> bool:
    return is_edit(request) and bool(response[26])


class WhileSet:
    """Alters responses while a list is not empty.

    Args:
        number: the command of the list.
        count: offset of the count in its responses.
        condition: selects the responses to alter.
        alter: alters them.
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
