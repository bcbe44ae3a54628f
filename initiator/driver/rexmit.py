"""Lost frames: found, counted against their paths, and sent again.

Mirrors ``rexmit_timer``, ``rexmit_deferred``, ``resend`` and ``probe`` of
drivers/block/aoe/aoecmd.c (K48-K57a). A frame that was not answered in time waits on
``rexmitq`` until a window has room for it. A target that lets frames wait too long is
tainted: its frames go to others, and probes find out when it is back.

::

               lost too long           taint > 0 answers later
    trusted ------------------> tainted ----------------------> trusted
                                 |   ^
                           probe +---+ not answered: later again
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.errors import NotFoundError
from aoe.header import Command
from initiator.driver.bio import BioVec, Op, UserPages
from initiator.driver.frame import NEVER
from initiator.driver.requests import put_command, put_header

if TYPE_CHECKING:
    from initiator.driver.aoedev import AoeDev, AoeTgt
    from initiator.driver.driver import Driver
    from initiator.driver.frame import Frame

_PAGE_SIZE: Final = 4096
_EMPTY_PAGE: Final = UserPages(bytes(_PAGE_SIZE))
"""All that a probe carries, as often as it takes (K57a)."""


class Rexmit:
    """What a driver does about lost frames; all devices of the driver share it."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def expire(self, d: AoeDev, now: float) -> bool:
        """Put what was not answered in time on ``rexmitq`` (``rexmit_timer``, K50).

        Returns:
            False if the device has failed instead: its bios have ended (K54).
        """
        buckets = d.timing.buckets
        expired = [f for f in d.factive.values() if d.due(f) <= now]
        if buckets > 1:
            expired.sort(key=lambda f: f.tag % buckets)
        deadsecs = self._driver.options.deadsecs
        for f in expired:
            waited = int(f.waited_total + now - f.sent)
            if deadsecs and waited > deadsecs and not f.is_probe:
                why = f"no answer for {waited} s, device is down"
                self._driver.fail(d, NotFoundError(str(d.address), why))
                return False
            if f.everyday < NEVER:
                self._materialize_skb(d, f)
            self._record_loss(d, f, now)
            del d.factive[f.tag]
            d.rexmitq[f.tag] = f
            f.target.window.nout -= 1
            f.attempts += 1
        return True

    def _materialize_skb(self, d: AoeDev, f: Frame) -> None:
        # An everyday frame gets the skb that it would have, had the driver sent it.
        f.everyday = NEVER
        mac = f.ifp.netdev.mac
        put_header(f.skb, f.target.addr, mac, d.address, Command.ATA, f.tag)
        self._driver.fill(d, f)

    def _record_loss(self, d: AoeDev, f: Frame, now: float) -> None:
        """Count a loss against its target and its interface."""
        target, timing = f.target, d.timing
        waited = f.waited + now - f.sent
        unheard = f.attempts + 1 if target.heard <= now - waited else 0
        deadsecs = self._driver.options.deadsecs
        if timing.should_taint(waited, unheard, deadsecs, len(d.targets)):
            target.raise_taint(timing.max_taint)
        target.window.lost(f.attempts + 1, f.sent, now)
        if f.is_probe:
            target.nout_probes -= 1
            return
        ifp = f.ifp
        if not timing.by_burst or f.sent > ifp.lost_at:
            ifp.lost += 1
            ifp.lost_at = now
        if (
            ifp.lost > timing.losses(target.window.nframes)
            and len(target.ifs) > 1
            and ifp in target.ifs
        ):
            target.eject(ifp)
            if self._driver.options.shrink:
                target.update_minbcnt()
                d.update_maxbcnt()

    def resend_deferred(self, d: AoeDev, now: float) -> None:
        """Send lost frames again as far as the windows allow (``rexmit_deferred``)."""
        trusted = d.has_untainted
        for tag, f in list(d.rexmitq.items()):
            if f.is_probe and not (trusted and f.target.taint):
                # There is nobody else meanwhile, or it is trusted again.
                del d.rexmitq[tag]
                self._driver.free_frame(f)
                d.kickme = True
            elif self._may_resend(d, f, now, trusted=trusted):
                del d.rexmitq[tag]
                self._resend(d, f, now)

    def _may_resend(self, d: AoeDev, f: Frame, now: float, *, trusted: bool) -> bool:
        """Tell whether it is a frame's turn; it may get another target by this."""
        target = f.target
        if target.taint and f.is_probe:
            if now < d.next_probe(f):
                return False
        elif target.taint:
            # The kernel looks for another even if all are tainted; it takes a turn of
            # the interfaces to find out that there is only the same.
            patient = d.timing.probes_only
            if (trusted or not patient) and d.reassign(f):
                if trusted and not target.nout_probes:
                    self._probe(d, target, now)
            elif trusted and patient:
                return False
        return f.target.window.is_open

    def _resend(self, d: AoeDev, f: Frame, now: float) -> None:
        """``resend``: a new tag in the header, on the next interface (K42, K52)."""
        driver, head = self._driver, f.skb.head
        old, jiffies = f.tag, driver.jiffies(now)
        before = f"s={head[6:12].hex()} d={head[:6].hex()}"
        f.waited += now - f.sent
        f.waited_total += now - f.sent
        f.earlier[old] = f.sent
        if f.is_probe:
            f.target.nout_probes += 1
            if driver.options.shrink:
                self._fill_probe(d, f)
        elif driver.options.shrink and d.shrink(f):
            driver.fill(d, f)
        f.target.rotate()
        driver.transmit(d, f, now)
        if f.is_probe:
            return
        d.retransmits += 1
        driver.log.append(
            f"{'retransmit':>15} {d.address} oldtag={old:08x}@{jiffies:08x} "
            f"newtag={f.tag:08x} {before} nout={f.target.window.nout}"
        )

    # --- tainted targets ----------------------------------------------------------

    def lower_taint(self, d: AoeDev, target: AoeTgt, now: float) -> None:
        """Trust a tainted target more, since it answered; or ask it again (K57)."""
        target.taint -= 1
        if d.has_untainted:
            for each in d.targets if d.timing.probes_only else [target]:
                if each.taint and not each.nout_probes:
                    self._probe(d, each, now)

    def _probe(self, d: AoeDev, target: AoeTgt, now: float) -> None:
        """``probe``: the window does not matter, and neither does the answer (K57a)."""
        f = d.frame_of(target)
        if f is None:
            return
        target.rotate()
        f.begin(is_probe=True)
        f.buf = f.op = None
        f.sector = f.length = 0
        self._fill_probe(d, f)
        self._driver.transmit(d, f, now)
        target.nout_probes += 1

    def _fill_probe(self, d: AoeDev, f: Frame) -> None:
        length = d.maxbcnt
        put_command(f.skb, Op.READ, 0, length, ext=d.ext)
        f.segments = []
        f.skb.frags = [
            BioVec(_EMPTY_PAGE, 0, min(_PAGE_SIZE, length - start))
            for start in range(0, length, _PAGE_SIZE)
        ]
