"""Filters of frames: what becomes of one that a filter strikes at.

They hold no frames, keep no time and send nothing; ``FilteredTarget`` does.
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

    Say: TypeAlias = Callable[[str], None]
    FrameSettings: TypeAlias = WireSettings | CorruptSettings | LogSettings

_COMMAND: Final = 19
_OPCODE: Final = 27
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


def kind_of(request: ReadBuffer) -> On | None:
    """Tell what a request, at least 24 bytes, wants of the disk; None for nothing."""
    if len(request) < ATA_DATA or request[_COMMAND] != Command.ATA:
        return None
    return _OPCODE_KINDS.get(request[_OPCODE])


@dataclass(slots=True)
class Frame:
    """A frame on its way through the filters.

    Args:
        data: the bytes, at least 24. Others may own them: filters replace them.
        direction: ``IN`` or ``OUT``.
        kind: what the request wanted, of a reply too.
        position: how many filters it has met in this direction.
    """

    data: ReadBuffer
    direction: Direction
    kind: On | None
    position: int = 0


class Fate(NamedTuple):
    """What becomes of a frame.

    Args:
        copies: how many go on: none if it is lost.
        hold: seconds until they do.
        overtaken: they go on behind the next frame, if one comes before that.
    """

    copies: int = 1
    hold: float = 0.0
    overtaken: bool = False


PASS: Final = Fate()
DROP: Final = Fate(copies=0)
DOUBLE: Final = Fate(copies=2)


class WireFilter(ABC):
    """A filter that frames meet on their way.

    Args:
        settings: which frames it is for.
        trigger: which of those it strikes at.
    """

    def __init__(self, settings: FrameSettings, trigger: Trigger) -> None:
        self._direction = settings.direction or Direction.BOTH
        self._on = settings.on or On.ALL
        self._trigger = trigger

    def watches(self, direction: Direction) -> bool:
        """Tell whether frames of this direction meet it at all."""
        return self._direction in (Direction.BOTH, direction)

    def meet(self, frame: Frame) -> Fate:
        """Decide about a frame, and perhaps replace its bytes."""
        is_meant = self._on in (On.ALL, frame.kind) and self.is_meant(frame)
        return self.strike(frame) if is_meant and self._trigger.strikes() else PASS

    def is_meant(self, frame: Frame) -> bool:
        """Tell whether the filter could do anything to this frame."""
        del frame
        return True

    @abstractmethod
    def strike(self, frame: Frame) -> Fate:
        """Do it."""


class FateFilter(WireFilter):
    """Loses, doubles or holds back: the same fate for all that are struck.

    Args:
        settings: which frames.
        trigger: which of those.
        fate: what becomes of them.
    """

    def __init__(self, settings: WireSettings, trigger: Trigger, fate: Fate) -> None:
        super().__init__(settings, trigger)
        self._fate = fate

    def strike(self, frame: Frame) -> Fate:
        """Do it."""
        del frame
        return self._fate


class CorruptFilter(WireFilter):
    """Flips a bit behind the Ethernet header, or in data of the disk only."""

    def __init__(self, settings: CorruptSettings, trigger: Trigger) -> None:
        super().__init__(settings, trigger)
        self._only_data = settings.what is Part.DATA

    def is_meant(self, frame: Frame) -> bool:
        """Leave frames without data alone, if it is for data."""
        return not self._only_data or (
            frame.data[_COMMAND] == Command.ATA and len(frame.data) >= ATA_DATA + SECTOR
        )

    def strike(self, frame: Frame) -> Fate:
        """Put a copy with one bit flipped in the frame's place."""
        first = ATA_DATA if self._only_data else ETHERNET_LENGTH
        wrong = bytearray(frame.data)
        flip_bit(memoryview(wrong)[first:], self._trigger.dice)
        frame.data = wrong
        return PASS


class LogFilter(WireFilter):
    """Says which frames pass.

    Args:
        settings: which frames.
        trigger: which of those.
        say: takes a line of ``key=value``.
    """

    def __init__(self, settings: LogSettings, trigger: Trigger, say: Say) -> None:
        super().__init__(settings, trigger)
        self._say = say

    def strike(self, frame: Frame) -> Fate:
        """Say it."""
        dst, src, *_ = HEADER.unpack_from(frame.data)
        self._say(
            f"wire={frame.direction} from={format_mac(src)} to={format_mac(dst)} "
            f"length={len(frame.data)} frame={json.dumps(describe(frame.data))}"
        )
        return PASS


def make_wire_filter(
    settings: FilterSettings, trigger: Trigger, say: Say
) -> WireFilter | None:
    """Make a filter of frames; None if it is one for disks."""
    match settings:
        case WireSettings():
            return FateFilter(settings, trigger, _fate_of(settings))
        case CorruptSettings(where=Where.WIRE):
            return CorruptFilter(settings, trigger)
        case LogSettings(where=Where.WIRE):
            return LogFilter(settings, trigger, say)
    return None


def _fate_of(settings: WireSettings) -> Fate:
    match settings:
        case DropSettings():
            return DROP
        case DuplicateSettings():
            return DOUBLE
        case DelaySettings():
            return Fate(hold=settings.seconds)
        case ReorderSettings():
            return Fate(hold=settings.hold, overtaken=True)
    raise TypeError(settings.name)
