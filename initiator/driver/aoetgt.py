"""A target of a device, and the interfaces that it is reached on (aoe.h)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from aoe.ata import SECTOR
from aoe.header import sectors_per_frame

if TYPE_CHECKING:
    from initiator.driver.frame import Frame
    from initiator.driver.netdev import NetDevice
    from initiator.driver.timing import Window

DEFAULT_BCNT: Final = 2 * SECTOR
"""Data bytes per frame until a target has announced its limits (DEFAULTBCNT)."""
FRAMES_LIMIT: Final = 512
"""Maximum number of frames in one target's pool (K7)."""
IFS_LIMIT: Final = 8
"""Maximum number of interfaces per target (NAOEIFS, K7)."""


@dataclass(slots=True, eq=False)
class AoeIf:
    """``struct aoeif``: a local interface on which a target has responded (K4).

    Attributes:
        bcnt: data bytes per frame that the interface and the target can carry.
        lost: losses since the last successful response received on it.
        lost_at: time at which the last loss was detected.
    """

    netdev: NetDevice
    bcnt: int
    lost: int = 0
    lost_at: float = float("-inf")


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

    @property
    def can_send(self) -> bool:
        """Whether the window has room and there is an interface to send on (K41)."""
        window = self.window
        return window.nout < window.maxout and self.ifp < len(self.ifs)

    def update_if(self, netdev: NetDevice, sector_count: int) -> bool:
        """Add ``netdev`` to the target's interfaces, or update its ``bcnt``.

        ``bcnt`` is the smaller of what the MTU and the target allow. If either is 0, as
        with targets that announce 0 sectors and mean 2, it is 1024 bytes (K17, K18).

        Args:
            netdev: the interface on which the target has responded.
            sector_count: sectors per frame that the target announces.

        Returns:
            False if the target already has eight interfaces (K7).
        """
        bcnt = min(sectors_per_frame(netdev.mtu), sector_count) * SECTOR
        ifp = self.find_if(netdev)
        if ifp is not None:
            ifp.bcnt = bcnt or DEFAULT_BCNT
        elif len(self.ifs) < IFS_LIMIT:
            self.ifs.append(AoeIf(netdev, bcnt or DEFAULT_BCNT))
        else:
            return False
        self.update_minbcnt()
        return True

    def find_if(self, netdev: NetDevice) -> AoeIf | None:
        """Return the target's interface for ``netdev``, if any (``getif``)."""
        return next((ifp for ifp in self.ifs if ifp.netdev is netdev), None)

    def rotate(self) -> None:
        """Advance to the next interface (``ifrotate``, K42)."""
        ifp = self.ifp + 1
        self.ifp = ifp if ifp < len(self.ifs) else 0

    def eject(self, ifp: AoeIf) -> None:
        """Remove an interface after too many losses (``ejectif``, K50).

        ``ifp`` is not changed, so it selects the interface that followed the removed
        one. If there was none, no new frame is sent until a retransmission rotates to
        the first interface, as in the kernel.
        """
        self.ifs.remove(ifp)

    def update_minbcnt(self) -> None:
        """Set ``minbcnt`` to the smallest ``bcnt`` of all interfaces (K18)."""
        self.minbcnt = min(ifp.bcnt for ifp in self.ifs)

    def raise_taint(self, limit: int) -> None:
        """Raise the taint to 3, 12, 39, 120, 363 ..., at most ``limit`` (K57).

        ``scorn``.
        """
        self.taint = min((self.taint + 1) * 3, limit)
