"""Tab completion inside of a call: names of fields, and values that have a name.

``AoEATA(cm`` is completed to ``AoEATA(cmd_status=``, and then ``"IDE`` to
``"IDENTIFY"``. Everything else is left to ``rlcompleter``.
"""

from __future__ import annotations

import inspect
import re
import rlcompleter
from typing import TYPE_CHECKING, Final, NamedTuple

from scapy.fields import FlagsField
from scapy.packet import Packet

if TYPE_CHECKING:
    from collections.abc import Mapping

_CALLED: Final = re.compile(r"[\w.]+$")
_ARGUMENT: Final = re.compile(r"(?:^|.*[(,])\s*(\w*)$", re.DOTALL)
"""A call up to the beginning of an argument."""
_FIELD: Final = re.compile(r".*\b(\w+)\s*=\s*$", re.DOTALL)
"""A call up to the value of an argument."""
_PAIRS: Final = {"(": ")", "[": "]", "{": "}"}


class Completer(rlcompleter.Completer):
    """A completer for readline.

    Args:
        names: the names of the session.
    """

    def __init__(self, names: dict[str, object]) -> None:
        super().__init__(names)
        self._names = names
        self._candidates: list[str] = []

    def complete(self, text: str, state: int) -> str | None:
        """Return candidate number ``state`` for ``text``, the word at the cursor."""
        if state == 0:
            # Not every Python has it.
            import readline

            line = readline.get_line_buffer()[: readline.get_endidx()]
            self._candidates = complete_argument(line, text, self._names)
        if self._candidates:
            return self._candidates[state] if state < len(self._candidates) else None
        return super().complete(text, state)


def complete_argument(line: str, text: str, names: Mapping[str, object]) -> list[str]:
    """Return the candidates for a word inside of a call; empty if there are none.

    Args:
        line: the line up to the cursor.
        text: its last word, which the candidates replace.
        names: the names of the session.
    """
    call = _innermost_call(line)
    if call is None:
        return []
    called = _look_up(call.name, names)
    if call.quote:
        field = _FIELD.fullmatch(call.arguments)
        if field is None:
            return []
        return _continued(_values(called, field[1]), call, text)
    argument = _ARGUMENT.fullmatch(call.arguments)
    if argument is None:
        return []
    return [f"{name}=" for name in _keywords(called) if name.startswith(argument[1])]


class _Call(NamedTuple):
    """A call that is not closed.

    Args:
        name: what is called.
        arguments: the text after its bracket, up to the quote.
        quote: the quote of a string that is not closed; empty if there is none.
        text: the text of this string.
    """

    name: str
    arguments: str
    quote: str
    text: str


def _innermost_call(line: str) -> _Call | None:
    opened: list[int] = []
    quote, start = "", len(line)
    for at, character in enumerate(line):
        if quote:
            if character == quote:
                quote, start = "", len(line)
        elif character in "\"'":
            quote, start = character, at
        elif character in _PAIRS:
            opened.append(at)
        elif opened and character == _PAIRS[line[opened[-1]]]:
            opened.pop()
    if not opened or line[opened[-1]] != "(":
        return None
    called = _CALLED.search(line[: opened[-1]].rstrip())
    arguments = line[opened[-1] : start]
    return _Call(called[0], arguments, quote, line[start + 1 :]) if called else None


def _look_up(name: str, names: Mapping[str, object]) -> object:
    first, *attributes = name.split(".")
    value = names.get(first)
    for attribute in attributes:
        value = getattr(value, attribute, None)
    return value


def _keywords(called: object) -> list[str]:
    if not callable(called):
        return []
    try:
        parameters = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):
        return []
    return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]


def _values(called: object, name: str) -> list[str]:
    """Return the named values of a field of a layer."""
    is_layer = isinstance(called, type) and issubclass(called, Packet)
    for field in getattr(called, "fields_desc", ()) if is_layer else ():
        if field.name == name and isinstance(field, FlagsField):
            return list(field.names)
        if field.name == name:
            return list(getattr(field, "s2i", None) or ())
    return []


def _continued(values: list[str], call: _Call, text: str) -> list[str]:
    """Return the values that begin with what is typed, from the word ``text`` on."""
    # Several flags are joined by "+".
    *_, typed = call.text.split("+")
    start = len(typed) - len(text)
    # readline closes the quote only if the word begins after it, not in READ EXT.
    end = "" if text == call.text else call.quote
    return [value[start:] + end for value in values if value.startswith(typed)]
