"""Socket buffers: a linear header and fragments that name pages (net/core/skbuff.c).

The driver keeps one skb for each frame. Its fragments are borrowed: no reference to a
page is taken for them (K72). A link copies the frame into its send ring at once, so
nothing is cloned; what a kernel does with clones is in ``initiator.lab.kernel.skbuff``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aoe.ata import ATA_DATA

if TYPE_CHECKING:
    from collections.abc import Iterable

    from initiator.driver.bio import BioVec


class Skb:
    """``struct sk_buff`` with its ``skb_shared_info``.

    Attributes:
        head: the linear part, as long as the headers are.
        frags: the payload behind it.
        dataref: skbs that share head and fragments, this one included.
        owns_frags: the fragments hold references to their pages, which go with the
            last sharer; otherwise they are borrowed (K72).
    """

    __slots__ = ("dataref", "frags", "head", "owns_frags")

    def __init__(self, length: int = ATA_DATA) -> None:
        self.head = bytearray(length)
        self.frags: list[BioVec] = []
        self.dataref = 1
        self.owns_frags = False

    def __len__(self) -> int:
        """Bytes on the wire: ``skb->len``."""
        return len(self.head) + sum(frag.length for frag in self.frags)

    def __bytes__(self) -> bytes:
        """Read the whole frame, as the interface does when it sends it."""
        return bytes(self.head) + b"".join(contents(self.frags))


def contents(frags: Iterable[BioVec]) -> Iterable[bytes]:
    """Yield the bytes that the fragments name, as they are at this moment."""
    return (
        bytes(page.data[offset : offset + length]) for page, offset, length in frags
    )
