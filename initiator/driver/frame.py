"""``struct buf`` and ``struct frame`` (drivers/block/aoe/aoe.h).

A buf is a bio that is being cut into frames; a frame is one ATA command of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from initiator.driver.bio import Bio, BioIter, Op
from initiator.driver.skbuff import Skb

if TYPE_CHECKING:
    from initiator.driver.aoedev import AoeIf, AoeTgt
    from initiator.driver.bio import BioVec

NEVER: Final = 1 << 30
"""More bytes than any answer has."""
FIRST_GRACE: Final = 0.25
"""Seconds that a frame is given at first when its target turns out to be late."""


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


class Followup(NamedTuple):
    """What is left to do for a bio beside its own course."""

    buf: Buf
    op: Op
    iter: BioIter


class Frame:
    """``struct frame``: an ATA command that waits for its answer (K5).

    Attributes:
        sent: when it was last transmitted.
        waited: seconds that its target let the transmissions before wait;
            ``waited_total``, all targets.
        attempts: transmissions that its target did not answer in time.
        due: when the present one counts as lost.
        earlier: tags of the transmissions before it, and when they were sent.
        graces: transmissions that were waited for longer; ``graced``, the last's tag.
        op: what it does; a FUA bio has a FLUSH behind its writes where it must.
        fua: it is a write that is answered when its data is stable.
        sector, length: which bytes of the device it is about.
        segments: the memory that it reads into or writes from.
        is_probe: it asks whether a tainted target is back; nobody waits for its data.
        everyday: bytes that the response has at least, if ``initiator.io.fast_path``
            sent it and left its skb as it was; otherwise ``NEVER``.
    """

    __slots__ = (
        "attempts",
        "buf",
        "due",
        "earlier",
        "everyday",
        "fua",
        "graced",
        "graces",
        "ifp",
        "is_probe",
        "length",
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
        self.everyday = NEVER
        self.target: AoeTgt
        self.ifp: AoeIf

    def grace(self, late: float) -> float:
        """Tell how much longer to wait, as an earlier transmission is answered.

        The target may be slow, and the answer to the last transmission take as long as
        this one's took, ``late``; or it stood still, and the last one is lost.
        """
        if self.graced != self.tag:
            self.graced = self.tag
            self.graces += 1
        return min(late, FIRST_GRACE * 4.0 ** (self.graces - 1))

    def begin(self, *, is_probe: bool = False) -> None:
        """Stand for a new command from now on."""
        self.is_probe = is_probe
        if self.earlier or self.attempts:
            self.attempts = self.graces = 0
            self.waited = self.waited_total = 0.0
            self.earlier.clear()
