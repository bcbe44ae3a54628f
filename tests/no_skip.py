"""A pytest plugin that makes skipped tests fail: ``-p tests.no_skip``.

CI installs all programs that the tests need. There, a skip means that a test is no
longer run, which would go unnoticed otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

Report = TypeVar("Report", pytest.CollectReport, pytest.TestReport)


def fail_if_skipped(report: Report) -> Report:
    # pytest reports an expected failure (xfail) as skipped too.
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which is not allowed here: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[
    None, pytest.CollectReport, pytest.CollectReport
]:
    return fail_if_skipped((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[
    None, pytest.TestReport, pytest.TestReport
]:
    return fail_if_skipped((yield))
