"""Who takes references to a bio's pages, and when: the options of the 2007 thread.

A ``Policy`` says what each party does; ``PageAccounting`` does it. The driver calls its
hooks at the four moments that the options differ in: a bio arrives, fragments are
attached, a frame is done, a bio ends. In everyday use the driver has none (K95-K103).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from initiator.driver.bio import BioVec
from initiator.driver.skbuff import Skb
from initiator.lab.kernel.journal import Flag
from initiator.lab.kernel.memory import (
    PAGE_SIZE,
    RULES_2_6_21,
    RULES_6_1,
    RULES_6_14,
    Rules,
)

if TYPE_CHECKING:
    from initiator.driver.bio import Bio
    from initiator.lab.kernel.memory import Memory, Page
    from initiator.lab.kernel.skbuff import SkbOps


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One option: what every party does about page counts.

    Args:
        name: as reports and commands call it.
        summary: one line for people.
        rules: the kernel that it runs on.
        aoe_raises_counts: AoE raises every page's count when a bio arrives and lowers
            it before bi_end_io, plainly (option a, K95, K97).
        slab_counts_objects: slab takes a reference per object and reuses nothing while
            others remain (option b, K100).
        aoe_gets_fragments: AoE takes a reference per fragment until its own skb is
            dropped (b+).
        filesystem_gets: filesystems take a reference to each page that they add to a
            bio and drop it in bi_end_io (option c, K101).
        filesystem_uses_pages: and they keep such buffers on whole pages from the page
            allocator (c+, K101).
        bug_on_slab: bio_add_page refuses slab pages with BUG_ON (d, K101).
        sendpage_ok: pages that fail sendpage_ok are copied, the others' fragments own
            references (e, K102).
    """

    name: str
    summary: str
    rules: Rules
    aoe_increments_counts: bool = False
    slab_counts_objects: bool = False
    aoe_gets_fragments: bool = False
    filesystem_gets: bool = False
    filesystem_uses_pages: bool = False
    bug_on_slab: bool = False
    sendpage_ok: bool = False


POLICIES: Final = {
    policy.name: policy
    for policy in (
        Policy(
            name="none@2.6.21",
            summary="AoE borrows pages, nobody counts; 2.6.21",
            rules=RULES_2_6_21,
        ),
        Policy(
            name="none@6.1",
            summary="AoE borrows pages, nobody counts; 6.1",
            rules=RULES_6_1,
        ),
        Policy(
            name="a",
            summary="AoE raises and lowers the counts itself",
            rules=RULES_2_6_21,
            aoe_increments_counts=True,
        ),
        Policy(
            name="b",
            summary="slab counts objects and puts reuse off",
            rules=RULES_2_6_21,
            slab_counts_objects=True,
        ),
        Policy(
            name="b+",
            summary="as b, and AoE takes references per fragment",
            rules=RULES_2_6_21,
            slab_counts_objects=True,
            aoe_gets_fragments=True,
        ),
        Policy(
            name="c",
            summary="filesystems take references, nothing else changes",
            rules=RULES_2_6_21,
            filesystem_gets=True,
        ),
        Policy(
            name="c+",
            summary="as c, on whole pages from the page allocator",
            rules=RULES_2_6_21,
            filesystem_gets=True,
            filesystem_uses_pages=True,
        ),
        Policy(
            name="d",
            summary="BUG_ON(PageSlab(page)) in bio_add_page",
            rules=RULES_2_6_21,
            bug_on_slab=True,
        ),
        Policy(
            name="e",
            summary="sendpage_ok or copy; fragments own references",
            rules=RULES_6_1,
            sendpage_ok=True,
        ),
        Policy(
            name="f",
            summary="frozen slab pages, get and put on them do nothing",
            rules=RULES_6_14,
        ),
    )
}


def sendpage_ok(page: Page) -> bool:
    """``sendpage_ok``: not slab, and counted (linux/net.h, since 5.10; K102).

    A tail of a compound page is judged by its head, as page_count does.
    """
    return not page.slab and page.compound_head.count >= 1


