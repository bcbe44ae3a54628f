"""Import the configuration of Debian's vblade: ``*.conf``, parsed but never executed.

Each file is a shell fragment that sets ``shelf``, ``slot``, ``netif`` and ``filename``,
and may set ``options`` and ``ionice``; see vblade-persistence(5). ``to_settings``
converts one to settings, ``to_toml`` writes settings as an ``[[export]]``.
"""

from __future__ import annotations

import contextlib
import getopt
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from aoe.address import Address, format_mac, parse_macs
from aoe.ata import SECTOR
from aoe.errors import UsageError, from_os_error
from target.config.settings import ExportSettings
from target.disks import OpenFlags
from target.protocol.exports import BUFFER_COUNT

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEEDED: Final = ("shelf", "slot", "netif", "filename")
_OPTIONS: Final = "b:dsrm:o:l:"
_ASSIGNMENT: Final = re.compile(r"([A-Za-z_]\w*)=", re.ASCII)
_BETWEEN: Final = re.compile(r"(?:[ \t\n;]|\\\n|#[^\n]*)+")
_IN_QUOTES: Final = re.compile(r'"((?:[^"\\$`]|\\.)*)(.?)', re.DOTALL)
_PIECE: Final = re.compile(
    r"""  (?P<joined>\\\n)
      | '(?P<literal>[^']*)'
      | "(?P<quoted>(?:[^"\\$`]|\\.)*)"
      | \\(?P<escaped>.)
      | (?P<plain>[^\s'"\\$`;&|<>()]+)
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE: Final = re.compile(r'\\(\n|[$`"\\])')
"""The escapes that the shell recognizes between double quotes."""
_FIX_VALUES: Final = "Use plain values: the file is parsed, not executed"
_FIX_OPTIONS: Final = "See vblade(8) for its options"


class Value(NamedTuple):
    """The value of a variable, and the number of its line."""

    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Fragment:
    """A configuration file of vblade.

    Args:
        path: the path of the file.
        values: the variables that it sets, by name.
    """

    path: Path
    values: dict[str, Value]

    @property
    def missing(self) -> list[str]:
        """The required variables that are not set; vblade ignores such a file."""
        return [name for name in _NEEDED if not self.text(name)]

    @property
    def ignored(self) -> list[str]:
        """The variables that have no effect here."""
        return sorted(set(self.values) - {*_NEEDED, "options"})

    def text(self, name: str) -> str:
        """Return the value of a variable, empty if it is not set."""
        return self.values[name].text if name in self.values else ""

    def error_at(self, name: str, why: str, fix: str) -> UsageError:
        """Return an error with the line of a variable."""
        return UsageError(f"{self.path}:{self.values[name].line}", why, fix)


def read_fragment(path: Path) -> Fragment:
    """Read a shell fragment, and remove the quotes from the values.

    Raises:
        UsageError: it contains anything but assignments of plain values.
        AoEError: it cannot be read.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise from_os_error(str(path), error) from error
    except UnicodeError as error:
        raise UsageError(str(path), f"not text: {error}") from error
    if "\0" in text:
        raise UsageError(str(path), "not text: contains a NUL byte")
    return Fragment(path, dict(_assignments(path, text)))


def _assignments(path: Path, text: str) -> Iterator[tuple[str, Value]]:
    position = 0
    while True:
        if between := _BETWEEN.match(text, position):
            position = between.end()
        if position == len(text):
            return
        line = text.count("\n", 0, position) + 1
        assignment = _ASSIGNMENT.match(text, position)
        if assignment is None:
            word = text[position:].split(maxsplit=1)[0]
            why = f"{word!a:.40} is not NAME=VALUE"
            raise UsageError(f"{path}:{line}", why, _FIX_VALUES)
        value, position = _read_value(path, text, assignment.end())
        yield assignment[1], Value(value, line)


def _read_value(path: Path, text: str, start: int) -> tuple[str, int]:
    # Returns the value that begins at `start`, without quotes, and its end.
    value, position = "", start
    while position < len(text) and text[position] not in " \t\n;":
        piece = _PIECE.match(text, position)
        if piece is None or _has_tilde(piece, start):
            line = text.count("\n", 0, position) + 1
            why = (
                _describe_syntax(text, position) if piece is None else "tilde expansion"
            )
            raise UsageError(f"{path}:{line}", why, _FIX_VALUES)
        value += _unquote(piece)
        position = piece.end()
    return value, position


def _has_tilde(piece: re.Match[str], start: int) -> bool:
    plain = piece["plain"] or ""
    return ":~" in plain or (plain.startswith("~") and piece.start() == start)


def _unquote(piece: re.Match[str]) -> str:
    if piece["quoted"] is not None:
        return _ESCAPE.sub(lambda m: m[1].strip("\n"), piece["quoted"])
    return piece["literal"] or piece["escaped"] or piece["plain"] or ""


def _describe_syntax(text: str, position: int) -> str:
    inner = _IN_QUOTES.match(text, position)
    mark = inner[2] if inner else text[position]
    if mark in "'\\":
        return "unterminated quote"
    if mark in "$`":
        return f"substitution: {mark}"
    return f"command: {mark}" if mark.isprintable() else f"character {mark!a}"


def to_settings(fragment: Fragment) -> ExportSettings:
    """Convert a fragment with all required variables to settings.

    Sectors are converted to bytes. Paths are relative to the root directory, where
    vblade runs.

    Raises:
        UsageError: an unknown option, or a value that is not valid.
    """
    given = _read_options(fragment)
    for name in ("shelf", "slot"):
        if not re.fullmatch("[0-9]+", fragment.text(name)):
            why = f"{name} {fragment.text(name)!a} is not a number"
            raise fragment.error_at(name, why, f"Write {name}=0")
    try:
        return ExportSettings(
            address=Address.parse(f"{fragment.text('shelf')} {fragment.text('slot')}"),
            interfaces=(fragment.text("netif"),),
            path=str(Path("/", fragment.text("filename"))),
            disk=OpenFlags(
                read_only="-r" in given,
                sync="-s" in given,
                direct="-d" in given,
                offset=_read_number(fragment, given, "-o", 0) * SECTOR,
                length=_read_number(fragment, given, "-l", 0) * SECTOR or None,
            ),
            buffers=_read_number(fragment, given, "-b", BUFFER_COUNT),
            mask=_read_masks(fragment, given),
        )
    except UsageError as error:
        if error.what.startswith(f"{fragment.path}:"):
            raise
        what = f"{fragment.path}: {error.what}"
        raise UsageError(what, error.why, error.fix) from error


def _read_options(fragment: Fragment) -> dict[str, list[str]]:
    # The options and their arguments. systemd removes quotes inside the value, too.
    try:
        words = shlex.split(fragment.text("options"))
        pairs, rest = getopt.gnu_getopt(words, _OPTIONS)
    except (getopt.GetoptError, ValueError) as error:
        raise fragment.error_at("options", f"options: {error}", _FIX_OPTIONS) from error
    if rest:
        raise fragment.error_at(
            "options", f"options: {rest[0]!a} is not an option", _FIX_OPTIONS
        )
    given: dict[str, list[str]] = {}
    for option, argument in pairs:
        given.setdefault(option, []).append(argument)
    return given


def _read_number(
    fragment: Fragment, given: dict[str, list[str]], option: str, default: int
) -> int:
    # As vblade parses it: sectors also as 0x10 and 010 (octal); zero only for -o.
    # vblade ignores characters after a number; here they are an error.
    if option not in given:
        return default
    text = given[option][-1]
    pattern = "[0-9]+" if option == "-b" else "0x[0-9a-f]+|[0-9]+"
    if re.fullmatch(pattern, text, re.ASCII | re.IGNORECASE):
        with contextlib.suppress(ValueError):
            octal = option != "-b" and text.isdecimal() and text[0] == "0"
            number = int(text, 8 if octal else 10 if text.isdecimal() else 16)
            if number or option == "-o":
                return number
    why = f"options: {option} {text!a} is not valid"
    raise fragment.error_at("options", why, "Write a number, in digits only")


def _read_masks(fragment: Fragment, given: dict[str, list[str]]) -> tuple[bytes, ...]:
    if "-m" not in given:
        return ()
    try:
        return parse_macs(",".join(given["-m"]))
    except UsageError as error:
        why = f"options: -m {error.what}: {error.why}"
        raise fragment.error_at("options", why, error.fix) from error


def to_toml(settings: ExportSettings) -> str:
    """Return settings as an ``[[export]]`` table in TOML.

    It contains the keys that ``to_settings`` can set, without default values.
    """
    disk = settings.disk
    values: dict[str, object] = {
        "address": str(settings.address),
        "interfaces": settings.interfaces,
        "path": settings.path,
        "read_only": disk.read_only,
        "sync": disk.sync,
        "direct": disk.direct,
        "offset": disk.offset,
        "length": disk.length,
        "buffers": settings.buffers if settings.buffers != BUFFER_COUNT else None,
        "mask": [format_mac(mac) for mac in settings.mask],
    }
    lines = [f"{key} = {_literal(value)}" for key, value in values.items() if value]
    return "\n".join(["[[export]]", *lines])


def _literal(value: object) -> str:
    # JSON strings, lists and booleans are valid TOML, except for DEL in a string.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
