"""Expectations of responses.

A response is compared byte for byte with its expectation, up to the end of its message.
Padding has checks of its own (P19, P34); otherwise a target with wrong padding would
deviate in every check.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from aoe.ata import (
    ATA_DATA,
    SECTOR,
    STATUS_BAD,
    AtaError,
    Registers,
    Status,
    describe_failure,
)
from aoe.config import Config
from aoe.errors import DecodeError
from aoe.header import (
    FRAME_MINIMUM,
    HEADER_LENGTH,
    VERSION,
    Command,
    ErrorCode,
    Flag,
    Header,
)
from aoe.macmask import Directive, DirectiveCommand, MaskError, MaskList
from aoe.reserve import Reserve
from initiator.client.requests import packed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from initiator.check.subject import Subject

_AFLAGS, _ERROR, _COUNT, _STATUS, _LBA = 24, 25, 26, 27, range(28, 34)
_ANY: Final = 0
"""A byte that is not compared."""
_CONFIG_NUMBERS: Final = dict.fromkeys(range(24, 29), _ANY)
"""Buffer count, firmware version and sector count: any values."""

_HEADER_FIELDS: Final = {
    "destination address": range(6),
    "source address": range(6, 12),
    "EtherType": range(12, 14),
    "version and flags": range(14, 15),
    "error": range(15, 16),
    "shelf": range(16, 18),
    "slot": range(18, 19),
    "command": range(19, 20),
    "tag": range(20, 24),
}
_FIELDS: Final[dict[int, dict[str, range]]] = {
    Command.ATA: {
        "ATA flags": range(_AFLAGS, _ERROR),
        "error register": range(_ERROR, _COUNT),
        "sector count": range(_COUNT, _STATUS),
        "status": range(_STATUS, 28),
        "LBA": _LBA,
        "reserved": range(34, 36),
    },
    Command.CONFIG: {
        "version and ccmd": range(29, 30),
        "string length": range(30, 32),
    },
    Command.MASK: {
        "MCmd": range(25, 26),
        "MError": range(26, 27),
        "directive count": range(27, 28),
    },
    Command.RESERVE: {"RCmd": range(24, 25), "address count": range(25, 26)},
}


class Expectation(ABC):
    """The expected response to a request."""

    description: str
    is_silence = False

    @abstractmethod
    def mismatch(self, request: bytes, response: bytes, t: Subject) -> str:
        """Return how a response differs, "" if it meets the expectation."""

    def pattern(self, request: bytes, t: Subject) -> str:
        """Return the response in hexadecimal, ``..`` for any byte, "" if unknown."""
        del request, t
        return ""


class _Silence(Expectation):
    description = "silence"
    is_silence = True

    def mismatch(self, request: bytes, response: bytes, t: Subject) -> str:
        del request, t
        return "response" if response else ""


SILENCE: Final = _Silence()
MISMATCH: Final = "mismatch"
"""The difference if the expectation's description is sufficient."""


@dataclass(frozen=True, slots=True)
class Satisfies(Expectation):
    """A response that satisfies a predicate; silence is passed to it as b"".

    Args:
        description: the property.
        holds: the predicate.
    """

    description: str
    holds: Callable[[bytes], bool]

    def mismatch(self, request: bytes, response: bytes, t: Subject) -> str:
        """Return a mismatch, or that the response is too short to be decoded."""
        del request, t
        try:
            return "" if self.holds(response) else MISMATCH
        except (DecodeError, IndexError, struct.error):
            return "too short"


class _NotAwaited(_Silence):
    # The exchange does not wait for a response, but the check accepts one.
    description = "silence, or anything"

    def mismatch(self, request: bytes, response: bytes, t: Subject) -> str:
        del request, response, t
        return ""


ANYTHING: Final = Satisfies("anything", lambda _: True)
"""Any response or none; the exchange waits for it."""
NOT_AWAITED: Final = _NotAwaited()
"""Any response or none; the exchange does not wait for it."""
ANY_RESPONSE: Final = Satisfies("a response", bool)


