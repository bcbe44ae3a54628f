"""What a check is: a rule, and what is asked and expected to find out.

A check is a generator function; its docstring is what has to be so. It yields a request
and what the reply has to be, and is sent the reply; whoever plays it compares. It ends
when the rule holds, and raises ``Skip`` where the rule cannot be tried.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import Flag, StrEnum, auto
from typing import TYPE_CHECKING, Final, TypeAlias

from initiator.check.expect import Expectation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from initiator.check.subject import Subject

Steps: TypeAlias = Generator[tuple[bytes, Expectation], bytes, None]
Body: TypeAlias = "Callable[[Subject], Steps]"


class Skip(Exception):  # noqa: N818 - nothing is wrong
    """This rule cannot be tried here; the argument says why."""


class Level(StrEnum):
    """How much a deviation weighs."""

    MUST = "must"
    """The specification says so, or data is at stake."""
    ADVICE = "advice"
    """The specification is silent, and clients fare better this way."""


class Verdict(StrEnum):
    """What came of a check."""

    HOLDS = "pass"
    DEVIATES = "deviates"
    SKIPPED = "skipped"


class Needs(Flag):
    """What a check changes on the target, to be put back afterwards."""

    NOTHING = 0
    DISK = auto()
    CACHE = auto()
    CONFIG = auto()
    MASK = auto()
    RESERVE = auto()
    HAZARD = auto()
    """A target that gets it wrong may come to harm, or do some."""


OPTIONS: Final = {
    "--write": Needs.DISK,
    "--claim": Needs.CACHE | Needs.CONFIG | Needs.MASK | Needs.RESERVE,
    "--hazardous": Needs.HAZARD,
}
"""Which option allows what."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report.

    Args:
        rules: numbers of the rules, P19 as 19.
        title: what has to be so, the first line of the generator function's docstring.
        level: how much it weighs if it is not.
        needs: what it changes.
        steps: the generator function.
    """

    rules: tuple[int, ...]
    title: str
    level: Level
    needs: Needs
    steps: Body

    @property
    def name(self) -> str:
        """What it is called among all checks: where it stands, and its function."""
        return f"{self.steps.__module__.rpartition('.')[2]}.{self.steps.__name__}"

    @property
    def rule_names(self) -> list[str]:
        """The rules as they are written: P19."""
        return [f"P{rule}" for rule in self.rules]

    @property
    def options(self) -> list[str]:
        """The options without which the check is skipped."""
        return [option for option, needs in OPTIONS.items() if self.needs & needs]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one check.

    Args:
        check: which.
        verdict: what.
        why: what was asked, what was expected and what came instead, a line each; or
            one line, for a target that is gone or a check that was skipped.
        request: the frame that was answered otherwise than expected.
        expected: the frame expected, in hexadecimal, ``..`` for any byte.
        got: the frame that came; empty for silence.
    """

    check: Check
    verdict: Verdict
    why: tuple[str, ...] = ()
    request: bytes = b""
    expected: str = ""
    got: bytes = b""


class Table:
    """A group of checks, in the order in which they stand in their file.

    Its methods are decorators, and take the numbers of the rules: ``"P19 P34"``.
    """

    def __init__(self) -> None:
        self._checks: list[Check] = []

    def must(self, rules: str, needs: Needs = Needs.NOTHING) -> Callable[[Body], Body]:
        """Add a check of what the specification says, or safety wants."""
        return self._add(Level.MUST, rules, needs)

    def advice(
        self, rules: str, needs: Needs = Needs.NOTHING
    ) -> Callable[[Body], Body]:
        """Add a check of what serves clients best where the specification is silent."""
        return self._add(Level.ADVICE, rules, needs)

    def _add(self, level: Level, rules: str, needs: Needs) -> Callable[[Body], Body]:
        numbers = tuple(int(rule.removeprefix("P")) for rule in rules.split())

        def add(steps: Body) -> Body:
            title = (steps.__doc__ or steps.__name__).removesuffix(".")
            self._checks.append(Check(numbers, title, level, needs, steps))
            return steps

        return add

    def __iter__(self) -> Iterator[Check]:
        return iter(self._checks)
