"""Breadth-first search over all interleavings of steps for a policy violation.

The events of ``initiator.lab.cases`` are scripts. The explorer instead tries, from each
state of a world, all enabled steps. Because the search is breadth-first, the first
counterexample has the fewest steps. Equal states, by state hash, are expanded once.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypedDict, Unpack

from aoe.errors import AoEError, UsageError
from initiator.lab.cases import ALL_SUBMITTERS, DEFAULT, Switches
from initiator.lab.explorer.state import state_hash
from initiator.lab.explorer.steps import Bounds, Step, Stepper
from initiator.lab.kernel.journal import BugOn, Fault
from initiator.lab.kernel.nic import Nic
from initiator.lab.kernel.policy import policy_on_kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from initiator.lab.explorer.snapshot import Snapshot
    from initiator.lab.kernel.journal import Entry, Journal

VIOLATIONS: Final = frozenset(
    {Fault.BUG, Fault.DOUBLE_FREE, Fault.PREMATURE_FREE, Fault.LEAK, Fault.UNDERFLOW}
)
"""Faults of memory. WRONG_BYTES, a fault of contents, is not among them: no policy
without copies prevents it (K120)."""
FINISH: Final = Step("finish")
_PROGRESS_INTERVAL: Final = 500
"""States between two calls of ``progress``."""


class BoundNames(TypedDict, total=False):
    """The arguments of ``Bounds``, as keywords of ``explore``."""

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
    """What to search.

    Args:
        policy: name of the policy, which may be followed by ``@`` and a kernel.
        nic: a name of ``initiator.lab.kernel.nic.Nic``.
        submitters: keys of ``initiator.lab.cases.ALL_SUBMITTERS``, used by the bios in
            rotation.
        bounds: limits of the search.
        violations: the faults to search for.
        switches: deviations from the defaults of the kernel.
    """

    policy: str
    nic: str
    submitters: tuple[str, ...]
    bounds: Bounds
    violations: frozenset[Fault] = VIOLATIONS
    switches: Switches = DEFAULT

    def make_stepper(self, *, keep_entries: bool = False) -> Stepper:
        """Return a stepper on a new world."""
        policy, rules = policy_on_kernel(self.policy)
        return Stepper(
            policy,
            rules,
            Nic[self.nic],
            self.submitters,
            self.bounds,
            self.switches,
            track_contents=Fault.WRONG_BYTES in self.violations,
            keep_entries=keep_entries,
        )

    def violation(self, journal: Journal) -> Entry | None:
        """Return the first fault that is a violation, or None."""
        found = (entry for entry in journal.faults if entry.fault in self.violations)
        return next(found, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exploration:
    """The result of a search.

    Args:
        config: what was searched.
        safe: all interleavings within the bounds were tried, and none has a violation.
        undecided: no violation was found, but the search was cut short: by "states",
            that is ``max_states``, or by "memory", an allocation of the modelled
            machine that failed. Otherwise "".
        complete: all reachable states were expanded, so that ``safe`` holds for any
            number of steps. False if ``max_steps`` ended the search, too.
        steps: length of the counterexample; if there is none, the number of steps up
            to which all interleavings were tried.
        states: distinct states reached.
        edges: steps tried.
        seconds: duration of the search.
        counterexample: descriptions of its steps, or None.
        starts: for each of these the number of its first event in the journal.
        path: the steps of the counterexample, for ``replay``.
        journal: the event log of the counterexample.
        fault: the violation.
    """

    config: SearchConfig
    safe: bool
    undecided: str
    complete: bool
    steps: int
    states: int
    edges: int
    seconds: float
    counterexample: list[str] | None = None
    starts: Sequence[int] = ()
    path: tuple[Step, ...] = ()
    journal: Journal | None = None
    fault: Entry | None = None

    @property
    def states_per_second(self) -> float:
        """Speed of the search."""
        return self.states / self.seconds if self.seconds else 0.0


def explore(
    policy: str,
    nic: str,
    submitters: Sequence[str],
    *,
    violations: Collection[Fault] = VIOLATIONS,
    switches: Switches = DEFAULT,
    progress: Callable[[int, int], None] | None = None,
    **bounds: Unpack[BoundNames],
) -> Exploration:
    """Search all interleavings of steps within bounds for a violation.

    Args:
        policy: name of the policy, which may be followed by ``@`` and a kernel.
        nic: a name of ``initiator.lab.kernel.nic.Nic``.
        submitters: keys of ``initiator.lab.cases.ALL_SUBMITTERS``, used by the bios in
            rotation.
        violations: the faults to search for.
        switches: deviations from the defaults of the kernel.
        progress: called periodically with the depth and the number of states.
        **bounds: see ``Bounds``.

    Raises:
        UsageError: a name is unknown.
    """
    policy_on_kernel(policy)
    for name, axis in (
        (nic, Nic.__members__),
        *((submitter, ALL_SUBMITTERS) for submitter in submitters),
    ):
        if name not in axis:
            raise UsageError(name, f"unknown (have: {', '.join(axis)})")
    config = SearchConfig(
        policy,
        nic,
        tuple(submitters),
        Bounds(**bounds),
        frozenset(violations),
        switches,
    )
    return Explorer(config, progress or (lambda _steps, _states: None)).run()


def parse_faults(names: Collection[str]) -> frozenset[Fault]:
    """Parse names of faults, such as ``premature-free``.

    Raises:
        UsageError: a name is unknown.
    """
    known = {fault.value: fault for fault in Fault}
    for name in names:
        if name not in known:
            raise UsageError(name, f"unknown (have: {', '.join(known)})")
    return frozenset(known[name] for name in names)


def replay(
    config: SearchConfig, path: Sequence[Step]
) -> tuple[Stepper, list[str], list[int]]:
    """Apply a path to a new world.

    Return the stepper and, for each step, its description and where in the journal it
    begins.
    """
    stepper = config.make_stepper(keep_entries=True)
    descriptions, starts = [], []
    for step in path:
        descriptions.append(stepper.describe(step))
        starts.append(len(stepper.journal.entries))
        try:
            stepper.apply(step)
        except BugOn:
            break
    return stepper, descriptions, starts


@contextmanager
def _without_garbage_collector() -> Iterator[None]:
    """Disable the cyclic GC: a search makes no cycles, but many objects to scan."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Path(NamedTuple):
    """The path to a state, as a linked list from its last step."""

    before: Path | None
    step: Step

    def unrolled(self) -> tuple[Step, ...]:
        """Return the steps in order."""
        steps, path = [], self
        while True:
            steps.append(path.step)
            if path.before is None:
                return tuple(reversed(steps))
            path = path.before


