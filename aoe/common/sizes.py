"""Parse and format sizes such as ``512``, ``10M``, ``1.5G`` and ``2048s``."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

from aoe.ata import SECTOR
from aoe.errors import UsageError

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgtpe])(?:ib)?|(b)|(s))?", re.ASCII)
_PREFIXES: Final = "kmgtpe"
_FIX: Final = "Write it as 512, 10M, 1.5G or 2048s (s for sectors of 512 bytes)"


def parse_size(text: str, *, unit: int = 1) -> int:
    """Parse a size and return it in bytes.

    ``K``, ``M``, ``G``, ``T``, ``P`` and ``E`` are powers of 1024, with or without
    ``iB``; ``s`` means sectors of 512 bytes and ``B`` bytes. Case does not matter.

    >>> parse_size("10M"), parse_size("1.5k"), parse_size("8s")
    (10485760, 1536, 4096)

    Args:
        text: the size.
        unit: the unit of a number without a suffix, in bytes.

    Raises:
        UsageError: not a size, or not a whole number of bytes.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(text, "not a size", _FIX)
    number, prefix, is_bytes, is_sectors = match.groups()
    if prefix:
        unit = 1024 ** (_PREFIXES.index(prefix) + 1)
    elif is_bytes:
        unit = 1
    elif is_sectors:
        unit = SECTOR
    size = Fraction(number) * unit
    if size.denominator != 1:
        raise UsageError(text, "not a whole number of bytes", _FIX)
    return int(size)


def check_sectors(what: str, size: int) -> int:
    """Return ``size``, in bytes, if it is a positive multiple of the sector size.

    Raises:
        UsageError: it is not; the fix names the nearest sizes that are.
    """
    if size > 0 and size % SECTOR == 0:
        return size
    below = size // SECTOR * SECTOR
    choice = f"{below} or {below + SECTOR}" if below > 0 else f"at least {SECTOR}"
    raise UsageError(
        what,
        f"{size:,} bytes are not a whole number of {SECTOR}-byte sectors",
        f"Make it {choice} bytes",
    )


def short_size(size: int) -> str:
    """Format a size in bytes, rounded to one decimal of the largest binary unit.

    >>> short_size(64 << 20), short_size(1536 << 20), short_size(512)
    ('64 MiB', '1.5 GiB', '512 bytes')
    """
    if size < 1024:
        return f"{size} bytes"
    power = min((size.bit_length() - 1) // 10, len(_PREFIXES))
    number = f"{size / 1024**power:.1f}".removesuffix(".0")
    return f"{number} {_PREFIXES[power - 1].upper()}iB"


def format_count(number: int, noun: str) -> str:
    """Format a number with its noun, in the singular or the plural.

    >>> format_count(1, "frame"), format_count(1890, "frame")
    ('1 frame', '1,890 frames')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_size(size: int) -> str:
    """Format a size in bytes, both rounded and exact.

    >>> format_size(10 << 30)
    '10 GiB (10,737,418,240 bytes)'
    """
    if size < 1024:
        return short_size(size)
    return f"{short_size(size)} ({size:,} bytes)"
