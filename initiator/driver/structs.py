"""``struct buf``, ``frame``, ``aoeif`` and ``aoetgt`` (drivers/block/aoe/aoe.h).

A buf is a bio that is being split into frames; a frame is one ATA command of it, sent
to one MAC address of the device (aoetgt) on a local interface (aoeif).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

from aoe.ata import SECTOR
from aoe.header import sectors_per_frame
from initiator.driver.bio import Bio, BioIter, Op
from initiator.driver.skbuff import Skb

if TYPE_CHECKING:
    from initiator.driver.bio import BioVec
    from initiator.driver.netdev import NetDevice
    from initiator.driver.paths.narrow import Search
    from initiator.driver.timing import Window

DECIDE_SECONDS: Final = 0.3
"""Seconds for which the first path of a device waits for the responses of others that
were heard before it was proven: they may have another disk."""
FORGET_SECONDS: Final = 10.0
"""Seconds after which a candidate that does not answer IDENTIFY is forgotten."""
SLOW_PATH_ONLY: Final = 1 << 30
"""A value of ``Frame.min_response`` that no response has."""
FIRST_GRACE: Final = 0.25
"""Maximum of a frame's first grace period, in seconds."""
DEFAULT_BCNT: Final = 2 * SECTOR
"""Data bytes per frame until a target has announced its limits (DEFAULTBCNT)."""
IFS_LIMIT: Final = 8
"""Maximum number of interfaces per target (NAOEIFS, K7)."""


class Buf:
    """``struct buf``: a bio in progress (K6).

    Args:
        bio: the bio.
        position: what remains to be split into frames; None means all of it.

    Attributes:
        flush: a FLUSH has to follow when all frames are done.
        nframesout: frames outstanding, and follow-up commands not yet split.
        covers: how many answered writes its FLUSH has to cover; -1 without one.
    """

    __slots__ = ("bio", "covers", "flush", "iter", "nframesout")

    def __init__(self, bio: Bio, position: BioIter | None = None) -> None:
        self.bio = bio
        self.iter = position or BioIter(bio.vecs, bio.sector, bio.size)
        self.nframesout = 0
        self.flush = False
        self.covers = -1


class Followup(NamedTuple):
    """A further command of a bio in progress, see ``AoeDev.followups``."""

    buf: Buf
    op: Op | None
    iter: BioIter


class Refusal(NamedTuple):
    """A MAC address that is not used, although it responds for the device.

    Args:
        mac: the MAC address.
        interface: the local interface on which it responds.
        why: the reason, for the user.
        page: its IDENTIFY data; empty if it sent none.
        time: when it was refused last.
    """

    mac: bytes
    interface: str
    why: str
    page: bytes
    time: float


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

    @property
    def is_path_test(self) -> bool:
        """Whether it tests what a path carries (``initiator.driver.paths.narrow``)."""
        return self.is_probe and self.length > 0

    @property
    def needs_disk(self) -> bool:
        """Whether it shows if the disk is available; targets know its IDENTIFY data."""
        return self.buf is not None or (self.is_probe and not self.length)

    @property
    def is_identify(self) -> bool:
        """Whether it is an IDENTIFY that no bio waits for."""
        return self.op is None and not self.is_probe and self.buf is None

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


@dataclass(slots=True, eq=False)
class AoeIf:
    """``struct aoeif``: a local interface on which a target has responded (K4).

    Attributes:
        bcnt: data bytes per frame that the interface and the target can carry.
        lost: losses since the last successful response received on it.
        lost_at: time at which the last loss was detected.
        announced: ``bcnt`` as the interface and the target announce it.
        limit: what the path carries, if that is less; otherwise 0.
        search: the search for what it carries, see ``initiator.driver.paths.narrow``.
    """

    netdev: NetDevice
    bcnt: int
    lost: int = 0
    lost_at: float = -inf
    announced: int = 0
    limit: int = 0
    search: Search | None = None


