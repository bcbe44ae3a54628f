"""Page-count policies: who takes references to a bio's pages, and when (K95-K103).

A ``Policy`` is a set of switches; ``PageAccounting`` implements them as the
AoE driver's page hooks and the file system's bio_add_page and bi_end_io. Outside the
lab the driver runs without hooks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from aoe.errors import UsageError
from initiator.driver.bio import BioVec
from initiator.driver.skbuff import Skb
from initiator.lab.kernel.journal import Flag
from initiator.lab.kernel.kernels import KERNELS, Rules
from initiator.lab.kernel.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from initiator.driver.bio import Bio
    from initiator.lab.kernel.memory import Memory, Page
    from initiator.lab.kernel.skbuff import Clone, SkbOps


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A page-count policy.

    Args:
        name: name in reports and commands.
        summary: description in one line.
        kernel: the kernel that it runs on by default, a key of ``KERNELS``.
        aoe_increments_counts: the AoE driver increments the count of every page when
            a bio arrives and decrements it before bi_end_io, without get_page (a, K95,
            K97).
        slab_counts_objects: slab takes a reference per object and defers the reuse
            of a freed object while other references remain (b, K100).
        aoe_gets_fragments: the AoE driver takes a reference to the page of each
            fragment; the fragments own them (b+, K147).
        filesystem_gets: file systems take a reference to each page that they add to a
            bio and drop it in bi_end_io (c, K101).
        filesystem_uses_pages: file systems allocate such buffers as whole pages from
            the page allocator (c+, K101).
        bug_on_slab: BUG_ON(PageSlab(page)) in bio_add_page (d, K101).
        sendpage_ok: a page that fails sendpage_ok is copied; fragments own references
            (e, K102).
        waits_for_clones: the AoE driver defers the end of a bio until no clone refers
            to its pages (K169).
        hooks: makes the page hooks; by default ``PageAccounting``.
    """

    name: str
    summary: str
    kernel: str = "2.6.21"
    aoe_increments_counts: bool = False
    slab_counts_objects: bool = False
    aoe_gets_fragments: bool = False
    filesystem_gets: bool = False
    filesystem_uses_pages: bool = False
    bug_on_slab: bool = False
    sendpage_ok: bool = False
    waits_for_clones: bool = False
    hooks: Callable[[Policy, SkbOps], PageAccounting] | None = None

    def page_hooks(self, ops: SkbOps) -> PageAccounting:
        """Return the page hooks of this policy for a machine."""
        return (self.hooks or PageAccounting)(self, ops)


POLICIES: Final = {
    policy.name: policy
    for policy in (
        Policy(
            name="none",
            summary="the AoE driver borrows pages without references",
            kernel="6.1",
        ),
        Policy(
            name="a",
            summary="the AoE driver increments and decrements the counts",
            aoe_increments_counts=True,
        ),
        Policy(
            name="b",
            summary="slab takes references per object and defers reuse",
            slab_counts_objects=True,
        ),
        Policy(
            name="b+",
            summary="as b, and the AoE driver takes a reference per fragment",
            slab_counts_objects=True,
            aoe_gets_fragments=True,
        ),
        Policy(
            name="c",
            summary="the owner (a file system) takes references, nothing else changes",
            filesystem_gets=True,
        ),
        Policy(
            name="c+",
            summary="as c, with whole pages from the page allocator",
            filesystem_gets=True,
            filesystem_uses_pages=True,
        ),
        Policy(
            name="d",
            summary="BUG_ON(PageSlab(page)) in bio_add_page",
            bug_on_slab=True,
        ),
        Policy(
            name="c+d",
            summary="c, enforced by BUG_ON(PageSlab(page)) in bio_add_page",
            filesystem_gets=True,
            bug_on_slab=True,
        ),
        Policy(
            name="e",
            summary="copy if not sendpage_ok; fragments own references",
            kernel="6.1",
            sendpage_ok=True,
        ),
    )
}


MATRIX_POLICIES: Final = (
    *("none@2.6.21", "none@6.1", "none@6.14"),
    *(name for name in POLICIES if name != "none"),
)
"""The policies of the matrix, each on its kernel."""


DRIVER: Final = "driver"
"""Stands for the policy of the kernel's own AoE driver."""


def policy_on_kernel(text: str) -> tuple[Policy, Rules]:
    """Parse ``a`` or ``a@6.1``: a policy and the kernel that it runs on.

    ``driver@3.7`` has the policy of this kernel's own AoE driver.

    Raises:
        UsageError: no such policy or kernel.
    """
    name, at, version = text.partition("@")
    if name not in (*POLICIES, DRIVER):
        have = ", ".join((*POLICIES, DRIVER))
        raise UsageError(name, f"no such policy (have: {have})")
    if not at:
        version = "6.1" if name == DRIVER else POLICIES[name].kernel
    if version not in KERNELS:
        raise UsageError(version, f"no such kernel (have: {', '.join(KERNELS)})")
    rules = KERNELS[version]
    return POLICIES[rules.driver_policy if name == DRIVER else name], rules


def sendpage_ok(page: Page) -> bool:
    """Return True if a page is not slab and has a count (linux/net.h, 5.10; K102).

    For a tail of a compound page the count is that of the head, as in page_count.
    """
    return not page.slab and page.compound_head.count >= 1


