"""Wire filters: each returns a verdict for a frame.

They queue no frames, read no clock and send nothing; ``FilteredTarget`` does.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from aoe.address import format_mac
from aoe.ata import ATA_DATA, SECTOR
from aoe.describe import describe
from aoe.header import ETHERNET_LENGTH, HEADER, Command
from target.filters.settings import (
    CorruptSettings,
    DelaySettings,
    Direction,
    DropSettings,
    DuplicateSettings,
    LogSettings,
    On,
    Part,
    ReorderSettings,
    Where,
    WireSettings,
)
from target.filters.trigger import flip_bit
from target.protocol.ata import OPERATIONS
from target.protocol.transfers import flush, read, trim, verify, write, write_fua

if TYPE_CHECKING:
    from collections.abc import Callable

    from aoe.buffers import ReadBuffer
    from target.filters.settings import FilterSettings
    from target.filters.trigger import Trigger

    LogLine: TypeAlias = Callable[[str], None]
    FrameSettings: TypeAlias = WireSettings | CorruptSettings | LogSettings

_COMMAND_OFFSET: Final = 19
_OPCODE_OFFSET: Final = 27
"""Offsets of the AoE command and of the ATA opcode in a request."""
_OPERATION_KINDS: Final = {
    read: On.READ,
    verify: On.READ,
    write: On.WRITE,
    write_fua: On.WRITE,
    flush: On.FLUSH,
    trim: On.DISCARD,
}
_OPCODE_KINDS: Final = {
    int(opcode): _OPERATION_KINDS[operation]
    for opcode, operation in OPERATIONS.items()
    if operation in _OPERATION_KINDS
}


def classify(request: ReadBuffer) -> On | None:
    """Return the kind of disk operation of a request, None if it is not one.

    Args:
        request: the frame, at least 24 bytes.
    """
    if len(request) < ATA_DATA or request[_COMMAND_OFFSET] != Command.ATA:
        return None
    return _OPCODE_KINDS.get(request[_OPCODE_OFFSET])


@dataclass(slots=True)
class Frame:
    """A frame that passes through the filters.

    Args:
        data: the bytes, at least 24. They may be a view of a ring slot: a filter that
            changes them replaces them with a copy.
        direction: ``IN`` or ``OUT``.
        kind: the kind of operation; a response has that of its request.
        position: number of filters that it has passed in this direction.
    """

    data: ReadBuffer
    direction: Direction
    kind: On | None
    position: int = 0


class Verdict(NamedTuple):
    """What to do with a frame.

    Args:
        copies: number of copies to pass on; 0 drops the frame.
        delay: seconds to delay them.
        behind_next: pass them on after the next frame, if one arrives within ``delay``.
    """

    copies: int = 1
    delay: float = 0.0
    behind_next: bool = False


PASS: Final = Verdict()
DROP: Final = Verdict(copies=0)
DUPLICATE: Final = Verdict(copies=2)


class WireFilter(ABC):
    """A filter of frames.

    Args:
        settings: select the frames that it matches.
        trigger: decides which of those it acts on.
    """

    def __init__(self, settings: FrameSettings, trigger: Trigger) -> None:
        self._direction = settings.direction or Direction.BOTH
        self._on = settings.on or On.ALL
        self._trigger = trigger

    def handles(self, direction: Direction) -> bool:
        """Return True if the filter applies to this direction."""
        return self._direction in (Direction.BOTH, direction)

    def evaluate(self, frame: Frame) -> Verdict:
        """Return the verdict for a frame; may replace the frame's bytes."""
        matches = self._on in (On.ALL, frame.kind) and self.matches(frame)
        return self.apply(frame) if matches and self._trigger.should_trigger() else PASS

    def matches(self, frame: Frame) -> bool:
        """Return True if the filter can act on this frame."""
        del frame
        return True

    @abstractmethod
    def apply(self, frame: Frame) -> Verdict:
        """Act on a frame, and return the verdict."""


class VerdictFilter(WireFilter):
    """A filter with a fixed verdict: drop, duplicate, delay or reorder.

    Args:
        settings: select the frames that it matches.
        trigger: decides which of those it acts on.
        verdict: the verdict.
    """

    def __init__(
        self, settings: WireSettings, trigger: Trigger, verdict: Verdict
    ) -> None:
        super().__init__(settings, trigger)
        self._verdict = verdict

    def apply(self, frame: Frame) -> Verdict:
        """Return the fixed verdict."""
        del frame
        return self._verdict


class CorruptFilter(WireFilter):
    """A filter that flips a bit after the Ethernet header, or only in disk data."""

    def __init__(self, settings: CorruptSettings, trigger: Trigger) -> None:
        super().__init__(settings, trigger)
        self._only_data = settings.what is Part.DATA

    def matches(self, frame: Frame) -> bool:
        """Return True if the frame has the bytes to corrupt."""
        return not self._only_data or (
            frame.data[_COMMAND_OFFSET] == Command.ATA
            and len(frame.data) >= ATA_DATA + SECTOR
        )

    def apply(self, frame: Frame) -> Verdict:
        """Replace the frame's bytes with a copy in which one bit is flipped."""
        first = ATA_DATA if self._only_data else ETHERNET_LENGTH
        corrupted = bytearray(frame.data)
        flip_bit(memoryview(corrupted)[first:], self._trigger.rng)
        frame.data = corrupted
        return PASS


class LogFilter(WireFilter):
    """A filter that logs frames.

    Args:
        settings: select the frames that it matches.
        trigger: decides which of those it logs.
        log_line: called with a line of ``key=value`` pairs.
    """

    def __init__(
        self, settings: LogSettings, trigger: Trigger, log_line: LogLine
    ) -> None:
        super().__init__(settings, trigger)
        self._log_line = log_line

    def apply(self, frame: Frame) -> Verdict:
        """Log the frame and pass it on."""
        dst, src, *_ = HEADER.unpack_from(frame.data)
        self._log_line(
            f"wire={frame.direction} from={format_mac(src)} to={format_mac(dst)} "
            f"length={len(frame.data)} frame={json.dumps(describe(frame.data))}"
        )
        return PASS


def make_wire_filter(
    settings: FilterSettings, trigger: Trigger, log_line: LogLine
) -> WireFilter | None:
    """Make a wire filter; return None if the settings are for a disk filter."""
    match settings:
        case WireSettings():
            return VerdictFilter(settings, trigger, _verdict_of(settings))
        case CorruptSettings(where=Where.WIRE):
            return CorruptFilter(settings, trigger)
        case LogSettings(where=Where.WIRE):
            return LogFilter(settings, trigger, log_line)
    return None


def _verdict_of(settings: WireSettings) -> Verdict:
    match settings:
        case DropSettings():
            return DROP
        case DuplicateSettings():
            return DUPLICATE
        case DelaySettings():
            return Verdict(delay=settings.seconds)
        case ReorderSettings():
            return Verdict(delay=settings.hold, behind_next=True)
    raise TypeError(settings.name)
