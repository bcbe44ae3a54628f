"""A pytest plugin that sums up the skipped tests: ``-p tests.skips``.

At the end, it lists what was missing, with the number of tests that need it, and the
command that installs all Debian packages at once. It prints nothing if no test skips.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pytest

_INSTALLABLE: Final = re.compile(r"no (.+): apt install (.+)")
_PREFIX: Final = "Skipped: "


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the summary, from the reports of all workers."""
    reports = terminalreporter.stats.get("skipped", [])
    for line in summary([_reason(report) for report in reports]):
        terminalreporter.write_line(line)


def summary(reasons: Iterable[str]) -> Iterator[str]:
    """Yield the lines of the summary, given the reason of each skip."""
    installable, others = Counter[str](), Counter[str]()
    packages, skipped = set[str](), 0
    for reason in reasons:
        if match := _INSTALLABLE.fullmatch(reason):
            skipped += 1
            installable.update(match[1].split(" and no "))
            packages.update(match[2].split())
        else:
            others[reason] += 1
    if packages:
        command = f"apt install {' '.join(sorted(packages))}"
        yield f"{_tests(skipped)} skipped, which run after: {command}"
        yield from (f"{n:7}  no {what}" for what, n in _by_count(installable))
    for reason, count in _by_count(others):
        yield f"{_tests(count)} skipped: {reason}"


def _by_count(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _tests(count: int) -> str:
    return f"{count} test{'s' if count > 1 else ''}"


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    # Of a skip, pytest gives path, line number and reason.
    longrepr = report.longrepr
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return text.removeprefix(_PREFIX)