class PageAccounting:
    """Does what a policy says, at the driver's four moments and the filesystem's two.

    Args:
        policy: what to do.
        ops: the network's operations, over the memory that is counted.

    Attributes:
        fragment_refs: pages that AoE has references to, by the skb of the frame (b+).
    """

    def __init__(self, policy: Policy, ops: SkbOps) -> None:
        self.policy = policy
        self.memory: Memory = ops.memory
        self._ops = ops
        self.fragment_refs: dict[Skb, list[Page]] = {}

    # --- the filesystem's moments -----------------------------------------------

    def add_page(self, bio: Bio, page: Page, length: int, offset: int) -> None:
        """``bio_add_page``, which takes no reference by itself (K70).

        Raises:
            BugOn: ``bug_on_slab`` is set and it is a slab page (K101).
        """
        if self.policy.bug_on_slab and page.slab:
            note = "BUG_ON(PageSlab(page))"
            self.memory.journal.bug("bio", "bio_add_page", page.pfn, "K101", note)
        if self.policy.filesystem_gets:
            self.memory.get_page(page, "filesystem", "K101")
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

    def end_io(self, bio: Bio) -> None:
        """What a filesystem's bi_end_io does about references (K101)."""
        if self.policy.filesystem_gets:
            for page, _, _ in bio.vecs:
                self.memory.put_page(cast("Page", page), "filesystem", "K101")

    # --- the driver's moments ---------------------------------------------------

    def bio_arrives(self, bio: Bio) -> None:
        """``bio_pageinc`` (K97)."""
        if self.policy.aoe_increments_counts:
            for page, _, _ in bio.vecs:
                self.memory.page_ref_inc(cast("Page", page), "AoE")

    def bio_ends(self, bio: Bio) -> None:
        """``bio_pagedec``, before bi_end_io (K97, K99)."""
        if self.policy.aoe_increments_counts:
            for page, _, _ in bio.vecs:
                self.memory.page_ref_dec(cast("Page", page), "AoE")

    def attach(self, bio: Bio, skb: Skb, segments: list[BioVec]) -> None:
        """Put segments of a write into the skb; plainly, they are borrowed (K72)."""
        skb.frags = segments
        pages = [cast("Page", page) for page, _, _ in segments]
        if self.policy.sendpage_ok:
            skb.frags = [self._own(segment) for segment in segments]
            skb.owns_frags = True
        elif self.policy.aoe_gets_fragments:
            for page in pages:
                self.memory.get_page(page, "AoE", "K100")
            self.fragment_refs[skb] = pages
        for page in pages:
            self.memory.journal.add(
                "AoE",
                "skb_fill_page_desc",
                page=page.pfn,
                count=page.compound_head.count,
                rule="K102" if self.policy.sendpage_ok else "K72",
                note="" if self.policy.sendpage_ok else "borrowed: no reference",
                bio=self.memory.journal.number(bio),
                skb=self.memory.journal.number(skb),
            )

    def _own(self, segment: BioVec) -> BioVec:
        page, offset, length = (
            cast("Page", segment.page),
            segment.offset,
            segment.length,
        )
        if sendpage_ok(page):
            self.memory.get_page(page, "AoE", "K102")
            return segment
        copy = self.memory.alloc_pages(0, "AoE")[0]
        copy.data[:length] = page.data[offset : offset + length]
        journal = self.memory.journal
        journal.costs.gets += 1
        journal.costs.copied += length
        journal.costs.wasted += PAGE_SIZE - length
        journal.flags.add(Flag.COPIED)
        journal.add(
            "AoE",
            "copy",
            page=copy.pfn,
            count=copy.count,
            rule="K102",
            note=f"page {page.pfn} fails sendpage_ok: {length} bytes copied",
        )
        # The fragment's reference is the only one; the last sharer frees the copy.
        copy.owner = None
        return BioVec(copy, 0, length)

    def frame_done(self, skb: Skb) -> Skb:
        """Drop the driver's own hold on a frame's skb; return the one to use next.

        A borrowing driver keeps its skb and scrubs it when it uses it again (K82).
        """
        if skb.owns_frags:
            self._ops.release_data(skb)
            return Skb()
        for page in self.fragment_refs.pop(skb, ()):
            self.memory.put_page(page, "AoE", "K100")
        return skb
