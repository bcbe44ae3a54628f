"""``struct buf``: a bio on its way through the driver (K6)."""

from __future__ import annotations

from typing import NamedTuple

from initiator.driver.bio import Bio, BioIter, Op


class Buf:
    """``struct buf``: a bio on its way through the driver (K6).

    Args:
        bio: the bio.
        position: how far it has been cut into frames; not at all, if None.

    Attributes:
        flush: a FLUSH has to follow when all its frames are answered.
    """

    __slots__ = ("bio", "flush", "iter", "nframesout")

    def __init__(self, bio: Bio, position: BioIter | None = None) -> None:
        self.bio = bio
        self.iter = position or BioIter(bio.vecs, bio.sector, bio.size)
        self.nframesout = 0
        self.flush = False


class Rest(NamedTuple):
    """What is left to do for a bio beside its own course."""

    buf: Buf
    op: Op
    iter: BioIter
