"""Try all orders of events: is there one in which a policy breaks?

The nine events of ``initiator.lab.cases`` are scripts. Here nothing is scripted: from
every state of a world all steps that can come next are tried, breadth first, so that
the first violation found is one of the shortest. States that are the same are tried
once.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple, TypedDict, Unpack

from aoe.errors import AoEError, UsageError
from initiator.lab.cases import ALL_SUBMITTERS
from initiator.lab.explorer.state import state_hash
from initiator.lab.explorer.steps import Bounds, Step, Stepper
from initiator.lab.kernel.journal import BugOn, Fault
from initiator.lab.kernel.nic import Nic
from initiator.lab.kernel.policy import POLICIES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from initiator.lab.explorer.snapshot import Snapshot
    from initiator.lab.kernel.journal import Entry, Journal

VIOLATIONS: Final = frozenset(
    {Fault.BUG, Fault.DOUBLE_FREE, Fault.PREMATURE_FREE, Fault.LEAK, Fault.UNDERFLOW}
)
"""Faults of the memory. Of the contents, WRONG_BYTES, no policy without copies is free
(K120)."""
FINISH: Final = Step("settle")
_OFTEN: Final = 500
"""States between two calls of ``progress``."""


class BoundNames(TypedDict, total=False):
    """The arguments of ``Bounds``, for ``explore``."""

    bios: int
    buffers: int
    retransmissions: int
    duplicates: int
    reallocations: int
    failures: int
    max_steps: int | None
    max_states: int


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """What is explored.

    Args:
        policy: a key of ``initiator.lab.kernel.policy.POLICIES``.
        nic: a name of ``initiator.lab.kernel.nic.Nic``.
        submitters: keys of ``initiator.lab.cases.ALL_SUBMITTERS``; bios take turns.
        bounds: how often what may happen.
        violations: the faults that are looked for.
    """

    policy: str
    nic: str
    submitters: tuple[str, ...]
    bounds: Bounds
    violations: frozenset[Fault] = VIOLATIONS

    def begin(self, *, keep_entries: bool = False) -> Stepper:
        """Make a fresh run; ``keep`` its whole journal."""
        return Stepper(
            POLICIES[self.policy],
            Nic[self.nic],
            self.submitters,
            self.bounds,
            contents=Fault.WRONG_BYTES in self.violations,
            keep_entries=keep_entries,
        )

    def violation(self, journal: Journal) -> Entry | None:
        """Return the first fault that is looked for, if there is one."""
        found = (entry for entry in journal.faults if entry.fault in self.violations)
        return next(found, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exploration:
    """What came of it.

    Args:
        setting: what was explored.
        safe: no violation was found within the bounds.
        complete: there was nothing left to try within the bounds but ``max_steps``; so
            if it is safe, it is for any number of steps.
        steps: of the counterexample; or so many that all orders of them were tried.
        states: different states that were reached.
        edges: steps that were tried.
        seconds: that it took.
        counterexample: its steps in words, None if there is none.
        path: the same for ``replay``.
        journal: all that happened in it.
        fault: what went wrong in it.
    """

    setting: SearchConfig
    safe: bool
    complete: bool
    steps: int
    states: int
    edges: int
    seconds: float
    counterexample: list[str] | None = None
    path: tuple[Step, ...] = ()
    journal: Journal | None = None
    fault: Entry | None = None

    @property
    def states_per_second(self) -> float:
        """How fast it went."""
        return self.states / self.seconds if self.seconds else 0.0


def explore(
    policy: str,
    nic: str,
    submitters: Sequence[str],
    *,
    violations: Collection[Fault] = VIOLATIONS,
    progress: Callable[[int, int], None] | None = None,
    **bounds: Unpack[BoundNames],
) -> Exploration:
    """Try all orders of steps within bounds.

    Args:
        policy: a key of ``initiator.lab.kernel.policy.POLICIES``.
        nic: a name of ``initiator.lab.kernel.nic.Nic``.
        submitters: keys of ``initiator.lab.cases.ALL_SUBMITTERS``; bios take turns.
        violations: the faults to look for.
        progress: called every now and then with steps and states so far.
        **bounds: as ``Bounds`` takes them: bios, retransmissions, max_steps and so on.

    Raises:
        UsageError: one of the names is unknown.
    """
    for name, axis in (
        (policy, POLICIES),
        (nic, Nic.__members__),
        *((submitter, ALL_SUBMITTERS) for submitter in submitters),
    ):
        if name not in axis:
            raise UsageError(name, f"unknown (have: {', '.join(axis)})")
    setting = SearchConfig(
        policy, nic, tuple(submitters), Bounds(**bounds), frozenset(violations)
    )
    return Explorer(setting, progress or (lambda _steps, _states: None)).run()


def parse_faults(names: Collection[str]) -> frozenset[Fault]:
    """Read the words for faults, ``premature-free`` and so on.

    Raises:
        UsageError: there is no such fault.
    """
    known = {fault.value: fault for fault in Fault}
    for name in names:
        if name not in known:
            raise UsageError(name, f"unknown (have: {', '.join(known)})")
    return frozenset(known[name] for name in names)


def replay(setting: SearchConfig, path: Sequence[Step]) -> tuple[Stepper, list[str]]:
    """Play a path on a fresh world; return its run and its steps in words."""
    run = setting.begin(keep_entries=True)
    words = []
    for step in path:
        words.append(run.describe(step))
        try:
            run.apply(step)
        except BugOn:
            break
    return run, words


@contextmanager
def _without_collector() -> Iterator[None]:
    """Spare a search the collector: it makes no cycles, but much to look through."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Path(NamedTuple):
    """The way to a state, from its end."""

    before: Path | None
    step: Step

    def unrolled(self) -> tuple[Step, ...]:
        """The steps in order."""
        steps, path = [], self
        while True:
            steps.append(path.step)
            if path.before is None:
                return tuple(reversed(steps))
            path = path.before


