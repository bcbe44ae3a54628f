"""What is asked of a disk, by whom, and what they say of it.

Either our own ``aoe bench`` asks, or a program of the user's with the command line and
the output of ``aoeload``: then nothing hinges on our initiator.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeVar

import msgspec

from aoe.ata import SECTOR
from aoe.errors import AoEError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ADDRESS: Final = "7.3"
SHELF, SLOT = ADDRESS.split(".")
_Document = TypeVar("_Document", bound=msgspec.Struct)


def own(program: str) -> str:
    """Return one of our commands as it is installed beside this Python."""
    return str(Path(sys.executable).with_name(program))


@dataclass(frozen=True, slots=True)
class Shape:
    """A load: ``depth`` requests of some sectors at random places, all the time.

    Args:
        op: what all of them do.
        depth: requests outstanding.
        sectors: of each request.
    """

    op: Literal["read", "write"]
    depth: int
    sectors: int


class Outcome(NamedTuple):
    """What a load generator says.

    Args:
        iops: requests that were answered, a second.
        p50: seconds that half of them took at most.
        p99: seconds that all but a hundredth took at most.
        resent: frames that had to be sent again.
    """

    iops: float
    p50: float
    p99: float
    resent: int


class Generator(NamedTuple):
    """A program that loads a disk.

    Args:
        words: its command line for an interface, a load, the bytes of the disk, and the
            seconds it has.
        parse: reads what it prints; raises ``AoEError``.
    """

    words: Callable[[str, Shape, int, float], Sequence[str]]
    parse: Callable[[str], Outcome]


def _own_words(interface: str, shape: Shape, size: int, seconds: float) -> list[str]:
    words = [own("aoe"), "bench", f"e{ADDRESS}", f"rand{shape.op}", "-i", interface]
    words += ["--sectors", str(shape.sectors), "--depth", str(shape.depth)]
    words += ["--seconds", str(seconds), "--size", str(size), "--json"]
    return [*words, "--destroy"] if shape.op == "write" else words


class _Latency(msgspec.Struct):
    p50: float
    p99: float


class _Kind(msgspec.Struct):
    latency_seconds: _Latency


class _OwnDocument(msgspec.Struct):
    iops: float
    retransmits: int
    kinds: dict[str, _Kind]


class _ExternalDocument(msgspec.Struct):
    iops: float
    p50: float = 0.0
    p99: float = 0.0
    retx: int = 0
    bad: int = 0
    err: int = 0


def parse_own(text: str) -> Outcome:
    """Read what ``aoe bench --json`` prints of a load of one kind.

    Raises:
        AoEError: it is something else, or nothing was answered.
    """
    said = _decode("aoe bench", text, _OwnDocument)
    for kind in said.kinds.values():
        taken = kind.latency_seconds
        return Outcome(said.iops, taken.p50, taken.p99, said.retransmits)
    raise AoEError("aoe bench", "nothing was answered")


def _external_words(
    program: str, interface: str, shape: Shape, size: int, seconds: float
) -> list[str]:
    words = [program, "-i", interface, "-t", ADDRESS, "-q", str(shape.depth)]
    words += ["-n", str(shape.sectors), "-o", shape.op, "-p", "rand"]
    return [*words, "-S", str(size // SECTOR), "-T", str(seconds), "-V", "0"]


def parse_external(text: str) -> Outcome:
    """Read the line that a program like ``aoeload`` prints; it counts in microseconds.

    Raises:
        AoEError: it is something else, nothing was answered, or some of it wrongly.
    """
    said = _decode("load generator", text, _ExternalDocument)
    if not said.iops:
        raise AoEError("load generator", "nothing was answered")
    if said.bad or said.err:
        why = f"{said.bad} answers were wrong, {said.err} were errors"
        raise AoEError("load generator", why)
    return Outcome(said.iops, said.p50 / 1e6, said.p99 / 1e6, said.retx)


def _decode(who: str, text: str, kind: type[_Document]) -> _Document:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError as error:
        raise AoEError(who, f"not what it should print: {text.strip()!r}") from error


OWN: Final = Generator(_own_words, parse_own)


def external(program: Path) -> Generator:
    """Return the user's load generator."""
    return Generator(partial(_external_words, str(program)), parse_external)
