"""Save and restore the state of a target that checks change.

The mask list is restored such that the client's own address is removed last; otherwise
the target would ignore the remaining requests (P70).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final

from aoe.address import format_mac
from aoe.ata import (
    ATA_DATA,
    AtaError,
    Feature,
    Opcode,
    Registers,
    Status,
)
from aoe.config import ConfigCommand
from aoe.header import Flag
from aoe.identify import FeatureSet
from aoe.macmask import DirectiveCommand, MaskCommand, MaskList
from aoe.reserve import ReserveCommand
from initiator.check.expect import (
    ANY_MASK_LIST,
    ANY_RESPONSE,
    Satisfies,
    config_is,
    holders_are,
    mask_is,
    succeeds,
)
from initiator.check.model import Needs, Skip

if TYPE_CHECKING:
    from initiator.check.model import Steps
    from initiator.check.subject import Subject

_DIRECTIVES_AT_ONCE: Final = 100


class TargetState(ABC):
    """One part of a target's state, with its requests to save and restore it."""

    what: ClassVar[str]

    @abstractmethod
    def save(self, t: Subject) -> Steps:
        """Save the state.

        Raises:
            Skip: it cannot be restored, so that it must not be changed.
        """

    @abstractmethod
    def restore(self, t: Subject) -> Steps:
        """Restore the state."""


class _Disk(TargetState):
    what = "sectors"

    def save(self, t: Subject) -> Steps:
        data = []
        if t.scratch.stop > t.sectors:
            raise Skip(f"sector {t.scratch.stop - 1} is not on the disk")
        for index, count in t.pieces():
            request = t.read(t.scratch[index], count)
            response = yield request, succeeds(sectors=count)
            data.append(response[ATA_DATA:])
        t.scratch_before = b"".join(data)
        response = yield t.write(t.scratch[0], t.original()), ANY_RESPONSE
        t.is_read_only = _is_aborted(response)

    def restore(self, t: Subject) -> Steps:
        if t.is_read_only:
            return
        for index, count in t.pieces():
            request = t.write(t.scratch[index], t.original(index, count))
            yield request, succeeds()


def _is_aborted(response: bytes) -> bool:
    if len(response) < ATA_DATA or response[14] & Flag.ERROR:
        return False
    registers = Registers.unpack_from(response)
    failed = registers.command & Status.ERROR
    return bool(failed and registers.feature & AtaError.ABORTED)


class _Cache(TargetState):
    what = "write cache"

    def save(self, t: Subject) -> Steps:
        t.require(FeatureSet.WRITE_CACHE)
        # Select the current setting, to find out if SET FEATURES is supported.
        yield from self.restore(t)

    def restore(self, t: Subject) -> Steps:
        is_on = FeatureSet.WRITE_CACHE in t.disk.enabled
        feature = Feature.WRITE_CACHE_ON if is_on else Feature.WRITE_CACHE_OFF
        yield t.ata(Opcode.SET_FEATURES, feature=feature), succeeds()


class _ConfigString(TargetState):
    what = "config string"

    def save(self, t: Subject) -> Steps:
        yield t.config(), config_is(t.string, ConfigCommand.READ)

    def restore(self, t: Subject) -> Steps:
        force = ConfigCommand.FORCE
        yield t.config(force, t.string), config_is(t.string, force)


class _Mask(TargetState):
    what = "MAC mask list"

    def save(self, t: Subject) -> Steps:
        if t.mask and t.client not in t.mask:
            raise Skip("the client is not in the MAC mask list, and yet is served")
        yield t.mask_list(), mask_is(*t.mask, mcmd=MaskCommand.READ)

    def restore(self, t: Subject) -> Steps:
        add, delete = int(DirectiveCommand.ADD), int(DirectiveCommand.DELETE)
        response = yield t.mask_list(), ANY_MASK_LIST
        now = [mac for _, mac in MaskList.unpack_from(response).directives]
        added = [mac for mac in now if mac not in t.mask]
        added.sort(key=t.client.__eq__)
        edits = [(add, mac) for mac in t.mask if mac not in now]
        edits += [(delete, mac) for mac in added]
        for first in range(0, len(edits), _DIRECTIVES_AT_ONCE):
            some = edits[first : first + _DIRECTIVES_AT_ONCE]
            yield t.mask_list(*some, mcmd=MaskCommand.EDIT), ANY_RESPONSE
        restored = Satisfies(
            "the original list", lambda response: _macs(response) == set(t.mask)
        )
        yield t.mask_list(), restored


def _macs(response: bytes) -> set[bytes]:
    return {mac for _, mac in MaskList.unpack_from(response).directives}


class _Reservation(TargetState):
    what = "reservation"

    def save(self, t: Subject) -> Steps:
        if t.holders:
            holders = ", ".join(map(format_mac, t.holders))
            raise Skip(f"the reservation of {holders} is in use")
        yield t.reserve(), holders_are(rcmd=ReserveCommand.READ)

    def restore(self, t: Subject) -> Steps:
        force = ReserveCommand.FORCE
        yield t.reserve(rcmd=force), holders_are(rcmd=force)


TARGET_STATES: Final[dict[Needs, TargetState]] = {
    Needs.RESERVE: _Reservation(),
    Needs.MASK: _Mask(),
    Needs.CONFIG: _ConfigString(),
    Needs.CACHE: _Cache(),
    Needs.DISK: _Disk(),
}
"""In the order of restoring: the reservation first, or WRITE would be rejected."""
