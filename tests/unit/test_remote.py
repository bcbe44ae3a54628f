"""``RemoteTarget`` over links that lose, duplicate and damage responses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aoe.config import Config, ConfigCommand
from aoe.errors import BusyError, DeviceError, NotFoundError, UnsupportedError
from aoe.macmask import Directive, DirectiveCommand, MaskError
from initiator.client.discover import QueryResponse
from initiator.client.remote import RemoteTarget
from tests.asking import CLIENT, TARGET, ask, config, reserve, sent_by
from tests.links import TargetLink

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT = 0.04
A, B = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")


def make_remote(
    responses: Callable[[bytes, bytes], list[bytes]] = lambda _, response: [response],
) -> tuple[TargetLink, RemoteTarget]:
    link = TargetLink(responses)
    address = link.target.export.address
    response = QueryResponse(address, TARGET, link.name, Config(), 0.0)
    return link, RemoteTarget([link], response, 5, TIMEOUT)


def lose_first() -> Callable[[bytes, bytes], list[bytes]]:
    seen: set[bytes] = set()

    def responses(request: bytes, response: bytes) -> list[bytes]:
        is_new = request not in seen
        seen.add(request)
        return [] if is_new else [response]

    return responses


def test_p2_a_request_is_retransmitted_if_the_response_was_lost() -> None:
    link, target = make_remote(lose_first())
    assert target.set_config(ConfigCommand.SET, b"mine") == b"mine"
    assert len(link.sent) == 2
    assert link.sent[0] == link.sent[1]


def test_p11_responses_to_other_requests_are_ignored() -> None:
    def with_others(request: bytes, response: bytes) -> list[bytes]:
        other_tag = response[:20] + bytes(4) + response[24:]
        other_slot = response[:18] + b"\x09" + response[19:]
        return [b"", b"short", request, other_tag, other_slot, response]

    link, target = make_remote(with_others)
    assert target.set_config(ConfigCommand.SET, b"mine") == b"mine"
    assert len(link.sent) == 1
    assert link.sent[0][20] & 0x80


@pytest.mark.parametrize("times", [3, 1000])
def test_p14_an_ata_command_is_repeated_while_the_disk_is_unavailable(
    times: int,
) -> None:
    warnings: list[str] = []

    def unavailable(_: bytes, response: bytes) -> list[bytes]:
        is_answered = len(link.sent) > times
        error = response[:14] + b"\x1c\x03" + response[16:60]
        return [response if is_answered else error]

    link, target = make_remote(unavailable)
    target.unavailable_timeout = 2.0
    target.on_warning = lambda _, line: warnings.append(line)
    if times == 3:
        assert len(target.identity_page()) == 512
        assert len(link.sent) == 4
    else:
        with pytest.raises(DeviceError, match="refused: device unavailable"):
            target.identity_page()
        assert 4 <= len(link.sent) <= 6
    assert warnings == ["device unavailable (AoE error 3): asking again for up to 2 s"]


def test_p54_the_error_of_a_claimed_target_has_its_config_string() -> None:
    link, target = make_remote()
    ask(link.target, config(4, b"the other\n"))
    with pytest.raises(BusyError) as caught:
        target.set_config(ConfigCommand.SET, b"mine")
    assert str(caught.value) == (
        'e7.3: claimed, its config string is "the other\\n". To replace it: aoe '
        "config fset e7.3 STRING"
    )
    assert target.set_config(ConfigCommand.FORCE, b"mine") == b"mine"


def test_p54_a_config_string_missing_in_the_error_is_read() -> None:
    def without_string(request: bytes, response: bytes) -> list[bytes]:
        return [response[:24] if request[29] == ConfigCommand.SET else response]

    link, target = make_remote(without_string)
    ask(link.target, config(4, b"owner"))
    with pytest.raises(BusyError, match='"owner"'):
        target.set_config(ConfigCommand.SET, b"mine")


def test_p72_reserving_for_others_succeeds_if_the_request_was_executed_twice() -> None:
    # The second one is refused with error 6, since the client is not among the holders.
    _, target = make_remote(lose_first())
    assert target.reserve([A, B], force=False) == (A, B)


def test_p72_the_error_of_a_reserved_target_lists_the_holders() -> None:
    link, target = make_remote()
    ask(link.target, sent_by(A, reserve(1, A, B)))
    with pytest.raises(BusyError) as caught:
        target.reserve([CLIENT], force=False)
    assert caught.value.why == f"reserved for {A.hex(':')}, {B.hex(':')}"
    assert caught.value.exit_code == 5
    assert target.holders() == (A, B)
    assert target.reserve([CLIENT], force=True) == (CLIENT,)
    assert target.reserve([], force=False) == ()


def test_p74_the_error_of_an_ata_command_lists_the_holders() -> None:
    link, target = make_remote()
    ask(link.target, sent_by(A, reserve(1, A)))
    assert len(target.identity_page()) == 512
    with pytest.raises(BusyError, match=A.hex(":")):
        target.ata(target.builder.ata(0xE7), "FLUSH")


def test_p43_an_aborted_command_is_unsupported() -> None:
    _, target = make_remote()
    with pytest.raises(UnsupportedError, match="WINK failed: command aborted"):
        target.ata(target.builder.ata(0x99), "WINK")
    with pytest.raises(DeviceError, match="sector not found") as caught:
        target.ata(target.builder.transfer(0x24, 1 << 40), "READ")
    assert not isinstance(caught.value, UnsupportedError)


def test_p16_a_target_without_lists_is_distinguished_from_one_without_response() -> (
    None
):
    def old(request: bytes, response: bytes) -> list[bytes]:
        if request[19] < 2:
            return [response]
        return [response[:14] + b"\x1c\x01" + response[16:]]

    _, target = make_remote(old)
    with pytest.raises(UnsupportedError, match="does not support MAC mask list"):
        target.mask_list()
    _, target = make_remote(lambda _, __: [])
    with pytest.raises(NotFoundError, match="no response to MAC mask list"):
        target.mask_list()


def test_p64_an_edit_returns_the_directives_up_to_the_bad_one() -> None:
    _, target = make_remote()
    add = int(DirectiveCommand.ADD)
    response = target.mask_list(Directive(add, CLIENT), Directive(9, A))
    assert response.merror == MaskError.BAD_DIRECTIVE
    assert len(response.directives) == 1
    listed = target.mask_list()
    assert [mac for _, mac in listed.directives] == [CLIENT]


def test_a_truncated_response_raises_device_error() -> None:
    _, target = make_remote(lambda _, response: [response[:25]])
    for request in (target.mask_list, target.holders, target.identity_page):
        with pytest.raises(DeviceError):
            request()
