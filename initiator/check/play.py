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
from initiator.check.expect import NOT_SO
from initiator.check.keep import KEEPERS
from initiator.check.model import OPTIONS, Needs, Result, Skip, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from initiator.check.expect import Expectation
    from initiator.check.keep import Keeper
    from initiator.check.model import Check, Steps
    from initiator.check.subject import Subject


class GoneError(AoEError):
    """The target that answered before answers nothing any more."""


class Ask(Protocol):
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
    reply: bytes
    fault: str

    def lines(self) -> tuple[str, str, str]:
        """Say in words what was asked, what was expected, and what came."""
        got = "silence"
        if self.reply:
            got = f"{len(self.reply)} bytes: {_told(self.reply)}"
            got += f" ({self.fault})" if self.fault != NOT_SO else ""
        return (
            f"asked {_told(self.request)}",
            f"expected {self.expected.words}",
            f"got {got}",
        )

    def __str__(self) -> str:
        return "; ".join(self.lines())


def _told(frame: bytes) -> str:
    # Each has a tag of its own, which tells nobody anything.
    return re.sub(" tag 0x[0-9a-f]{8}", "", describe(frame))


def drive(steps: Steps, t: Subject, ask: Ask) -> Deviation | None:
    """Ask step by step, up to the end or the first deviation.

    Raises:
        Skip: it cannot be tried.
        GoneError: as ``Ask``.
    """
    with closing(steps):
        try:
            request, expected = next(steps)
            while True:
                reply = ask(request, is_silence=expected.is_silence)
                if fault := expected.fault(request, reply, t):
                    return Deviation(request, expected, reply, fault)
                request, expected = steps.send(reply)
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
        ask: Ask,
        allowed: Needs = Needs.NOTHING,
        undisturbed: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._t = t
        self._ask = ask
        self._allowed = allowed
        self._undisturbed = undisturbed
        self._saved: dict[Needs, str] = {}
        self._last_words = ""
        """What the target did not survive."""
        self.lost: dict[str, str] = {}
        """What could not be put back, and why."""

    def play(self, checks: Iterable[Check]) -> Iterator[Result]:
        """Yield a result for each check, as soon as it is known.

        What could not be restored after a check is tried once more at the end.
        """
        try:
            for check in checks:
                yield self._play(check)
        finally:
            with self._undisturbed():
                for keeper in KEEPERS.values():
                    if keeper.what in self.lost:
                        self._restore(keeper)

    def _play(self, check: Check) -> Result:
        keepers = {need: k for need, k in KEEPERS.items() if need & check.needs}
        try:
            self._admit(check, keepers)
        except Skip as skip:
            return Result(check, Verdict.SKIPPED, (str(skip),))
        try:
            result = self._judge(check)
        finally:
            with self._undisturbed():
                for keeper in keepers.values():
                    self._restore(keeper)
        if self._last_words and result.verdict is Verdict.HOLDS:
            # It went when it was put back.
            return replace(result, verdict=Verdict.DEVIATES, why=(self._last_words,))
        return result

    def _admit(self, check: Check, keepers: dict[Needs, Keeper]) -> None:
        if missing := check.needs & ~self._allowed:
            options = [name for name, needs in OPTIONS.items() if needs & missing]
            raise Skip(f"needs {' '.join(options)}")
        if self._last_words:
            raise Skip("the target answers nothing any more")
        for need, keeper in keepers.items():
            if keeper.what in self.lost:
                raise Skip(f"{keeper.what} could not be restored before")
            if need not in self._saved:
                self._saved[need] = self._save(keeper)
            if self._saved[need]:
                raise Skip(self._saved[need])

    def _save(self, keeper: Keeper) -> str:
        try:
            deviation = drive(keeper.save(self._t), self._t, self._ask)
        except (Skip, GoneError) as problem:
            return str(problem)
        return f"{keeper.what} cannot be saved: {deviation}" if deviation else ""

    def _restore(self, keeper: Keeper) -> None:
        self.lost.pop(keeper.what, None)
        try:
            deviation = drive(keeper.restore(self._t), self._t, self._ask)
        except (Skip, AoEError) as problem:
            self._notice(problem)
            self.lost[keeper.what] = str(problem)
        else:
            if deviation:
                self.lost[keeper.what] = str(deviation)

    def _notice(self, problem: Exception) -> None:
        if isinstance(problem, GoneError) and not self._last_words:
            self._last_words = str(problem)

    def _judge(self, check: Check) -> Result:
        try:
            deviation = drive(check.steps(self._t), self._t, self._ask)
        except Skip as skip:
            return Result(check, Verdict.SKIPPED, (str(skip),))
        except GoneError as error:
            self._notice(error)
            return Result(check, Verdict.DEVIATES, (str(error),))
        if deviation is None:
            return Result(check, Verdict.HOLDS)
        request, expected, reply, _ = deviation
        pattern = expected.pattern(request, self._t)
        why = deviation.lines()
        return Result(check, Verdict.DEVIATES, why, request, pattern, reply)
