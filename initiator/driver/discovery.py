"""Create and update devices and targets from query config responses.

Most of ``aoecmd_cfg_rsp`` (K14-K18).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.address import SHELF_ALL, SLOT_ALL, Address
from aoe.ata import SECTOR
from aoe.header import sectors_per_frame
from initiator.driver.aoedev import FRAMES_LIMIT, AoeDev
from initiator.driver.paths import narrow
from initiator.driver.structs import AoeTgt
from initiator.driver.timing import TIMINGS

if TYPE_CHECKING:
    from aoe.config import Config
    from initiator.driver.driver import Driver
    from initiator.driver.netdev import NetDevice

_SHELF_SWITCHES: Final = 0x0FFF
"""Shelf of an appliance with unset address switches; the kernel rejects it (K14)."""


def on_config_response(
    driver: Driver,
    address: Address,
    src: bytes,
    config: Config,
    netdev: NetDevice,
    now: float,
) -> AoeDev | None:
    """Record that ``src`` serves the device on ``netdev``.

    Returns:
        The device; None if the response is ignored: the address is invalid or not in
        ``Options.only``, or the target has too many interfaces.
    """
    options = driver.options
    if address.shelf in (SHELF_ALL, _SHELF_SWITCHES) or address.slot == SLOT_ALL:
        driver.log.append(f"{address}: not a valid target address, s={src.hex()}")
        return None
    if options.only and address not in options.only:
        return None
    d = driver.devices.get(address)
    if d is None:
        timing = TIMINGS[options.timing]()
        d = driver.devices[address] = AoeDev(address, timing, options)
    nframes = min(config.buffer_count, options.maxout, FRAMES_LIMIT)
    target = d.find_target(src)
    if target is None:
        target = AoeTgt(src, d.timing.window(nframes))
        d.targets.append(target)
    else:
        target.window.resize(nframes)
    if not target.update_if(netdev, config.sector_count):
        driver.log.append(f"{address}: too many interfaces for s={src.hex()}")
        return None
    d.update_maxbcnt()
    ifp = target.find_if(netdev)
    if ifp is not None and ifp.limit:
        narrow.recheck(driver, d, target, ifp, now)
    return d


def apply_mtu(driver: Driver, netdev: NetDevice, now: float) -> None:
    """Lower the frame size of all paths through an interface to its present MTU.

    Nothing is raised: what a path can carry above its old size is learned from the next
    query config response.
    """
    for d in driver.devices.values():
        limit = sectors_per_frame(netdev.mtu) * SECTOR
        for target in d.targets:
            ifp = target.find_if(netdev)
            if ifp is not None:
                ifp.bcnt = min(ifp.bcnt, limit)
                target.update_minbcnt()
        d.update_maxbcnt()
        if driver.options.follow_mtu:
            d.expire_oversized(now)
