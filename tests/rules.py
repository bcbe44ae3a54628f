"""Tests of protocol rules as steps: a request, and each byte of the response.

Steps are built without the code under test.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import socket
import struct
import time
from typing import TYPE_CHECKING, TypeAlias

from aoe.net.netns import Wire
from tests.asking import (
    SECTORS,
    TARGET,
    ata,
    ata_response,
    config,
    config_response,
    frame,
    mask,
    mask_response,
    reserve,
    reserve_response,
    response_frame,
    sector,
    sent_by,
)
from tests.serving import NO_PROBE, TIMEOUT, Client, client, serving

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    Step: TypeAlias = tuple[bytes, bytes]

NO_RESPONSE = b""
QUIET_TIME = 0.15
"""Seconds without a frame after which no response is expected."""
ME = Wire.initiator_mac
OTHER, THIRD = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")
BROADCAST = b"\xff" * 6
DISK = b"".join(sector(number) for number in range(SECTORS))
VERSION = ".".join(re.findall(r"\d+", importlib.metadata.version("pyaoe"))[:2])
"""The firmware version in IDENTIFY; query config responses have a byte per part."""
ABORTED, NOT_FOUND = (0x41, 0x04), (0x41, 0x10)
UNCORRECTABLE, FAULT = (0x41, 0x40), (0x61, 0x04)


def query_response(
    ccmd: int,
    string: bytes = b"",
    *,
    code: int = 0,
    sectors: int = 2,
    buffers: int = 16,
) -> bytes:
    """Build the expected response to a query config request, with the real version."""
    response = config_response(ccmd, string, code=code, sectors=sectors)
    firmware = bytes(int(number) for number in VERSION.split("."))
    return response[:24] + buffers.to_bytes(2, "big") + firmware + response[28:]


def error_response(request: bytes, code: int, length: int | None = None) -> bytes:
    """Build the expected error response, which echoes the request."""
    return response_frame(request[19], request[24:length], verfl=0x1C, error=code)


def patch(message: bytes, offset: int, what: bytes) -> bytes:
    """Return a message with some bytes replaced."""
    return message[:offset] + what + message[offset + len(what) :]


def with_flags(request: bytes, verfl: int, error: int = 0) -> bytes:
    """Return a request with other version and flags, and an error field."""
    return patch(request, 14, bytes((verfl, error)))


def with_tag(message: bytes, tag: int) -> bytes:
    """Return a message with another tag."""
    return patch(message, 20, tag.to_bytes(4, "big"))


def write(lba: int, data: bytes, opcode: int = 0x34, aflags: int = 0x41) -> bytes:
    """Build a WRITE request."""
    return ata(opcode, lba, len(data) // 512, aflags=aflags, data=data)


def write_response(lba: int, aflags: int = 0x41) -> bytes:
    """Build the expected response to a successful WRITE."""
    return ata_response(0x40, lba=lba, aflags=aflags)


def trim(*ranges: tuple[int, int], feature: int = 1, aflags: int = 0x41) -> bytes:
    """Build a TRIM request; a range is the first LBA and the sector count."""
    block = b"".join(struct.pack("<Q", lba | count << 48) for lba, count in ranges)
    data = block.ljust(512, b"\0")
    return ata(0x06, 0, 1, aflags=aflags, feature=feature, data=data)


def refused(request: bytes, status: tuple[int, int] = ABORTED) -> Step:
    """Return a step whose response has the request's registers and no data (P32)."""
    aflags, _, count = request[24:27]
    lba = int.from_bytes(request[28:34], "little")
    return request, ata_response(*status, count=count, lba=lba, aflags=aflags)


def read_back(lba: int, data: bytes) -> Step:
    """Return a step that reads sectors and compares them."""
    return ata(0x24, lba, len(data) // 512), ata_response(0x40, lba=lba, data=data)


AWAKE = (ata(0xE5, count=0), ata_response(0x40, count=0xFF))
ONE_OF_EACH = (
    AWAKE,
    (config(0), query_response(0)),
    (mask(0), mask_response()),
    (reserve(0), reserve_response()),
)
"""A step without side effects for each of the four commands."""
_RESET_TAG = 0x9E5E7000
UNKNOWN = (frame(9, b"what"), response_frame(9, b"what", verfl=0x1C, error=1))


class OtherClients:
    """Other clients at the same end: a socket that receives frames to any address."""

    def __init__(self, wire: Wire) -> None:
        with wire.initiator.enter():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._socket.bind((wire.interface, 0x88A2))

    def ask(self, request: bytes, timeout: float) -> bytes:
        """Send with the request's source address; return the response to it."""
        dst = Wire.target_mac if request[:6] == TARGET else request[:6]
        self._socket.send(dst + request[6:])
        end = time.monotonic() + timeout
        while response := self.receive(end - time.monotonic()):
            if response[:6] == request[6:12] and response[20:24] == request[20:24]:
                break
        return response

    def receive(self, timeout: float = TIMEOUT) -> bytes:
        """Return the next response to any address; ignore queries of the target."""
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            self._socket.settimeout(left)
            with contextlib.suppress(TimeoutError):
                response = self._socket.recv(2000)
                if response[14] & 0x08:
                    assert response[6:12] == Wire.target_mac
                    return response[:6] + TARGET + response[12:]
        return NO_RESPONSE

    def close(self) -> None:
        self._socket.close()


class Clients:
    """The clients of one target: ``me``, and others, by source address."""

    def __init__(
        self, wire: Wire, me: Client, others: OtherClients, image: Path
    ) -> None:
        self.wire = wire
        self.me = me
        self.others = others
        self.image = image

    def ask(self, request: bytes, timeout: float = TIMEOUT) -> bytes:
        is_other = request[6:12] in (OTHER, THIRD)
        return (self.others.ask if is_other else self.me.ask)(request, timeout)

    def reset(self) -> None:
        """Reset lists, config string and disk, even if ``me`` is not in the mask."""
        delete = mask(1, (2, ME), (2, OTHER), (2, THIRD))
        # Only one of them may be in the list. A late response to the other has a tag of
        # its own, so that no later request takes it for its response.
        self.ask(with_tag(sent_by(OTHER, delete), _RESET_TAG), 0.1)
        self.ask(with_tag(sent_by(ME, delete), _RESET_TAG))
        assert self.ask(mask(0)) == mask_response()
        assert self.ask(reserve(2)) == reserve_response(rcmd=2)
        assert self.ask(config(4)) == query_response(4)
        with self.image.open("r+b") as file:
            file.write(DISK)

    def run_steps(self, steps: Sequence[Step]) -> None:
        """Run the steps, and compare all responses with the expected ones."""
        has_drop = False
        for request, expected in steps:
            if expected:
                # A response to a request that is to be dropped would come first.
                assert self.ask(request) == expected
            else:
                self.me.send(request)
                has_drop = True
        assert not has_drop or self.me.receive(QUIET_TIME) == NO_RESPONSE


@contextlib.contextmanager
def serve_clients(image: Path, *words: str) -> Iterator[Clients]:
    """Serve a disk in which all sectors differ, for many tests.

    Args:
        image: the disk's file.
        words: further arguments of ``aoe-target serve``.

    Raises:
        AccessError: namespaces need root or a user namespace.
    """
    image.write_bytes(DISK)
    with (
        Wire(1500) as wire,
        serving(wire, image, NO_PROBE, "-b", "16", *words),
        client(wire) as me,
        contextlib.closing(OtherClients(wire)) as others,
    ):
        yield Clients(wire, me, others, image)
