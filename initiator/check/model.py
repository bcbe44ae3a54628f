"""Checks: a rule of the protocol, with requests and expected responses to test it.

A check is a generator function. Its docstring is the title, which states the required
behaviour. It yields pairs of a request and an expectation and is sent the response; the
runner compares. It returns if the target conforms and raises ``Skip`` if the rule
cannot be tested.
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
    """The rule cannot be tested; the argument is the reason."""


class Level(StrEnum):
    """Weight of a deviation."""

    MUST = "must"
    """Required by the specification, or data is at risk."""
    ADVICE = "advice"
    """Not specified, but clients work better if the target behaves so."""


class Verdict(StrEnum):
    """Verdict of a check."""

    PASSED = "pass"
    DEVIATES = "deviates"
    SKIPPED = "skipped"


class Needs(Flag):
    """State of the target that a check changes and the runner restores."""

    NOTHING = 0
    DISK = auto()
    CACHE = auto()
    CONFIG = auto()
    MASK = auto()
    RESERVE = auto()
    HAZARD = auto()
    """A target that does not conform may crash or damage data."""


OPTIONS: Final = {
    "--write": Needs.DISK,
    "--claim": Needs.CACHE | Needs.CONFIG | Needs.MASK | Needs.RESERVE,
    "--hazardous": Needs.HAZARD,
}
"""Options and what they permit."""


@dataclass(frozen=True, slots=True)
class Check:
    """A check, one line of the report.

    Args:
        rules: numbers of the rules, 19 for P19.
        title: the required behaviour, from the docstring of the generator function.
        level: weight of a deviation.
        needs: what the check changes.
        steps: the generator function.
    """

    rules: tuple[int, ...]
    title: str
    level: Level
    needs: Needs
    steps: Body

    @property
    def name(self) -> str:
        """Unique name: module and function."""
        return f"{self.steps.__module__.rpartition('.')[2]}.{self.steps.__name__}"

    @property
    def rule_names(self) -> list[str]:
        """Names of the rules, such as P19."""
        return [f"P{rule}" for rule in self.rules]

    @property
    def options(self) -> list[str]:
        """Options that the check requires; without them it is skipped."""
        return [option for option, needs in OPTIONS.items() if self.needs & needs]


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a check.

    Args:
        check: the check.
        verdict: the verdict.
        why: a line each for request, expected response and actual response; a single
            line if the target is unreachable or the check was skipped.
        request: the request whose response deviates.
        expected: the expected response in hexadecimal, ``..`` for any byte.
        got: the actual response, empty if there was none.
    """

    check: Check
    verdict: Verdict
    why: tuple[str, ...] = ()
    request: bytes = b""
    expected: str = ""
    got: bytes = b""


class Table:
    """The checks of a module, in order of definition.

    Its methods are decorators that take the rules as a string: ``"P19 P34"``.
    """

    def __init__(self) -> None:
        self._checks: list[Check] = []

    def must(self, rules: str, needs: Needs = Needs.NOTHING) -> Callable[[Body], Body]:
        """Add a check of behaviour that the specification or data safety requires."""
        return self._add(Level.MUST, rules, needs)

    def advice(
        self, rules: str, needs: Needs = Needs.NOTHING
    ) -> Callable[[Body], Body]:
        """Add a check of unspecified behaviour that clients benefit from."""
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
