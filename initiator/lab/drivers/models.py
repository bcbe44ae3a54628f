"""Models of block drivers over TCP: how they pass the pages of a bio to the socket.

A driver sees the bio_vecs of a bio and decides for each whether the socket copies its
bytes or takes references to its pages (K160-K166). ``initiator.lab.drivers.tcp`` does
the rest, ``initiator.lab.tcp_world`` is a machine with such a driver.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Final

from aoe.errors import UsageError
from initiator.lab.kernel.kernels import RULES_2_6_21, RULES_6_1, Rules
from initiator.lab.kernel.policy import sendpage_ok

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from initiator.lab.kernel.memory import Page


class Passing(Enum):
    """How a driver passes a bio_vec to its socket.

    ``SENDMSG`` copies the bytes. ``SENDPAGE`` refers to the first page with one
    reference for the whole bio_vec. ``SPLICE`` is MSG_SPLICE_PAGES: a reference to each
    page, after a test of each (K165).
    """

    SENDMSG = "sendmsg"
    SENDPAGE = "sendpage"
    SPLICE = "splice"


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverModel:
    """A block driver over TCP in one kernel version.

    Args:
        name: name in reports and commands, followed by ``@`` and the kernel version.
        summary: description in one line.
        rules: page handling of the kernel.
        rule: the rule that says how the driver passes pages.
        choose: returns how a bio_vec with these pages, at least one, is passed.
        page_by_page: the driver passes each page on its own, not whole bio_vecs (K166).
        ends_when_queued: a bio ends as soon as the socket has its bytes, not with the
            response (DRBD's protocol A, K166).
        copies_without_sg: the socket copies if the NIC has no scatter-gather. Since
            4.17 it does not, because TCP always assumes scatter-gather (K162).
        skips_queued: TCP does not retransmit a packet whose clone is still in a queue
            of the sender (K168).
    """

    name: str
    summary: str
    rules: Rules
    rule: str
    choose: Callable[[Sequence[Page]], Passing]
    page_by_page: bool = False
    ends_when_queued: bool = False
    copies_without_sg: bool = False
    skips_queued: bool = True

    @property
    def actor(self) -> str:
        """The name without the version: the driver in event logs."""
        return self.name.partition("@")[0]


def always_copy(_: Sequence[Page]) -> Passing:
    """Copy: ``sock_xmit`` of nbd (K160), ``_drbd_send_bio`` (K166)."""
    return Passing.SENDMSG


def copy_slab_and_long(pages: Sequence[Page]) -> Passing:
    """Copy slab and what is longer than a page: ``iscsi_buf_init_sg`` (K163)."""
    is_short = len(pages) == 1
    return Passing.SENDPAGE if is_short and not pages[0].slab else Passing.SENDMSG


def copy_slab(pages: Sequence[Page]) -> Passing:
    """Copy slab: ``nvme_tcp_try_send_data`` of 5.3 to 5.9 (K164)."""
    return Passing.SENDMSG if pages[0].slab else Passing.SENDPAGE


def test_first(passing: Passing) -> Callable[[Sequence[Page]], Passing]:
    """Return a choice that copies unless the first page is ``sendpage_ok`` (K164)."""

    def choose(pages: Sequence[Page]) -> Passing:
        return passing if sendpage_ok(pages[0]) else Passing.SENDMSG

    return choose


def test_all(pages: Sequence[Page]) -> Passing:
    """Copy unless each page is ``sendpage_ok``: ``sendpages_ok`` (K164)."""
    return Passing.SPLICE if all(map(sendpage_ok, pages)) else Passing.SENDMSG


def always_splice(_: Sequence[Page]) -> Passing:
    """Set MSG_SPLICE_PAGES without a test (K165)."""
    return Passing.SPLICE


def _model(
    name: str,
    summary: str,
    rule: str,
    choose: Callable[[Sequence[Page]], Passing],
    *,
    page_by_page: bool = False,
    ends_when_queued: bool = False,
) -> DriverModel:
    """Return a model; kernels from 5.9 to 6.13 handle pages as 6.1 does."""
    version = name.partition("@")[2]
    is_old = version == RULES_2_6_21.name
    return DriverModel(
        name=name,
        summary=summary,
        rules=RULES_2_6_21 if is_old else replace(RULES_6_1, name=version),
        rule=rule,
        choose=choose,
        page_by_page=page_by_page,
        ends_when_queued=ends_when_queued,
        copies_without_sg=is_old,
        skips_queued=not is_old,
    )


DRIVERS: Final = {
    model.name: model
    for model in (
        _model("nbd@2.6.21", "copies all bytes to the socket", "K160", always_copy),
        _model("nbd@6.1", "copies all bytes to the socket", "K160", always_copy),
        _model(
            "iscsi_tcp@2.6.21",
            "copies slab and what is longer than a page, else sendpage",
            "K163",
            copy_slab_and_long,
        ),
        _model("nvme-tcp@5.9", "copies slab, else sendpage", "K164", copy_slab),
        _model(
            "nvme-tcp@5.10",
            "sendpage if the first page is sendpage_ok, else copies",
            "K164",
            test_first(Passing.SENDPAGE),
        ),
        _model(
            "nvme-tcp@6.5",
            "MSG_SPLICE_PAGES if the first page is sendpage_ok, else copies",
            "K164",
            test_first(Passing.SPLICE),
        ),
        _model(
            "nvme-tcp@6.13",
            "MSG_SPLICE_PAGES if sendpages_ok, else copies",
            "K164",
            test_all,
        ),
        _model(
            "drbd@6.1",
            "protocol C: sendpage if sendpage_ok, else copies, page by page",
            "K166",
            test_first(Passing.SENDPAGE),
            page_by_page=True,
        ),
        _model(
            "drbd-a@6.1",
            "protocol A: copies, and ends the bio when TCP has the bytes",
            "K166",
            always_copy,
            ends_when_queued=True,
        ),
        _model(
            "splice@6.5",
            "a driver that sets MSG_SPLICE_PAGES without a test",
            "K165",
            always_splice,
        ),
    )
}
"""The drivers by name and kernel version."""


def find_driver(text: str) -> DriverModel | None:
    """Return the driver of that name and version, or None if there is no such name.

    Raises:
        UsageError: the driver is not modelled in that version, or none is given and
            there are several.
    """
    if text in DRIVERS:
        return DRIVERS[text]
    name, _, version = text.partition("@")
    have = [each for each, model in DRIVERS.items() if model.actor == name]
    if not have:
        return None
    if len(have) == 1 and not version:
        return DRIVERS[have[0]]
    raise UsageError(text, f"not modelled in that version (have: {', '.join(have)})")
