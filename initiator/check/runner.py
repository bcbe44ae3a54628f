"""The runner of checks: sends requests, compares responses, restores the target.

No I/O: requests are passed to a function that returns the response or nothing.
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
    """A target that responded before does not respond to any request."""


class Exchange(Protocol):
    """A function that sends a request and returns the response, or b"" for silence.

    Raises:
        UnreachableError: the target does not respond to a query config either.
    """

    def __call__(self, request: bytes, *, is_silence: bool) -> bytes:
        """Send a request; with ``is_silence`` do not wait for the whole timeout."""


class Deviation(NamedTuple):
    """A response that does not meet its expectation."""

    request: bytes
    expected: Expectation
    response: bytes
    mismatch: str

    def lines(self) -> tuple[str, str, str]:
        """Return descriptions of request, expected and actual response."""
        got = "silence"
        if self.response:
            got = f"{len(self.response)} bytes: {_describe(self.response)}"
            got += f" ({self.mismatch})" if self.mismatch != MISMATCH else ""
        return (
            f"request {_describe(self.request)}",
            f"expected {self.expected.description}",
            f"got {got}",
        )

    def __str__(self) -> str:
        return "; ".join(self.lines())


def _describe(frame: bytes) -> str:
    # Tags are arbitrary; leave them out.
    return re.sub(" tag 0x[0-9a-f]{8}", "", describe(frame))


def drive(steps: Steps, t: Subject, exchange: Exchange) -> Deviation | None:
    """Run a check's steps up to the end or the first deviation.

    Raises:
        Skip: the rule cannot be tested.
        UnreachableError: as ``Exchange``.
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
    """A run of checks on one target.

    Args:
        t: the target, after ``probe``.
        exchange: sends requests to it.
        allowed: what may be changed.
        uninterruptible: a context that defers signals; restoring runs in it.
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
        """Why the target is unreachable, "" if it is not."""
        self.not_restored: dict[str, str] = {}
        """State that could not be restored, and why."""

    def run(self, checks: Iterable[Check]) -> Iterator[Result]:
        """Run the checks and yield their results.

        State that could not be restored after a check is restored again at the end.
        """
        try:
            for check in checks:
                yield self._run_check(check)
        finally:
            with self._uninterruptible():
                for state in TARGET_STATES.values():
                    if state.what in self.not_restored:
                        self._restore(state)

    def _run_check(self, check: Check) -> Result:
        states = {
            need: state for need, state in TARGET_STATES.items() if need & check.needs
        }
        try:
            self._prepare(check, states)
        except Skip as skip:
            return Result(check, Verdict.SKIPPED, (str(skip),))
        try:
            result = self._test(check)
        finally:
            with self._uninterruptible():
                for state in states.values():
                    self._restore(state)
        if self._unreachable and result.verdict is Verdict.PASSED:
            # The target became unreachable while its state was restored.
            return replace(result, verdict=Verdict.DEVIATES, why=(self._unreachable,))
        return result

    def _prepare(self, check: Check, states: dict[Needs, TargetState]) -> None:
        if missing := check.needs & ~self._allowed:
            options = [name for name, needs in OPTIONS.items() if needs & missing]
            raise Skip(f"needs {' '.join(options)}")
        if self._unreachable:
            raise Skip("the target is unreachable")
        for need, state in states.items():
            if state.what in self.not_restored:
                raise Skip(f"{state.what} could not be restored after another check")
            if need not in self._saved:
                self._saved[need] = self._save(state)
            if self._saved[need]:
                raise Skip(self._saved[need])

    def _save(self, state: TargetState) -> str:
        try:
            deviation = drive(state.save(self._t), self._t, self._exchange)
        except (Skip, UnreachableError) as problem:
            return str(problem)
        return f"cannot save {state.what}: {deviation}" if deviation else ""

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

    def _test(self, check: Check) -> Result:
        try:
            deviation = drive(check.steps(self._t), self._t, self._exchange)
        except Skip as skip:
            return Result(check, Verdict.SKIPPED, (str(skip),))
        except UnreachableError as error:
            self._note_unreachable(error)
            return Result(check, Verdict.DEVIATES, (str(error),))
        if deviation is None:
            return Result(check, Verdict.PASSED)
        request, expected, response, _ = deviation
        pattern = expected.pattern(request, self._t)
        why = deviation.lines()
        return Result(check, Verdict.DEVIATES, why, request, pattern, response)
