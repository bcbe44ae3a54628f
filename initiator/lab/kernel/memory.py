"""Pages with count, flags and contents, and the page allocator.

Models the lifetime of ``struct page``: get_page and put_page (include/linux/mm.h), the
page allocator (mm/page_alloc.c) and vmalloc (mm/vmalloc.c), by K84-K90 and K110-K112.
``initiator.lab.kernel.kernels`` has a switch for each difference between kernels.

Per-CPU page lists, which hide a double free for a while, are not modelled (K122).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.errors import AoEError
from initiator.lab.kernel.journal import Fault, Flag, Journal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from initiator.lab.kernel.journal import Links
    from initiator.lab.kernel.kernels import Rules

PAGE_SIZE: Final = 4096
POISON: Final = 0xAA
"""Fill byte of freed pages (PAGE_POISON): a stale read returns it."""


class Page:
    """``struct page``.

    Attributes:
        pfn: page frame number, from 0.
        count: reference count (``_refcount``).
        head: the head of the compound page that this is a tail of, else None.
        slab: the page belongs to a slab (PG_slab).
        frozen: the page has count 0, and get_page and put_page do nothing (K87, K140).
        free: the page is on the free list (PG_buddy).
        kept_out: the page was found bad and is not on the free list (K89).
        owner: name of the owner, or None.
        block: the pages that were allocated together.
        data: the contents, 4096 bytes.
    """

    __slots__ = (
        "block",
        "count",
        "data",
        "free",
        "frozen",
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
        self.frozen = False
        self.free = True
        self.kept_out = False
        self.owner: str | None = None
        self.block: Sequence[Page] = ()

    @property
    def compound_head(self) -> Page:
        """The page whose count get_page and put_page change (K88)."""
        return self.head or self

    def __repr__(self) -> str:
        return f"<page {self.pfn} count {self.count}>"


class Memory:
    """The pages of a machine, the page allocator, get_page and put_page.

    The free list is LIFO: the page freed last is allocated first (K110).

    Args:
        pages: number of pages.
        rules: page handling of the modelled kernel.
        journal: records every event.

    Attributes:
        arena: the contents of all pages, contiguous.
        free_list: free pages; the last one is allocated first.
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
        """Allocate ``2 ** order`` contiguous pages.

        The first page gets count 1, the others 0 (K84). In a compound page the others
        are tails and refer to the first.

        Raises:
            AoEError: no block of this order is free.
        """
        block = self._rmqueue(order)
        while not self._check_new_pages(block):
            block = self._rmqueue(order)
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
        """Return False if a page has references and the kernel skips it (K108).

        Models ``check_new_page``.
        """
        bad = [page for page in block if page.count]
        for page in bad:
            self.journal.add(
                "page allocator",
                "bad_page",
                page=page.pfn,
                count=page.count,
                rule="K108",
                note="allocated although its count is not 0",
                fault=Fault.BAD_PAGE,
            )
        if not bad or self.rules.bad_page_freed:
            return True
        kept = [page for page in block if page.free]
        for page in kept:
            page.free = False
        self._keep_out(kept)
        return False

    def _keep_out(self, pages: Sequence[Page]) -> None:
        """Keep pages out of circulation: they are lost until the next boot (K144)."""
        for page in pages:
            page.kept_out = True
        if pages:
            self.journal.add(
                "page allocator",
                "keep out",
                page=pages[0].pfn,
                rule="K144",
                note=f"{len(pages)} page(s) lost until the next boot",
                fault=Fault.LEAK,
            )

    def _rmqueue(self, order: int) -> list[Page]:
        """Remove a block from the free list."""
        size = 1 << order
        for last in reversed(self.free_list):
            start = last.pfn & ~(size - 1)
            block = self.pages[start : start + size]
            if len(block) == size and all(page in self.free_list for page in block):
                for page in block:
                    # After a double free a page is on the list twice: remove one.
                    at = len(self.free_list) - 1 - self.free_list[::-1].index(page)
                    del self.free_list[at]
                return block
        raise AoEError("page allocator", f"no free block of order {order}")

    def freeze(self, block: Sequence[Page]) -> None:
        """Make the count of an allocated block 0, as slab does since 6.14 (K87)."""
        block[0].count = 0
        block[0].frozen = True

    def free_pages(self, page: Page, actor: str) -> None:
        """Drop the owner's reference to a block's first page (``__free_pages``).

        A frozen block has none and is freed at once (``free_frozen_pages``).
        At count 0 the whole block is freed, regardless of the counts of the other
        pages (K110). If references remain, the last put_page frees the first page
        only, or all pages of a compound page.
        """
        block = page.block or (page,)
        for each in block:
            if each.owner == actor:
                each.owner = None
        if page.frozen:
            page.frozen = False
            page.count += 1
        self._put(page, actor, "free_pages", "K110")

    # --- get and put ------------------------------------------------------------

    def get_page(self, page: Page, actor: str, rule: str) -> None:
        """Take a reference (K112), by ``rule``.

        Raises:
            BugOn: the count is 0 and ``Rules.debug_vm`` is set (K119).
        """
        head = page.compound_head
        if self._skip_frozen(head, actor, "get_page"):
            return
        self.journal.costs.gets += 1
        before = head.count
        if before == 0 and self.rules.debug_vm:
            note = "get_page on a page with count 0"
            self.journal.bug(actor, "get_page", head.pfn, "K119", note)
        head.count += 1
        self.journal.add(
            actor,
            "get_page",
            page=head.pfn,
            before=before,
            count=head.count,
            rule=rule,
            note="count was 0: the next put_page frees it" if before == 0 else "",
        )

    def put_page(self, page: Page, actor: str, rule: str) -> None:
        """Drop a reference, by ``rule``, and free the page at count 0 (K112)."""
        head = page.compound_head
        if self._skip_frozen(head, actor, "put_page"):
            return
        self.journal.costs.puts += 1
        self._put(head, actor, "put_page", rule)

    def page_ref_inc(self, page: Page, actor: str) -> None:
        """Increment the count without any check (``page_ref_inc``, K97).

        Raises:
            BugOn: the page is a compound tail and ``Rules.bug_on_tail_increment`` is
                set.
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
        """Decrement the count; do not free at 0 (``page_ref_dec``, K97, K99)."""
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
            note="count below 0" if fault else "",
            fault=fault,
        )
        if head.count == 0 and head.owner is None and not head.free:
            # The owner has freed the page before, so no further put_page comes.
            self.journal.add(
                actor,
                "page_ref_dec",
                page=head.pfn,
                count=0,
                rule="K99",
                note="count is 0, and page_ref_dec does not free",
                fault=Fault.LEAK,
            )

    def _skip_frozen(self, page: Page, actor: str, action: str) -> bool:
        """Return True for a frozen page, on which only get_page warns (K87, K140)."""
        if not page.frozen:
            return False
        note = "frozen page: does nothing"
        if action == "get_page":
            note = "frozen page: warns and does nothing"
            self.journal.flags.add(Flag.WARN)
        self.journal.add(
            actor,
            action,
            page=page.pfn,
            before=page.count,
            count=page.count,
            rule="K87" if page.slab else "K140",
            note=note,
        )
        return True

    def _put(self, page: Page, actor: str, action: str, rule: str) -> None:
        before = page.count
        if before == 0 and self.rules.debug_vm:
            bug = f"{action} on a page with count 0"
            self.journal.bug(actor, action, page.pfn, "K119", bug)
        note, fault = "", None
        if before <= 0:
            note, fault = "count is already 0", Fault.UNDERFLOW
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
        """Check pages and put them on the free list (``free_pages_prepare``, K89)."""
        bad = [page for page in block if self._is_bad(page, actor, rule)]
        if bad and not self.rules.bad_page_freed:
            # Pages of the block that have a new owner meanwhile stay in use.
            lost = [p for p in block if p.slab or p.owner is None]
            self._keep_out([p for p in lost if not (p.free or p.kept_out)])
            return
        for page in block:
            self._free_one_page(page, actor, rule)

    def _is_bad(self, page: Page, actor: str, rule: str) -> bool:
        if page.slab and page.head is None:
            cause = "K89"
            note = f"{actor} freed a slab page ({rule}): Bad page state"
        elif page.count:
            cause = "K110"
            note = "freed with its block although its own count is not 0"
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
                note="already on the free list",
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
            note=f"freed by {actor}, still used by {page.owner}" if fault else "",
            fault=fault,
        )
        page.count = 0
        page.free = True
        page.slab = page.frozen = page.kept_out = False
        page.head = None
        page.data[:] = bytes([POISON]) * PAGE_SIZE
        self.free_list.append(page)

    # --- vmalloc ----------------------------------------------------------------

    def vmalloc(self, pages: int, owner: str) -> list[Page]:
        """Allocate order-0 pages with count 1 each (``vmalloc_to_page``, K90)."""
        return [self.alloc_pages(0, owner)[0] for _ in range(pages)]
