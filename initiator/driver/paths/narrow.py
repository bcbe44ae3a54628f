"""Find what a path carries that loses long frames (P23).

A switch in between may have a smaller MTU than both ends, and drops longer frames
without a message. If a frame is lost three times, READs that carry as many zeroes as
they read are sent, which tests both directions without writing::

    one sector --lost--> no conclusion: the target may not respond at all
          | answered
          v
    as long as announced --answered--> nothing is wrong with the length
          | lost
          v
    two sectors, three, binary search
          | found
          v
    as long as announced, once more --lost--> the path is limited

A limited path is tested again at full length after each config response of the target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.address import format_mac
from aoe.ata import SECTOR
from aoe.header import sectors_per_frame
from initiator.driver.requests import put_probe

if TYPE_CHECKING:
    from initiator.driver.aoedev import AoeDev
    from initiator.driver.driver import Driver
    from initiator.driver.structs import AoeIf, AoeTgt, Frame

_LOSSES: Final = 3
"""Losses of a frame in a row after which its path is tested, and of a test after which
its length does not pass."""
_INTERVAL: Final = 2.0
"""Seconds between two searches on a path, and limit for the gap within one."""
_COMMON: Final = 2
"""What an MTU of 1500 carries: tested before others."""
_MTU_OVERHEAD: Final = 36
"""Bytes of a frame that are not data (P22)."""


class Search:
    """A search on one path, in sectors.

    Args:
        sector: the first sector to read.
        full: what both ends announce.
        time: time of the last step.
        is_recheck: test the full length only.
    """

    __slots__ = ("failed", "full", "is_recheck", "losses", "passed", "sector", "time")

    def __init__(
        self, sector: int, full: int, time: float, *, is_recheck: bool
    ) -> None:
        self.sector, self.full, self.time = sector, full, time
        self.is_recheck = is_recheck
        self.passed = 0
        self.failed = full + 1
        self.losses = 0

    def next_length(self) -> int:
        """Return the next length to test: the full one second, and at last."""
        if not (self.passed or self.is_recheck):
            return 1
        if self.failed > self.full or self.failed - self.passed == 1:
            return self.full
        if self.passed <= _COMMON:
            return self.passed + 1
        return (self.passed + self.failed) // 2


def on_loss(driver: Driver, d: AoeDev, f: Frame, now: float) -> None:
    """Test the path of a frame that was lost, if it was lost too often."""
    is_long = f.op is not None and f.buf is not None and f.length > SECTOR
    if is_long and driver.options.follow_mtu and f.attempts + 1 >= _LOSSES:
        full = f.ifp.bcnt // SECTOR
        sector = min(f.sector, max(0, d.ssize - full))
        _start(driver, d, f.target, f.ifp, Search(sector, full, now, is_recheck=False))


def recheck(driver: Driver, d: AoeDev, target: AoeTgt, ifp: AoeIf, now: float) -> None:
    """Test whether a limited path carries full frames by now."""
    full = min(ifp.announced // SECTOR, d.ssize)
    if ifp.limit and full > ifp.limit // SECTOR:
        _start(driver, d, target, ifp, Search(0, full, now, is_recheck=True))


def _start(
    driver: Driver, d: AoeDev, target: AoeTgt, ifp: AoeIf, search: Search
) -> None:
    before = ifp.search
    is_due = before is None or search.time - before.time >= _INTERVAL
    if is_due and ifp in target.ifs:
        ifp.search = search
        _test(driver, d, target, ifp, search)


def _test(
    driver: Driver, d: AoeDev, target: AoeTgt, ifp: AoeIf, search: Search
) -> None:
    length = search.next_length() * SECTOR
    # The interface may have a smaller MTU by now.
    if ifp not in target.ifs or length > sectors_per_frame(ifp.netdev.mtu) * SECTOR:
        ifp.search = None
        return
    f = d.new_target_frame(target)
    if f is None:
        return
    target.ifp = target.ifs.index(ifp)
    f.begin(is_probe=True)
    f.attempts = search.losses
    f.buf = f.op = None
    f.segments = []
    f.sector, f.length = search.sector, length
    put_probe(f.skb, f.sector, f.length, ext=d.ext)
    driver.transmit(d, f, search.time)
    # Not counted in the window, which may have room for one frame only.
    target.window.nout -= 1
    target.nout_probes += 1


def on_test_result(
    driver: Driver, d: AoeDev, f: Frame, now: float, *, is_lost: bool
) -> None:
    """Continue a search after a test was answered, or lost."""
    target, ifp, length = f.target, f.ifp, f.length // SECTOR
    search = ifp.search
    if search is None or length != search.next_length():
        return
    search.time = now
    if is_lost and not (search.passed or search.is_recheck):
        return
    search.losses = search.losses + 1 if is_lost else 0
    if is_lost and search.losses < _LOSSES:
        _test(driver, d, target, ifp, search)
        return
    search.losses = 0
    is_last = search.failed - search.passed == 1
    if not is_lost:
        search.passed = length
    else:
        search.failed = min(search.failed, length)
    if length == search.full and not is_lost:
        # The path may be limited already, and was tested up to that.
        if search.is_recheck or length * SECTOR >= ifp.announced:
            _set_limit(driver, d, target, ifp, 0, now)
    elif is_last:
        _set_limit(driver, d, target, ifp, search.passed * SECTOR, now)
    elif not search.is_recheck:
        _test(driver, d, target, ifp, search)


def _set_limit(
    driver: Driver, d: AoeDev, target: AoeTgt, ifp: AoeIf, limit: int, now: float
) -> None:
    if limit == ifp.limit:
        return
    ifp.limit = limit
    ifp.bcnt = min(ifp.announced, limit or ifp.announced)
    target.update_minbcnt()
    d.update_maxbcnt()
    d.expire_oversized(now)
    name = ifp.netdev.name
    where = f"{name} to {format_mac(target.addr)}"
    if not limit:
        driver.warn(d, f"{where}: the path carries {ifp.bcnt} bytes per frame again")
        return
    why = (
        f"{where}: the path carries {limit} bytes of data per frame, both ends "
        f"{ifp.announced}: a switch has a smaller MTU. Using {limit}"
    )
    mtu = limit + _MTU_OVERHEAD
    driver.warn(d, f"{why}. Raise its MTU, or: ip link set {name} mtu {mtu}")
