"""Who is there: what an answer to a config query makes of devices and their targets.

Most of ``aoecmd_cfg_rsp`` (K14-K18).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.address import SHELF_ALL, SLOT_ALL, Address
from aoe.ata import SECTOR
from aoe.header import sectors_per_frame
from initiator.driver.aoedev import FRAMES_LIMIT, AoeDev, AoeTgt
from initiator.driver.timing import TIMINGS

if TYPE_CHECKING:
    from aoe.config import Config
    from initiator.driver.driver import Driver
    from initiator.driver.netdev import NetDevice

_SHELF_SWITCHES: Final = 0x0FFF
"""Shelf of a box whose address switches were never set; the kernel rejects it (K14)."""


def on_config_response(
    driver: Driver, address: Address, src: bytes, config: Config, netdev: NetDevice
) -> AoeDev | None:
    """Note that ``src`` serves the device, behind ``netdev``; return the device.

    None if it is none that we would use.
    """
    options = driver.options
    if address.shelf in (SHELF_ALL, _SHELF_SWITCHES) or address.slot == SLOT_ALL:
        driver.log.append(f"{address}: no address for a target, s={src.hex()}")
        return None
    if options.only and address not in options.only:
        return None
    d = driver.devices.get(address)
    if d is None:
        timing = TIMINGS[options.timing]()
        d = driver.devices[address] = AoeDev(address, timing)
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
    return d


def apply_mtu(driver: Driver, netdev: NetDevice, now: float) -> None:
    """Cut down at once what an interface carries less than before."""
    for d in driver.devices.values():
        room = sectors_per_frame(netdev.mtu) * SECTOR
        for target in d.targets:
            ifp = target.find_if(netdev)
            if ifp is not None:
                ifp.bcnt = min(ifp.bcnt, room)
                target.update_minbcnt()
        d.update_maxbcnt()
        if driver.options.shrink:
            d.expire_oversized(now)
