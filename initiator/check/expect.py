"""What a reply has to be.

Replies are held to their expectation byte for byte as far as they mean something. The
padding behind that is a rule of its own (P19, P34), or a target that does not pad would
deviate in everything.
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
"""Buffer count, firmware and sector count: the target's own."""

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
    """What comes back to a request."""

    words: str
    is_silence = False

    @abstractmethod
    def mismatch(self, request: bytes, response: bytes, t: Subject) -> str:
        """Say what is wrong with a reply, nothing if it is right."""

    def pattern(self, request: bytes, t: Subject) -> str:
        """Return the reply in hexadecimal, ``..`` for any byte; nothing if unknown."""
        del request, t
        return ""


class _Silence(Expectation):
    words = "silence"
    is_silence = True

    def mismatch(self, request: bytes, response: bytes, t: Subject) -> str:
        del request, t
        return "answered" if response else ""


SILENCE: Final = _Silence()
MISMATCH: Final = "not so"
"""The fault where the expectation's words say all there is to say."""


@dataclass(frozen=True, slots=True)
class Satisfies(Expectation):
    """A reply of which something holds; silence where it holds of no bytes.

    Args:
        words: what holds.
        holds: tells whether it does.
    """

    words: str
    holds: Callable[[bytes], bool]

    def mismatch(self, request: bytes, response: bytes, t: Subject) -> str:
        """Say that it does not hold, or that the reply is too short to tell."""
        del request, t
        try:
            return "" if self.holds(response) else MISMATCH
        except (DecodeError, IndexError, struct.error):
            return "too short"


class _Unlikely(_Silence):
    # Silence is not insisted on either: what comes is for the check to judge.
    words = "silence, or anything"

    def mismatch(self, request: bytes, response: bytes, t: Subject) -> str:
        del request, response, t
        return ""


ANYTHING: Final = Satisfies("anything", lambda _: True)
"""An answer that is waited for, and may be missing."""
NOT_AWAITED: Final = _Unlikely()
"""An answer that is not waited for."""
ANY_RESPONSE: Final = Satisfies("an answer", bool)


class AnyOf(Expectation):
    """One of several."""

    def __init__(self, *choices: Expectation) -> None:
        self._choices = choices
        self.words = ", or ".join(choice.words for choice in choices)

    def mismatch(self, request: bytes, response: bytes, t: Subject) -> str:
        """Say what is wrong when it is measured by the first."""
        faults = [choice.mismatch(request, response, t) for choice in self._choices]
        return faults[0] if all(faults) else ""

    def pattern(self, request: bytes, t: Subject) -> str:
        """Return the first."""
        return self._choices[0].pattern(request, t)


@dataclass(frozen=True, slots=True)
class Response(Expectation):
    """A reply with the request's tag and command, from the target's own address.

    Args:
        words: what it says.
        body: what stands behind the header, made from the request.
        error: the AoE error, 0 for none.
        masks: which bits are compared at an offset, all of them by default.
        is_whole: nothing but padding may follow.
    """

    words: str
    body: Callable[[bytes], bytes]
    error: int = 0
    masks: Mapping[int, int] = field(default_factory=dict)
    exact_length: bool = True

    def frame(self, request: bytes, t: Subject) -> bytes:
        """Return the reply as far as it means something."""
        asked = Header.unpack_from(request)
        flags = Flag.RESPONSE | (Flag.ERROR if self.error else 0)
        head = bytearray(HEADER_LENGTH)
        Header(
            asked.src, t.mac, *t.address, asked.command, asked.tag, flags, self.error
        ).pack_into(head)
        return bytes(head) + self.body(request)

    def mismatch(self, request: bytes, response: bytes, t: Subject) -> str:
        """Name the first field that is wrong."""
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
        """Return what is compared."""
        want = self.frame(request, t)
        return "".join(
            f"{byte:02x}" if self.masks.get(offset, 0xFF) else ".."
            for offset, byte in enumerate(want)
        )


def _difference(want: bytes, got: bytes, offset: int) -> str:
    fields = _HEADER_FIELDS | _FIELDS.get(want[19], {})
    for name, place in fields.items():
        if offset in place:
            there = slice(place.start, place.stop)
            return f"{name} is {got[there].hex()}, not {want[there].hex()}"
    return f"byte {offset} is {got[offset]:02x}, not {want[offset]:02x}"


# Command 0.


def succeeds(
    data: bytes | None = None, *, sectors: int = 0, count: int | None = None
) -> Response:
    """ATA success: with this data, with any data of so many sectors, or without.

    ``count`` is what the sector count register has to be, anything by default (P35).
    """
    length = len(data) if data is not None else sectors * SECTOR
    masks = dict.fromkeys((_AFLAGS, *_LBA), _ANY) | {_STATUS: int(STATUS_BAD)}
    if count is None:
        masks[_COUNT] = _ANY
    # What is left in the error register means nothing without the error bit.
    masks[_ERROR] = _ANY
    if data is None:
        masks |= dict.fromkeys(range(ATA_DATA, ATA_DATA + length), _ANY)
    body = packed(Registers(0, 0, count or 0, Status.READY, 0)) + (
        data or bytes(length)
    )
    what = f"success and {length} bytes" if length else "success"
    told = f"{what}, sector count {count:#04x}" if count is not None else what
    return Response(told, lambda _: body, masks=masks)


