"""Socket buffers: a linear header and fragments of pages (net/core/skbuff.c).

The driver has one skb per frame. Its fragments are borrowed: they hold no page
references (K72). A link copies the frame into its send ring at once, so that there are
no clones; the kernel's are modelled in ``initiator.lab.kernel.skbuff``.
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
        head: the linear part: the headers.
        frags: the payload.
        dataref: number of skbs that share head and fragments, including this one.
        owns_frags: the fragments hold page references, which the last sharer drops;
            otherwise the pages are borrowed (K72).
    """

    __slots__ = ("dataref", "frags", "head", "owns_frags")

    def __init__(self, length: int = ATA_DATA) -> None:
        self.head = bytearray(length)
        self.frags: list[BioVec] = []
        self.dataref = 1
        self.owns_frags = False

    def __len__(self) -> int:
        """Return the length of the frame in bytes (``skb->len``)."""
        return len(self.head) + sum(frag.length for frag in self.frags)

    def __bytes__(self) -> bytes:
        """Return the frame's contents, read now as the NIC does on transmission."""
        return bytes(self.head) + b"".join(contents(self.frags))


def contents(frags: Iterable[BioVec]) -> Iterable[bytes]:
    """Yield the present contents of fragments."""
    return (
        bytes(page.data[offset : offset + length]) for page, offset, length in frags
    )
