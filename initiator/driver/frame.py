"""``struct buf`` and ``struct frame`` (drivers/block/aoe/aoe.h).

A buf is a bio that is being split into frames; a frame is one ATA command of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from initiator.driver.bio import Bio, BioIter, Op
from initiator.driver.skbuff import Skb

if TYPE_CHECKING:
    from initiator.driver.aoedev import AoeIf, AoeTgt
    from initiator.driver.bio import BioVec

SLOW_PATH_ONLY: Final = 1 << 30
"""A value of ``Frame.min_response`` that no response has."""
FIRST_GRACE: Final = 0.25
"""Maximum of a frame's first grace period, in seconds."""


class Buf:
    """``struct buf``: a bio in progress (K6).

    Args:
        bio: the bio.
        position: what remains to be split into frames; None means all of it.

    Attributes:
        flush: a FLUSH has to follow when all frames are done.
        nframesout: frames outstanding, and follow-up commands not yet split.
    """

    __slots__ = ("bio", "flush", "iter", "nframesout")

    def __init__(self, bio: Bio, position: BioIter | None = None) -> None:
        self.bio = bio
        self.iter = position or BioIter(bio.vecs, bio.sector, bio.size)
        self.nframesout = 0
        self.flush = False


class Followup(NamedTuple):
    """A further command of a bio in progress, see ``AoeDev.followups``."""

    buf: Buf
    op: Op
    iter: BioIter


class Frame:
    """``struct frame``: an outstanding or free ATA command (K5).

    Attributes:
        sent: time of the last transmission.
        waited: seconds spent on expired transmissions to its present target.
        waited_total: the same for all targets.
        attempts: transmissions that expired at its present target.
        due: time at which the last transmission expires.
        earlier: tags of the earlier transmissions, with the time of each.
        graces: transmissions whose timeout was extended.
        graced: the last tag among them.
        op: the operation; None for IDENTIFY and probes. A FUA bio may have several
            WRITE frames and a FLUSH.
        fua: use WRITE DMA FUA EXT.
        sector, length: the sectors, with the length in bytes.
        segments: the memory to read into or write from.
        is_probe: a READ to learn whether a tainted target responds; its data is
            discarded.
        min_response: minimum length of the response, if ``initiator.io.fast_path`` sent
            the frame and did not fill in the skb; otherwise ``SLOW_PATH_ONLY``.
    """

    __slots__ = (
        "attempts",
        "buf",
        "due",
        "earlier",
        "fua",
        "graced",
        "graces",
        "ifp",
        "is_probe",
        "length",
        "min_response",
        "op",
        "sector",
        "segments",
        "sent",
        "skb",
        "tag",
        "target",
        "waited",
        "waited_total",
    )

    def __init__(self) -> None:
        self.skb = Skb()
        self.segments: list[BioVec] = []
        self.buf: Buf | None = None
        self.earlier: dict[int, float] = {}
        self.op: Op | None = None
        self.fua = False
        self.tag = self.attempts = self.sector = self.length = 0
        self.graces = self.graced = 0
        self.sent = self.due = self.waited = self.waited_total = 0.0
        self.is_probe = False
        self.min_response = SLOW_PATH_ONLY
        self.target: AoeTgt
        self.ifp: AoeIf

    def grace(self, late: float) -> float:
        """Return a grace period for the last transmission, in seconds.

        An earlier transmission was answered after ``late`` seconds. Either the target
        is slow, and the response to the last transmission takes as long; or it stalled,
        and the last transmission is lost. The grace period is limited to
        ``FIRST_GRACE``, and to four times more with each further transmission.
        """
        if self.graced != self.tag:
            self.graced = self.tag
            self.graces += 1
        return min(late, FIRST_GRACE * 4.0 ** (self.graces - 1))

    def begin(self, *, is_probe: bool = False) -> None:
        """Reset the retransmission state for a new command."""
        self.is_probe = is_probe
        if self.earlier or self.attempts:
            self.attempts = self.graces = 0
            self.waited = self.waited_total = 0.0
            self.earlier.clear()
