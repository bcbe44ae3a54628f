"""Refusals: paths that serve another disk than the one in use.

A refused path gets no data. Of a device that is open, the paths that were proven stay
in use; without any, the device fails. A device that is not open yet has no disk in use:
if its paths have different disks, it is not used at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.address import format_mac
from aoe.errors import DeviceError
from aoe.identify import Identity
from initiator.driver.aoedev import State
from initiator.driver.paths.candidates import drop
from initiator.driver.structs import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from initiator.driver.aoedev import AoeDev
    from initiator.driver.driver import Driver
    from initiator.driver.structs import AoeTgt

_REFUSALS_LIMIT: Final = 8
"""Maximum number of refusals kept per device."""
_REPORT_SECONDS: Final = 60.0
"""Seconds after which a refusal is reported again."""
_FIX: Final = "Give one of the targets another address"


def refuse(driver: Driver, d: AoeDev, target: AoeTgt, what: str, now: float) -> None:
    """Use a target no longer, or not at all, because it serves another disk."""
    others = [each for each in d.targets if each is not target]
    if not d.nopen:
        report_conflict(driver, d, [*others, target], now)
        return
    page, name = target.page, target.ifs[0].netdev.name
    found, used = Identity.unpack(page), Identity.unpack(d.ident)
    why = (
        f"{format_mac(target.addr)} on {name}: it serves {what}, {found.describe()}, "
        f"not the one in use, {used.describe()}"
    )
    add_refusal(driver, d, Refusal(target.addr, name, why, page, now))
    if target in d.targets:
        _remove_target(driver, d, target, now)
    else:
        drop(d, target)
    if not d.targets and d.state is State.UP:
        driver.fail(d, DeviceError(str(d.address), f"{why}: refused", _FIX))


def report_conflict(
    driver: Driver, d: AoeDev, targets: Sequence[AoeTgt], now: float
) -> None:
    """Use none of the targets of a closed device, because their disks differ."""
    disks = [
        f"{format_mac(each.addr)} on {each.ifs[0].netdev.name} serves "
        f"{Identity.unpack(each.page or d.ident).describe()}"
        for each in targets
    ]
    why = f"different disks at one address: {', '.join(disks)}"
    d.conflict = DeviceError(str(d.address), why, _FIX)
    for each, disk in zip(targets, disks, strict=True):
        name = each.ifs[0].netdev.name
        refusal = Refusal(each.addr, name, disk, each.page or d.ident, now)
        d.refusals[each.addr] = refusal
    driver.warn(d, f"{why}: none is used")
    driver.fail(d, d.conflict)
    d.targets.clear()


def add_refusal(driver: Driver, d: AoeDev, refusal: Refusal) -> None:
    """Record a refusal, and report it unless the last one is recent and the same."""
    before = d.refusals.pop(refusal.mac, None)
    if len(d.refusals) >= _REFUSALS_LIMIT:
        del d.refusals[next(iter(d.refusals))]
    d.refusals[refusal.mac] = refusal
    if (
        before is None
        or before.why != refusal.why
        or refusal.time - before.time > _REPORT_SECONDS
    ):
        driver.warn(d, f"refused {refusal.why}")


def _remove_target(driver: Driver, d: AoeDev, target: AoeTgt, now: float) -> None:
    """Remove a target; its frames wait until another one has room."""
    d.targets.remove(target)
    d.to_identify.pop(target, None)
    target.is_proven = False
    target.held.clear()
    for tag, f in [*d.factive.items(), *d.rexmitq.items()]:
        if f.target is not target:
            continue
        d.factive.pop(tag, None)
        d.rexmitq.pop(tag, None)
        if f.buf is not None:
            d.rexmitq[tag] = f
    d.update_maxbcnt()
    driver.schedule(d, now)
