"""Pages with counts, flags and contents, and who hands them out.

Mirrors ``struct page``, get_page and put_page (include/linux/mm.h), the page allocator
(mm/page_alloc.c) and vmalloc (mm/vmalloc.c), as far as a page's lifetime goes:
kernel-path.md K84-K90 and K110-K112. How kernels differ is in ``Rules``, whose switches
are named after what they do.

Per-cpu page lists, which hide a double free for a while, are not modelled (K122).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aoe.errors import AoEError
from initiator.lab.kernel.journal import Fault, Flag, Journal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from initiator.lab.kernel.journal import Links

PAGE_SIZE: Final = 4096
POISON: Final = 0xAA
"""What freed pages are filled with, so that stale reads show (PAGE_POISON)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a kernel treats pages.

    Args:
        name: the kernel that it is true of.
        early_linearise: a frame for a card without scatter-gather is copied when it is
            queued, as in 2.6.21, not when it leaves the queue (K77).
        bad_page_freed: a page that is found bad, for example a slab page whose count
            falls to zero, is reported and used all the same, as in 2.6.21; later it
            is kept out of circulation with the block that it is in (K89).
        compound_slabs: slabs and large kmallocs of several pages are compound pages,
            whose head counts for all; without, only the first page has a count (K85).
        frozen_slabs: slab pages have count zero, and get and put on them do nothing
            but warn, since 6.14 (K87).
        vmapped_stacks: kernel stacks are pages of count one each, not a block whose
            second page has none (K90, K108d).
        debug_vm: get_page on count zero is a BUG (CONFIG_DEBUG_VM, K119).
        raising_tails_is_bug: raising the count of a compound page's tail is a BUG, as
            in the AoE driver of 3.7 to 3.11; later the head's is raised (K97).
        straddlers_moved: XFS frees a slab object that straddles a page border and
            takes a whole page instead (K92).
    """

    name: str
    early_linearize: bool = False
    bad_page_freed: bool = False
    compound_slabs: bool = True
    frozen_slabs: bool = False
    vmapped_stacks: bool = True
    debug_vm: bool = False
    bug_on_tail_increment: bool = False
    xfs_avoids_straddling: bool = True


RULES_2_6_21: Final = Rules(
    name="2.6.21",
    early_linearize=True,
    bad_page_freed=True,
    compound_slabs=False,
    vmapped_stacks=False,
    xfs_avoids_straddling=False,
)
RULES_6_1: Final = Rules(name="6.1")
RULES_6_14: Final = Rules(name="6.14", frozen_slabs=True)


class Page:
    """``struct page``.

    Attributes:
        pfn: its number, from 0 on.
        count: references (``_refcount``).
        head: the first page of the compound page that this one is in, else None.
        slab: it belongs to a slab (PG_slab).
        free: it is on the free list (PG_buddy).
        kept_out: it was found bad and is kept from the free list (K89).
        owner: who has it, by name; None if nobody.
        block: the pages it was handed out with.
        data: its bytes.
    """

    __slots__ = (
        "block",
        "count",
        "data",
        "free",
        "head",
        "kept_out",
        "owner",
        "pfn",
        "slab",
    )

    def __init__(self, pfn: int, data: memoryview) -> None:
        self.pfn = pfn
        self.data = data
        self.count = 0
        self.head: Page | None = None
        self.slab = False
        self.free = True
        self.kept_out = False
        self.owner: str | None = None
        self.block: Sequence[Page] = ()

    @property
    def compound_head(self) -> Page:
        """The page whose count stands for this one (``compound_head``, K88)."""
        return self.head or self

    def __repr__(self) -> str:
        return f"<page {self.pfn} count {self.count}>"


class Memory:
    """All pages of a machine, their allocator, and the two calls of this story.

    Pages are handed out again in the order last freed, first reused (K110).

    Args:
        pages: how many there are.
        rules: how this kernel treats them.
        journal: where everything is recorded.

    Attributes:
        arena: the bytes of all pages, one behind the other.
        free_list: pages to hand out, the next one last.
    """

    def __init__(self, pages: int, rules: Rules, journal: Journal) -> None:
        self.rules = rules
        self.journal = journal
        self.arena = memoryview(bytearray(pages * PAGE_SIZE))
        self.pages = [
            Page(pfn, self.arena[pfn * PAGE_SIZE : (pfn + 1) * PAGE_SIZE])
            for pfn in range(pages)
        ]
        self.free_list = self.pages[::-1]

    # --- the page allocator -----------------------------------------------------

    def alloc_pages(
        self, order: int, owner: str, *, compound: bool = False
    ) -> list[Page]:
        """Hand out ``2 ** order`` pages that lie side by side.

        The first page has count 1, the others 0, as ever (K84); in a compound page they
        forward to the first.

        Raises:
            AoEError: no such block is free.
        """
        block = self._take(order)
        while not self._check_new_pages(block):
            block = self._take(order)
        for page in block:
            page.free = False
            page.count = 0
            page.owner = owner
            page.block = block
            page.head = block[0] if compound and page is not block[0] else None
        block[0].count = 1
        self.journal.add(
            "page allocator",
            "alloc_pages",
            page=block[0].pfn,
            before=0,
            count=1,
            rule="K84" if order and not compound else "K110",
            note=f"order {order}{', compound' if compound else ''} for {owner}",
            owner=owner,
            span=len(block),
            compound=compound,
        )
        return block

    def _check_new_pages(self, block: Sequence[Page]) -> bool:
        """``check_new_page``: nobody may refer to a page that is handed out (K108)."""
        bad = [page for page in block if page.count]
        for page in bad:
            self.journal.add(
                "page allocator",
                "bad_page",
                page=page.pfn,
                count=page.count,
                rule="K108",
                note="to be handed out although its count is not zero",
                fault=Fault.BAD_PAGE,
            )
        if not bad or self.rules.bad_page_freed:
            return True
        for page in block:
            if page.free:
                page.free, page.kept_out = False, True
        return False

    def _take(self, order: int) -> list[Page]:
        size = 1 << order
        for last in reversed(self.free_list):
            start = last.pfn & ~(size - 1)
            block = self.pages[start : start + size]
            if len(block) == size and all(page in self.free_list for page in block):
                for page in block:
                    # A page freed twice is there twice, and is handed out twice.
                    at = len(self.free_list) - 1 - self.free_list[::-1].index(page)
                    del self.free_list[at]
                return block
        raise AoEError("page allocator", f"no block of order {order} is free")

    def free_pages(self, page: Page, actor: str) -> None:
        """Give a block back by its first page (``__free_pages``), as its owner does.

        The count of the first page decides; at zero the whole block goes, whatever the
        counts of the others (K110). If others refer to it, their last put frees the
        first page, or all of a compound page.
        """
        block = page.block or (page,)
        for each in block:
            if each.owner == actor:
                each.owner = None
        self._put(page, actor, "free_pages", "K110")

    # --- get and put ------------------------------------------------------------

    def get_page(self, page: Page, actor: str, rule: str) -> None:
        """Take a reference (K112); ``rule`` says why.

        Raises:
            BugOn: the count is zero and ``Rules.debug_vm`` is set (K119).
        """
        head = page.compound_head
        if self._skip_frozen(head, actor, "get_page"):
            return
        self.journal.costs.gets += 1
        before = head.count
        if before == 0 and self.rules.debug_vm:
            note = "get_page on a page whose count is zero"
            self.journal.bug(actor, "get_page", head.pfn, "K119", note)
        head.count += 1
        self.journal.add(
            actor,
            "get_page",
            page=head.pfn,
            before=before,
            count=head.count,
            rule=rule,
            note="from zero: whoever puts it frees it" if before == 0 else "",
        )

    def put_page(self, page: Page, actor: str, rule: str) -> None:
        """Drop a reference; at zero the page is freed (K112). ``rule`` says why."""
        head = page.compound_head
        if self._skip_frozen(head, actor, "put_page"):
            return
        self.journal.costs.puts += 1
        self._put(head, actor, "put_page", rule)

    def page_ref_inc(self, page: Page, actor: str) -> None:
        """Raise the count and ask nothing (``page_ref_inc``, K97).

        Raises:
            BugOn: a compound page's tail, and ``Rules.raising_tails_is_bug``.
        """
        if page.head is not None and self.rules.bug_on_tail_increment:
            note = "a tail of a compound page used for block I/O"
            self.journal.bug(actor, "page_ref_inc", page.pfn, "K97", note)
        head = page.compound_head
        self.journal.costs.gets += 1
        head.count += 1
        self.journal.add(
            actor,
            "page_ref_inc",
            page=head.pfn,
            before=head.count - 1,
            count=head.count,
            rule="K97",
        )

    def page_ref_dec(self, page: Page, actor: str) -> None:
        """Lower the count; zero frees nothing (``page_ref_dec``, K97, K99)."""
        head = page.compound_head
        self.journal.costs.puts += 1
        before = head.count
        head.count -= 1
        fault = Fault.UNDERFLOW if before <= 0 else None
        self.journal.add(
            actor,
            "page_ref_dec",
            page=head.pfn,
            before=before,
            count=head.count,
            rule="K97",
            note="below zero" if fault else "",
            fault=fault,
        )
        if head.count == 0 and head.owner is None and not head.free:
            # The owner has given it up meanwhile; nobody is left to free it.
            self.journal.add(
                actor,
                "page_ref_dec",
                page=head.pfn,
                count=0,
                rule="K99",
                note="zero, and a plain decrement frees nothing",
                fault=Fault.LEAK,
            )

    def _skip_frozen(self, page: Page, actor: str, action: str) -> bool:
        if not (self.rules.frozen_slabs and page.slab):
            return False
        self.journal.flags.add(Flag.WARN)
        note = "slab page: warns and does nothing"
        self.journal.add(
            actor,
            action,
            page=page.pfn,
            before=page.count,
            count=page.count,
            rule="K87",
            note=note,
        )
        return True

    def _put(self, page: Page, actor: str, action: str, rule: str) -> None:
        before = page.count
        note, fault = "", None
        if before <= 0:
            note, fault = "the count is zero already", Fault.UNDERFLOW
        page.count -= 1
        links: Links = {}
        if action == "free_pages":
            links = {"owner": "", "span": len(page.block) or 1}
        self.journal.add(
            actor,
            action,
            page=page.pfn,
            before=before,
            count=page.count,
            rule=rule,
            note=note,
            fault=fault,
            **links,
        )
        if page.count == 0:
            block = page.block
            first = bool(block) and page is block[0]
            whole = first and (action == "free_pages" or block[-1].head is page)
            self._free_pages_prepare(block if whole else (page,), actor, rule)

    def _free_pages_prepare(self, block: Sequence[Page], actor: str, rule: str) -> None:
        """``free_pages_prepare``: the checks, then the free list (K89)."""
        bad = [page for page in block if self._is_bad(page, actor, rule)]
        if bad and not self.rules.bad_page_freed:
            for page in block:
                if not page.free and (page.slab or page.owner is None):
                    page.kept_out = True
            return
        for page in block:
            self._free_one_page(page, actor, rule)

    def _is_bad(self, page: Page, actor: str, rule: str) -> bool:
        if page.slab and page.head is None:
            cause = "K89"
            note = f"{actor} freed a slab page ({rule}): Bad page state"
        elif page.count:
            cause = "K110"
            note = "freed with its block although its own count is not zero"
        else:
            return False
        self.journal.add(
            "page allocator",
            "bad_page",
            page=page.pfn,
            count=page.count,
            rule=cause,
            note=note,
            fault=Fault.BAD_PAGE,
        )
        return True

    def _free_one_page(self, page: Page, actor: str, rule: str) -> None:
        if page.free:
            self.journal.add(
                "page allocator",
                "free_page",
                page=page.pfn,
                rule=rule,
                note="is on the free list already",
                fault=Fault.DOUBLE_FREE,
            )
            page.count = 0
            self.free_list.append(page)
            return
        fault = Fault.PREMATURE_FREE if page.owner is not None else None
        self.journal.add(
            "page allocator",
            "free_page",
            page=page.pfn,
            count=page.count,
            rule=rule,
            note=f"{actor} freed it, {page.owner} still uses it" if fault else "",
            fault=fault,
        )
        page.count = 0
        page.free = True
        page.slab = page.kept_out = False
        page.head = None
        page.data[:] = bytes([POISON]) * PAGE_SIZE
        self.free_list.append(page)

    # --- vmalloc ----------------------------------------------------------------

    def vmalloc(self, pages: int, owner: str) -> list[Page]:
        """Hand out single pages of count one each (``vmalloc_to_page``, K90)."""
        return [self.alloc_pages(0, owner)[0] for _ in range(pages)]
