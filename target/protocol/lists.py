"""Commands 2 and 3: the MAC mask list and the reservation.

Both lists belong to the export and apply on all its interfaces. They keep the order of
insertion and have no duplicates. A change is saved before it is answered; a change that
could not be saved is not made, and is answered with AoE error 3.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from aoe.header import HEADER_LENGTH, Command, ErrorCode, Header
from aoe.macmask import (
    DIRECTIVE_LENGTH,
    MASK_LENGTH,
    Directive,
    DirectiveCommand,
    MaskCommand,
    MaskError,
    MaskList,
)
from aoe.reserve import RESERVE_LENGTH, Reserve, ReserveCommand
from target.protocol.exports import LIST_LIMIT
from target.protocol.frames import Drop, Fields, pad

if TYPE_CHECKING:
    from target.protocol.target import Target

_ADD: Final = int(DirectiveCommand.ADD)
_DELETE: Final = int(DirectiveCommand.DELETE)


def mask_list(
    target: Target, fields: Fields, request: memoryview, response: memoryview
) -> int:
    """Execute command 2: read or edit the MAC mask list (P61 to P70).

    A client that removes itself from the list still gets this response (P70).
    """
    if len(request) < HEADER_LENGTH + MASK_LENGTH:
        return target.drop(Drop.SHORT)
    received = MaskList.unpack_from(request)
    if received.mcmd == MaskCommand.EDIT and received.declared is None:
        body, code = _edit_mask(target, received)
    elif received.mcmd == MaskCommand.READ:
        body, code = _current_mask(target, received.mcmd), None  # P62
    else:
        # An unknown command (P68), or fewer directives than the count (P69).
        return target.refuse(request, response, ErrorCode.BAD_ARGUMENT)
    header = Header.unpack_from(request)
    target.pack_header(response, fields[0], Command.MASK, header.tag, code)
    return pad(response, HEADER_LENGTH + body.pack_into(response))


def _current_mask(target: Target, mcmd: int) -> MaskList:
    # Truncated to the MTU: another interface with a larger one can have set the list.
    shown = target.export.state.mask[: _room_for_mask(target)]
    return MaskList(mcmd, tuple(Directive(DirectiveCommand.NONE, mac) for mac in shown))


def _room_for_mask(target: Target) -> int:
    room = (target.frame_limit - HEADER_LENGTH - MASK_LENGTH) // DIRECTIVE_LENGTH
    return min(room, LIST_LIMIT)


def _edit_mask(target: Target, received: MaskList) -> tuple[MaskList, ErrorCode | None]:
    # Directives before a bad one are applied (P65). The response then echoes the
    # request, with the index of the bad directive as the count (P64, P66).
    state = target.export.state
    macs = dict.fromkeys(state.mask)
    limit = _room_for_mask(target)
    done, problem = 0, MaskError.NONE
    for dcmd, mac in received.directives:
        problem = _apply_directive(macs, dcmd, mac, limit)
        if problem:
            break
        done += 1
    try:
        target.export.update_state(replace(state, mask=tuple(macs)))
    except OSError:
        return _current_mask(target, received.mcmd), ErrorCode.DEVICE_UNAVAILABLE
    if problem:
        target.count_error(f"mask_{problem.name.lower()}")
        return MaskList(received.mcmd, received.directives[:limit], problem, done), None
    return _current_mask(target, received.mcmd), None  # P67


def _apply_directive(
    macs: dict[bytes, None], dcmd: int, mac: bytes, limit: int
) -> MaskError:
    # Adding a present address and deleting an absent one succeed (P63).
    if dcmd == _ADD:
        if mac not in macs and len(macs) >= limit:
            return MaskError.FULL
        macs[mac] = None
    elif dcmd == _DELETE:
        macs.pop(mac, None)
    elif dcmd:
        return MaskError.BAD_DIRECTIVE
    return MaskError.NONE


def reserve(
    target: Target, fields: Fields, request: memoryview, response: memoryview
) -> int:
    """Execute command 3: read, set or force the reservation (P71 to P78).

    Every response has the current list, an error response included (P71).
    """
    if len(request) < HEADER_LENGTH + RESERVE_LENGTH:
        return target.drop(Drop.SHORT)
    received = Reserve.unpack_from(request)
    code = _set_holders(target, fields[0], received)
    header = Header.unpack_from(request)
    target.pack_header(response, fields[0], Command.RESERVE, header.tag, code)
    room = (target.frame_limit - HEADER_LENGTH - RESERVE_LENGTH) // 6
    body = Reserve(received.rcmd, target.export.state.holders[:room])
    return pad(response, HEADER_LENGTH + body.pack_into(response))


def _set_holders(target: Target, src: bytes, received: Reserve) -> ErrorCode | None:
    state = target.export.state
    if received.rcmd == ReserveCommand.READ:
        return None  # Any client may read it (P73).
    if received.rcmd not in _RESERVE_COMMANDS or received.declared is not None:
        return ErrorCode.BAD_ARGUMENT  # P75
    if (
        received.rcmd == ReserveCommand.SET
        and state.holders
        and src not in state.holder_set
    ):
        return ErrorCode.RESERVED  # P72
    try:
        holders = tuple(dict.fromkeys(received.macs))
        target.export.update_state(replace(state, holders=holders))
    except OSError:
        return ErrorCode.DEVICE_UNAVAILABLE
    return None


_RESERVE_COMMANDS: Final = frozenset(ReserveCommand)
