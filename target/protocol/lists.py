"""Commands 2 and 3: who is served at all, and who may touch the disk.

Both lists belong to the export and so to all its interfaces. They keep the order in
which addresses came, and hold none twice. A change is kept first and answered then;
one that could not be kept is not made, and answered with AoE error 3.
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
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> int:
    """Execute command 2: read or edit the list of clients that are served (P61 to P70).

    The editor gets its reply even if it has just shut itself out (P70).
    """
    if len(request) < HEADER_LENGTH + MASK_LENGTH:
        return target.drop(Drop.SHORT)
    asked = MaskList.unpack_from(request)
    if asked.mcmd == MaskCommand.EDIT and asked.declared is None:
        answer, code = _edit_mask(target, asked)
    elif asked.mcmd == MaskCommand.READ:
        answer, code = _current_mask(target, asked.mcmd), None  # P62
    else:
        # Another command (P68), or fewer directives than the count says (P69).
        return target.refuse(request, reply, ErrorCode.BAD_ARGUMENT)
    header = Header.unpack_from(request)
    target.pack_header(reply, fields[0], Command.MASK, header.tag, code)
    return pad(reply, HEADER_LENGTH + answer.pack_into(reply))


def _current_mask(target: Target, mcmd: int) -> MaskList:
    # As much of it as this interface sends; only another one can have set more.
    shown = target.export.state.mask[: _room_for_mask(target)]
    return MaskList(mcmd, tuple(Directive(DirectiveCommand.NONE, mac) for mac in shown))


def _room_for_mask(target: Target) -> int:
    room = (target.frame_limit - HEADER_LENGTH - MASK_LENGTH) // DIRECTIVE_LENGTH
    return min(room, LIST_LIMIT)


def _edit_mask(target: Target, asked: MaskList) -> tuple[MaskList, ErrorCode | None]:
    # What stands before a bad directive is done nevertheless (P65). The reply then
    # repeats the request and has the bad one's index for its count (P64, P66).
    state = target.export.state
    macs = dict.fromkeys(state.mask)
    limit = _room_for_mask(target)
    done, problem = 0, MaskError.NONE
    for dcmd, mac in asked.directives:
        problem = _apply(macs, dcmd, mac, limit)
        if problem:
            break
        done += 1
    try:
        target.export.change(replace(state, mask=tuple(macs)))
    except OSError:
        return _current_mask(target, asked.mcmd), ErrorCode.DEVICE_UNAVAILABLE
    if problem:
        target.count_error(f"mask_{problem.name.lower()}")
        return MaskList(asked.mcmd, asked.directives[:limit], problem, done), None
    return _current_mask(target, asked.mcmd), None  # P67


def _apply(macs: dict[bytes, None], dcmd: int, mac: bytes, limit: int) -> MaskError:
    # Adding what is there and deleting what is not are successes (P63).
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
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> int:
    """Execute command 3: read, set or force the list of holders (P71 to P78).

    Every reply has the list as it is now, that of an error too (P71).
    """
    if len(request) < HEADER_LENGTH + RESERVE_LENGTH:
        return target.drop(Drop.SHORT)
    asked = Reserve.unpack_from(request)
    code = _set_holders(target, fields[0], asked)
    header = Header.unpack_from(request)
    target.pack_header(reply, fields[0], Command.RESERVE, header.tag, code)
    room = (target.frame_limit - HEADER_LENGTH - RESERVE_LENGTH) // 6
    answer = Reserve(asked.rcmd, target.export.state.holders[:room])
    return pad(reply, HEADER_LENGTH + answer.pack_into(reply))


def _set_holders(target: Target, src: bytes, asked: Reserve) -> ErrorCode | None:
    state = target.export.state
    if asked.rcmd == ReserveCommand.READ:
        return None  # Whoever asks (P73).
    if asked.rcmd not in _RESERVE_COMMANDS or asked.declared is not None:
        return ErrorCode.BAD_ARGUMENT  # P75
    if asked.rcmd == ReserveCommand.SET and state.holders and src not in state.members:
        return ErrorCode.RESERVED  # P72
    try:
        holders = tuple(dict.fromkeys(asked.macs))
        target.export.change(replace(state, holders=holders))
    except OSError:
        return ErrorCode.DEVICE_UNAVAILABLE
    return None


_RESERVE_COMMANDS: Final = frozenset(ReserveCommand)
