"""Expire and retransmit frames, taint and probe targets.

Mirrors ``rexmit_timer``, ``rexmit_deferred``, ``resend`` and ``probe`` of
drivers/block/aoe/aoecmd.c (K48-K57a). An expired frame is queued on ``rexmitq`` until a
window has room for it. A target whose frames are not answered for too long is tainted:
its frames move to other targets, and probes detect that it responds again.

::

                 no response            as many responses as its taint
    untainted ----------------> tainted ------------------------------> untainted
                                 |   ^
                           probe +---+ no response: next probe after an interval
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aoe.errors import NotFoundError
from aoe.header import Command
from initiator.driver.bio import BioIter
from initiator.driver.paths import narrow, unavailable
from initiator.driver.paths.candidates import suspect
from initiator.driver.requests import put_header, put_probe, put_request
from initiator.driver.structs import SLOW_PATH_ONLY

if TYPE_CHECKING:
    from initiator.driver.aoedev import AoeDev
    from initiator.driver.driver import Driver
    from initiator.driver.structs import AoeTgt, Frame


def _is_vital(d: AoeDev, f: Frame) -> bool:
    """Return True if the device is down without a response to this frame."""
    if f.is_identify:
        return f.target in d.targets and not d.has_proven
    return not f.is_probe


def _truncate(d: AoeDev, f: Frame) -> bool:
    """Truncate a frame that is too long and queue the rest; return True if so."""
    if f.buf is None or f.op is None or not d.is_too_long(f):
        return False
    position = BioIter(f.segments, f.sector, f.length)
    f.length = d.max_length(f.op)
    f.segments = position.advance(f.length)
    left, sector = position.size, position.sector
    d.add_followup(f.buf, f.op, BioIter(position.advance(left), sector, left))
    return True


class Rexmit:
    """Retransmission for all devices of a driver."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def expire(self, d: AoeDev, now: float) -> bool:
        """Move expired frames to ``rexmitq`` (``rexmit_timer``, K50).

        Returns:
            False if the device has failed, and its bios have ended (K54).
        """
        buckets = d.timing.buckets
        expired = [f for f in d.factive.values() if d.due(f) <= now]
        if buckets > 1:
            expired.sort(key=lambda f: f.tag % buckets)
        deadsecs = self._driver.options.deadsecs
        for f in expired:
            waited = int(f.waited_total + now - f.sent)
            if deadsecs and waited > deadsecs and _is_vital(d, f):
                why = f"no response for {waited} s, device is down{d.refused}"
                self._driver.fail(d, NotFoundError(str(d.address), why))
                return False
            if f.min_response < SLOW_PATH_ONLY:
                self._materialize_skb(d, f)
            is_silent = self._record_loss(d, f, now)
            del d.factive[f.tag]
            if f.is_path_test:
                self._driver.free_frame(f)
                narrow.on_test_result(self._driver, d, f, now, is_lost=True)
                continue
            d.rexmitq[f.tag] = f
            f.target.window.nout -= 1
            narrow.on_loss(self._driver, d, f, now)
            f.attempts += 1
            if is_silent and self._driver.options.verify_paths and not f.is_identify:
                # It may be another disk that responds next.
                suspect(self._driver, d, f.target, now, f.attempts)
        return True

    def _materialize_skb(self, d: AoeDev, f: Frame) -> None:
        # The fast path builds frames in the ring and leaves the skb empty.
        f.min_response = SLOW_PATH_ONLY
        mac = f.ifp.netdev.mac
        put_header(f.skb, f.target.addr, mac, d.address, Command.ATA, f.tag)
        put_request(f, self._driver.page_hooks, ext=d.ext)

    def _record_loss(self, d: AoeDev, f: Frame, now: float) -> bool:
        """Record a loss at the frame's target and interface (K50).

        Returns:
            True if the target has become tainted, or more so.
        """
        target, timing = f.target, d.timing
        waited = f.waited + now - f.sent
        unanswered = f.attempts + 1 if target.last_response <= now - waited else 0
        deadsecs = self._driver.options.deadsecs
        is_silent = timing.should_taint(waited, unanswered, deadsecs, len(d.targets))
        if is_silent:
            target.raise_taint(timing.max_taint)
        target.window.on_loss(f.attempts + 1, f.sent, now)
        if f.is_probe:
            target.nout_probes -= 1
            return is_silent
        ifp = f.ifp
        if not timing.by_burst or f.sent > ifp.lost_at:
            ifp.lost += 1
            ifp.lost_at = now
        if (
            ifp.lost > timing.max_losses(target.window.nframes)
            and len(target.ifs) > 1
            and ifp in target.ifs
        ):
            target.eject(ifp)
            if self._driver.options.follow_mtu:
                target.update_minbcnt()
                d.update_maxbcnt()
        return is_silent

    def resend_deferred(self, d: AoeDev, now: float) -> None:
        """Retransmit frames as far as the windows allow (``rexmit_deferred``)."""
        has_untainted = d.has_untainted
        for tag, f in list(d.rexmitq.items()):
            if f.is_probe and not (has_untainted and f.target.taint):
                # All other targets are tainted by now, or this one is no longer.
                del d.rexmitq[tag]
                self._driver.free_frame(f)
                d.kickme = True
            elif self._may_resend(d, f, now, has_untainted=has_untainted):
                del d.rexmitq[tag]
                self._resend(d, f, now)

    def _may_resend(
        self, d: AoeDev, f: Frame, now: float, *, has_untainted: bool
    ) -> bool:
        """Return True if a frame can be sent now; may move it to another target."""
        if f.buf is not None and d.is_unavailable and not has_untainted:
            return unavailable.may_resend(d, f, now)
        if not f.target.is_proven:
            if f.is_identify or f.is_probe:
                return f.is_identify
            return d.reassign(f) and f.target.window.is_open
        if f.target.taint and not self._may_resend_tainted(
            d, f, now, has_untainted=has_untainted
        ):
            return False
        return f.target.window.is_open

    def _may_resend_tainted(
        self, d: AoeDev, f: Frame, now: float, *, has_untainted: bool
    ) -> bool:
        """Move a tainted target's frame, or return True if it may be sent there."""
        if f.is_probe:
            return now >= d.next_probe(f)
        # The kernel calls reassign_frame even if all targets are tainted. With one
        # target, the only effect is that its interface is rotated.
        target, probes_only = f.target, d.timing.probes_only
        if (has_untainted or not probes_only) and d.reassign(f):
            if has_untainted and not target.nout_probes:
                self._probe(d, target, now)
            return True
        return not (has_untainted and probes_only)

    def _resend(self, d: AoeDev, f: Frame, now: float) -> None:
        """Retransmit with a new tag on the next interface (``resend``, K42, K52)."""
        driver, head = self._driver, f.skb.head
        old, jiffies = f.tag, driver.jiffies(now)
        before = f"s={head[6:12].hex()} d={head[:6].hex()}"
        f.waited += now - f.sent
        f.waited_total += now - f.sent
        f.earlier[old] = f.sent
        if f.is_probe:
            f.target.nout_probes += 1
            if driver.options.follow_mtu:
                self._fill_probe(d, f)
        elif driver.options.follow_mtu and _truncate(d, f):
            put_request(f, driver.page_hooks, ext=d.ext)
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
        """Lower the taint of a target that has responded, and probe it again (K57).

        ``ktiocomplete``.
        """
        target.taint -= 1
        if d.has_untainted:
            for each in d.targets if d.timing.probes_only else [target]:
                if each.taint and each.is_proven and not each.nout_probes:
                    self._probe(d, each, now)

    def _probe(self, d: AoeDev, target: AoeTgt, now: float) -> None:
        """Send a probe, regardless of the window (``probe``, K57a)."""
        f = d.new_target_frame(target)
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
        f.segments = []
        put_probe(f.skb, 0, d.maxbcnt, ext=d.ext)
