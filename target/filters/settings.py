"""What filters can be told: one struct for each, and the same keys everywhere.

On the command line it is ``--filter drop:probability=0.02,direction=in``, in TOML::

    [[export.filter]]
    name = "drop"
    probability = 0.02
    direction = "in"

Every filter works by its bare name, and then strikes whenever it can.
"""

from __future__ import annotations

import errno
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec.structs import force_setattr

from aoe.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_LONGEST: Final = 3600.0
"""Seconds that a frame can be held back."""
_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
"""Of times; the longer endings first."""
_ERRNOS: Final = frozenset(errno.errorcode.values())

_Choice = TypeVar("_Choice", bound=StrEnum)


class Direction(StrEnum):
    """Which frames: requests come in, replies go out."""

    IN = "in"
    OUT = "out"
    BOTH = "both"


class On(StrEnum):
    """What a client wants done, on the wire and on the disk."""

    READ = "read"
    WRITE = "write"
    FLUSH = "flush"
    DISCARD = "discard"
    ALL = "all"


class Where(StrEnum):
    """Where a filter stands that can stand in two places."""

    DISK = "disk"
    WIRE = "wire"


class Part(StrEnum):
    """Which bytes of a frame: all behind the Ethernet header, or data of the disk."""

    FRAME = "frame"
    DATA = "data"


class FilterSettings(msgspec.Struct, frozen=True, kw_only=True, tag_field="name"):
    """What all filters have in common. Values may also be given as text.

    Args:
        file: the filter is on only while this file exists; always, if empty.

    Raises:
        UsageError: a value that a key cannot have.
    """

    file: str = ""

    def __post_init__(self) -> None:
        for key in self.__struct_fields__:
            value = getattr(self, key)
            if value is None:
                continue
            read, allowed = _KEYS[key]
            try:
                meant = read(value)
            except (TypeError, ValueError, OverflowError):
                self._refuse(f"{key} cannot be {value!s:.60}", f"Write {allowed}")
            force_setattr(self, key, meant)

    @property
    def name(self) -> str:
        """The filter's name."""
        return str(self.__struct_config__.tag)

    def _refuse(self, why: str, fix: str) -> None:
        raise UsageError(f"filter {self.name}", why, fix) from None

    def __str__(self) -> str:
        """Write it as the command line has it, without what is not said."""
        pairs = ",".join(
            f"{key}={value}"
            for key, usual in zip(
                self.__struct_fields__, self.__struct_defaults__, strict=True
            )
            if (value := getattr(self, key)) != usual
        )
        return f"{self.name}:{pairs}" if pairs else self.name


class ChanceSettings(FilterSettings, frozen=True):
    """A filter that strikes at some of what passes.

    Args:
        probability: of striking at each.
        count: how often it strikes at most.
        after: how many it lets pass first; none is counted while ``file`` is missing.
        seed: makes chance the same in each run.
    """

    probability: float = 1.0
    count: int | None = None
    after: int = 0
    seed: int | None = None


class WireSettings(ChanceSettings, frozen=True):
    """A filter of frames.

    Args:
        direction: requests, replies or both.
        on: the commands whose frames are meant, request and reply.
    """

    direction: Direction = Direction.BOTH
    on: On = On.ALL


class DelaySettings(WireSettings, frozen=True, tag="delay"):
    """Hold frames back for a while: a reply, and with ``in`` the execution itself.

    Args:
        seconds: for how long.
    """

    direction: Direction = Direction.OUT
    seconds: float = 0.1


class DropSettings(WireSettings, frozen=True, tag="drop"):
    """Lose frames."""


class DuplicateSettings(WireSettings, frozen=True, tag="duplicate"):
    """Send replies twice, execute requests twice."""


class ReorderSettings(WireSettings, frozen=True, tag="reorder"):
    """Let a frame be overtaken by the next one of its direction.

    Args:
        hold: seconds that it waits for that.
    """

    hold: float = 0.01


class ErrorSettings(ChanceSettings, frozen=True, tag="error"):
    """Let the disk fail.

    Args:
        on: the calls that fail.
        errno: how, by the system's name; ``ENODEV`` for a disk that is gone (P41).
    """

    on: On = On.ALL
    errno: str = "EIO"


class CorruptSettings(ChanceSettings, frozen=True, tag="corrupt"):
    """Flip a bit.

    Args:
        where: in what is read from or written to the disk, or in frames.
        on: which calls, reads if nothing is said; or which frames, all if nothing is.
        direction: of frames; replies if nothing is said.
        what: the bytes of a frame; all if nothing is said.
    """

    where: Where = Where.DISK
    on: On | None = None
    direction: Direction | None = None
    what: Part | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.where is Where.WIRE:
            force_setattr(self, "direction", self.direction or Direction.OUT)
            return
        for key in ("direction", "what"):
            if getattr(self, key) is not None:
                self._refuse(f"a disk knows no {key}", "Add where=wire")
        if self.on in (On.FLUSH, On.DISCARD):
            self._refuse(f"{self.on} moves no data", "Write read, write or all")
        force_setattr(self, "on", self.on or On.READ)


