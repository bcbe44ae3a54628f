"""A target asked one command after the other, over links that lose frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aoe.config import Config, ConfigCommand
from aoe.errors import BusyError, DeviceError, NotFoundError, UnsupportedError
from aoe.macmask import Directive, DirectiveCommand, MaskError
from initiator.client.discover import QueryResponse
from initiator.client.remote import RemoteTarget
from tests.asking import CLIENT, TARGET, ask, config, from_, reserve
from tests.links import TargetLink

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 0.04
A, B = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")


def reached(
    replies: Callable[[bytes, bytes], list[bytes]] = lambda _, reply: [reply],
) -> tuple[TargetLink, RemoteTarget]:
    link = TargetLink(replies)
    address = link.target.export.address
    answer = QueryResponse(address, TARGET, link.name, Config(), 0.0)
    return link, RemoteTarget([link], answer, 5, PATIENCE)


def losing_first() -> Callable[[bytes, bytes], list[bytes]]:
    seen: set[bytes] = set()

    def replies(request: bytes, reply: bytes) -> list[bytes]:
        is_new = request not in seen
        seen.add(request)
        return [] if is_new else [reply]

    return replies


def test_p2_a_lost_answer_is_asked_for_again() -> None:
    link, target = reached(losing_first())
    assert target.set_config(ConfigCommand.SET, b"mine") == b"mine"
    assert len(link.sent) == 2
    assert link.sent[0] == link.sent[1]


def test_p11_answers_to_others_are_not_taken() -> None:
    def strangers(request: bytes, reply: bytes) -> list[bytes]:
        other_tag = reply[:20] + bytes(4) + reply[24:]
        other_slot = reply[:18] + b"\x09" + reply[19:]
        return [b"", b"short", request, other_tag, other_slot, reply]

    link, target = reached(strangers)
    assert target.set_config(ConfigCommand.SET, b"mine") == b"mine"
    assert len(link.sent) == 1
    assert link.sent[0][20] & 0x80


def test_p54_a_claimed_target_names_its_owner() -> None:
    link, target = reached()
    ask(link.target, config(4, b"the other\n"))
    with pytest.raises(BusyError) as caught:
        target.set_config(ConfigCommand.SET, b"mine")
    assert str(caught.value) == (
        'e7.3: claimed, its config string is "the other\\n". Take it all the same: aoe '
        "config fset e7.3 STRING"
    )
    assert target.set_config(ConfigCommand.FORCE, b"mine") == b"mine"


def test_p54_an_owner_that_is_not_told_is_asked_for() -> None:
    def curt(request: bytes, reply: bytes) -> list[bytes]:
        return [reply[:24] if request[29] == ConfigCommand.SET else reply]

    link, target = reached(curt)
    ask(link.target, config(4, b"owner"))
    with pytest.raises(BusyError, match='"owner"'):
        target.set_config(ConfigCommand.SET, b"mine")


def test_p72_a_reservation_for_others_that_was_heard_twice_is_ours() -> None:
    # Who is not on the list may not repeat it: error 6, and yet all went well.
    _, target = reached(losing_first())
    assert target.reserve([A, B], force=False) == (A, B)


def test_p72_a_reservation_of_others_is_told() -> None:
    link, target = reached()
    ask(link.target, from_(A, reserve(1, A, B)))
    with pytest.raises(BusyError) as caught:
        target.reserve([CLIENT], force=False)
    assert caught.value.why == f"reserved for {A.hex(':')}, {B.hex(':')}"
    assert caught.value.exit_code == 5
    assert target.holders() == (A, B)
    assert target.reserve([CLIENT], force=True) == (CLIENT,)
    assert target.reserve([], force=False) == ()


def test_p74_ata_on_a_reserved_target_names_its_holders() -> None:
    link, target = reached()
    ask(link.target, from_(A, reserve(1, A)))
    assert len(target.identity_page()) == 512
    with pytest.raises(BusyError, match=A.hex(":")):
        target.ata(target.builder.ata(0xE7), "FLUSH")


def test_p43_a_command_that_is_aborted_is_unknown() -> None:
    _, target = reached()
    with pytest.raises(UnsupportedError, match="WINK failed: command aborted"):
        target.ata(target.builder.ata(0x99), "WINK")
    with pytest.raises(DeviceError, match="sector not found") as caught:
        target.ata(target.builder.transfer(0x24, 1 << 40), "READ")
    assert not isinstance(caught.value, UnsupportedError)


def test_p16_a_target_without_lists_is_told_from_a_dead_one() -> None:
    def old(request: bytes, reply: bytes) -> list[bytes]:
        if request[19] < 2:
            return [reply]
        return [reply[:14] + b"\x1c\x01" + reply[16:]]

    _, target = reached(old)
    with pytest.raises(UnsupportedError, match="knows no MAC mask list"):
        target.mask_list()
    _, target = reached(lambda _, __: [])
    with pytest.raises(NotFoundError, match="no answer to MAC mask list"):
        target.mask_list()


def test_p64_an_edit_tells_where_it_stopped() -> None:
    _, target = reached()
    add = int(DirectiveCommand.ADD)
    answer = target.mask_list(Directive(add, CLIENT), Directive(9, A))
    assert answer.merror == MaskError.BAD_DIRECTIVE
    assert len(answer.directives) == 1
    listed = target.mask_list()
    assert [mac for _, mac in listed.directives] == [CLIENT]


def test_half_an_answer_is_an_error_and_no_crash() -> None:
    _, target = reached(lambda _, reply: [reply[:25]])
    for question in (target.mask_list, target.holders, target.identity_page):
        with pytest.raises(DeviceError):
            question()
