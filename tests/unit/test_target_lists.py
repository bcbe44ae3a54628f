"""Commands 2 and 3: the MAC mask list (P61-P70) and the reservation (P71-P79)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from tests.asking import (
    CLIENT,
    TARGET,
    ask,
    ata,
    ata_response,
    config,
    config_response,
    directives,
    frame,
    make_target,
    mask,
    mask_response,
    reserve,
    reserve_response,
    response_frame,
    sector,
    sent_by,
    sent_to,
)

if TYPE_CHECKING:
    from target.protocol.engine import Engine
    from target.protocol.exports import ClientState

pytestmark = pytest.mark.usefixtures("engine")

READ, EDIT = 0, 1
SET, FORCE = 1, 2
NONE, ADD, DELETE = 0, 1, 2
OTHER = bytes.fromhex("525400000001")
THIRD = bytes.fromhex("525400000002")
ALL_COMMANDS = [ata(0x24), ata(0xEC), config(0), config(4, b"x"), frame(9)]


def number(n: int) -> bytes:
    return b"\x02\0\0" + n.to_bytes(3, "big")


def masked(*macs: bytes, mtu: int = 1500) -> Engine:
    target = make_target(mtu=mtu)
    ask(target, mask(EDIT, *((ADD, mac) for mac in macs)))
    return target


def reserved(*macs: bytes) -> Engine:
    target = make_target()
    ask(target, reserve(FORCE, *macs))
    return target


def fail_to_save(_state: ClientState) -> None:
    raise OSError(errno.ENOSPC, "no space left on device")


# The MAC mask list.


def test_p61_empty_list_serves_all_clients() -> None:
    assert ask(make_target(), mask(READ)) == mask_response()
    assert ask(make_target(), sent_by(OTHER, ata(0x24)))[27] == 0x40


@pytest.mark.parametrize("request_", [*ALL_COMMANDS, mask(READ), reserve(READ)])
@pytest.mark.parametrize("verfl", [0x10, 0x20])
def test_p61_unlisted_client_gets_no_response(request_: bytes, verfl: int) -> None:
    target = masked(OTHER)
    request = request_[:14] + bytes((verfl,)) + request_[15:]
    assert ask(target, request) == b""
    assert target.statistics().dropped == {"not_in_mask": 1}
    assert ask(target, sent_by(OTHER, request)) != b""


def test_p61_list_is_an_ordered_set_of_at_most_255() -> None:
    target = make_target(mtu=9000)
    macs = [CLIENT, *(number(n) for n in range(300, 554))]
    assert len(macs) == 255
    half = [(ADD, mac) for mac in macs[:130]], [(ADD, mac) for mac in macs[100:]]
    assert ask(target, mask(EDIT, *half[0])) == mask_response(*macs[:130], mcmd=EDIT)
    assert ask(target, mask(EDIT, *half[1])) == mask_response(*macs, mcmd=EDIT)
    assert ask(target, mask(READ)) == mask_response(*macs)
    full = response_frame(
        2, bytes((0, EDIT, 3, 1)) + directives((ADD, macs[9]), (ADD, OTHER))
    )
    assert ask(target, mask(EDIT, (ADD, macs[9]), (ADD, OTHER))) == full
    assert ask(target, mask(READ)) == mask_response(*macs)


def test_p61_list_is_limited_by_the_mtu() -> None:
    target = masked(CLIENT)
    room = (1514 - 28) // 8
    macs = [number(n) for n in range(room - 1)]
    response = ask(target, mask(EDIT, *((ADD, mac) for mac in macs)))
    assert response == mask_response(CLIENT, *macs, mcmd=EDIT)
    request = mask(EDIT, (ADD, OTHER))
    assert ask(target, request)[24:28] == bytes((0, EDIT, 3, 0))


@pytest.mark.parametrize("count", [None, 200])
def test_p62_read_returns_the_list_and_ignores_directives(count: int | None) -> None:
    target = masked(CLIENT, OTHER)
    request = mask(READ, (ADD, THIRD), (7, THIRD), count=count)
    assert ask(target, request) == mask_response(CLIENT, OTHER)
    assert ask(target, mask(READ)) == mask_response(CLIENT, OTHER)


def test_p63_directives_are_applied_in_order() -> None:
    target = masked(CLIENT)
    request = mask(
        EDIT,
        *((ADD, THIRD), (NONE, b"\xff" * 6), (ADD, OTHER), (DELETE, THIRD)),
        *((ADD, CLIENT), (ADD, OTHER), (DELETE, b"\xee" * 6), (ADD, THIRD)),
    )
    after = mask_response(CLIENT, OTHER, THIRD, mcmd=EDIT)
    assert ask(target, request) == after
    assert ask(target, request) == after  # P2


def test_p64_p65_p66_directives_before_a_bad_one_are_applied() -> None:
    target = make_target()
    those = ((ADD, CLIENT), (ADD, OTHER), (3, THIRD), (ADD, THIRD))
    expected = response_frame(2, bytes((0, EDIT, 2, 2)) + directives(*those))
    assert ask(target, mask(EDIT, *those)) == expected
    assert expected[14:16] == b"\x18\0"
    assert ask(target, mask(READ)) == mask_response(CLIENT, OTHER)
    assert target.statistics().errors == {"mask_bad_directive": 1}


def test_p67_edit_without_directives_returns_the_list() -> None:
    assert ask(masked(CLIENT), mask(EDIT)) == mask_response(CLIENT, mcmd=EDIT)


@pytest.mark.parametrize("mcmd", [2, 255])
def test_p68_unknown_mask_command_is_a_bad_argument(mcmd: int) -> None:
    target = make_target()
    request = mask(mcmd, (ADD, OTHER))
    assert ask(target, request) == response_frame(2, request[24:], verfl=0x1C, error=2)
    assert ask(target, mask(READ)) == mask_response()


@pytest.mark.parametrize("count", [2, 5, 255])
def test_p69_fewer_directives_than_the_count_change_nothing(count: int) -> None:
    target = make_target()
    request = mask(EDIT, (ADD, OTHER), count=count)
    assert ask(target, request) == response_frame(2, request[24:], verfl=0x1C, error=2)
    assert ask(target, mask(READ)) == mask_response()


def test_p70_client_that_removes_itself_gets_the_response() -> None:
    target = make_target()
    assert ask(target, mask(EDIT, (ADD, OTHER))) == mask_response(OTHER, mcmd=EDIT)
    assert ask(target, mask(READ)) == b""
    response = ask(target, sent_by(OTHER, mask(EDIT, (DELETE, OTHER))))
    assert response == sent_to(OTHER, mask_response(mcmd=EDIT))
    assert ask(target, mask(READ)) == mask_response()


@pytest.mark.parametrize("length", [24, 27])
def test_p17_short_mask_message_is_dropped(length: int) -> None:
    target = make_target()
    assert ask(target, mask(READ)[:length]) == b""
    assert target.statistics().dropped == {"short": 1}


def test_p20_padding_after_the_directives_is_ignored() -> None:
    request = mask(EDIT, (ADD, CLIENT)) + directives((ADD, OTHER)) + b"\xee" * 20
    assert ask(make_target(), request) == mask_response(CLIENT, mcmd=EDIT)


def test_p48_masked_target_announces_to_the_listed_clients() -> None:
    target = masked(CLIENT, OTHER)
    assert target.export.announcement_targets == (CLIENT, OTHER)
    assert make_target().export.announcement_targets == (b"\xff" * 6,)
    slot = memoryview(bytearray(b"\xdb" * target.frame_limit))
    length = target.announce(slot, OTHER)
    expected = (
        OTHER + TARGET + config_response(0)[12:20] + bytes(4) + config_response(0)[24:]
    )
    assert bytes(slot[:length]) == expected


# Reserve and release.


def test_p71_initially_there_is_no_reservation() -> None:
    assert ask(make_target(), reserve(READ)) == reserve_response()


def test_p72_free_target_can_be_reserved_for_other_clients() -> None:
    target = make_target()
    response = ask(target, reserve(SET, THIRD, OTHER))
    assert response == reserve_response(THIRD, OTHER, rcmd=SET)


def test_p72_holder_can_transfer_or_release_the_reservation() -> None:
    target = reserved(CLIENT, OTHER)
    assert ask(target, reserve(SET, OTHER)) == reserve_response(OTHER, rcmd=SET)
    refused = reserve_response(OTHER, rcmd=SET, code=6)
    assert ask(target, reserve(SET, CLIENT)) == refused
    assert ask(target, reserve(SET)) == refused
    assert target.statistics().errors == {"reserved": 2}
    released = sent_to(OTHER, reserve_response(rcmd=SET))
    assert ask(target, sent_by(OTHER, reserve(SET))) == released


def test_p73_force_and_read_always_succeed() -> None:
    target = reserved(OTHER)
    assert ask(target, reserve(READ)) == reserve_response(OTHER)
    assert ask(target, reserve(FORCE, CLIENT)) == reserve_response(CLIENT, rcmd=FORCE)
    assert ask(target, reserve(FORCE)) == reserve_response(rcmd=FORCE)


@pytest.mark.parametrize("opcode", [0x20, 0x24, 0x30, 0x34, 0xE5, 0xE7, 0xEA, 0x00])
def test_p74_ata_command_of_another_client_is_refused(opcode: int) -> None:
    target = reserved(OTHER)
    request = ata(opcode, 5, aflags=0x41, data=b"\xff" * 512)
    expected = response_frame(0, request[24:36], verfl=0x1C, error=6)
    assert ask(target, request) == expected
    assert ask(target, ata(0x24, 5, shelf=0xFFFF, slot=0xFF))[14:16] == b"\x1c\x06"
    served = ata_response(0x40, lba=5, data=sector(5))
    assert ask(target, sent_by(OTHER, ata(0x24, 5))) == sent_to(OTHER, served)


def test_p74_other_clients_can_identify_and_use_other_commands() -> None:
    target = reserved(OTHER)
    page = ata_response(0x40, data=target.export.identity_page)
    assert ask(target, ata(0xEC)) == page
    assert ask(target, config(4, b"mine")) == config_response(4, b"mine")  # P58
    assert ask(target, mask(EDIT, (ADD, CLIENT))) == mask_response(CLIENT, mcmd=EDIT)
    assert ask(target, reserve(READ)) == reserve_response(OTHER)


@pytest.mark.parametrize("rcmd", [3, 255])
def test_p75_unknown_reserve_command_is_a_bad_argument(rcmd: int) -> None:
    expected = reserve_response(CLIENT, rcmd=rcmd, code=2)
    assert ask(reserved(CLIENT), reserve(rcmd, OTHER)) == expected


@pytest.mark.parametrize("rcmd", [SET, FORCE])
@pytest.mark.parametrize("count", [2, 255])
def test_p75_fewer_addresses_than_the_count_change_nothing(
    rcmd: int, count: int
) -> None:
    expected = reserve_response(CLIENT, rcmd=rcmd, code=2)
    assert ask(reserved(CLIENT), reserve(rcmd, OTHER, count=count)) == expected


def test_p76_reservation_is_an_ordered_set_of_at_most_255() -> None:
    target = make_target(mtu=9000)
    macs = [CLIENT, *(number(n) for n in range(254, 0, -1))]
    assert ask(target, reserve(SET, *macs)) == reserve_response(*macs, rcmd=SET)
    for mac in macs:
        assert ask(target, sent_by(mac, ata(0xE5, count=0)))[14] == 0x18
    doubled = reserve_response(OTHER, CLIENT, rcmd=SET)
    assert ask(target, reserve(SET, OTHER, CLIENT, OTHER)) == doubled


@pytest.mark.parametrize("junk", [b"", b"\xee" * 6, b"\xee" * 40])
def test_p79_padding_after_the_addresses_is_ignored(junk: bytes) -> None:
    response = ask(make_target(), reserve(SET, OTHER) + junk)
    assert response == reserve_response(OTHER, rcmd=SET)


@pytest.mark.parametrize("length", [24, 25])
def test_p17_short_reserve_message_is_dropped(length: int) -> None:
    target = make_target()
    assert ask(target, reserve(READ)[:length]) == b""
    assert target.statistics().dropped == {"short": 1}


# Changes are saved before the response.


def test_p59_p78_each_change_is_saved_once_before_the_response() -> None:
    target = make_target()
    saved: list[ClientState] = []
    target.export.on_change = saved.append
    for request in (
        config(3, b"owner"),
        mask(EDIT, (ADD, CLIENT)),
        reserve(SET, CLIENT, OTHER),
    ):
        first = ask(target, request)
        assert ask(target, request) == first  # P2: and nothing to save
    assert len(saved) == 3
    assert saved[-1] == target.export.state
    assert saved[-1].config_string == b"owner"
    assert saved[-1].mask == (CLIENT,)
    assert saved[-1].holders == (CLIENT, OTHER)


def test_change_that_cannot_be_saved_is_error_3() -> None:
    target = make_target()
    target.export.force(b"before")
    before = target.export.state
    target.export.on_change = fail_to_save
    refused = config_response(4, b"before", code=3)
    assert ask(target, config(4, b"after")) == refused
    assert ask(target, mask(EDIT, (ADD, OTHER))) == mask_response(mcmd=EDIT, code=3)
    assert ask(target, reserve(SET, OTHER)) == reserve_response(rcmd=SET, code=3)
    assert target.export.state is before
    assert ask(target, ata(0x24))[27] == 0x40
    assert target.statistics().errors == {"device_unavailable": 3}
