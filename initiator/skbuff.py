"""Socket buffers: a linear header and fragments that name pages (net/core/skbuff.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aoe.ata import ATA_DATA

if TYPE_CHECKING:
    from initiator.bio import BioVec


class Skb:
    """``struct sk_buff`` with its ``skb_shared_info``.

    Args:
        head: the linear part, as long as the headers are.
        frags: the payload behind it. The fragments are borrowed: no reference is taken
            to their pages (K72), so they must outlive every transmission.
    """

    __slots__ = ("frags", "head")

    def __init__(self, length: int = ATA_DATA) -> None:
        self.head = bytearray(length)
        self.frags: list[BioVec] = []

    def __len__(self) -> int:
        """Bytes on the wire: ``skb->len``."""
        return len(self.head) + sum(frag.length for frag in self.frags)

    def __bytes__(self) -> bytes:
        """Read the whole frame, as the interface does when it sends it."""
        pieces = [bytes(self.head)]
        pieces += (
            bytes(page.data[offset : offset + length])
            for page, offset, length in self.frags
        )
        return b"".join(pieces)
