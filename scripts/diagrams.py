"""Draw the states of the initiator's devices and targets into its states.md.

Nobody draws an arrow: the driver goes it. Each event is tried in each state that was
found, on a fresh driver, with Linux 6.1's manners and ours; what it leads to is drawn.
"""

from __future__ import annotations

import argparse
import re
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from aoe.ata import SECTOR
from initiator.driver.options import Options
from tests.unit.conftest import FakeTarget, World

DOCUMENT: Final = Path(__file__).parents[1] / "initiator/driver/states.md"
MANNERS: Final = {"ours": Options(), "kernel": Options.kernel()}
_SILENCE: Final = 400.0
"""Seconds; more than any device is waited for."""


class Arrow(NamedTuple):
    """An event that leads from one state to another."""

    before: str
    event: str
    after: str


Event: TypeAlias = Callable[[World], None]


def _make_world(options: Options) -> World:
    return World(options, (1500,), FakeTarget(bytearray(64 * SECTOR)))


# --- a device -------------------------------------------------------------------------


def _announce(world: World) -> None:
    world.take()
    world.deliver(world.target.announce())
    world.run_until_idle()


def _open(world: World) -> None:
    if not world.device.nopen:
        world.driver.open(world.device)


def _close(world: World) -> None:
    if world.device.nopen:
        world.driver.close(world.device)


def _fall_silent(world: World) -> None:
    world.write(0, bytes(SECTOR))
    world.wait(_SILENCE)


EVENTS: Final[dict[str, Event]] = {
    "it announces itself": _announce,
    "opened": _open,
    "last close": _close,
    "silent for deadsecs": _fall_silent,
}


def _device_state(world: World) -> str:
    device = world.driver.devices.get(world.target.address)
    if device is None:
        return "unknown"
    return device.state.value + (", open" if device.nopen else "")


def device_arrows(options: Options) -> list[Arrow]:
    """Find all that can become of a device, from before it was heard of."""
    ways: dict[str, list[Event]] = {"unknown": []}
    found = deque(ways)
    arrows = []
    while found:
        before = found.popleft()
        for name, event in EVENTS.items():
            if before == "unknown" and event is not _announce:
                continue
            world = _make_world(options)
            for each in (*ways[before], event):
                each(world)
            after = _device_state(world)
            if after not in ways:
                ways[after] = [*ways[before], event]
                found.append(after)
            if after != before:
                arrows.append(Arrow(before, name, after))
    return arrows


# --- one of the targets of a device ---------------------------------------------------


def target_arrows(options: Options) -> list[Arrow]:
    """Find what becomes of the trust in one target of two that falls silent."""
    world = _make_world(options)
    world.bring_up()
    other = world.second_mac()
    world.deliver(other.announce())
    watched = world.device.targets[-1]
    answering = {world.target.mac: world.target, other.mac: other}
    steps: dict[Arrow, list[int]] = {}

    def watch(event: str, happen: Callable[[], None]) -> None:
        before = watched.taint
        happen()
        if watched.taint != before:
            arrow = Arrow(_trust(before), event, _trust(watched.taint))
            steps.setdefault(arrow, []).append(watched.taint)

    def live(*, silent: bool) -> None:
        end = world.now + _SILENCE
        while world.now < end:
            for frame in world.take():
                target = answering.get(frame.raw[:6])
                if target is not None and not (silent and target is other):
                    reply = target.answer(frame.raw)
                    watch("answers", partial(world.deliver, reply))
            world.write(0, bytes(SECTOR))
            world.now += 0.1
            watch("lets a frame wait", partial(world.driver.handle_timer, world.now))

    live(silent=True)
    live(silent=False)
    return [
        Arrow(before, f"{event}, taint {_span(taints)}", after)
        for (before, event, after), taints in steps.items()
    ]


def _trust(taint: int) -> str:
    return "tainted" if taint else "trusted"


def _span(taints: Sequence[int]) -> str:
    first, last = taints[0], taints[-1]
    return f"{first}" if first == last else f"{first} to {last}"


# --- drawn ----------------------------------------------------------------------------


def draw(find: Callable[[Options], list[Arrow]]) -> str:
    """Draw as Mermaid what both manners have in common, and what only one of them."""
    found = {name: find(options) for name, options in MANNERS.items()}
    lines = ["```mermaid", "stateDiagram-v2"]
    everything = dict.fromkeys(arrow for arrows in found.values() for arrow in arrows)
    states = dict.fromkeys(s for a in everything for s in (a.before, a.after))
    lines += [f'    state "{state}" as {_name(state)}' for state in states]
    for arrow in everything:
        whose = [name for name, arrows in found.items() if arrow in arrows]
        only = f" ({', '.join(whose)})" if len(whose) < len(found) else ""
        way = f"{_name(arrow.before)} --> {_name(arrow.after)}"
        lines.append(f"    {way}: {arrow.event}{only}")
    return "\n".join([*lines, "```\n"])


def _name(state: str) -> str:
    return re.sub(r"\W+", "_", state)


def redraw(text: str) -> str:
    """Return a document with its diagrams as they have to be."""
    for kind, find in DIAGRAMS.items():
        before, mark, rest = text.partition(f"<!-- diagram: {kind} -->\n")
        _, end, behind = rest.partition("<!-- end -->\n")
        text = "".join((before, mark, draw(find), end, behind))
    return text


DIAGRAMS: Final = {"device": device_arrows, "target": target_arrows}


def main() -> None:
    """Draw them anew."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    DOCUMENT.write_text(redraw(DOCUMENT.read_text("utf-8")), "utf-8")
    print(DOCUMENT)


if __name__ == "__main__":
    main()
