"""Clones of skbs and the network's operations on them (net/core/skbuff.c).

A clone shares the head and the fragment table of the AoE driver's skb and takes no
reference to a page (K72, K73). The network takes references when it unshares a clone:
it linearizes it for a NIC without scatter-gather (K75) or gives it a private head
(K76).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from initiator.driver.skbuff import contents

if TYPE_CHECKING:
    from collections.abc import Callable

    from initiator.driver.bio import BioVec
    from initiator.driver.skbuff import Skb
    from initiator.lab.kernel.journal import Journal
    from initiator.lab.kernel.memory import Memory, Page


class Clone:
    """A clone made by ``skb_clone``: shares head and fragments of an skb (K73).

    Attributes:
        skb: the skb whose data is shared, None after the clone is unshared.
        head: private head.
        frags: private fragments, which hold references.
        linear: payload of a linearized clone.
        number: sequence number, from 0.
        users: number of users of the private data: the NIC and packet sockets (K83).
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
        """The fragments to transmit: shared, private or none."""
        return self.skb.frags if self.skb is not None else self.frags

    def __bytes__(self) -> bytes:
        """Return the frame with the current contents of the pages, as DMA reads it."""
        if self.skb is not None:
            return bytes(self.skb)
        return self.head + self.linear + b"".join(contents(self.frags))


class SkbOps:
    """The network's operations on skbs and clones.

    Args:
        memory: the pages that the fragments refer to.
        fragment_rule: the rule by which owned fragments are put.
        on_unshare: called when a clone no longer refers to the pages of its skb.
        sender: the party that clones skbs for transmission.
    """

    def __init__(
        self,
        memory: Memory,
        fragment_rule: str = "K143",
        on_unshare: Callable[[], None] = lambda: None,
        sender: str = "AoE driver",
    ) -> None:
        self.memory = memory
        self._fragment_rule = fragment_rule
        self._on_unshare = on_unshare
        self._sender = sender
        self.clones = 0

    @property
    def _journal(self) -> Journal:
        return self.memory.journal

    def clone(self, skb: Skb, actor: str = "", rule: str = "K73") -> Clone:
        """Clone an skb: dataref is incremented, no page count (``skb_clone``, K73)."""
        clone = Clone(skb, self.clones)
        self.clones += 1
        note = f"clone {clone.number}, dataref {skb.dataref}"
        self._journal.add(
            actor or self._sender,
            "skb_clone",
            rule=rule,
            note=note,
            skb=self._journal.number(skb),
            clone=clone.number,
        )
        return clone

    def tap(self, clone: Clone) -> Clone:
        """Clone for an AF_PACKET socket, without references to pages (K83)."""
        if clone.skb is not None:
            return self.clone(clone.skb, "packet socket", "K83")
        clone.users += 1
        note = f"clone {clone.number}, private data"
        self._journal.add(
            "packet socket", "skb_clone", rule="K83", note=note, clone=clone.number
        )
        return clone

    def linearize(self, clone: Clone) -> None:
        """Copy all fragments into the head, with get_page and put_page on each (K75).

        Models ``skb_linearize``, that is ``__pskb_pull_tail``.
        """
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
            "network", "skb_linearize", rule="K75", note=note, clone=clone.number
        )
        clone.skb = None
        self.release_data(skb)
        for page, _, _ in frags:
            self.memory.put_page(cast("Page", page), "network", "K75")
        self._on_unshare()

    def expand_head(self, clone: Clone) -> None:
        """Give a clone a private head; its fragments take references (K76).

        Models ``pskb_expand_head``.
        """
        skb = clone.skb
        if skb is None:
            return
        for page, _, _ in skb.frags:
            self.memory.get_page(cast("Page", page), "network", "K76")
        clone.head = bytes(skb.head)
        clone.frags = list(skb.frags)
        note = f"clone {clone.number}: private head, fragments hold references"
        self._journal.add(
            "network", "pskb_expand_head", rule="K76", note=note, clone=clone.number
        )
        clone.skb = None
        self.release_data(skb)

    def free(self, clone: Clone, why: str = "transmission complete") -> None:
        """Free a clone (``kfree_skb``): K74 for shared data, K76 for private data."""
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
        self._on_unshare()

    def release_data(self, skb: Skb) -> None:
        """Decrement dataref; the last sharer puts owned fragments (K82, K143).

        Models ``skb_release_data``.
        """
        skb.dataref -= 1
        if skb.dataref == 0 and skb.owns_frags:
            for page, _, _ in skb.frags:
                self.memory.put_page(cast("Page", page), "network", self._fragment_rule)
            skb.frags = []