class LogSettings(ChanceSettings, frozen=True, tag="log"):
    """Log a line for each frame or each call of the disk, and change nothing.

    Args:
        where: frames, or calls of the disk.
        on: which of them.
        direction: of frames; both if nothing is said.
    """

    where: Where = Where.WIRE
    on: On = On.ALL
    direction: Direction | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.where is Where.DISK and self.direction is not None:
            self._refuse("a disk knows no direction", "Leave one of the two out")


class ReadOnlySettings(FilterSettings, frozen=True, tag="readonly"):
    """Refuse writes, as a read-only disk does (P40)."""


FILTERS: Final[dict[str, type[FilterSettings]]] = {
    "delay": DelaySettings,
    "error": ErrorSettings,
    "drop": DropSettings,
    "duplicate": DuplicateSettings,
    "reorder": ReorderSettings,
    "corrupt": CorruptSettings,
    "log": LogSettings,
    "readonly": ReadOnlySettings,
}


def parse_filter(text: str) -> FilterSettings:
    """Read a filter as the command line has it: ``name`` or ``name:key=value,...``.

    >>> str(parse_filter("delay:seconds=50ms,on=write"))
    'delay:on=write,seconds=0.05'

    Raises:
        UsageError: no such filter, key or value.
    """
    name, _, rest = text.partition(":")
    table: dict[str, object] = {"name": name}
    for pair in rest.split(",") if rest else ():
        key, equals, value = pair.partition("=")
        if not equals or key in table:
            why = f"{key} twice" if equals else f"{pair!r} is no key=value"
            fix = "Write it as drop:probability=0.02,direction=in"
            raise UsageError(f"filter {text}", why, fix)
        table[key] = value
    return make_filter(table)


def make_filter(table: Mapping[str, Any]) -> FilterSettings:
    """Make a filter of its ``name`` and its keys, as a TOML table has them.

    Raises:
        UsageError: no such filter, key or value.
    """
    name = table.get("name", "")
    kind = FILTERS.get(name) if isinstance(name, str) else None
    if kind is None:
        choice = ", ".join(FILTERS)
        raise UsageError(f"filter {name}", "no such filter", f"Choose one of {choice}")
    values = {key: value for key, value in table.items() if key != "name"}
    for key in values:
        if key not in kind.__struct_fields__:
            choice = ", ".join(kind.__struct_fields__)
            raise UsageError(f"filter {name}", f"has no {key}", f"It has {choice}")
    return kind(**values)


def allowed(key: str) -> str:
    """Say in words what a key can be."""
    return _KEYS[key].allowed


class _Key(NamedTuple):
    read: Callable[[object], object]
    """Takes text or a value; raises ``TypeError`` or ``ValueError``."""
    allowed: str


def _read_number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError
    return float(value)


def _read_whole(value: object) -> int:
    number = int(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError
    return number


def _at_least(limit: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        number = _read_whole(value)
        if number < limit:
            raise ValueError
        return number

    return read


def _read_probability(value: object) -> float:
    number = _read_number(value)
    if not 0 <= number <= 1:
        raise ValueError
    return number


def _read_seconds(value: object) -> float:
    unit = 1.0
    if isinstance(value, str):
        for ending, size in _UNITS.items():
            if value.endswith(ending):
                value, unit = value.removesuffix(ending), size
                break
    seconds = _read_number(value) * unit
    if not 0 < seconds <= _LONGEST:
        raise ValueError
    return seconds


def _read_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _read_errno(value: object) -> str:
    name = _read_text(value).upper()
    if name not in _ERRNOS:
        raise ValueError
    return name


def _one_of(choices: type[_Choice]) -> _Key:
    *others, last = choices
    return _Key(
        lambda value: choices(_read_text(value)), f"{', '.join(others)} or {last}"
    )


_SECONDS: Final = _Key(_read_seconds, "seconds, up to 3600, or as 50ms")
_KEYS: Final = {
    "after": _Key(_at_least(0), "a whole number, 0 or more"),
    "count": _Key(_at_least(1), "a whole number, 1 or more"),
    "direction": _one_of(Direction),
    "errno": _Key(_read_errno, "a name such as EIO, ENOSPC or ENODEV"),
    "file": _Key(_read_text, "a path"),
    "hold": _SECONDS,
    "on": _one_of(On),
    "probability": _Key(_read_probability, "a number from 0 to 1"),
    "seconds": _SECONDS,
    "seed": _Key(_read_whole, "a whole number"),
    "what": _one_of(Part),
    "where": _one_of(Where),
}
