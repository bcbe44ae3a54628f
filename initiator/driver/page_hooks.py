"""The moments at which a driver could count the pages of bios (K95-K103).

Without hooks the driver borrows pages and counts nothing, as Linux 6.1 does (K98). The
lab passes hooks that do what one of the policies of 2007 says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from initiator.driver.bio import Bio, BioVec
    from initiator.driver.skbuff import Skb


class PageHooks(Protocol):
    """What a page-count policy does at the four moments of the driver."""

    def bio_arrives(self, bio: Bio) -> None:
        """Run when a bio is accepted, before it is cut (``bio_pageinc``, K97)."""

    def attach(self, bio: Bio, skb: Skb, segments: list[BioVec]) -> None:
        """Set the fragments of a write's skb (``skb_fill_page_desc``, K72)."""

    def frame_done(self, skb: Skb) -> Skb:
        """Release a frame's skb; return the skb that the frame uses next (K82)."""

    def bio_ends(self, bio: Bio) -> None:
        """Run before ``bi_end_io`` (``bio_pagedec``, K97, K99)."""
