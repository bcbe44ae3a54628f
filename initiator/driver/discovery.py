"""Create and update devices and targets from query config responses.

Most of ``aoecmd_cfg_rsp`` (K14-K19). With ``Options.verify_paths``, a new path is only
proposed: ``initiator.driver.paths`` decides whether it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.address import SHELF_ALL, SLOT_ALL, Address
from aoe.ata import SECTOR
from aoe.config import Config
from aoe.errors import DecodeError
from aoe.header import sectors_per_frame
from initiator.driver.aoedev import FRAMES_LIMIT, AoeDev, State
from initiator.driver.paths import narrow
from initiator.driver.paths.candidates import (
    drop_frames,
    propose,
    verify_again,
)
from initiator.driver.structs import IFS_LIMIT, AoeTgt
from initiator.driver.timing import TIMINGS

if TYPE_CHECKING:
    from initiator.driver.driver import Driver
    from initiator.driver.netdev import NetDevice
    from initiator.driver.structs import AoeIf

_SHELF_SWITCHES: Final = 0x0FFF
"""Shelf of an appliance with unset address switches; the kernel rejects it (K14)."""
_DEVICES_LIMIT: Final = 4096
"""Maximum number of devices. Those that are never identified are forgotten."""
_RESTARTED: Final = (
    "the target was restarted, and has no epoch to compare after a FLUSH (P84): if its "
    "host was restarted too, writes that were not flushed are lost"
)


def on_config_response(
    driver: Driver,
    address: Address,
    src: bytes,
    frame: memoryview,
    netdev: NetDevice,
    tag: int,
    now: float,
) -> None:
    """Record that ``src`` serves the device on ``netdev``.

    The response is ignored if the address is invalid or not in ``Options.only``, or if
    there are too many devices, candidates, or interfaces of the target.
    """
    try:
        config = Config.unpack_from(frame)
    except DecodeError:
        return
    d = _find_device(driver, address, src)
    if d is None:
        return
    target = _find_path(driver, d, src, config, netdev, now)
    if target is None:
        return
    ifp = target.update_if(netdev, config.sector_count)
    d.update_maxbcnt()
    if ifp.limit:
        narrow.recheck(driver, d, target, ifp, now)
    if not tag:
        # An announcement: the target was started, maybe with other options (P48).
        d.read_only = None
        if d.nopen and driver.options.verify_paths and d.epochs.is_blind:
            driver.warn(d, _RESTARTED)
    if driver.options.follow_mtu:
        d.expire_oversized(now)
    if not d.nopen:
        d.fw_ver = config.firmware
    _ask_identity(driver, d, target, ifp, now, has_restarted=not tag)


def _find_path(
    driver: Driver,
    d: AoeDev,
    src: bytes,
    config: Config,
    netdev: NetDevice,
    now: float,
) -> AoeTgt | None:
    """Return the target, new or known; None if the path may not be used (yet)."""
    nframes = min(config.buffer_count, driver.options.maxout, FRAMES_LIMIT)
    target = d.find_target(src)
    is_path = target is not None and target.find_if(netdev) is not None
    if target is not None:
        target.window.resize(nframes)
        if not is_path and len(target.ifs) >= IFS_LIMIT:
            driver.log.append(f"{d.address}: too many interfaces for s={src.hex()}")
            return None
    if driver.options.verify_paths and not is_path:
        if _may_return(driver, d):
            propose(driver, d, src, netdev, nframes, config, now)
        return None
    if target is None:
        target = AoeTgt(src, d.timing.window(nframes))
        d.targets.append(target)
    return target


def _find_device(driver: Driver, address: Address, src: bytes) -> AoeDev | None:
    """Return the device, new or known; None if its address is to be ignored."""
    if address.shelf in (SHELF_ALL, _SHELF_SWITCHES) or address.slot == SLOT_ALL:
        driver.log.append(f"{address}: not a valid target address, s={src.hex()}")
        return None
    options, devices = driver.options, driver.devices
    if options.only and address not in options.only:
        return None
    d = devices.get(address)
    if d is not None:
        return d
    if options.verify_paths and len(devices) >= _DEVICES_LIMIT:
        _forget_devices(driver)
        if len(devices) >= _DEVICES_LIMIT:
            return None
    d = devices[address] = AoeDev(address, TIMINGS[options.timing](), options)
    return d


def _ask_identity(
    driver: Driver,
    d: AoeDev,
    target: AoeTgt,
    ifp: AoeIf,
    now: float,
    *,
    has_restarted: bool,
) -> None:
    """Send IDENTIFY to a target that has announced itself, if options say so (K19)."""
    options, is_up = driver.options, d.state is State.UP
    if options.verify_paths:
        if _may_return(driver, d):
            verify_again(driver, d, target, ifp, now, has_restarted=has_restarted)
    elif d.nopen == 0 or (options.revive and not is_up):
        driver.identify_any(d, now)
    elif options.follow_resize and is_up and not target.identifying:
        d.to_identify[target] = ifp
        driver.schedule(d, now)


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


def _may_return(driver: Driver, d: AoeDev) -> bool:
    """Return False for an open device that failed and has to stay down (K56)."""
    return not d.nopen or d.state is State.UP or driver.options.revive


def _forget_devices(driver: Driver) -> None:
    for d in list(driver.devices.values()):
        if d.was_never_found:
            del driver.devices[d.address]


def forget_paths(driver: Driver, d: AoeDev) -> None:
    """Forget the paths of a closed device: who serves it is found out again."""
    if d.nopen or d.bios or d.buf is not None or not driver.options.verify_paths:
        return
    for target in (*d.targets, *d.candidates.values()):
        drop_frames(d, target)
    d.targets.clear()
    d.candidates.clear()
    d.to_identify.clear()
    d.refusals.clear()
    d.conflict = None
    d.state = State.DOWN
