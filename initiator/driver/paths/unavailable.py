"""Wait for a disk that its target cannot reach at present (AoE error 3, P14).

The storage behind a target may fail over, which takes 20 s with Ceph. Until it is back,
the target gets one request at a time, at intervals; all others wait. A frame that is
answered with nothing but this error for ``Options.deadsecs`` takes the device down, as
one without a response. The kernel retransmits each frame after its RTO (K62).
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from aoe.errors import DeviceError

if TYPE_CHECKING:
    from initiator.driver.aoedev import AoeDev
    from initiator.driver.driver import Driver
    from initiator.driver.structs import Frame

_SHORTEST: Final = 0.1
_LONGEST: Final = 1.0
"""Seconds from the error to the next request: a quarter of the time so far."""
_REPORT_INTERVAL: Final = 10.0
"""Seconds after the end of a pause within which another one is not reported."""


def ask_again_later(driver: Driver, d: AoeDev, f: Frame, now: float) -> None:
    """Queue a frame that was answered with the error, to be sent again."""
    deadsecs = driver.options.deadsecs
    waited = f.waited_total + now - f.sent
    if deadsecs and waited > deadsecs and not f.is_probe:
        why = f"device unavailable for {waited:.0f} s (AoE error 3), device is down"
        driver.fail(d, DeviceError(str(d.address), why))
        return
    d.unavailable_since = min(d.unavailable_since, now)
    lasts = now - d.unavailable_since
    target = f.target
    target.ask_at = now + min(max(_SHORTEST, lasts / 4), _LONGEST)
    # Paths to another server of the disk are preferred.
    target.raise_taint(d.timing.max_taint)
    d.rexmitq[f.tag] = f
    is_due = now - d.available_since > _REPORT_INTERVAL
    if is_due and not (d.has_untainted or d.is_unavailable_reported):
        d.is_unavailable_reported = True
        limit = f"for up to {deadsecs:g} s" if deadsecs else "until it is available"
        driver.warn(d, f"device unavailable (AoE error 3): asking again {limit}")


def on_available(driver: Driver, d: AoeDev, now: float) -> None:
    """Send requests again, since one was executed."""
    if d.is_unavailable_reported:
        driver.warn(d, f"available again after {now - d.unavailable_since:.0f} s")
    d.available_since = now
    reset(d)


def reset(d: AoeDev) -> None:
    """Wait for no target any longer."""
    for target in d.targets:
        target.ask_at = inf
    d.unavailable_since = inf
    d.is_unavailable_reported = False


def may_resend(d: AoeDev, f: Frame, now: float) -> bool:
    """Return True if a frame may be sent while no target can execute requests."""
    target = f.target
    if target.is_proven and target.ask_at == inf and target.window.is_open:
        return True
    return _may_ask(d, f, now)


def _may_ask(d: AoeDev, f: Frame, now: float) -> bool:
    """Return True if a frame may be sent now to find out whether a target is back.

    The frame is moved to the target that has not been asked for the longest time.
    """
    target = d.next_to_ask()
    if target is None or now < target.ask_at:
        return False
    return target is f.target or d.move(f, target)
