"""A pytest plugin that turns skipped tests into failed ones: ``-p tests.no_skip``.

Where everything is installed that the tests want, a test that skips itself has lost
its subject, and nobody would see it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

Report = TypeVar("Report", pytest.CollectReport, pytest.TestReport)


def unskipped(report: Report) -> Report:
    # An expected failure is reported as skipped too; it did run.
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[
    None, pytest.CollectReport, pytest.CollectReport
]:
    return unskipped((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[
    None, pytest.TestReport, pytest.TestReport
]:
    return unskipped((yield))
