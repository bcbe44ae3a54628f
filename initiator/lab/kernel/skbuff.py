"""Clones of socket buffers, and what the network does to them (net/core/skbuff.c).

A clone shares the head and the fragment table of the driver's skb and takes no
reference to any page (K72, K73). References appear when the network makes a clone
independent: it linearises it for a NIC without scatter-gather (K75) or gives it a
private head (K76).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from initiator.driver.skbuff import contents

if TYPE_CHECKING:
    from initiator.driver.bio import BioVec
    from initiator.driver.skbuff import Skb
    from initiator.lab.kernel.journal import Journal
    from initiator.lab.kernel.memory import Memory, Page


class Clone:
    """An skb made by ``skb_clone``: it shares the head and fragments of another (K73).

    Attributes:
        skb: whose data it shares, None once it has data of its own.
        head: its private head.
        frags: its private fragments, which hold references.
        linear: its payload, once it was linearised.
        number: how many clones were made before it.
        users: who has it and its private data: the card, and sniffers (K83).
    """

    __slots__ = ("frags", "head", "linear", "number", "skb", "users")

    def __init__(self, skb: Skb, number: int) -> None:
        skb.dataref += 1
        self.skb: Skb | None = skb
        self.head = b""
        self.frags: list[BioVec] = []
        self.linear = b""
        self.number = number
        self.users = 1

    @property
    def payload_pages(self) -> list[BioVec]:
        """The fragments that it will be sent from: shared, private or none."""
        return self.skb.frags if self.skb is not None else self.frags

    def __bytes__(self) -> bytes:
        """Read the frame as the card does: the pages' contents of this moment."""
        if self.skb is not None:
            return bytes(self.skb)
        return self.head + self.linear + b"".join(contents(self.frags))


class SkbOps:
    """What the network does to skbs over counted pages.

    Args:
        memory: whose pages the fragments name.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.clones = 0

    @property
    def _journal(self) -> Journal:
        return self.memory.journal

    def clone(self, skb: Skb, actor: str = "AoE", rule: str = "K73") -> Clone:
        """``skb_clone``: dataref goes up, no page count does (K73)."""
        clone = Clone(skb, self.clones)
        self.clones += 1
        note = f"clone {clone.number}, dataref {skb.dataref}"
        self._journal.add(
            actor,
            "skb_clone",
            rule=rule,
            note=note,
            skb=self._journal.number(skb),
            clone=clone.number,
        )
        return clone

    def tap(self, clone: Clone) -> Clone:
        """``skb_clone`` for an AF_PACKET socket: again no reference to a page (K83)."""
        if clone.skb is not None:
            return self.clone(clone.skb, "sniffer", "K83")
        clone.users += 1
        note = f"clone {clone.number}, whose data are its own"
        self._journal.add(
            "sniffer", "skb_clone", rule="K83", note=note, clone=clone.number
        )
        return clone

    def linearize(self, clone: Clone) -> None:
        """``__pskb_pull_tail``: get, copy, put for every fragment (K75)."""
        skb = clone.skb
        if skb is None or not skb.frags:
            return
        frags = list(skb.frags)
        for page, _, _ in frags:
            self.memory.get_page(cast("Page", page), "network", "K75")
        clone.head = bytes(skb.head)
        clone.linear = b"".join(contents(frags))
        self._journal.costs.copied += len(clone.linear)
        note = f"clone {clone.number}, {len(clone.linear)} bytes"
        self._journal.add(
            "network", "linearise", rule="K75", note=note, clone=clone.number
        )
        clone.skb = None
        self.release_data(skb)
        for page, _, _ in frags:
            self.memory.put_page(cast("Page", page), "network", "K75")

    def expand_head(self, clone: Clone) -> None:
        """``pskb_expand_head``: a head of its own, fragments with references (K76)."""
        skb = clone.skb
        if skb is None:
            return
        for page, _, _ in skb.frags:
            self.memory.get_page(cast("Page", page), "network", "K76")
        clone.head = bytes(skb.head)
        clone.frags = list(skb.frags)
        note = f"clone {clone.number} has its own head, its fragments references"
        self._journal.add(
            "network", "pskb_expand_head", rule="K76", note=note, clone=clone.number
        )
        clone.skb = None
        self.release_data(skb)

    def free(self, clone: Clone, why: str = "transmission complete") -> None:
        """``kfree_skb`` at TX completion: K74 for shared data, K76 for private."""
        shared = clone.skb is not None
        self._journal.add(
            "network",
            "kfree_skb",
            rule="K74" if shared else "K76",
            note=f"clone {clone.number}, {why}",
            clone=clone.number,
        )
        clone.users -= 1
        if clone.users:
            return
        frags, clone.frags = clone.frags, []
        for page, _, _ in frags:
            self.memory.put_page(cast("Page", page), "network", "K76")
        if clone.skb is not None:
            skb, clone.skb = clone.skb, None
            self.release_data(skb)

    def release_data(self, skb: Skb) -> None:
        """``skb_release_data``: with the last sharer go the references (K82)."""
        skb.dataref -= 1
        if skb.dataref == 0 and skb.owns_frags:
            for page, _, _ in skb.frags:
                self.memory.put_page(cast("Page", page), "network", "K102")
            skb.frags = []
