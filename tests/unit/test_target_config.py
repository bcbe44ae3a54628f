from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.asking import ask, config, config_response, make_target

if TYPE_CHECKING:
    from target.protocol.engine import Engine

pytestmark = pytest.mark.usefixtures("engine")

READ, TEST, PREFIX, SET, FORCE = range(5)
LONGEST = bytes(range(256)) * 4


def owned(string: bytes) -> Engine:
    target = make_target()
    target.export.force(string)
    return target


@pytest.mark.parametrize("string", [b"", b"hello", b"a\0b", b"\0", LONGEST])
def test_read_returns_string_and_target_properties_p50_p58(string: bytes) -> None:
    assert ask(owned(string), config(READ)) == config_response(READ, string)


def test_read_response_bytes() -> None:
    response = ask(make_target(), config(READ))
    assert response[14:32].hex(" ", 2) == (
        "1800 0007 0301 1122 3344 0010 4019 0210 0000"
    )
    assert response[32:] == bytes(28)


def test_read_ignores_the_string_in_the_request_p51() -> None:
    # aoeping declares 1024 bytes of 0xED, aoecfg always sends 1056 bytes.
    target = owned(b"hello")
    for request in (
        config(READ, b"\xed" * 1024),
        config(READ, b"", length=1024),
        config(READ, b"xy", length=0xFFFF),
    ):
        assert ask(target, request) == config_response(READ, b"hello")


def test_target_fields_in_a_request_are_ignored_p49() -> None:
    request = bytearray(config(READ))
    request[24:30] = b"\xff\xff\xff\xff\xff\xf0"
    assert ask(make_target(), bytes(request)) == config_response(READ)


@pytest.mark.parametrize(
    ("current", "string", "is_same"),
    [
        (b"", b"", True),
        (b"hello", b"hello", True),
        (b"hello", b"hell", False),
        (b"hello", b"hello!", False),
        (b"hello", b"", False),
        (b"", b"hello", False),
        (LONGEST, LONGEST, True),
    ],
)
def test_test_responds_only_to_the_equal_string_p52(
    current: bytes, string: bytes, *, is_same: bool
) -> None:
    target = owned(current)
    expected = config_response(TEST, current) if is_same else b""
    assert ask(target, config(TEST, string)) == expected
    assert target.statistics().dropped == ({} if is_same else {"config_differs": 1})


@pytest.mark.parametrize(
    ("current", "string", "is_prefix"),
    [
        (b"hello", b"", True),
        (b"", b"", True),
        (b"hello", b"hel", True),
        (b"hello", b"hello", True),
        (b"hello", b"hello!", False),
        (b"hello", b"ello", False),
        (b"", b"h", False),
    ],
)
def test_prefix_responds_only_to_a_prefix_p53(
    current: bytes, string: bytes, *, is_prefix: bool
) -> None:
    expected = config_response(PREFIX, current) if is_prefix else b""
    assert ask(owned(current), config(PREFIX, string)) == expected


@pytest.mark.parametrize("string", [b"hello", b"", b"\0", LONGEST])
def test_set_on_an_unclaimed_target_is_idempotent_p2_p54(
    string: bytes,
) -> None:
    target = make_target()
    for _ in range(2):
        assert ask(target, config(SET, string)) == config_response(SET, string)
    assert ask(target, config(READ)) == config_response(READ, string)


@pytest.mark.parametrize("string", [b"other", b"", b"hell", b"hello!"])
def test_set_on_a_claimed_target_fails_with_the_current_string_p54(
    string: bytes,
) -> None:
    target = owned(b"hello")
    assert ask(target, config(SET, string)) == config_response(SET, b"hello", code=4)
    assert target.export.config_string == b"hello"
    assert target.statistics().errors == {"config_present": 1}


@pytest.mark.parametrize("string", [b"other", b"", LONGEST])
def test_force_replaces_the_string_and_empty_clears_it_p55(
    string: bytes,
) -> None:
    target = owned(b"hello")
    assert ask(target, config(FORCE, string)) == config_response(FORCE, string)
    assert target.export.config_string == string


def test_padding_is_not_part_of_a_string_p20_p56() -> None:
    target = make_target()
    ask(target, config(FORCE, b"hello") + b"\xee" * 100)
    assert target.export.config_string == b"hello"


@pytest.mark.parametrize("ccmd", [TEST, PREFIX, SET, FORCE])
@pytest.mark.parametrize(
    ("string", "length"), [(b"hell", 5), (b"", 1024), (b"\0" * 1025, 1025)]
)
def test_too_long_or_truncated_string_is_refused_p56(
    ccmd: int, string: bytes, length: int
) -> None:
    target = owned(b"hello")
    response = ask(target, config(ccmd, string, length=length))
    assert response == config_response(ccmd, b"hello", code=2)
    assert target.export.config_string == b"hello"


@pytest.mark.parametrize("ccmd", range(5, 16))
def test_unknown_config_commands_are_refused_p57(ccmd: int) -> None:
    target = owned(b"hello")
    assert ask(target, config(ccmd, b"x")) == config_response(ccmd, b"hello", code=2)
    assert target.statistics().errors == {"bad_argument": 1}
