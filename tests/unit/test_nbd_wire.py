from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe.common.nbd import NbdCommand, NbdCommandFlag, NbdFlag
from aoe.errors import (
    AccessError,
    AoEError,
    DecodeError,
    NotFoundError,
)
from target.disks.nbd.wire import (
    NbdExport,
    NbdRequest,
    handshake,
    pack_request,
    parse_reply,
)
from tests.nbd_servers import GREETING, SIZE, option_reply


def negotiate(*replies: bytes, name: str = "") -> tuple[list[bytes], NbdExport]:
    sent, waiting = [], list(replies)
    steps = handshake(name)
    step = next(steps)
    while True:
        received = b""
        if isinstance(step, int):
            received = waiting.pop(0)
            assert len(received) == step
        else:
            sent.append(step)
        try:
            step = steps.send(received)
        except StopIteration as end:
            assert not waiting
            return sent, end.value


def test_handshake_bytes() -> None:
    size = option_reply(3, struct.pack("!HQH", 0, SIZE, 0b1101))
    blocks = option_reply(3, struct.pack("!HIII", 3, 512, 4096, 1 << 20))
    name = option_reply(3, b"\0\1ab")
    sent, export = negotiate(
        GREETING, *name, *size, *blocks, *option_reply(1), name="ab"
    )
    assert b"".join(sent) == bytes.fromhex(
        "00000003 49484156454f5054 00000007 0000000a 00000002 6162 0001 0003"
    )
    flags = NbdFlag(0b1101)
    assert export == NbdExport(size=SIZE, flags=flags, block=512, payload=1 << 20)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [(1, DecodeError), (2, AccessError), (5, AccessError), (6, NotFoundError)],
)
def test_refused_option_raises_a_matching_error(
    reason: int, kind: type[AoEError]
) -> None:
    with pytest.raises(kind):
        negotiate(GREETING, *option_reply(1 << 31 | reason, b"because"))


@pytest.mark.parametrize(
    "replies",
    [
        [b"SSH-2.0-OpenSSH_9.2"[:18]],
        [b"NBDMAGICIHAVEOPT\0\0"],
        [GREETING, bytes(20)],
        [GREETING, *option_reply(1)],
    ],
)
def test_malformed_handshake_is_a_decode_error(replies: list[bytes]) -> None:
    with pytest.raises(DecodeError):
        negotiate(*replies)


def test_request_and_reply_bytes() -> None:
    request = NbdRequest(
        command=NbdCommand.WRITE, offset=0x200, length=0x400, flags=NbdCommandFlag.FUA
    )
    assert pack_request(request, 0x1122) == bytes.fromhex(
        "25609513 0001 0001 0000000000001122 0000000000000200 00000400"
    )
    reply = bytes.fromhex("67446698 0000001c 0000000000001122")
    assert parse_reply(reply, 0x1122) == errno.ENOSPC
    with pytest.raises(DecodeError):
        parse_reply(reply, 0x1123)


@pytest.mark.parametrize("number", [0xFFFF, 1 << 31, 0xFFFF_FFFF])
def test_unknown_error_number_is_eio(number: int) -> None:
    reply = struct.pack("!IIQ", 0x67446698, number, 1)
    assert parse_reply(reply, 1) == errno.EIO


@pytest.mark.parametrize(
    ("sent", "bounded_sizes"),
    [
        ((0, 0), (1, 512)),
        ((4096, 0), (4096, 4096)),
        ((512, 1000), (512, 512)),
        ((1 << 20, 0xFFFF_FFFF), (1 << 20, 32 << 20)),
    ],
)
def test_invalid_block_sizes_are_bounded(
    sent: tuple[int, int], bounded_sizes: tuple[int, int]
) -> None:
    blocks = option_reply(3, struct.pack("!HIII", 3, sent[0], 4096, sent[1]))
    size = option_reply(3, struct.pack("!HQH", 0, SIZE, 1))
    _, export = negotiate(GREETING, *size, *blocks, *option_reply(1))
    assert (export.block, export.payload) == bounded_sizes


@given(st.data())
def test_random_bytes_raise_only_documented_errors(
    data: st.DataObject,
) -> None:
    # Often plausible enough to get past the greeting.
    pieces = [
        GREETING,
        *option_reply(1),
        *option_reply(3, struct.pack("!HQH", 0, SIZE, 0xFFFF)),
        *option_reply(3, struct.pack("!HIII", 3, 0, 0, 0)),
    ]
    steps = handshake("name")
    step = next(steps)
    for _ in range(50):
        received = b""
        if isinstance(step, int):
            likely = [piece for piece in pieces if len(piece) == step]
            noise = st.binary(min_size=step, max_size=step)
            received = data.draw(st.sampled_from(likely) | noise if likely else noise)
        try:
            step = steps.send(received)
        except AoEError:
            return
        except StopIteration as end:
            export = end.value
            break
    else:
        steps.close()
        return
    assert export.block > 0
    assert export.payload >= 512
