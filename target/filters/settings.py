"""The settings of filters: one struct for each, the same keys everywhere.

On the command line: ``--filter drop:probability=0.02,direction=in``; in TOML::

    [[export.filter]]
    name = "drop"
    probability = 0.02
    direction = "in"

All keys are optional; a filter without keys triggers on every frame or call.
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
"""Longest delay of a frame, seconds."""
_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
"""Units of time; longer suffixes first."""
_ERRNOS: Final = frozenset(errno.errorcode.values())

_Choice = TypeVar("_Choice", bound=StrEnum)


class Direction(StrEnum):
    """Direction of frames: requests are ``in``, responses are ``out``."""

    IN = "in"
    OUT = "out"
    BOTH = "both"


class On(StrEnum):
    """Kind of operation, of a frame or of a disk call."""

    READ = "read"
    WRITE = "write"
    FLUSH = "flush"
    DISCARD = "discard"
    ALL = "all"


class Where(StrEnum):
    """Position of a filter that can be a disk filter or a wire filter."""

    DISK = "disk"
    WIRE = "wire"


class Part(StrEnum):
    """Bytes of a frame: all after the Ethernet header, or only the disk data."""

    FRAME = "frame"
    DATA = "data"


class FilterSettings(msgspec.Struct, frozen=True, kw_only=True, tag_field="name"):
    """The keys of all filters. Values may also be given as text.

    Args:
        file: the filter is enabled only while this file exists; always, if empty.

    Raises:
        UsageError: a value is not valid for its key.
    """

    file: str = ""

    def __post_init__(self) -> None:
        for key in self.__struct_fields__:
            value = getattr(self, key)
            if value is None:
                continue
            parse, allowed = _KEYS[key]
            try:
                parsed = parse(value)
            except (TypeError, ValueError, OverflowError):
                self._refuse(f"{key} cannot be {value!s:.60}", f"Write {allowed}")
            force_setattr(self, key, parsed)

    @property
    def name(self) -> str:
        """The filter's name."""
        return str(self.__struct_config__.tag)

    def _refuse(self, why: str, fix: str) -> None:
        raise UsageError(f"filter {self.name}", why, fix) from None

    def __str__(self) -> str:
        """Return the filter in the command line's syntax, without default values."""
        pairs = ",".join(
            f"{key}={value}"
            for key, default in zip(
                self.__struct_fields__, self.__struct_defaults__, strict=True
            )
            if (value := getattr(self, key)) != default
        )
        return f"{self.name}:{pairs}" if pairs else self.name


class ChanceSettings(FilterSettings, frozen=True):
    """The keys of filters that trigger on some of the frames or calls.

    Args:
        probability: the probability to trigger on each.
        count: how often it triggers at most.
        after: how many it lets pass first; none are counted while ``file`` is missing.
        seed: the seed of the random numbers, to repeat a run.
    """

    probability: float = 1.0
    count: int | None = None
    after: int = 0
    seed: int | None = None


class WireSettings(ChanceSettings, frozen=True):
    """The keys of wire filters.

    Args:
        direction: requests, responses or both.
        on: the kind of command, whose requests and responses are matched.
    """

    direction: Direction = Direction.BOTH
    on: On = On.ALL


class DelaySettings(WireSettings, frozen=True, tag="delay"):
    """Delay frames: responses, or with ``direction = "in"`` requests.

    Args:
        seconds: the delay.
    """

    direction: Direction = Direction.OUT
    seconds: float = 0.1


class DropSettings(WireSettings, frozen=True, tag="drop"):
    """Drop frames."""


class DuplicateSettings(WireSettings, frozen=True, tag="duplicate"):
    """Send responses twice, execute requests twice."""


class ReorderSettings(WireSettings, frozen=True, tag="reorder"):
    """Swap a frame with the next one in the same direction.

    Args:
        hold: seconds to wait for the next frame.
    """

    hold: float = 0.01


class ErrorSettings(ChanceSettings, frozen=True, tag="error"):
    """Let disk calls fail.

    Args:
        on: the calls that fail.
        errno: the name of the error; ``ENODEV`` for a disk that is gone (P41).
    """

    on: On = On.ALL
    errno: str = "EIO"


class CorruptSettings(ChanceSettings, frozen=True, tag="corrupt"):
    """Flip a bit.

    Args:
        where: in data that is read from or written to the disk, or in frames.
        on: the kind of calls, by default reads; or the kind of frames, by default all.
        direction: the direction of frames, by default ``out``.
        what: the bytes of a frame, by default all.
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
                self._refuse(f"{key} is only for frames", "Add where=wire")
        if self.on in (On.FLUSH, On.DISCARD):
            self._refuse(f"{self.on} has no data", "Write read, write or all")
        force_setattr(self, "on", self.on or On.READ)


class LogSettings(ChanceSettings, frozen=True, tag="log"):
    """Log a line for each frame or disk call, and change nothing.

    Args:
        where: log frames, or calls of the disk.
        on: the kind of frames or calls.
        direction: the direction of frames, by default both.
    """

    where: Where = Where.WIRE
    on: On = On.ALL
    direction: Direction | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.where is Where.DISK and self.direction is not None:
            self._refuse("direction is only for frames", "Omit where=disk or direction")


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
    """Parse a filter in the command line's syntax: ``name`` or ``name:key=value,...``.

    >>> str(parse_filter("delay:seconds=50ms,on=write"))
    'delay:on=write,seconds=0.05'

    Raises:
        UsageError: an unknown filter or key, or a value that is not valid.
    """
    name, _, rest = text.partition(":")
    table: dict[str, object] = {"name": name}
    for pair in rest.split(",") if rest else ():
        key, equals, value = pair.partition("=")
        if not equals or key in table:
            why = f"{key} is set twice" if equals else f"{pair!r} is not key=value"
            fix = "Write it as drop:probability=0.02,direction=in"
            raise UsageError(f"filter {text}", why, fix)
        table[key] = value
    return make_filter(table)


def make_filter(table: Mapping[str, Any]) -> FilterSettings:
    """Make a filter from a table with its ``name`` and its keys, as in TOML.

    Raises:
        UsageError: an unknown filter or key, or a value that is not valid.
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
            why = f"unknown key {key}"
            raise UsageError(f"filter {name}", why, f"Choose one of {choice}")
    return kind(**values)


def allowed(key: str) -> str:
    """Describe the values that a key can have."""
    return _KEYS[key].allowed


class _Key(NamedTuple):
    parse: Callable[[object], object]
    """Converts text or a value; raises ``TypeError`` or ``ValueError``."""
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


_SECONDS: Final = _Key(_read_seconds, "seconds, up to 3600, or a time such as 50ms")
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