class Pending(NamedTuple):
    """A state that is to be looked at: the last step of ``path`` from ``base``."""

    base: Snapshot
    path: Path | None


class Explorer:
    """A breadth-first search.

    A state that waits for its turn is kept as the snapshot that it was reached from and
    the step to take there; many states share one such snapshot.

    Args:
        setting: what to explore.
        progress: told of steps and states every now and then.
    """

    def __init__(
        self, setting: SearchConfig, progress: Callable[[int, int], None]
    ) -> None:
        self.setting = setting
        self.progress = progress
        self.play = setting.begin()
        self.seen = {state_hash(self.play)}
        self.edges = 0
        self.depth = self.tried = 0
        self.out_of_memory = False

    def run(self) -> Exploration:
        """Search until a violation is found, or nothing is left within the bounds."""
        with _without_collector():
            return self._search()

    def _search(self) -> Exploration:
        began = time.perf_counter()
        level = deque([Pending(self.play.snapshots.take(), None)])
        path: Path | None = None
        limit = self.setting.bounds.max_steps
        while level and self._has_room and self.depth != limit:
            self.depth += 1
            following: deque[Pending] = deque()
            path = next(self._expand(level, following), None)
            if path is not None or level:
                break
            self.tried = self.depth
            level = following
        found = self._sum_up(path, time.perf_counter() - began)
        return replace(
            found, complete=found.safe and not level and not self.out_of_memory
        )

    @property
    def _has_room(self) -> bool:
        return len(self.seen) < self.setting.bounds.max_states

    def _expand(
        self, level: deque[Pending], following: deque[Pending]
    ) -> Iterator[Path]:
        """Try all that can happen in the states of a level; yield the violations."""
        play = self.play
        while level and self._has_room:
            base, path = level.popleft()
            play.snapshots.restore(base)
            if path is not None:
                play.apply(path.step)
            here = play.snapshots.take(base)
            for number, step in enumerate(play.enabled_steps()):
                if number:
                    play.snapshots.restore(here)
                then = Path(path, step)
                is_new = self._take(step)
                if self.setting.violation(play.journal) is not None:
                    yield then
                if is_new:
                    following.append(Pending(here, then))
                    if play.is_quiescent:
                        yield from self._check_quiescent(then)

    def _take(self, step: Step) -> bool:
        """Take a step; tell whether that led to a state not seen before."""
        try:
            self.play.apply(step)
        except BugOn:
            # The machine has stopped: nothing comes after it.
            self.edges += 1
            return False
        except AoEError:
            # Bad pages are kept out, and no memory is left for it.
            self.out_of_memory = True
            return False
        self.edges += 1
        state = state_hash(self.play)
        if state in self.seen:
            return False
        self.seen.add(state)
        if not len(self.seen) % _OFTEN:
            self.progress(self.depth, len(self.seen))
        return True

    def _check_quiescent(self, path: Path) -> Iterator[Path]:
        """Look for what is left when everything has come to its end (K116)."""
        with suppress(BugOn):
            self.play.apply(FINISH)
        if self.setting.violation(self.play.journal) is not None:
            yield Path(path, FINISH)

    def _sum_up(self, path: Path | None, seconds: float) -> Exploration:
        steps = path.unrolled() if path is not None else ()
        run, words = replay(self.setting, steps)
        return Exploration(
            setting=self.setting,
            safe=path is None,
            complete=False,
            steps=len(steps) or self.tried,
            states=len(self.seen),
            edges=self.edges,
            seconds=seconds,
            counterexample=words if steps else None,
            path=steps,
            journal=run.journal if steps else None,
            fault=self.setting.violation(run.journal),
        )
