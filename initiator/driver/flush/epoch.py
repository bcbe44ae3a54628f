"""Compare the target's epoch across the writes that a FLUSH has to cover (P84).

A target whose host was restarted answers FLUSH with success, although writes that it
had answered before are lost. It then has another epoch in its IDENTIFY data.

::

    IDENTIFY     WRITE ... WRITE     FLUSH     IDENTIFY
    epoch 1      answered            success   epoch 1: the FLUSH covers them
                                               epoch 2: some of them may be lost

IDENTIFY follows each FLUSH that has something to cover. Per write, only a counter of
answered writes is incremented.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.ata import ATA_DATA, SECTOR
from aoe.errors import DeviceError
from aoe.identify import Identity
from initiator.driver.bio import Op

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aoe.address import Address
    from aoe.buffers import ReadBuffer
    from initiator.driver.structs import Buf, Frame

_CHANGES: Final = (Op.WRITE, Op.DISCARD)


class EpochGuard:
    """What a device's next FLUSH has to cover, and the epoch before it.

    Args:
        address: the device, for errors.

    Attributes:
        answered: writes and trims that the target has answered, without those that were
            stable by then (FUA).
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self.answered = 0
        self._covered = 0
        self._identity: tuple[object, ...] = ()
        self._epoch = 0
        self._clean_tags: set[int] = set()

    def reopen(self, page: bytes) -> None:
        """Begin with this IDENTIFY data: earlier writes are no longer of concern."""
        self._covered = self.answered
        self._take(Identity.unpack(page))

    def _take(self, identity: Identity) -> None:
        self._identity, self._epoch = _names(identity), identity.epoch

    @property
    def is_clean(self) -> bool:
        """Whether all answered writes are covered by a FLUSH."""
        return self.answered == self._covered

    @property
    def is_blind(self) -> bool:
        """Whether writes need a FLUSH, and a restart would not be noticed by it."""
        return self._epoch == 0 and not self.is_clean

    def on_flushed(self, buf: Buf) -> bool:
        """Record a FLUSH that succeeded; return True if IDENTIFY has to follow it."""
        if self._epoch and buf.covers > self._covered:
            return True
        self._covered = max(self._covered, buf.covers)
        return False

    def on_sent(self, f: Frame, in_flight: Iterable[Frame]) -> None:
        """Record that IDENTIFY is sent, for the first time or again."""
        # If no write is unflushed or in flight, later ones cannot be older than the
        # response to this transmission, which its tag tells.
        if self.is_clean and not any(each.op in _CHANGES for each in in_flight):
            self._clean_tags.add(f.tag)

    def on_identify(self, f: Frame, response: ReadBuffer) -> DeviceError | None:
        """Compare the epoch in a response; return the error of a FLUSH, or None."""
        may_take = f.tag in self._clean_tags
        self._clean_tags.clear()
        page = response[ATA_DATA : ATA_DATA + SECTOR]
        if len(page) < SECTOR:
            return None
        found = Identity.unpack(page)
        is_same = (_names(found), found.epoch) == (self._identity, self._epoch)
        covers = -1 if f.buf is None else f.buf.covers
        error = None
        if is_same:
            self._covered = max(self._covered, covers)
        elif covers > self._covered:
            error = DeviceError(
                str(self._address),
                "writes that were answered may be lost: the target's host or storage "
                "was restarted before the flush",
                "Open the disk again, and write them again",
            )
        elif may_take and _names(found) == self._identity:
            self._take(found)
        return error


def _names(identity: Identity) -> tuple[object, ...]:
    return identity.serial, identity.model, identity.wwn