class Pending(NamedTuple):
    """A state to expand: ``base``, followed by the last step of ``path``."""

    base: Snapshot
    path: Path | None


class Explorer:
    """A breadth-first search.

    A state on the frontier is stored as the snapshot of its predecessor and the step
    from there; all successors of a state share that snapshot.

    Args:
        config: what to search.
        progress: called periodically with the depth and the number of states.
    """

    def __init__(
        self, config: SearchConfig, progress: Callable[[int, int], None]
    ) -> None:
        self.config = config
        self.progress = progress
        self.stepper = config.make_stepper()
        self.seen = {state_hash(self.stepper)}
        self.edges = 0
        self.depth = self.tried = 0
        self.out_of_memory = False

    def run(self) -> Exploration:
        """Search until a violation is found or the bounds are exhausted."""
        with _without_garbage_collector():
            return self._search()

    def _search(self) -> Exploration:
        start = time.perf_counter()
        level = deque([Pending(self.stepper.snapshots.take(), None)])
        path: Path | None = None
        limit = self.config.bounds.max_steps
        while level and self._has_room and self.depth != limit:
            self.depth += 1
            next_level: deque[Pending] = deque()
            path = next(self._expand(level, next_level), None)
            if path is not None or level:
                break
            self.tried = self.depth
            level = next_level
        undecided = ""
        if path is None and self.out_of_memory:
            undecided = "memory"
        elif path is None and level and not self._has_room:
            undecided = "states"
        seconds = time.perf_counter() - start
        complete = path is None and not level and not undecided
        return self._result(path, seconds, undecided, complete=complete)

    @property
    def _has_room(self) -> bool:
        return len(self.seen) < self.config.bounds.max_states

    def _expand(
        self, level: deque[Pending], next_level: deque[Pending]
    ) -> Iterator[Path]:
        """Apply all enabled steps to a level of states; yield paths to violations."""
        stepper = self.stepper
        while level and self._has_room:
            base, path = level.popleft()
            stepper.snapshots.restore(base)
            if path is not None:
                stepper.apply(path.step)
            here = stepper.snapshots.take(base)
            for number, step in enumerate(stepper.enabled_steps()):
                if number:
                    stepper.snapshots.restore(here)
                next_path = Path(path, step)
                is_new = self._apply(step)
                if self.config.violation(stepper.journal) is not None:
                    yield next_path
                if is_new:
                    next_level.append(Pending(here, next_path))
                    if stepper.is_quiescent:
                        yield from self._check_quiescent(next_path)

    def _apply(self, step: Step) -> bool:
        """Apply a step; return True if the state is new."""
        try:
            self.stepper.apply(step)
        except BugOn:
            # A BUG stops the machine: the state has no successors.
            self.edges += 1
            return False
        except AoEError:
            # Bad pages are kept out of circulation, and the allocation failed.
            self.out_of_memory = True
            return False
        self.edges += 1
        state = state_hash(self.stepper)
        if state in self.seen:
            return False
        self.seen.add(state)
        if not len(self.seen) % _PROGRESS_INTERVAL:
            self.progress(self.depth, len(self.seen))
        return True

    def _check_quiescent(self, path: Path) -> Iterator[Path]:
        """Finish a quiescent world; yield the path if that reveals a leak (K116)."""
        with suppress(BugOn):
            self.stepper.apply(FINISH)
        if self.config.violation(self.stepper.journal) is not None:
            yield Path(path, FINISH)

    def _result(
        self, path: Path | None, seconds: float, undecided: str, *, complete: bool
    ) -> Exploration:
        steps = path.unrolled() if path is not None else ()
        stepper, descriptions, starts = replay(self.config, steps)
        return Exploration(
            config=self.config,
            safe=path is None and not undecided,
            undecided=undecided,
            complete=complete,
            steps=len(steps) or self.tried,
            states=len(self.seen),
            edges=self.edges,
            seconds=seconds,
            counterexample=descriptions if steps else None,
            starts=starts,
            path=steps,
            journal=stepper.journal if steps else None,
            fault=self.config.violation(stepper.journal),
        )
