"""``aoe decode``: decode AoE frames to text."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import click

from aoe.address import format_mac
from aoe.capture.pcapng import CapturedFrame, Direction
from aoe.common.commandline import json_option, print_json
from aoe.common.sizes import format_count
from aoe.describe import describe
from aoe.errors import DecodeError, NotFoundError, UsageError
from aoe.header import ETH_P_AOE, ETHERNET_LENGTH

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader

_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2}[\s:.-]*)+")
_HEX_START: Final = re.compile(rb"[0-9a-fA-F\s]*")
_PCAPNG: Final = b"\n\r\r\n"
"""The block type of a pcapng section header, which is white space in ASCII."""
_DIRECTIONS: Final = {Direction.IN: "in", Direction.OUT: "out", Direction.UNKNOWN: "-"}


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="FILE|HEX...")
@click.option("-v", "--verbose", is_flag=True, help="Show all fields of each frame.")
@json_option
def decode(*, sources: tuple[str, ...], verbose: bool, as_json: bool) -> None:
    """Decode AoE frames to readable text.

    \b
    Try:  aoe decode capture.pcapng
          tcpdump -i eth0 -w - ether proto 0x88a2 | aoe decode -
          aoe decode ffffffffffff525400ae000288a210000000000100000007

    FILE is a pcap or pcapng capture, optionally compressed by gzip. HEX is a frame in
    hexadecimal, beginning with the Ethernet header. - reads a capture, or a frame in
    hexadecimal per line, from standard input. Frames other than AoE are counted but not
    printed.
    """
    frames = (frame for source in sources for frame in _frames(source))
    others = 0
    first: float | None = None
    shown: list[dict[str, object]] = []
    for number, frame in enumerate(frames, start=1):
        if not _is_aoe(frame.data):
            others += 1
            continue
        first = frame.time if first is None else first
        if as_json:
            shown.append(_fields(number, frame))
        else:
            click.echo(_line(number, frame, frame.time - first))
            if verbose:
                # Imported here because it takes a quarter of a second.
                from aoe.capture.dissection import dissect

                click.echo(dissect(frame.data))
    if as_json:
        print_json("decode", frames=shown, others=others)
    elif others:
        click.echo(f"aoe: not AoE: {format_count(others, 'frame')}", err=True)


def _frames(source: str) -> Iterator[CapturedFrame]:
    from aoe.capture.annotated import read_capture

    if source == "-":
        yield from _standard_input()
    elif Path(source).exists():
        yield from read_capture(Path(source))
    elif _HEX.fullmatch(source.strip()):
        yield _from_hex(source)
    else:
        fix = "Give the path of a capture, or two hexadecimal digits per byte"
        raise NotFoundError(source, "no such file, and not hexadecimal", fix)


def _standard_input() -> Iterator[CapturedFrame]:
    from aoe.capture.annotated import parse_capture

    stdin = cast("BufferedReader", sys.stdin.buffer)
    start = stdin.peek(4)[:4]
    if start == _PCAPNG or not _HEX_START.fullmatch(start):
        yield from parse_capture(stdin, "standard input")
        return
    for line in stdin:
        text = line.decode("ascii", "replace").strip()
        if not text:
            continue
        if not _HEX.fullmatch(text):
            raise UsageError(text[:40], "not a frame in hexadecimal")
        yield _from_hex(text)


def _from_hex(text: str) -> CapturedFrame:
    data = bytes.fromhex(re.sub(r"[\s:.-]", "", text))
    if not _is_aoe(data):
        raise DecodeError(text.strip()[:40], describe(data))
    return CapturedFrame(0.0, data)


def _is_aoe(data: bytes) -> bool:
    return data[12:ETHERNET_LENGTH] == ETH_P_AOE.to_bytes(2, "big")


def _line(number: int, frame: CapturedFrame, seconds: float) -> str:
    data = frame.data
    return (
        f"{number:>6} {seconds:>12.6f} {_DIRECTIONS[frame.direction]:<3} "
        f"{format_mac(data[6:12])} > {format_mac(data[:6])}  {describe(data)}"
    )


def _fields(number: int, frame: CapturedFrame) -> dict[str, object]:
    return {
        "number": number,
        "time": frame.time,
        "direction": frame.direction.name.lower(),
        "source": format_mac(frame.data[6:12]),
        "destination": format_mac(frame.data[:6]),
        "bytes": len(frame.data),
        "text": describe(frame.data),
        "comment": frame.comment,
    }
