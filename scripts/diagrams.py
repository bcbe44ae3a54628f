"""Generate the state diagrams of the initiator's devices and targets in states.md.

The transitions are not written by hand. Each event is applied in each state that was
reached, on a new driver, with the default options and with those of Linux 6.1.
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
OPTIONS: Final = {"default": Options(), "kernel": Options.kernel()}
_SILENCE: Final = 400.0
"""Seconds; longer than ``deadsecs``, with margin for retransmissions."""


class Transition(NamedTuple):
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


def _exchange(world: World) -> None:
    serial, world.target.serial = world.target.serial, "another"
    _announce(world)
    world.target.serial = serial


EVENTS: Final[dict[str, Event]] = {
    "announcement": _announce,
    "announcement of another disk": _exchange,
    "open": _open,
    "last close": _close,
    "no response for deadsecs": _fall_silent,
}


def _device_state(world: World) -> str:
    device = world.driver.devices.get(world.target.address)
    if device is None:
        return "unknown"
    return device.state.value + (", open" if device.nopen else "")


def device_transitions(options: Options) -> list[Transition]:
    """Find all transitions of a device, by breadth-first search from "unknown"."""
    paths: dict[str, list[Event]] = {"unknown": []}
    found = deque(paths)
    transitions = []
    while found:
        before = found.popleft()
        for name, event in EVENTS.items():
            if before == "unknown" and event is not _announce:
                continue
            world = _make_world(options)
            for each in (*paths[before], event):
                each(world)
            after = _device_state(world)
            if after not in paths:
                paths[after] = [*paths[before], event]
                found.append(after)
            if after != before:
                transitions.append(Transition(before, name, after))
    return transitions


# --- one of the targets of a device ---------------------------------------------------


def target_transitions(options: Options) -> list[Transition]:
    """Find the transitions of one of two targets that stops responding and resumes."""
    world = _make_world(options)
    world.bring_up()
    other = world.second_mac()
    answering = {world.target.mac: world.target, other.mac: other}
    world.deliver(other.announce())
    for frame in world.take():
        world.deliver(answering[frame.raw[:6]].answer(frame.raw))
    watched = world.device.targets[-1]
    steps: dict[Transition, list[int]] = {}

    def watch(event: str, happen: Callable[[], None]) -> None:
        before = watched.taint
        happen()
        if watched.taint != before:
            states = _taint_state(before), _taint_state(watched.taint)
            transition = Transition(states[0], event, states[1])
            steps.setdefault(transition, []).append(watched.taint)

    def run(*, silent: bool) -> None:
        end = world.now + _SILENCE
        while world.now < end:
            for frame in world.take():
                target = answering.get(frame.raw[:6])
                if target is not None and not (silent and target is other):
                    response = target.answer(frame.raw)
                    watch("response", partial(world.deliver, response))
            world.write(0, bytes(SECTOR))
            world.now += 0.1
            watch("no response", partial(world.driver.handle_timer, world.now))

    run(silent=True)
    run(silent=False)
    return [
        Transition(before, f"{event}, taint {_span(taints)}", after)
        for (before, event, after), taints in steps.items()
    ]


def _taint_state(taint: int) -> str:
    return "tainted" if taint else "untainted"


def _span(taints: Sequence[int]) -> str:
    first, last = taints[0], taints[-1]
    return f"{first}" if first == last else f"{first} to {last}"


# --- diagrams -------------------------------------------------------------------------


def draw(find: Callable[[Options], list[Transition]]) -> str:
    """Return a Mermaid diagram; transitions of one set of options only are marked."""
    found = {name: find(options) for name, options in OPTIONS.items()}
    lines = ["```mermaid", "stateDiagram-v2"]
    union = dict.fromkeys(each for those in found.values() for each in those)
    states = dict.fromkeys(s for each in union for s in (each.before, each.after))
    lines += [f'    state "{state}" as {_name(state)}' for state in states]
    for each in union:
        names = [name for name, those in found.items() if each in those]
        only = f" ({', '.join(names)})" if len(names) < len(found) else ""
        arrow = f"{_name(each.before)} --> {_name(each.after)}"
        lines.append(f"    {arrow}: {each.event}{only}")
    return "\n".join([*lines, "```\n"])


def _name(state: str) -> str:
    return re.sub(r"\W+", "_", state)


def redraw(text: str) -> str:
    """Return a document with its diagrams replaced by newly generated ones."""
    for kind, find in DIAGRAMS.items():
        before, mark, rest = text.partition(f"<!-- diagram: {kind} -->\n")
        _, end, behind = rest.partition("<!-- end -->\n")
        text = "".join((before, mark, draw(find), end, behind))
    return text


DIAGRAMS: Final = {"device": device_transitions, "target": target_transitions}


def main() -> None:
    """Write the document with new diagrams."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    DOCUMENT.write_text(redraw(DOCUMENT.read_text("utf-8")), "utf-8")
    print(DOCUMENT)


if __name__ == "__main__":
    main()
