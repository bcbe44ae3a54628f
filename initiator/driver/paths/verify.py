"""Compare identities: which paths are used, and whose responses are processed.

::

    config response of --> candidate --IDENTIFY, same disk--> proven: gets data
    an unknown path          |    |                             |  ^
                  no answer  |    | another disk       restart, |  | IDENTIFY,
                             v    v              loss, failure  v  | same disk
                       forgotten  refused <--another disk---- suspected: gets none
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.address import format_mac
from aoe.ata import ATA_DATA, SECTOR
from aoe.header import ErrorCode, Flag
from aoe.identify import Identity
from initiator.driver import responses
from initiator.driver.aoedev import FRAMES_LIMIT, State
from initiator.driver.paths.candidates import drop, identify
from initiator.driver.paths.refusals import add_refusal, refuse, report_conflict
from initiator.driver.structs import Refusal

if TYPE_CHECKING:
    from initiator.driver.aoedev import AoeDev
    from initiator.driver.driver import Driver
    from initiator.driver.netdev import NetDevice
    from initiator.driver.structs import AoeTgt, Frame

_REFUSAL_SECONDS: Final = 10.0
"""Seconds for which a refused path of a closed device counts as a conflict."""
_VERFL: Final = 14
_ERROR: Final = 15
_SRC: Final = slice(6, 12)
"""The source MAC address of a frame."""
_UNPROVEN: Final = (
    "it responds to requests for this disk without having announced it, and does not "
    "answer IDENTIFY: its responses are ignored"
)


def admits(
    driver: Driver,
    d: AoeDev,
    src: bytes,
    tag: int,
    frame: memoryview,
    netdev: NetDevice,
    now: float,
) -> bool:
    """Return True if a response may be processed; others are held or ignored.

    A response from a MAC address that has not announced the device is foreign. If it
    answers a request, the target may send from another port: then IDENTIFY, sent to the
    target, has to be answered from there too.
    """
    known = d.find_target(src)
    if not driver.options.verify_paths:
        is_foreign = driver.options.check_responses and known is None
        driver.foreign += is_foreign
        return not is_foreign
    f = d.outstanding(tag) or _revert_identify(d, tag)
    if f is None:
        driver.foreign += known is None
        return known is not None
    target = f.target
    if f.is_identify:
        return _admits_identity(driver, d, target, frame, now)
    if target.is_proven and (src == target.source or (known and known.is_proven)):
        return True
    driver.foreign += known is None and src != target.source
    if len(target.held) < FRAMES_LIMIT:
        target.held.append((bytes(frame), netdev))
    if not target.identifying:
        identify(driver, d, target, now)
    return False


def _revert_identify(d: AoeDev, tag: int) -> Frame | None:
    """Await the response to an earlier transmission of an IDENTIFY.

    Returns:
        The frame; None if the tag is of no such transmission.
    """
    for queue in (d.factive, d.rexmitq):
        for f in queue.values():
            if f.is_identify and tag in f.earlier:
                del queue[f.tag]
                f.earlier[f.tag] = f.sent
                f.tag, f.sent = tag, f.earlier.pop(tag)
                queue[tag] = f
                return f
    return None


def _admits_identity(
    driver: Driver, d: AoeDev, target: AoeTgt, frame: memoryview, now: float
) -> bool:
    """Return True if an IDENTIFY has been answered with its data.

    After an error, a candidate is forgotten until its next config response; a known
    target is asked again when the IDENTIFY expires. From another MAC address than the
    one asked, only the identity of the disk in use is accepted.
    """
    if frame[_SRC] not in (target.addr, target.source) and not _agrees(d, frame):
        driver.foreign += 1
        return False
    is_error = frame[_VERFL] & Flag.ERROR
    if len(frame) < ATA_DATA and not is_error:
        return False
    is_candidate = target not in d.targets
    if is_error:
        code = frame[_ERROR]
        known = code in list(ErrorCode)
        text = ErrorCode(code).text if known else f"unknown error {code}"
        error = f"{d.address}: IDENTIFY refused: {text}"
    else:
        failed = responses.identify_error(d, frame)
        if failed is None:
            return True
        error = str(failed)
    driver.log.append(error)
    target.last_response = now
    if is_candidate:
        drop(d, target)
    return False


def _agrees(d: AoeDev, frame: memoryview) -> bool:
    """Return True if a response to IDENTIFY has the identity of the disk in use."""
    if frame[_VERFL] & Flag.ERROR or len(frame) < ATA_DATA + SECTOR:
        return False
    found = Identity.unpack(responses.identify_page(frame))
    return d.identity is None or found.is_same_disk(d.identity)


def on_identify(
    driver: Driver, d: AoeDev, target: AoeTgt, frame: memoryview, now: float
) -> None:
    """Process the IDENTIFY data of a candidate or a known target."""
    target.source = bytes(frame[_SRC])
    target.page = page = responses.identify_page(frame)
    others = [each for each in d.targets if each.is_proven and each is not target]
    before, found = d.identity, Identity.unpack(page)
    if before is None or not (d.nopen or others):
        if target in d.targets:
            _accept(driver, d, target, now)
        else:
            _decide(driver, d, now)
    elif not found.is_same_disk(before):
        refuse(driver, d, target, "another disk", now)
    elif found.sectors != before.sectors and others and target not in d.targets:
        # The disk may have been resized: the others are asked, too.
        d.to_identify |= dict.fromkeys(others)
        driver.schedule(d, now)
        refuse(driver, d, target, "a disk of another size", now)
    else:
        _accept(driver, d, target, now)


def _decide(driver: Driver, d: AoeDev, now: float) -> None:
    """Use the candidates of a device without paths, if all have the same disk."""
    found = [each for each in d.candidates.values() if each.page]
    if not found:
        return
    # Candidates that are heard later are compared when they answer.
    first = min(found, key=lambda each: each.last_response)
    awaited = [
        each
        for each in d.candidates.values()
        if not each.page and each.heard <= first.last_response
    ]
    if awaited and now < first.next_step:
        return
    pages = {each.page for each in found}
    pages |= {
        each.page
        for each in d.refusals.values()
        if each.page and now - each.time < _REFUSAL_SECONDS
    }
    one, *others = map(Identity.unpack, pages)
    if all(each.is_same_disk(one) and each.sectors == one.sectors for each in others):
        for target in found:
            _accept(driver, d, target, now)
    else:
        report_conflict(driver, d, found, now)


def _accept(driver: Driver, d: AoeDev, target: AoeTgt, now: float) -> None:
    """Use a target that has shown that it serves the device's disk."""
    page, target.page = target.page, b""
    d.candidates.pop((target.addr, target.ifs[0].netdev), None)
    known = d.find_target(target.addr)
    if known is None:
        known = target
        d.targets.append(target)
    elif known is not target:
        known.ifs += target.ifs
        known.window.resize(target.window.nframes)
        known.source = target.source
        known.update_minbcnt()
    known.is_proven = True
    known.last_response = now
    d.refusals.pop(known.addr, None)
    d.conflict = None
    d.verified = now
    if d.state is not State.UP:
        d.up_since = now
    keeps_size = (
        d.nopen > 0 and d.state is State.UP and not driver.options.follow_resize
    )
    responses.take_identity(d, page, keeps_size=keeps_size)
    d.update_maxbcnt()
    if driver.options.follow_mtu:
        d.expire_oversized(now)
    held, known.held = known.held, []
    for frame, netdev in held:
        if frame[_SRC] in (known.addr, known.source):
            driver.receive(memoryview(frame), netdev, now)
        else:
            src = frame[_SRC]
            why = f"{format_mac(src)} on {netdev.name}: {_UNPROVEN}"
            add_refusal(driver, d, Refusal(src, netdev.name, why, b"", now))
    driver.schedule(d, now)


def expire(driver: Driver, d: AoeDev, now: float) -> None:
    """Forget candidates that do not answer, and devices that never did."""
    for target in list(d.candidates.values()):
        if not target.page and now >= target.next_step:
            drop(d, target)
    if d.candidates:
        _decide(driver, d, now)
    elif d.was_never_found:
        del driver.devices[d.address]