class AnyOf(Expectation):
    """One of several expectations."""

    def __init__(self, *choices: Expectation) -> None:
        self._choices = choices
        self.description = ", or ".join(choice.description for choice in choices)

    def mismatch(self, request: bytes, response: bytes, t: Subject) -> str:
        """Return the difference from the first choice if no choice is met."""
        found = [choice.mismatch(request, response, t) for choice in self._choices]
        return found[0] if all(found) else ""

    def pattern(self, request: bytes, t: Subject) -> str:
        """Return the pattern of the first choice."""
        return self._choices[0].pattern(request, t)


@dataclass(frozen=True, slots=True)
class Response(Expectation):
    """A response with the request's tag and command and the target's own address.

    Args:
        description: its contents as text.
        body: returns the bytes after the header, given the request.
        error: the AoE error, 0 for none.
        masks: bits to compare at an offset; by default all.
        exact_length: only padding may follow.
    """

    description: str
    body: Callable[[bytes], bytes]
    error: int = 0
    masks: Mapping[int, int] = field(default_factory=dict)
    exact_length: bool = True

    def frame(self, request: bytes, t: Subject) -> bytes:
        """Return the response without padding."""
        header = Header.unpack_from(request)
        flags = Flag.RESPONSE | (Flag.ERROR if self.error else 0)
        head = bytearray(HEADER_LENGTH)
        Header(
            header.src, t.mac, *t.address, header.command, header.tag, flags, self.error
        ).pack_into(head)
        return bytes(head) + self.body(request)

    def mismatch(self, request: bytes, response: bytes, t: Subject) -> str:
        """Return the first field that differs."""
        if not response:
            return "silence"
        want = self.frame(request, t)
        for offset, (wanted, got) in enumerate(zip(want, response, strict=False)):
            if (wanted ^ got) & self.masks.get(offset, 0xFF):
                return _difference(want, response, offset)
        lengths = {len(want), max(FRAME_MINIMUM, len(want))}
        if len(response) < len(want) or (
            self.exact_length and len(response) not in lengths
        ):
            return f"{len(response)} bytes long, not {max(lengths)}"
        return ""

    def pattern(self, request: bytes, t: Subject) -> str:
        """Return the compared bytes in hexadecimal."""
        want = self.frame(request, t)
        return "".join(
            f"{byte:02x}" if self.masks.get(offset, 0xFF) else ".."
            for offset, byte in enumerate(want)
        )


def _difference(want: bytes, got: bytes, offset: int) -> str:
    fields = _HEADER_FIELDS | _FIELDS.get(want[19], {})
    for name, offsets in fields.items():
        if offset in offsets:
            part = slice(offsets.start, offsets.stop)
            return f"{name} is {got[part].hex()}, not {want[part].hex()}"
    return f"byte {offset} is {got[offset]:02x}, not {want[offset]:02x}"


# Command 0.


def succeeds(
    data: bytes | None = None, *, sectors: int = 0, count: int | None = None
) -> Response:
    """Expect ATA success with the given data, any data of ``sectors``, or no data.

    ``count`` is the expected sector count register, by default any value (P35).
    """
    length = len(data) if data is not None else sectors * SECTOR
    masks = dict.fromkeys((_AFLAGS, *_LBA), _ANY) | {_STATUS: int(STATUS_BAD)}
    if count is None:
        masks[_COUNT] = _ANY
    # The error register has no meaning while the ERR bit is clear.
    masks[_ERROR] = _ANY
    if data is None:
        masks |= dict.fromkeys(range(ATA_DATA, ATA_DATA + length), _ANY)
    body = packed(Registers(0, 0, count or 0, Status.READY, 0)) + (
        data or bytes(length)
    )
    text = f"success and {length} bytes" if length else "success"
    if count is not None:
        text += f", sector count {count:#04x}"
    return Response(text, lambda _: body, masks=masks)


def succeeds_exactly() -> Response:
    """Expect ATA success without data, with the recommended registers (P33, P35)."""

    def body(request: bytes) -> bytes:
        registers = Registers.unpack_from(request)
        return packed(Registers(0, 0, 0, Status.READY, registers.lba))

    text = "status 0x40, error register and sector count 0, the LBA echoed"
    return Response(text, body, masks={_AFLAGS: _ANY}, exact_length=False)


