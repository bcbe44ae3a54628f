"""Candidates: paths that have to prove that they serve the device's disk.

IDENTIFY is sent to the path itself, in a frame of its own, whatever the window of the
target. At most eight candidates are kept, and those that do not answer are forgotten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from initiator.driver.structs import AoeTgt

if TYPE_CHECKING:
    from aoe.config import Config
    from initiator.driver.aoedev import AoeDev
    from initiator.driver.driver import Driver
    from initiator.driver.netdev import NetDevice
    from initiator.driver.structs import AoeIf

_CANDIDATES_LIMIT: Final = 8
"""Maximum number of candidates per device."""
_REPLACE_SECONDS: Final = 0.02
"""Seconds after which a candidate may be replaced if there are too many."""


def propose(
    driver: Driver,
    d: AoeDev,
    src: bytes,
    netdev: NetDevice,
    nframes: int,
    config: Config,
    now: float,
) -> None:
    """Send IDENTIFY to a new path, or update what a candidate announces."""
    if not d.nopen:
        d.fw_ver = config.firmware
    key = src, netdev
    target = d.candidates.get(key)
    if target is None:
        if not _make_room(d, now):
            return
        window = d.timing.window(nframes)
        target = AoeTgt(src, window, is_proven=False, heard=now)
        d.candidates[key] = target
    else:
        target.window.resize(nframes)
    target.update_if(netdev, config.sector_count)
    may_ask = not target.identifying and not target.page
    if may_ask and target.window.is_open:
        if not (d.nopen or d.targets):
            d.timing.reset()
        identify(driver, d, target, now)


def _make_room(d: AoeDev, now: float) -> bool:
    """Return True if there is room for a candidate, after dropping an old one."""
    if len(d.candidates) < _CANDIDATES_LIMIT:
        return True
    unanswered = [each for each in d.candidates.values() if not each.page]
    oldest = min(unanswered, key=lambda each: each.heard, default=None)
    if oldest is None or now - oldest.heard < _REPLACE_SECONDS:
        return False
    drop(d, oldest)
    return True


def drop(d: AoeDev, target: AoeTgt) -> None:
    """Forget a candidate."""
    del d.candidates[target.addr, target.ifs[0].netdev]
    drop_frames(d, target)


def drop_frames(d: AoeDev, target: AoeTgt) -> None:
    """Forget the outstanding frames of a target."""
    for queue in (d.factive, d.rexmitq):
        for tag in [tag for tag, f in queue.items() if f.target is target]:
            del queue[tag]


def identify(
    driver: Driver, d: AoeDev, target: AoeTgt, now: float, attempts: int = 0
) -> None:
    """Send IDENTIFY to a target on its current interface, whatever its window."""
    f = d.new_target_frame(target) if d.has_tags(now) else None
    if f is None:
        if target in d.targets:
            d.to_identify[target] = None
        return
    if target.ifp >= len(target.ifs):
        target.rotate()
    target.identifying.add(target.ifs[target.ifp])
    d.to_identify.pop(target, None)
    driver.send_identify(d, f, now, attempts)


def identify_waiting(driver: Driver, d: AoeDev, now: float) -> None:
    """Send IDENTIFY to targets that have to be asked and have room by now."""
    for target, ifp in list(d.to_identify.items()):
        if target.identifying or target not in d.targets:
            del d.to_identify[target]
        elif target.window.is_open:
            if ifp in target.ifs:
                target.ifp = target.ifs.index(ifp)
            identify(driver, d, target, now)


def verify_again(
    driver: Driver,
    d: AoeDev,
    target: AoeTgt,
    ifp: AoeIf,
    now: float,
    *,
    has_restarted: bool,
) -> None:
    """Ask a known path for its identity; one that may have changed gets no data."""
    if has_restarted or not target.is_proven:
        target.is_proven = False
        if ifp not in target.identifying:
            target.ifp = target.ifs.index(ifp)
            identify(driver, d, target, now)
    elif ifp not in target.identifying:
        d.to_identify[target] = ifp
        driver.schedule(d, now)


def suspect(
    driver: Driver, d: AoeDev, target: AoeTgt, now: float, attempts: int = 0
) -> None:
    """Send no data to a target until it has shown that its disk is the same.

    Responses that arrive meanwhile are held.

    Args:
        driver: the driver.
        d: the device.
        target: the target.
        now: the time.
        attempts: how often a frame was lost that makes it suspect.
    """
    target.is_proven = False
    if not target.identifying:
        identify(driver, d, target, now, attempts)


def suspect_all(driver: Driver, d: AoeDev, now: float) -> None:
    """Ask all paths of a device for its identity, before they get data."""
    for target in d.targets:
        suspect(driver, d, target, now)