class PageAccounting:
    """A policy's page hooks for the AoE driver and its part of the file system.

    Args:
        policy: the policy.
        ops: skb operations, on the memory whose pages are counted.

    Attributes:
        clones_in_flight: returns the clones that the NIC and packet sockets hold; the
            machine sets it.
    """

    def __init__(self, policy: Policy, ops: SkbOps) -> None:
        self.policy = policy
        self.memory: Memory = ops.memory
        self._ops = ops
        self.clones_in_flight: Callable[[], Iterable[Clone]] = tuple

    # --- the file system --------------------------------------------------------

    def add_page(
        self, bio: Bio, page: Page, length: int, offset: int, owner: str
    ) -> None:
        """Add a page of ``owner`` to a bio.

        ``bio_add_page`` itself takes no reference (K70). In policy c the owner, as the
        file system, takes one (K101).

        Raises:
            BugOn: ``bug_on_slab`` is set and the page is a slab page (K101).
        """
        if self.policy.bug_on_slab and page.slab:
            note = "BUG_ON(PageSlab(page))"
            self.memory.journal.bug("bio", "bio_add_page", page.pfn, "K101", note)
        if self.policy.filesystem_gets:
            self.memory.get_page(page, owner, "K101")
        bio.add_page(page, length, offset)
        self.memory.journal.add(
            "bio",
            "bio_add_page",
            page=page.pfn,
            count=page.compound_head.count,
            rule="K70",
            note=f"{length} bytes from {offset}",
            bio=self.memory.journal.number(bio),
        )

    def end_io(self, bio: Bio, owner: str) -> None:
        """Drop the references of ``owner`` in bi_end_io (K101)."""
        if self.policy.filesystem_gets:
            for page, _, _ in bio.vecs:
                self.memory.put_page(cast("Page", page), owner, "K101")

    # --- the AoE driver's page hooks --------------------------------------------

    def bio_arrives(self, bio: Bio) -> None:
        """Increment the page counts of a bio (``bio_pageinc``, K97)."""
        if self.policy.aoe_increments_counts:
            for page, _, _ in bio.vecs:
                self.memory.page_ref_inc(cast("Page", page), "AoE driver")

    def bio_ends(self, bio: Bio) -> None:
        """Decrement the page counts before bi_end_io (``bio_pagedec``, K97, K99).

        The driver calls this when it ends a bio. If ``must_wait`` defers bi_end_io, the
        machine calls it again, directly before bi_end_io.
        """
        if self.policy.aoe_increments_counts and not self.must_wait(bio):
            for page, _, _ in bio.vecs:
                self.memory.page_ref_dec(cast("Page", page), "AoE driver")

    def must_wait(self, bio: Bio) -> bool:
        """Return True as long as bi_end_io has to be deferred (K169).

        The machine asks when the driver ends the bio, and again whenever a clone no
        longer refers to pages.
        """
        return self.policy.waits_for_clones and self.is_referred_to(bio)

    def is_referred_to(self, bio: Bio) -> bool:
        """Return True if a clone in flight refers to a page of the bio."""
        pages = {page for page, _, _ in bio.vecs}
        return any(
            page in pages
            for clone in self.clones_in_flight()
            for page, _, _ in clone.payload_pages
        )

    def attach(self, bio: Bio, skb: Skb, segments: list[BioVec]) -> None:
        """Fill the skb's fragments; by default the pages are borrowed (K72)."""
        skb.frags = segments
        pages = [cast("Page", page) for page, _, _ in segments]
        rule, note = "K72", "borrowed: no reference"
        if self.policy.sendpage_ok:
            rule, note = "K102", ""
            skb.frags = [self._get_or_copy(segment) for segment in segments]
            skb.owns_frags = True
        elif self.policy.aoe_gets_fragments:
            rule, note = "K147", ""
            for page in pages:
                self.memory.get_page(page, "AoE driver", "K147")
            skb.owns_frags = True
        for page in pages:
            self.memory.journal.add(
                "AoE driver",
                "skb_fill_page_desc",
                page=page.pfn,
                count=page.compound_head.count,
                rule=rule,
                note=note,
                bio=self.memory.journal.number(bio),
                skb=self.memory.journal.number(skb),
            )

    def _get_or_copy(self, segment: BioVec) -> BioVec:
        """Return a fragment that owns a reference to its page (K102)."""
        page, offset, length = (
            cast("Page", segment.page),
            segment.offset,
            segment.length,
        )
        if sendpage_ok(page):
            self.memory.get_page(page, "AoE driver", "K102")
            return segment
        copy = self.memory.alloc_pages(0, "AoE driver")[0]
        copy.data[:length] = page.data[offset : offset + length]
        journal = self.memory.journal
        journal.costs.gets += 1
        journal.costs.copied += length
        journal.costs.wasted += PAGE_SIZE - length
        journal.flags.add(Flag.COPIED)
        journal.add(
            "AoE driver",
            "copy",
            page=copy.pfn,
            count=copy.count,
            rule="K102",
            note=f"page {page.pfn} fails sendpage_ok: {length} bytes copied",
        )
        # The fragment owns the only reference: skb_release_data frees the copy.
        copy.owner = None
        return BioVec(copy, 0, length)

    def frame_done(self, skb: Skb) -> Skb:
        """Release a frame's skb and return the skb that the frame uses next.

        With borrowed fragments the AoE driver keeps the skb and resets its fragment
        table before it is used again (K82). Owned ones are released with the last
        clone (K143), so it leaves the skb to them.
        """
        if skb.owns_frags:
            self._ops.release_data(skb)
            return Skb()
        return skb
