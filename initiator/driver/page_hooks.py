"""Hooks for page-count policies: where a driver may count pages of bios (K95-K103).

Without hooks the driver borrows pages without counting them, as Linux 6.1 does (K98).
The lab passes hooks that implement one of the lab's page-count policies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from initiator.driver.bio import Bio, BioVec
    from initiator.driver.skbuff import Skb


class PageHooks(Protocol):
    """The four calls of a page-count policy."""

    def bio_arrives(self, bio: Bio) -> None:
        """Handle an accepted bio, before it is split (``bio_pageinc``, K97)."""

    def attach(self, bio: Bio, skb: Skb, segments: list[BioVec]) -> None:
        """Set the fragments of a write's skb (``skb_fill_page_desc``, K72)."""

    def frame_done(self, skb: Skb) -> Skb:
        """Release a freed frame's skb; return the skb for its next use (K82)."""

    def bio_ends(self, bio: Bio) -> None:
        """Handle the end of a bio, before ``bi_end_io`` (``bio_pagedec``, K97, K99)."""
