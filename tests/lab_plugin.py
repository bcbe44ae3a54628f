"""A plug-in for the lab: ``aoe lab --plugin tests/lab_plugin.py matrix -p a+wait``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from initiator.lab.cases import Event
from initiator.lab.drivers.models import DriverModel, Passing
from initiator.lab.kernel.kernels import KERNELS
from initiator.lab.kernel.policy import PageAccounting, Policy
from initiator.lab.kernel.submitters import Buffer, Submitter
from initiator.lab.plugins import register

if TYPE_CHECKING:
    from collections.abc import Sequence

    from initiator.driver.bio import Bio
    from initiator.lab.kernel.memory import Memory, Page
    from initiator.lab.machine import Machine


class WaitForClones(PageAccounting):
    """Page hooks that defer bi_end_io."""

    def must_wait(self, bio: Bio) -> bool:
        """Wait as long as a clone may still send a page of the bio."""
        return self.is_referred_to(bio)


def allocate_header(memory: Memory, owner: str) -> Buffer:
    """Allocate a page and submit 512 bytes of it."""
    page = memory.alloc_pages(0, owner)[0]
    return Buffer(owner, [(page, 512, 512)], lambda: memory.free_pages(page, owner))


def lose_twice(machine: Machine, submitter: Submitter) -> None:
    """Hold the first clone while two retransmissions are sent."""
    machine.nic.hold_qdisc = True
    machine.submit(submitter)
    machine.nic.hold_qdisc = False
    machine.retransmit()
    machine.retransmit()
    machine.deliver_response()


def copy_zero_counts(pages: Sequence[Page]) -> Passing:
    """Copy pages with a count of zero, but not slab."""
    return Passing.SENDMSG if pages[0].count == 0 else Passing.SENDPAGE


register(
    Policy(
        name="a+wait",
        summary="as a, and bi_end_io waits for the clones",
        kernel="6.1",
        aoe_increments_counts=True,
        hooks=WaitForClones,
    ),
    Submitter("log_header", "owner", "512 bytes of a page", allocate=allocate_header),
    Event("lost_twice", "two retransmissions, then the first clone", script=lose_twice),
    DriverModel(
        name="mydisk@6.1",
        summary="copies pages with a count of zero",
        rules=KERNELS["6.1"],
        rule="K161",
        choose=copy_zero_counts,
    ),
)
