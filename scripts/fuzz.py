"""Hand frames to the target that nobody would send, and hold it to the rules.

Most are good ones that were spoilt (real drivers' and our own of every command), some
scapy made from our layers, some hypothesis. Every reply is accounted for byte by byte,
every disk is compared with what should be on it, and the memory is watched. What breaks
a rule is shortened and printed for tests/unit/test_fuzz.py to keep.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from collections import Counter, deque
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from aoe.ata import AtaError, Opcode
from aoe.header import Command, ErrorCode
from tests.fuzz_frames import Mutator, hypothesis_frames, scapy_frames
from tests.fuzz_port import FuzzedPort, run_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tests.fuzz_port import Outcome

FRAMES: Final = 2_000_000
SHARES: Final = {"scapy": 0.03, "hypothesis": 0.02}
"""They take a hundred times as long as mutation, which makes the rest."""
MTUS: Final = ((1500, None), (9000, None), (576, None), (1500, 9000))
"""Of the ports: now, and before if that was another."""
REMEMBERED: Final = 2048
"""Frames that are kept to find out which of them led to a find."""
CHECKPOINT: Final = 1 << 14
"""Frames between two comparisons of all disks."""
WARM_UP: Final = 20_000
"""Frames of a source, a checkpoint among them, after which memory must not grow."""
MEMORY_SLACK: Final = 4 << 20
"""Bytes by which it may: the allocator's, and hypothesis has its own household."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


PATIENCE: Final = 30.0
"""Seconds that are spent on making a find shorter."""


class Find(NamedTuple):
    """Frames that make a port break a rule, the last of them at once.

    Args:
        mtu: of the port.
        frames: what it was handed.
        why: which rule.
    """

    mtu: int
    frames: list[bytes]
    why: str


class Campaign:
    """Ports that frames are handed to in turns, until one of them breaks a rule.

    Args:
        place: an empty directory for their disks, best in memory: they flush a lot.
        tell: called now and then with the frames so far.
    """

    def __init__(
        self, place: Path, tell: Callable[[int], None] = lambda _count: None
    ) -> None:
        self.frames = 0
        self.find: Find | None = None
        self.memory: dict[str, tuple[int, int]] = {}
        """Resident bytes, by source: after its warm-up, and the most after that."""
        self._tell = tell
        with ExitStack() as stack:
            self.ports = [
                FuzzedPort(place / f"port{number}", mtu, before)
                for number, (mtu, before) in enumerate(MTUS)
            ]
            for port in self.ports:
                stack.callback(port.close)
            self._stack = stack.pop_all()
        self._history: list[deque[bytes]] = [deque(maxlen=REMEMBERED) for _ in MTUS]

    def feed(self, frame: bytes) -> None:
        """Hand a frame to the next port; nothing happens any more after a find."""
        if self.find is not None:
            return
        turn = self.frames % len(self.ports)
        self.frames += 1
        self._history[turn].append(frame)
        try:
            self.ports[turn].run(frame)
            if not self.frames % CHECKPOINT:
                self._check()
        except Exception as error:  # noqa: BLE001 - what comes out is the find
            history = list(self._history[turn])
            self.find = Find(MTUS[turn][0], history, describe(error))

    def _check(self) -> None:
        self._tell(self.frames)
        for port in self.ports:
            port.verify()

    def run(self, source: str, frames: Iterable[bytes], count: int) -> None:
        """Feed so many frames of a source, and watch the memory meanwhile."""
        watch = self.watch(source)
        for frame in islice(frames, count):
            watch(frame)
            if self.find is not None:
                break

    def watch(self, source: str) -> Callable[[bytes], None]:
        """Return ``feed`` for the frames of a source, with an eye on the memory."""
        start = self.frames

        def feed(frame: bytes) -> None:
            self.feed(frame)
            done = self.frames - start
            if done == WARM_UP or (done > WARM_UP and done % CHECKPOINT == 0):
                resident = resident_memory()
                first, most = self.memory.get(source, (resident, 0))
                self.memory[source] = first, max(most, resident)

        return feed

    @property
    def growth(self) -> int:
        """Bytes that the memory grew by at most, after a source's warm-up."""
        return max((most - first for first, most in self.memory.values()), default=0)

    def outcomes(self) -> Counter[Outcome]:
        """Count what became of the requests, on all ports."""
        return sum((port.outcomes for port in self.ports), Counter())

    def dropped(self) -> Counter[str]:
        """Count the frames that were met with silence, by reason."""
        return sum((port.dropped for port in self.ports), Counter())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def describe(error: BaseException) -> str:
    """Say in a line what came out of a port, and from where."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = ""
    if place is not None:
        where = f" at {Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}"
    return f"{type(error).__name__}: {error}{where}"


def resident_memory() -> int:
    """Return the bytes of memory that this process has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def run_campaign(campaign: Campaign, count: int, seed: int) -> None:
    """Feed frames of all three sources, one after the other."""
    shares = {source: int(share * count) for source, share in SHARES.items()}
    campaign.run("mutation", Mutator(seed), count - sum(shares.values()))
    campaign.run("scapy", scapy_frames(seed), shares["scapy"])
    feed = campaign.watch("hypothesis")
    hypothesis_frames(shares["hypothesis"], seed, feed)


# --- finds --------------------------------------------------------------------------


def failure_of(find: Find, frames: Sequence[bytes]) -> str:
    """Say how frames fail on a port of their own; "" if they do not."""
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=fast_place()) as directory:
        try:
            run_all(Path(directory) / "port", find.mtu, frames)
        except Exception as error:  # noqa: BLE001 - what comes out is the find
            return describe(error)
    return ""


