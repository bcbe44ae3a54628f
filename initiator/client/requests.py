"""Build requests of all four commands, valid or not, each with its own tag."""

from __future__ import annotations

import itertools
import secrets
from typing import TYPE_CHECKING, Final, TypedDict, Unpack

from aoe.ata import DEVICE_LBA, LBA48_OPCODES, AFlag, Opcode, Registers
from aoe.config import Config, ConfigCommand
from aoe.header import (
    FRAME_MINIMUM,
    HEADER_LENGTH,
    TAG_COUNTER,
    VERSION,
    Command,
    Header,
    tag_prefix,
)
from aoe.macmask import Directive, MaskCommand, MaskList
from aoe.reserve import Reserve, ReserveCommand

if TYPE_CHECKING:
    from aoe.address import Address

DEVICE_IDENTIFY: Final = 0xA000_0000
"""The device register of IDENTIFY, as Linux sends it (P30)."""
_LONGEST_BODY: Final = 1 << 16


class Overrides(TypedDict, total=False):
    """Header fields of a request to set to other than the default.

    Keys:
        src: source MAC address; by default that of this client.
        dst: destination MAC address; by default the target's.
        address: shelf and slot; by default the target's.
        flags: low nibble of byte 14.
        error: byte 15.
        version: high nibble of byte 14.
        tag: by default the next tag of this builder.
        tail: trailing bytes.
        is_padded: pad to 60 bytes; the default (P20).
    """

    src: bytes
    dst: bytes
    address: tuple[int, int]
    flags: int
    error: int
    version: int
    tag: int
    tail: bytes
    is_padded: bool


class AtaOverrides(Overrides, total=False):
    """Fields of an ATA request to set to other than the default.

    Keys:
        aflags: byte 24.
        feature: the feature register.
        data: the bytes after the registers.
    """

    aflags: int
    feature: int
    data: bytes


class RequestBuilder:
    """Builder of requests to one target.

    Args:
        address: its shelf and slot.
        mac: its MAC address.
        client: MAC address of this client.
        tag_base: ten bits that all tags have in common (P11).

    Attributes:
        tag_first: the tag with counter 0. The counter begins at random, as the client
            that had the base before may have ended just now.
    """

    def __init__(
        self, address: Address, mac: bytes, client: bytes, tag_base: int = 0
    ) -> None:
        self.address = address
        self.mac = mac
        self.client = client
        self.tag_first = tag_prefix(tag_base)
        self._numbers = itertools.count(secrets.randbelow(TAG_COUNTER))

    # Further clients. The local bit is set, so that no NIC has these addresses.

    @property
    def other(self) -> bytes:
        """The MAC address of a second client."""
        return b"\x02\xae\x01" + self.client[3:]

    @property
    def third(self) -> bytes:
        """The MAC address of a third client."""
        return b"\x02\xae\x02" + self.client[3:]

    @staticmethod
    def invented(number: int) -> bytes:
        """Return the MAC address of one of any number of further clients."""
        return b"\x02\xaf" + number.to_bytes(4, "big")

    # Requests.

    def frame(
        self, command: int, body: bytes = b"", **overrides: Unpack[Overrides]
    ) -> bytes:
        """Build a request of any command, with ``body`` after the header."""
        head = bytearray(HEADER_LENGTH)
        Header(
            overrides.get("dst", self.mac),
            overrides.get("src", self.client),
            *overrides.get("address", self.address),
            command,
            overrides.get("tag", self.tag_first | next(self._numbers) & TAG_COUNTER),
            overrides.get("flags", 0),
            overrides.get("error", 0),
            overrides.get("version", VERSION),
        ).pack_into(head)
        packet = bytes(head) + body + overrides.get("tail", b"")
        is_padded = overrides.get("is_padded", True)
        return packet.ljust(FRAME_MINIMUM, b"\0") if is_padded else packet

    def ata(
        self,
        opcode: int,
        lba: int = 0,
        count: int = 0,
        **overrides: Unpack[AtaOverrides],
    ) -> bytes:
        """Build an ATA request with these registers."""
        aflags, feature = overrides.pop("aflags", 0), overrides.pop("feature", 0)
        data = overrides.pop("data", b"")
        body = packed(Registers(aflags, feature, count, opcode, lba))
        return self.frame(Command.ATA, body + data, **overrides)  # type: ignore[misc] # what is left is Overrides

    def transfer(
        self, opcode: int, lba: int, count: int = 1, **overrides: Unpack[AtaOverrides]
    ) -> bytes:
        """Build a command on sectors, LBA48 or LBA28 depending on the opcode (P30)."""
        if opcode in LBA48_OPCODES:
            overrides["aflags"] = overrides.get("aflags", 0) | AFlag.EXTENDED
        else:
            lba |= DEVICE_LBA << 24
        return self.ata(opcode, lba, count, **overrides)

    def identify(self, count: int = 1, **overrides: Unpack[AtaOverrides]) -> bytes:
        """Build an IDENTIFY DEVICE."""
        return self.ata(Opcode.IDENTIFY, DEVICE_IDENTIFY, count, **overrides)

    def config(
        self,
        ccmd: int = ConfigCommand.READ,
        string: bytes = b"",
        declared: int | None = None,
        **overrides: Unpack[Overrides],
    ) -> bytes:
        """Build a query config; ``declared`` overrides the length of the string."""
        body = packed(Config(ccmd, string, declared=declared))
        return self.frame(Command.CONFIG, body, **overrides)

    def mask_list(
        self,
        *directives: tuple[int, bytes],
        mcmd: int = MaskCommand.READ,
        declared: int | None = None,
        **overrides: Unpack[Overrides],
    ) -> bytes:
        """Build a MAC mask list request; ``declared`` overrides the count."""
        edits = tuple(itertools.starmap(Directive, directives))
        body = packed(MaskList(mcmd, edits, declared=declared))
        return self.frame(Command.MASK, body, **overrides)

    def reserve(
        self,
        *macs: bytes,
        rcmd: int = ReserveCommand.READ,
        declared: int | None = None,
        **overrides: Unpack[Overrides],
    ) -> bytes:
        """Build a reserve/release request; ``declared`` overrides the count."""
        body = packed(Reserve(rcmd, macs, declared))
        return self.frame(Command.RESERVE, body, **overrides)


def packed(message: Registers | Config | MaskList | Reserve) -> bytes:
    """Return the encoding of a message, without the AoE header."""
    buffer = bytearray(_LONGEST_BODY)
    return bytes(buffer[: message.pack_into(buffer, 0)])