@dataclass(slots=True, eq=False)
class AoeTgt:
    """``struct aoetgt``: one MAC address that serves a device (K3).

    Attributes:
        ifp: index in ``ifs`` of the interface used last; ``len(ifs)`` after the last
            one was ejected.
        minbcnt: data bytes per frame that all its interfaces can carry (K18).
        taint: responses required until the target counts as untainted. While it is not
            0, other targets are preferred.
        nout_probes: probes outstanding (K57).
        last_response: time of the last response.
        rpkts, wpkts: read and write frames completed.
        is_proven: IDENTIFY has shown that it serves the device's disk. Only then it is
            sent data, and its responses are processed.
        identifying: interfaces on which it was sent an IDENTIFY that is outstanding.
        source: the MAC address that its responses come from, if not ``addr``.
        held: responses received, with their interfaces, while it was not proven.
        heard: time of its first config response.
        page: its IDENTIFY data, while it is not compared with that of others yet.
        ask_at: when to ask for the disk again, if it is unavailable; else infinity.
        repeats_lba: responses have the LBA of the request, as far as seen.
        other_lba_since: time of the first response since then that had another.
    """

    addr: bytes
    window: Window
    ifs: list[AoeIf] = field(default_factory=list)
    ifp: int = 0
    ffree: list[Frame] = field(default_factory=list)
    minbcnt: int = DEFAULT_BCNT
    taint: int = 0
    nout_probes: int = 0
    last_response: float = float("-inf")
    rpkts: int = 0
    wpkts: int = 0
    is_proven: bool = True
    identifying: set[AoeIf] = field(default_factory=set)
    source: bytes = b""
    held: list[tuple[bytes, NetDevice]] = field(default_factory=list)
    heard: float = 0.0
    page: bytes = b""
    ask_at: float = inf
    repeats_lba: bool = False
    other_lba_since: float = inf

    def __post_init__(self) -> None:
        self.source = self.source or self.addr

    @property
    def can_send(self) -> bool:
        """Whether the window has room and there is an interface to send on (K41)."""
        window = self.window
        has_room = window.nout < window.maxout and self.ifp < len(self.ifs)
        return has_room and self.is_proven and self.ask_at == inf

    @property
    def next_step(self) -> float:
        """Time at which a candidate is compared with others, or forgotten."""
        if self.page:
            return self.last_response + DECIDE_SECONDS
        return self.heard + FORGET_SECONDS

    def update_if(self, netdev: NetDevice, sector_count: int) -> AoeIf:
        """Add an interface on which the target has responded, or update its ``bcnt``.

        ``bcnt`` is the smaller of what the MTU and the target's ``sector_count`` allow.
        If either is 0, it is 1024 bytes (K17, K18).
        """
        bcnt = min(sectors_per_frame(netdev.mtu), sector_count) * SECTOR
        bcnt = bcnt or DEFAULT_BCNT
        ifp = self.find_if(netdev)
        if ifp is None:
            ifp = AoeIf(netdev, bcnt)
            self.ifs.append(ifp)
        ifp.announced = bcnt
        ifp.bcnt = min(bcnt, ifp.limit or bcnt)
        self.update_minbcnt()
        return ifp

    def find_if(self, netdev: NetDevice) -> AoeIf | None:
        """Return the target's interface for ``netdev``, if any (``getif``)."""
        return next((ifp for ifp in self.ifs if ifp.netdev is netdev), None)

    def rotate(self) -> None:
        """Advance to the next interface (``ifrotate``, K42)."""
        ifp = self.ifp + 1
        self.ifp = ifp if ifp < len(self.ifs) else 0

    def eject(self, ifp: AoeIf) -> None:
        """Remove an interface after too many losses (``ejectif``, K50).

        The index ``ifp`` is not changed. If it is now beyond the end, no new frame is
        sent until a retransmission rotates it, as in the kernel.
        """
        self.ifs.remove(ifp)

    def update_minbcnt(self) -> None:
        """Set ``minbcnt`` to the smallest ``bcnt`` of all interfaces (K18)."""
        self.minbcnt = min(ifp.bcnt for ifp in self.ifs)

    def raise_taint(self, limit: int) -> None:
        """Raise the taint to 3, 12, 39, 120 ..., at most ``limit`` (``scorn``, K57)."""
        self.taint = min((self.taint + 1) * 3, limit)