def shorten(find: Find) -> Find:
    """Leave out frames, then bytes of the last one, as long as it fails without them.

    Returns:
        The same find where it does not fail on a port of its own, and one that could
        be shorter where this took longer than ``PATIENCE``.
    """
    end = time.monotonic() + PATIENCE
    *earlier, last = find.frames
    if not failure_of(find, find.frames):
        return find
    piece = len(earlier)
    while piece:
        start = 0
        while start < len(earlier) and time.monotonic() < end:
            fewer = earlier[:start] + earlier[start + piece :]
            if failure_of(find, [*fewer, last]):
                earlier = fewer
            else:
                start += piece
        piece //= 2
    cut = len(last) // 2
    while cut:
        while failure_of(find, [*earlier, last[:-cut]]):
            last = last[:-cut]
        cut //= 2
    frames = [*earlier, last]
    return Find(find.mtu, frames, failure_of(find, frames))


# --- what it says -------------------------------------------------------------------

SILENCE: Final = "silence"
FAILURES: Final = {
    (0x40, 0): "done",
    **{(0x41, error.value): str(error.name).lower() for error in AtaError},
    (0x61, AtaError.ABORTED.value): "device fault",
}


def name_request(outcome: Outcome) -> str:
    """Name what was asked: an opcode, a command, or what is neither."""
    if outcome.version != 1:
        return "other versions"
    if outcome.command != Command.ATA:
        known = outcome.command in list(Command)
        return Command(outcome.command).name if known else "other commands"
    if outcome.opcode < 0:
        return "ATA, too short"
    known = outcome.opcode in list(Opcode)
    return f"ATA {Opcode(outcome.opcode).name}" if known else "ATA, other opcodes"


def name_reply(outcome: Outcome) -> str:
    """Name what was answered."""
    if outcome.error < 0:
        return SILENCE
    if outcome.error:
        return f"error {outcome.error}"
    return FAILURES.get(outcome.registers, "done")


def tabulate(outcomes: Counter[Outcome]) -> dict[str, Counter[str]]:
    """Count replies by what was asked and what was answered."""
    table: dict[str, Counter[str]] = {}
    for outcome, count in outcomes.items():
        table.setdefault(name_request(outcome), Counter())[name_reply(outcome)] += count
    return dict(sorted(table.items()))


def format_table(table: dict[str, Counter[str]]) -> str:
    """Write the table that shows how far the frames got."""
    columns = [*dict.fromkeys(FAILURES.values()), *(f"error {c}" for c in ErrorCode)]
    used = {column for row in table.values() for column in row}
    columns = [column for column in (*columns, SILENCE) if column in used]
    widths = {column: max(len(column), 9) for column in columns}
    lines = [" " * 27 + "  ".join(name.rjust(wide) for name, wide in widths.items())]
    for name, row in table.items():
        cells = (f"{row[column] or '.':>{wide}}" for column, wide in widths.items())
        lines.append(f"{name:27}{'  '.join(cells)}")
    return "\n".join(lines)


def print_find(find: Find) -> None:
    """Print a find so that --replay and the table of the unit test take it."""
    print(f"BROKEN, with an MTU of {find.mtu}: {find.why}")
    for frame in find.frames:
        print(f"  {frame.hex()}")


def fast_place() -> str | None:
    """Return a directory in memory, if this machine has one to write to."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - a prefix


def show_progress(total: int) -> Callable[[int], None]:
    """Return what shows on a terminal how far it is."""
    start = time.monotonic()

    def tell(count: int) -> None:
        rate = count / max(time.monotonic() - start, 0.001)
        line = f"\r{count:,} of {total:,} frames, {rate:,.0f} a second "
        print(line, end="", file=sys.stderr, flush=True)

    return tell if sys.stderr.isatty() else lambda _count: None


def main(words: Sequence[str] | None = None) -> int:
    """Fuzz, and print what was reached; 1 if a rule was broken or memory grew."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=FRAMES, metavar="N")
    parser.add_argument("--seed", type=int, default=1, help="same seed, same frames")
    parser.add_argument(
        "--replay",
        nargs="+",
        type=bytes.fromhex,
        metavar="HEX",
        help="these frames only, one after the other, on a port of their own",
    )
    parser.add_argument("--mtu", type=int, default=1500, help="for --replay")
    options = parser.parse_args(words)
    if options.replay:
        why = failure_of(Find(options.mtu, [], ""), options.replay)
        print(why or "no rule broken")
        return 1 if why else 0
    start = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-", dir=fast_place()) as directory,
        Campaign(Path(directory), show_progress(options.frames)) as campaign,
    ):
        run_campaign(campaign, options.frames, options.seed)
        return report(campaign, options.seed, time.monotonic() - start)


def report(campaign: Campaign, seed: int, seconds: float) -> int:
    """Print what a campaign has found and reached; return the exit code."""
    print(format_table(tabulate(campaign.outcomes())))
    reasons = (f"{reason} {n:,}" for reason, n in sorted(campaign.dropped().items()))
    print(f"silence: {', '.join(reasons)}")
    for source, (first, most) in campaign.memory.items():
        print(
            f"memory, {source}: {first / 1e6:.1f} MB after {WARM_UP:,} frames, "
            f"{most / 1e6:.1f} MB at most after that"
        )
    if campaign.find is not None:
        print_find(shorten(campaign.find))
    grew = campaign.growth > MEMORY_SLACK
    memory = "flat" if campaign.memory else "not measured over so few"
    executed = sum(port.executed for port in campaign.ports)
    print(
        f"{campaign.frames:,} frames, seed {seed}, executed {executed:,} times by a "
        f"target, {'a rule' if campaign.find else 'no rule'} broken, memory "
        f"{'grew' if grew else memory}, {seconds:.0f} s"
    )
    return 1 if campaign.find or grew else 0


if __name__ == "__main__":
    sys.exit(main())