def succeeds_exactly() -> Response:
    """ATA success without data as clients like it best (P33, P35)."""

    def body(request: bytes) -> bytes:
        asked = Registers.unpack_from(request)
        return packed(Registers(0, 0, 0, Status.READY, asked.lba))

    words = "status 0x40, error register and sector count 0, the LBA echoed"
    return Response(words, body, masks={_AFLAGS: _ANY}, exact_length=False)


def fails(error: AtaError, *, exact_status: bool = False) -> Response:
    """ATA failure: no data, sector count and LBA as they were asked (P32).

    ``plainly`` wants DRDY in the status too (P33).
    """
    status = Status.READY | Status.ERROR

    def body(request: bytes) -> bytes:
        asked = Registers.unpack_from(request)
        return packed(Registers(0, error, asked.count, status, asked.lba))

    masks = {_AFLAGS: _ANY, _STATUS: 0xFF if exact_status else int(STATUS_BAD)}
    return Response(describe_failure(status, error), body, masks=masks)


def is_failure(response: bytes) -> bool:
    """Tell whether a reply tells of a failure, AoE error or ATA status."""
    if len(response) < ATA_DATA:
        return bool(response) and bool(response[14] & Flag.ERROR)
    return bool(response[14] & Flag.ERROR or response[_STATUS] & STATUS_BAD)


NO_SUCCESS: Final = Satisfies(
    "anything but a success", lambda response: not response or is_failure(response)
)
ANY_FAILURE: Final = Satisfies("a failure that is told", is_failure)


# The other commands, and AoE errors.


def refuses(code: ErrorCode) -> Response:
    """AoE error, with any body."""
    words = f"AoE error {code:d}, {code.text}"
    return Response(words, lambda _: b"", code, exact_length=False)


def refuses_and_echoes(code: ErrorCode) -> Response:
    """AoE error, with the request behind the header (P16, P18)."""
    words = f"AoE error {code:d} and the request echoed"
    return Response(words, lambda request: request[HEADER_LENGTH:], code)


def config_is(string: bytes, ccmd: int, code: int = 0) -> Response:
    """Query config: this string, whatever the numbers are (P50)."""
    body = packed(Config(ccmd, string, version=VERSION))
    words = f"config string {_text(string)}, ccmd {ccmd}"
    words = f"AoE error {code} and {words}" if code else words
    return Response(words, lambda _: body, code, _CONFIG_NUMBERS)


def _text(string: bytes) -> str:
    shown = string if len(string) <= 40 else string[:37] + b"..."
    return '"' + ascii(shown.decode("latin-1"))[1:-1] + '"'


def mask_is(*macs: bytes, mcmd: int) -> Response:
    """MAC mask list: these, in order (P62, P67)."""
    body = packed(
        MaskList(mcmd, tuple(Directive(DirectiveCommand.NONE, mac) for mac in macs))
    )
    listed = " ".join(mac.hex(":") for mac in macs) or "empty"
    return Response(f"MAC mask list {listed}", lambda _: body)


def _is_list(response: bytes) -> bool:
    return bool(MaskList.unpack_from(response)) and not response[14] & Flag.ERROR


ANY_MASK_LIST: Final = Satisfies("a MAC mask list", _is_list)


def mask_fails(error: MaskError, done: int, mcmd: int) -> Response:
    """MAC mask list: an edit that stopped at a directive; any body (P64, P66)."""
    body = packed(MaskList(mcmd, (), error, declared=done))
    words = f"MError {error:d} at directive {done}"
    return Response(words, lambda _: body, exact_length=False)


def holders_are(*macs: bytes, rcmd: int, code: int = 0) -> Response:
    """Reserve/release: held by these, in order (P71)."""
    body = packed(Reserve(rcmd, macs))
    words = f"held by {' '.join(mac.hex(':') for mac in macs) or 'nobody'}"
    words = f"AoE error {code} and {words}" if code else words
    return Response(words, lambda _: body, code)


def is_long(length: int) -> Satisfies:
    """A reply of this many bytes, no more and no less (P21)."""
    return Satisfies(f"{length} bytes", lambda response: len(response) == length)


def is_padded() -> Satisfies:
    """A reply that the smallest Ethernet frame has room for (P19)."""
    words = f"at least {FRAME_MINIMUM} bytes"
    return Satisfies(words, lambda response: len(response) >= FRAME_MINIMUM)


def is_blank_from(offset: int) -> Satisfies:
    """A reply with zeroes alone behind what it says (P3, P34)."""
    words = f"nothing but zeroes from byte {offset} on"
    return Satisfies(
        words, lambda response: bool(response) and not any(response[offset:])
    )
