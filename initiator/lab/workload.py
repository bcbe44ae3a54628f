"""What a policy costs a workload: writes over AoE among other uses of kmalloc.

A policy that counts references in slab does so for all objects, not only for those that
are written to a disk (K100).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from initiator.lab.cases import ALL_SUBMITTERS
from initiator.lab.kernel.journal import BugOn, Costs
from initiator.lab.kernel.nic import Nic
from initiator.lab.kernel.policy import policy_on_kernel
from initiator.lab.world import World

if TYPE_CHECKING:
    from initiator.lab.kernel.submitters import Submitter


@dataclass(frozen=True, slots=True)
class WorkloadCosts:
    """The costs of one policy.

    Args:
        policy: name of the policy, which may be followed by ``@`` and a kernel.
        writes: the costs of all writes, None if the machine stopped at a BUG.
        kmallocs: the costs of the other objects, each allocated and freed.
    """

    policy: str
    writes: Costs | None
    kmallocs: Costs


def workload_costs(
    policy: str, submitter: str, nic: str, writes: int, kmallocs: int
) -> WorkloadCosts:
    """Run undisturbed writes, and other allocations of 1 KiB, on one machine."""
    world = _world(policy, nic)
    found: Costs | None = None
    try:
        for _ in range(writes):
            _write(world, ALL_SUBMITTERS[submitter])
        found = world.journal.costs
    except BugOn:
        world = _world(policy, nic)
    world.journal.costs = Costs()
    cache = world.submitters.caches["slab"]
    for _ in range(kmallocs):
        cache.free(cache.alloc("other"), "other")
    return WorkloadCosts(policy, found, world.journal.costs)


def _world(name: str, nic: str) -> World:
    policy, rules = policy_on_kernel(name)
    return World(policy, Nic[nic], rules=rules, keep_entries=False, pages=64)


def _write(world: World, submitter: Submitter) -> None:
    write = world.submit(submitter)
    world.deliver_response()
    world.free_buffer(write)
    # The next write is to the first sectors again, as the disk is small.
    world.writes.clear()
