"""What a kernel version does with pages: a switch for each difference, by version.

A kernel is a set of switches, and code asks for a switch, never for a version. The rule
of a switch in ``initiator/KERNEL.md`` names the source file and function. Policies,
that is which party counts references, are apart (``initiator.lab.kernel.policy``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Page handling of one kernel version.

    Args:
        name: the kernel version.
        driver_policy: the policy of this kernel's own AoE driver (K96-K98, K145).
        early_linearize: dev_queue_xmit linearizes an skb for a NIC without
            scatter-gather before it is queued (2.6.21). Otherwise
            validate_xmit_skb does so when the skb leaves the qdisc (K77).
        tx_thread: the AoE driver passes its frames to a thread, which calls
            dev_queue_xmit. Otherwise the caller does so at once (2.6.21, K9).
        tx_holds_netdev: a config query that waits for this thread has a reference to
            its net_device. Otherwise it was dropped before (until CVE-2023-6270 was
            fixed, K105).
        early_head: a clone gets its private head before it is queued. By default as in
            early_linearize; a VLAN or tunnel device above the NIC does so on every
            kernel (K76, K152).
        bad_page_freed: a bad page, such as a slab page whose count drops to 0, is
            reported, loses its PG_slab, and is freed (2.6.21). Otherwise its block is
            kept out of circulation (K89).
        bug_on_lost_slab_flag: giving back a slab with a page that has lost its PG_slab
            is a BUG (2.6.21, K137).
        compound_slabs: slabs and kmalloc memory of several pages are compound pages.
            Otherwise only the first page has a count (K85).
        kmalloc_large_is_slab: kmalloc of more than 8 KiB returns a slab object
            (2.6.21). Otherwise it returns a compound page that is not slab (K140).
        frozen_slabs: slab pages have count 0; get_page on them warns and does nothing,
            and put_page does nothing (6.14, K87).
        frozen_kmalloc_large: compound pages of kmalloc are frozen as slab pages are
            (6.17, K140).
        vmapped_stacks: a kernel stack consists of order-0 pages with count 1.
            Otherwise it is a block whose second page has count 0 (K90, K108d).
        debug_vm: get_page and put_page at count 0 are a BUG (CONFIG_DEBUG_VM, K119).
        bug_on_tail_increment: the AoE driver's increment of the count of a compound
            tail is a BUG (3.7 to 3.11). Otherwise it increments the head (K97).
        xfs_avoids_straddling: XFS frees a slab object that straddles a page boundary
            and allocates a whole page (K92). Otherwise it frees one that does not begin
            at a sector boundary, and allocates twice the size (K138).
    """

    name: str
    driver_policy: str = "none"
    early_linearize: bool = False
    tx_thread: bool = True
    tx_holds_netdev: bool = True
    early_head: bool = False
    bad_page_freed: bool = False
    bug_on_lost_slab_flag: bool = False
    compound_slabs: bool = True
    kmalloc_large_is_slab: bool = False
    frozen_slabs: bool = False
    frozen_kmalloc_large: bool = False
    vmapped_stacks: bool = True
    debug_vm: bool = False
    bug_on_tail_increment: bool = False
    xfs_avoids_straddling: bool = True


RULES_2_6_21: Final = Rules(
    name="2.6.21",
    early_linearize=True,
    tx_thread=False,
    early_head=True,
    bad_page_freed=True,
    bug_on_lost_slab_flag=True,
    compound_slabs=False,
    kmalloc_large_is_slab=True,
    vmapped_stacks=False,
    xfs_avoids_straddling=False,
)
RULES_3_7: Final = Rules(
    name="3.7",
    driver_policy="a",
    tx_holds_netdev=False,
    bug_on_tail_increment=True,
    vmapped_stacks=False,
)
RULES_3_12: Final = Rules(
    name="3.12", driver_policy="a", tx_holds_netdev=False, vmapped_stacks=False
)
RULES_6_1: Final = Rules(name="6.1")
RULES_6_14: Final = Rules(name="6.14", frozen_slabs=True)
RULES_6_17: Final = Rules(name="6.17", frozen_slabs=True, frozen_kmalloc_large=True)

KERNELS: Final = {
    rules.name: rules
    for rules in (
        RULES_2_6_21,
        RULES_3_7,
        RULES_3_12,
        RULES_6_1,
        RULES_6_14,
        RULES_6_17,
    )
}
"""The kernels by version."""
