"""Plays checks: asks what they yield, judges what comes back, puts back what changed.

No I/O: requests go to a function, which returns the reply or nothing.
"""

from __future__ import annotations

import re
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from aoe.describe import describe
from aoe.errors import AoEError
from initiator.check.expect import MISMATCH
from initiator.check.model import OPTIONS, Needs, Result, Skip, Verdict
from initiator.check.state import TARGET_STATES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from initiator.check.expect import Expectation
    from initiator.check.model import Check, Steps
    from initiator.check.state import TargetState
    from initiator.check.subject import Subject


class UnreachableError(AoEError):
    """The target that answered before answers nothing any more."""


class Exchange(Protocol):
    """Sends a request and returns the reply; nothing at all for silence.

    Raises:
        GoneError: there was none, and none to a plain query either.
    """

    def __call__(self, request: bytes, *, is_silence: bool) -> bytes:
        """``is_silence`` tells that no reply is expected, so none is insisted on."""


class Deviation(NamedTuple):
    """An exchange that went otherwise than expected."""

    request: bytes
    expected: Expectation
    response: bytes
    mismatch: str

    def lines(self) -> tuple[str, str, str]:
        """Say in words what was asked, what was expected, and what came."""
        got = "silence"
        if self.response:
            got = f"{len(self.response)} bytes: {_describe(self.response)}"
            got += f" ({self.mismatch})" if self.mismatch != MISMATCH else ""
        return (
            f"asked {_describe(self.request)}",
            f"expected {self.expected.words}",
            f"got {got}",
        )

    def __str__(self) -> str:
        return "; ".join(self.lines())


def _describe(frame: bytes) -> str:
    # Each has a tag of its own, which tells nobody anything.
    return re.sub(" tag 0x[0-9a-f]{8}", "", describe(frame))


def drive(steps: Steps, t: Subject, exchange: Exchange) -> Deviation | None:
    """Ask step by step, up to the end or the first deviation.

    Raises:
        Skip: it cannot be tried.
        GoneError: as ``Ask``.
    """
    with closing(steps):
        try:
            request, expected = next(steps)
            while True:
                response = exchange(request, is_silence=expected.is_silence)
                if mismatch := expected.mismatch(request, response, t):
                    return Deviation(request, expected, response, mismatch)
                request, expected = steps.send(response)
        except StopIteration:
            return None


class Session:
    """One target, and the checks that are played on it.

    Args:
        t: the target, after ``meet``.
        ask: how to reach it.
        allowed: what may be changed.
        undisturbed: a context in which nobody interrupts us; restoring runs in it.
    """

    def __init__(
        self,
        t: Subject,
        exchange: Exchange,
        allowed: Needs = Needs.NOTHING,
        uninterruptible: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._t = t
        self._exchange = exchange
        self._allowed = allowed
        self._uninterruptible = uninterruptible
        self._saved: dict[Needs, str] = {}
        self._unreachable = ""
        """What the target did not survive."""
        self.not_restored: dict[str, str] = {}
        """What could not be put back, and why."""

    def run(self, checks: Iterable[Check]) -> Iterator[Result]:
        """Yield a result for each check, as soon as it is known.

        What could not be restored after a check is tried once more at the end.
        """
        try:
            for check in checks:
                yield self._run(check)
        finally:
            with self._uninterruptible():
                for state in TARGET_STATES.values():
                    if state.what in self.not_restored:
                        self._restore(state)

    def _run(self, check: Check) -> Result:
        states = {need: k for need, k in TARGET_STATES.items() if need & check.needs}
        try:
            self._prepare(check, states)
        except Skip as skip:
            return Result(check, Verdict.SKIPPED, (str(skip),))
        try:
            result = self._judge(check)
        finally:
            with self._uninterruptible():
                for state in states.values():
                    self._restore(state)
        if self._unreachable and result.verdict is Verdict.HOLDS:
            # It went when it was put back.
            return replace(result, verdict=Verdict.DEVIATES, why=(self._unreachable,))
        return result

    def _prepare(self, check: Check, states: dict[Needs, TargetState]) -> None:
        if missing := check.needs & ~self._allowed:
            options = [name for name, needs in OPTIONS.items() if needs & missing]
            raise Skip(f"needs {' '.join(options)}")
        if self._unreachable:
            raise Skip("the target answers nothing any more")
        for need, state in states.items():
            if state.what in self.not_restored:
                raise Skip(f"{state.what} could not be restored before")
            if need not in self._saved:
                self._saved[need] = self._save(state)
            if self._saved[need]:
                raise Skip(self._saved[need])

    def _save(self, state: TargetState) -> str:
        try:
            deviation = drive(state.save(self._t), self._t, self._exchange)
        except (Skip, UnreachableError) as problem:
            return str(problem)
        return f"{state.what} cannot be saved: {deviation}" if deviation else ""

    def _restore(self, state: TargetState) -> None:
        self.not_restored.pop(state.what, None)
        try:
            deviation = drive(state.restore(self._t), self._t, self._exchange)
        except (Skip, AoEError) as problem:
            self._note_unreachable(problem)
            self.not_restored[state.what] = str(problem)
        else:
            if deviation:
                self.not_restored[state.what] = str(deviation)

    def _note_unreachable(self, problem: Exception) -> None:
        if isinstance(problem, UnreachableError) and not self._unreachable:
            self._unreachable = str(problem)

    def _judge(self, check: Check) -> Result:
        try:
            deviation = drive(check.steps(self._t), self._t, self._exchange)
        except Skip as skip:
            return Result(check, Verdict.SKIPPED, (str(skip),))
        except UnreachableError as error:
            self._note_unreachable(error)
            return Result(check, Verdict.DEVIATES, (str(error),))
        if deviation is None:
            return Result(check, Verdict.HOLDS)
        request, expected, response, _ = deviation
        pattern = expected.pattern(request, self._t)
        why = deviation.lines()
        return Result(check, Verdict.DEVIATES, why, request, pattern, response)
