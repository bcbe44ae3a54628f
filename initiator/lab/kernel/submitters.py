"""Who hands memory to the block layer, and what kind of memory it is.

Seven kinds (K84-K92), and two fixes of the thread as variants: XFS and jbd on pages
from the page allocator instead of slab objects. What a kind comes to depends on the
kernel's ``Rules``: the second page of a stack has count zero on 2.6.21 and one on 6.1
(K108d).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from initiator.lab.kernel.memory import PAGE_SIZE, Memory, Page
from initiator.lab.kernel.slab import KmemCache, SlabObject, calculate_slab_order

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from initiator.lab.kernel.policy import Policy

SUBPAGE: Final = 1024
"""Bytes of a sub-page buffer: XFS metadata on 1 KiB blocks, jbd's frozen copies."""
LARGE_ORDER: Final = 1


@dataclass(slots=True, eq=False)
class Buffer:
    """Memory that somebody may put into a bio.

    Args:
        owner: who has it.
        pieces: page, offset and length of each part that goes into the bio.
        give_back: what its owner does when the buffer is no longer wanted.
        wasted: bytes allocated beyond those that were asked for.
    """

    owner: str
    pieces: list[tuple[Page, int, int]]
    free: Callable[[], None]
    wasted: int = 0
    is_held: bool = True

    def fill(self, byte: int) -> None:
        """Write one byte's value over all of it."""
        for page, offset, length in self.pieces:
            page.data[offset : offset + length] = bytes([byte]) * length

    def contents(self) -> bytes:
        """What it holds now."""
        return b"".join(
            bytes(page.data[offset : offset + length])
            for page, offset, length in self.pieces
        )

    def release(self) -> None:
        """Give the memory up, once."""
        if self.is_held:
            self.is_held = False
            self.free()


def join_buffers(buffers: Sequence[Buffer]) -> Buffer:
    """Make one buffer of several of the same owner's, for a bio of many pages."""
    if len(buffers) == 1:
        return buffers[0]

    def free() -> None:
        for buffer in buffers:
            buffer.free()

    pieces = [piece for buffer in buffers for piece in buffer.pieces]
    wasted = sum(buffer.wasted for buffer in buffers)
    return Buffer(buffers[0].owner, pieces, free, wasted)


@dataclass(frozen=True, slots=True)
class Submitter:
    """A kind of memory that reaches the block layer.

    Args:
        name: as reports and commands call it.
        owner: who submits it.
        summary: one line for people.
        kind: how it is allocated.
    """

    name: str
    owner: str
    summary: str
    kind: str


SUBMITTERS: Final = {
    submitter.name: submitter
    for submitter in (
        Submitter("pagecache", "page cache", "ext4 or XFS file data", "page"),
        Submitter(
            "xfs_kmalloc_subpage", "XFS", "metadata in a sub-page slab object", "slab"
        ),
        Submitter(
            "jbd_frozen_slab",
            "jbd",
            "ext3's frozen journal copy, a slab object",
            "slab",
        ),
        Submitter(
            "kmalloc_highorder_tail",
            "XFS",
            "second page of a kmalloc of two pages",
            "large slab",
        ),
        Submitter(
            "rawalloc_highorder_tail",
            "driver",
            "second page of alloc_pages(1), not compound",
            "raw",
        ),
        Submitter("stack_tail", "stack", "second page of a kernel stack", "stack"),
        Submitter("vmalloc_page", "XFS", "log buffer by vmalloc_to_page", "vmalloc"),
    )
}

VARIANTS: Final = {
    submitter.name: submitter
    for submitter in (
        Submitter(
            "xfs_get_free_page", "XFS", "the fix: metadata on a page of its own", "page"
        ),
        Submitter(
            "jbd_get_free_page",
            "jbd",
            "the fix: frozen copy on a page of its own",
            "page",
        ),
    )
}
"""The thread's fixes: no slab, but up to a page of memory for each small buffer."""

_NEEDS: Final = {"xfs_get_free_page": SUBPAGE, "jbd_get_free_page": SUBPAGE}


class Submitters:
    """Allocates the memory of all kinds on one machine.

    Args:
        memory: the machine's pages.
        policy: decides whether slab counts objects and filesystems use whole pages.
        debug_shift: redzone bytes in front of sub-page objects, see
            ``initiator.lab.kernel.slab``.
    """

    def __init__(self, memory: Memory, policy: Policy, redzone: int = 0) -> None:
        self.memory = memory
        self.policy = policy
        counts = policy.slab_counts_objects
        self.caches = {
            "slab": KmemCache(
                memory,
                SUBPAGE,
                calculate_slab_order(SUBPAGE + redzone),
                counts,
                redzone,
            ),
            "large slab": KmemCache(
                memory, PAGE_SIZE << LARGE_ORDER, LARGE_ORDER, counts
            ),
        }

    def allocate(self, submitter: Submitter, owner: str | None = None) -> Buffer:
        """Allocate a buffer as ``submitter`` does, in the name of ``owner``."""
        owner = owner or submitter.owner
        kind = submitter.kind
        if kind == "stack":
            kind = "vmalloc" if self.memory.rules.vmapped_stacks else "raw"
        if self.policy.filesystem_uses_pages and kind not in ("page", "vmalloc"):
            needs = SUBPAGE if kind == "slab" else PAGE_SIZE
            return self._page(owner, needs)
        if kind == "page":
            return self._page(owner, _NEEDS.get(submitter.name, PAGE_SIZE))
        if kind == "vmalloc":
            pages = self.memory.vmalloc(2, owner)
            return self._pages(owner, pages, pages)
        if kind == "raw":
            block = self.memory.alloc_pages(LARGE_ORDER, owner)
            return self._pages(owner, block, block[:1])
        found = self.caches[kind].alloc(owner)
        moves = submitter.owner == "XFS" and self.memory.rules.xfs_avoids_straddling
        if moves and found.straddles:
            found.cache.free(found, owner)
            return self._page(owner, SUBPAGE)
        return self._object(owner, found, 1 if kind == "large slab" else 0)

    def _page(self, owner: str, needs: int) -> Buffer:
        page = self.memory.alloc_pages(0, owner)[0]
        return Buffer(
            owner,
            [(page, 0, needs)],
            lambda: self.memory.free_pages(page, owner),
            PAGE_SIZE - needs,
        )

    def _pages(self, owner: str, pages: list[Page], freed: list[Page]) -> Buffer:
        """The second of two pages; ``freed`` are those that are freed one by one."""

        def free() -> None:
            for page in freed:
                self.memory.free_pages(page, owner)

        return Buffer(owner, [(pages[1], 0, PAGE_SIZE)], free)

    def _object(self, owner: str, found: SlabObject, skip: int) -> Buffer:
        """All of an object but the first ``skip`` of its pages."""
        pieces = found.pieces()[skip:]
        return Buffer(owner, pieces, lambda: found.cache.free(found, owner))

    def settle(self) -> None:
        """Reuse what was put off, and give empty slabs back."""
        for cache in self.caches.values():
            cache.reap()
            cache.shrink()