def fails(error: AtaError, *, exact_status: bool = False) -> Response:
    """Expect ATA failure without data, with the request's sector count and LBA (P32).

    ``exact_status`` requires DRDY in the status as well (P33).
    """
    status = Status.READY | Status.ERROR

    def body(request: bytes) -> bytes:
        registers = Registers.unpack_from(request)
        return packed(Registers(0, error, registers.count, status, registers.lba))

    masks = {_AFLAGS: _ANY, _STATUS: 0xFF if exact_status else int(STATUS_BAD)}
    return Response(describe_failure(status, error), body, masks=masks)


def is_failure(response: bytes) -> bool:
    """Return True if a response reports a failure by AoE error or ATA status."""
    if len(response) < ATA_DATA:
        return bool(response) and bool(response[14] & Flag.ERROR)
    return bool(response[14] & Flag.ERROR or response[_STATUS] & STATUS_BAD)


NO_SUCCESS: Final = Satisfies(
    "failure or silence", lambda response: not response or is_failure(response)
)
ANY_FAILURE: Final = Satisfies("a response that reports failure", is_failure)


# The other commands, and AoE errors.


def refuses(code: ErrorCode) -> Response:
    """Expect an AoE error with any body."""
    text = f"AoE error {code:d}, {code.text}"
    return Response(text, lambda _: b"", code, exact_length=False)


def refuses_and_echoes(code: ErrorCode) -> Response:
    """Expect an AoE error with the request after the header (P16, P18)."""
    text = f"AoE error {code:d} and the request echoed"
    return Response(text, lambda request: request[HEADER_LENGTH:], code)


def config_is(string: bytes, ccmd: int, code: int = 0) -> Response:
    """Expect a query config response with this string and any numbers (P50)."""
    body = packed(Config(ccmd, string, version=VERSION))
    text = f"config string {_text(string)}, ccmd {ccmd}"
    text = f"AoE error {code} and {text}" if code else text
    return Response(text, lambda _: body, code, _CONFIG_NUMBERS)


def _text(string: bytes) -> str:
    shown = string if len(string) <= 40 else string[:37] + b"..."
    return '"' + ascii(shown.decode("latin-1"))[1:-1] + '"'


def mask_is(*macs: bytes, mcmd: int) -> Response:
    """Expect a MAC mask list of these addresses in order (P62, P67)."""
    body = packed(
        MaskList(mcmd, tuple(Directive(DirectiveCommand.NONE, mac) for mac in macs))
    )
    listed = " ".join(mac.hex(":") for mac in macs) or "empty"
    return Response(f"MAC mask list {listed}", lambda _: body)


def _is_list(response: bytes) -> bool:
    return bool(MaskList.unpack_from(response)) and not response[14] & Flag.ERROR


ANY_MASK_LIST: Final = Satisfies("a MAC mask list", _is_list)


def mask_fails(error: MaskError, done: int, mcmd: int) -> Response:
    """Expect an edit of the mask list to stop at a directive; any body (P64, P66)."""
    body = packed(MaskList(mcmd, (), error, declared=done))
    text = f"MError {error:d} at directive {done}"
    return Response(text, lambda _: body, exact_length=False)


def holders_are(*macs: bytes, rcmd: int, code: int = 0) -> Response:
    """Expect a reserve/release response with these holders in order (P71)."""
    body = packed(Reserve(rcmd, macs))
    text = f"holders {' '.join(mac.hex(':') for mac in macs) or 'none'}"
    text = f"AoE error {code} and {text}" if code else text
    return Response(text, lambda _: body, code)


def is_long(length: int) -> Satisfies:
    """Expect a response of exactly this many bytes (P21)."""
    return Satisfies(f"{length} bytes", lambda response: len(response) == length)


def is_padded() -> Satisfies:
    """Expect a response of at least the minimum frame length (P19)."""
    text = f"at least {FRAME_MINIMUM} bytes"
    return Satisfies(text, lambda response: len(response) >= FRAME_MINIMUM)


def is_blank_from(offset: int) -> Satisfies:
    """Expect zeros after the end of the message (P3, P34)."""
    text = f"only zeros from byte {offset} on"
    return Satisfies(
        text, lambda response: bool(response) and not any(response[offset:])
    )
