"""Scapy layers for AoE, a second definition of the frames that the codecs handle.

::

    Ether / AoE / AoEATA       command 0, an ATA command and its data
                / AoEConfig    command 1, query config
                / AoEMask      command 2, MAC mask list, a list of AoEDirective
                / AoEReserve   command 3, reserve/release

Use them to dissect captures, to build malformed frames and to fuzz. The data path uses
the codecs, which are about a thousand times as fast; the tests compare the two.
Importing this module makes scapy dissect EtherType 0x88A2 with these layers instead of
those of ``scapy.contrib.aoe`` (see ``install_layers``).

>>> from scapy.layers.l2 import Ether
>>> frame = Ether(dst="ff:ff:ff:ff:ff:ff", src="52:54:00:ae:00:01")
>>> frame /= AoE(tag=7) / AoEATA(aflags="extended", cmd_status="READ EXT", lba=8)
>>> frame.summary()
'Ether / AoE e0.0 READ EXT lba 8 x1 tag 0x00000007'

Counts and lengths that are not set are computed when a packet is built; values that are
set are sent unchanged. Bytes too short for a layer dissect to ``Raw``, bytes after the
last field to ``Padding``; both are preserved when the packet is rebuilt.
"""
# scapy.* is not followed (see pyproject.toml), so that its classes are Any here.
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, ClassVar, Final, SupportsInt, overload

from scapy.config import conf
from scapy.fields import (
    BitEnumField,
    BitField,
    ByteEnumField,
    ByteField,
    Field,
    FieldLenField,
    FieldListField,
    FlagsField,
    MACField,
    PacketListField,
    ShortField,
    StrField,
    StrLenField,
    XByteField,
    XIntField,
    XShortField,
)
from scapy.layers.l2 import CookedLinux, Ether
from scapy.packet import Packet, Padding, Raw, bind_layers, split_bottom_up
from scapy.volatile import RandNum

from aoe.address import MAC_BROADCAST, SHELF_ALL, SLOT_ALL, Address, format_mac
from aoe.ata import (
    ATA_LENGTH,
    LBA28_LIMIT,
    LBA48_LIMIT,
    LBA48_OPCODES,
    SECTOR,
    SECTOR_OPCODES,
    STATUS_BAD,
    AFlag,
    AtaError,
    Opcode,
    Status,
    describe_failure,
)
from aoe.config import CONFIG_LENGTH, STRING_LIMIT, ConfigCommand
from aoe.header import (
    ETH_P_AOE,
    ETHERNET_LENGTH,
    FRAME_MINIMUM,
    HEADER_LENGTH,
    TAG_USER,
    VERSION,
    Command,
    ErrorCode,
    Flag,
)
from aoe.macmask import (
    DIRECTIVE_LENGTH,
    MASK_LENGTH,
    DirectiveCommand,
    MaskCommand,
    MaskError,
)
from aoe.reserve import RESERVE_LENGTH, ReserveCommand

if TYPE_CHECKING:
    from enum import IntEnum, IntFlag

MAC_LENGTH: Final = 6
_COUNT_LIMIT: Final = 0xFF
_LBA_LENGTH: Final = 6
_ERRORS: Final = {code.value: code.text for code in ErrorCode}


def _value_names(values: type[IntEnum]) -> dict[int, str]:
    return {value.value: value.name.replace("_", " ") for value in values}


def _bit_names(bits: type[IntFlag], width: int) -> list[str]:
    # FlagsField takes the names from the least significant bit up.
    names = [f"bit{place}" for place in range(width)]
    for bit in bits:
        names[bit.value.bit_length() - 1] = str(bit.name).lower()
    return names


def _name(values: type[IntEnum], value: SupportsInt) -> str:
    # After fuzz() a field holds a RandNum; int() draws a value from it.
    number = int(value)
    return _value_names(values).get(number, f"{number:#04x}").lower()


def _needs(length: int) -> classmethod[Packet, ..., type[Packet]]:
    """Return a ``dispatch_hook`` that dissects fewer than ``length`` bytes as Raw."""

    def dispatch_hook(
        cls: type[Packet], pkt: bytes = b"", /, **_: object
    ) -> type[Packet]:
        return Raw if 0 < len(pkt) < length else cls

    return classmethod(dispatch_hook)


def _header_of(body: Packet) -> AoE | None:
    return body.underlayer if isinstance(body.underlayer, AoE) else None


def _is_response(body: Packet) -> bool:
    header = _header_of(body)
    return header is not None and bool(int(header.flags) & Flag.RESPONSE)


class _LBAField(Field):
    """The six LBA bytes, least significant first, as an integer (P30)."""

    def __init__(self, name: str, default: int) -> None:
        super().__init__(name, default, f"{_LBA_LENGTH}s")

    def i2m(self, _pkt: Packet | None, x: int | None) -> bytes:
        return (x or 0).to_bytes(_LBA_LENGTH, "little")

    def m2i(self, _pkt: Packet | None, x: bytes) -> int:
        return int.from_bytes(x, "little")

    def i2repr(self, _pkt: Packet | None, x: object) -> str:
        return f"{x:#x}" if isinstance(x, int) else repr(x)

    def randval(self) -> RandNum:
        return RandNum(0, LBA48_LIMIT - 1)


class _RegisterField(ByteEnumField):
    """A register: an enumeration in requests, a bit mask in responses (P26)."""

    __slots__ = ("bits",)

    def __init__(
        self, name: str, default: int, values: dict[int, str], bits: type[IntFlag]
    ) -> None:
        super().__init__(name, default, values)
        self.bits = bits

    def i2repr(self, pkt: Packet | None, x: object) -> str:
        if not isinstance(x, int) or pkt is None or not _is_response(pkt):
            return str(super().i2repr(pkt, x))
        names = [str(bit.name).lower() for bit in self.bits if bit & x]
        return f"{x:#04x} {'+'.join(names)}".rstrip()


class _DataField(StrField):
    """Sector data, without the padding that may follow it."""

    def getfield(self, pkt: Packet, s: bytes) -> tuple[bytes, bytes]:
        length = _data_length(pkt, len(s))
        return s[length:], s[:length]


class _VersionField(BitField):
    """The AoE nibble: by default 1 in responses and 0 in requests (P49, P50)."""

    def i2m(self, pkt: Packet | None, x: int | None) -> int:
        if x is None:
            return VERSION if pkt is not None and _is_response(pkt) else 0
        return x


def _split_entries(pkt: Packet, s: bytes, size: int) -> tuple[list[bytes], bytes]:
    """Return the complete entries in ``s``, at most ``pkt.count``, and the rest."""
    end = min(pkt.count, len(s) // size) * size
    return [s[start : start + size] for start in range(0, end, size)], s[end:]


# getfield() of scapy's list fields stops after 100 entries, from scapy 2.6 on.


class _DirectivesField(PacketListField):
    """The complete directives in the frame, at most ``count`` (P69)."""

    def getfield(self, pkt: Packet, s: bytes) -> tuple[bytes, list[Packet]]:
        entries, rest = _split_entries(pkt, s, DIRECTIVE_LENGTH)
        return rest, [self.m2i(pkt, entry) for entry in entries]


class _MACsField(FieldListField):
    """The complete MAC addresses in the frame, at most ``count`` (P75)."""

    def getfield(self, pkt: Packet, s: bytes) -> tuple[bytes, list[str]]:
        entries, rest = _split_entries(pkt, s, MAC_LENGTH)
        return rest, [self.field.m2i(pkt, entry) for entry in entries]

    def i2repr(self, _pkt: Packet | None, x: list[object]) -> str:
        # FieldListField.i2repr fails on the RandMAC that fuzz() puts here.
        return f"[{', '.join(map(str, x))}]"


class AoE(Packet):
    """The AoE header, the ten bytes after the Ethernet header.

    ``shelf`` and ``slot`` default to e0.0, so that a broadcast (0xFFFF and 0xFF) has to
    be asked for. ``tag`` defaults to bit 31 set, so that a kernel driver on the same
    host discards the responses (P11). Stacking a body sets ``cmd``.
    """

    name = "ATA over Ethernet"
    show_summary = False
    fields_desc: ClassVar[list[Field]] = [
        BitField("version", VERSION, 4),
        FlagsField("flags", 0, 4, _bit_names(Flag, 4)),
        ByteEnumField("error", 0, _ERRORS),
        XShortField("shelf", 0),
        XByteField("slot", 0),
        ByteEnumField("cmd", Command.CONFIG, _value_names(Command)),
        XIntField("tag", TAG_USER),
    ]
    dispatch_hook = _needs(HEADER_LENGTH - ETHERNET_LENGTH)

    def hashret(self) -> bytes:
        """Return command and tag, which a request and its response share (P10)."""
        return struct.pack("!BI", self.cmd, self.tag)

    def answers(self, other: Packet) -> bool:
        """Return True if this is a response to the request ``other``.

        Command and tag are equal (P10), and shelf and slot of the request are those of
        the response or broadcast (P8). Versions are not compared: some targets send a
        wrong one (P6).
        """
        return (
            isinstance(other, AoE)
            and bool(self.flags & Flag.RESPONSE)
            and not other.flags & Flag.RESPONSE
            and (self.cmd, self.tag) == (other.cmd, other.tag)
            and other.shelf in (self.shelf, SHELF_ALL)
            and other.slot in (self.slot, SLOT_ALL)
        )

    def mysummary(self) -> str:
        """Return the summary of a header without a body layer."""
        return self.describe(f"command {_name(Command, self.cmd)}")

    def describe(self, text: str) -> str:
        """Return the summary ``text`` of the body with address and tag added."""
        flags, error = int(self.flags), int(self.error)
        if flags & Flag.RESPONSE and flags & Flag.ERROR:
            reason = _ERRORS.get(error, f"code {error}")
            text = f"{_name(Command, self.cmd)} error: {reason}"
        address = Address(int(self.shelf), int(self.slot))
        return f"AoE {address} {text} tag {int(self.tag):#010x}"


class _Body(Packet):
    """Base class of the layers after the header; ``_summary`` returns the summary."""

    show_summary = False

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        """Treat the bytes after the last field as padding (P20)."""
        return b"", s

    def mysummary(self) -> str:
        text, header = self._summary(), _header_of(self)
        return text if header is None else header.describe(text)


class AoEATA(_Body):
    """Command 0: ATA registers and data.

    ``err_feature`` and ``cmd_status`` are feature and command in requests, error and
    status in responses (P26). ``count`` defaults to the number of sectors in ``data``,
    at least 1.

    No field gives the length of the data. In a response it is the complete sectors that
    follow (P21), none if the command failed (P32); some targets set the count to 0
    (P35). In a request with ``AFlag.WRITE`` (P27) it is all bytes that follow, complete
    sectors or not, because a target has to compare them with the count (P39). In other
    requests, trailing bytes are a path MTU probe (P23) or padding.
    """

    name = "AoE ATA"
    fields_desc: ClassVar[list[Field]] = [
        FlagsField("aflags", 0, 8, _bit_names(AFlag, 8)),
        _RegisterField("err_feature", 0, {}, AtaError),
        FieldLenField(
            "count",
            None,
            fmt="B",
            length_of="data",
            adjust=lambda _pkt, length: min(max(1, -(-length // SECTOR)), _COUNT_LIMIT),
        ),
        _RegisterField("cmd_status", Opcode.IDENTIFY, _value_names(Opcode), Status),
        _LBAField("lba", 0),
        XShortField("reserved", 0),
        _DataField("data", b""),
    ]
    dispatch_hook = _needs(ATA_LENGTH)

    @property
    def lba28(self) -> int:
        """The low 28 bits of ``lba``; setting them preserves the device bits."""
        return int(self.lba) & LBA28_LIMIT - 1

    @lba28.setter
    def lba28(self, sector: int) -> None:
        above = int(self.lba) & ~(LBA28_LIMIT - 1)
        self.setfieldval("lba", above | sector & LBA28_LIMIT - 1)

    @property
    def sector(self) -> int:
        """The addressed sector, by 48-bit or 28-bit addressing (P31)."""
        is_wide = int(self.aflags) & AFlag.EXTENDED or (
            not _is_response(self) and int(self.cmd_status) in LBA48_OPCODES
        )
        return int(self.lba) if is_wide else self.lba28

    def _summary(self) -> str:
        return (
            self._response_summary() if _is_response(self) else self._request_summary()
        )

    def _response_summary(self) -> str:
        status, length = int(self.cmd_status), len(self.data)
        if status & STATUS_BAD:
            return f"ATA response {describe_failure(status, int(self.err_feature))}"
        sectors = f" x{length // SECTOR}" if length else ""
        return f"ATA response lba {self.sector}{sectors}"

    def _request_summary(self) -> str:
        opcode = int(self.cmd_status)
        text = _value_names(Opcode).get(opcode, f"ATA {opcode:#04x}")
        if opcode not in SECTOR_OPCODES:
            return text
        count = self.get_field("count").i2m(self, self.count)
        return f"{text} lba {self.sector} x{int(count)}"


def _data_length(body: Packet, room: int) -> int:
    if not _is_response(body):
        return room if body.aflags & AFlag.WRITE else 0
    failed = body.underlayer.flags & Flag.ERROR or body.cmd_status & STATUS_BAD
    return 0 if failed else room - room % SECTOR


class AoEConfig(_Body):
    """Command 1: query config.

    ``length`` defaults to the length of ``string``. If a frame declares more bytes than
    it holds, ``string`` is truncated and ``is_valid`` is False. ``version`` defaults to
    1 in responses and 0 in requests (P49, P50).
    """

    name = "AoE query config"
    fields_desc: ClassVar[list[Field]] = [
        ShortField("buffer_count", 0),
        XShortField("firmware", 0),
        ByteField("sector_count", 0),
        _VersionField("version", None, 4),
        BitEnumField("ccmd", ConfigCommand.READ, 4, _value_names(ConfigCommand)),
        FieldLenField("length", None, fmt="H", length_of="string"),
        StrLenField("string", b"", length_from=lambda pkt: pkt.length),
    ]
    dispatch_hook = _needs(CONFIG_LENGTH)

    @property
    def is_valid(self) -> bool:
        """Whether the string is complete and at most 1024 bytes long (P56)."""
        length = len(self.string)
        return self.length in (None, length) and length <= STRING_LIMIT

    def _summary(self) -> str:
        string = f" {bytes(self.string)!r}" if self.string else ""
        if not _is_response(self):
            return f"config {_name(ConfigCommand, self.ccmd)}{string}"
        buffers, sectors = int(self.buffer_count), int(self.sector_count)
        return f"config response buffers {buffers} sectors {sectors}{string}"


class AoEDirective(_Body):
    """An entry of a MAC mask list."""

    name = "AoE mask directive"
    fields_desc: ClassVar[list[Field]] = [
        XByteField("reserved", 0),
        ByteEnumField("dcmd", DirectiveCommand.NONE, _value_names(DirectiveCommand)),
        MACField("mac", "00:00:00:00:00:00"),
    ]
    dispatch_hook = _needs(DIRECTIVE_LENGTH)

    def _summary(self) -> str:
        return f"{_name(DirectiveCommand, self.dcmd)} {self.mac}"


class AoEMask(_Body):
    """Command 2: MAC mask list. ``count`` defaults to the number of directives."""

    name = "AoE MAC mask list"
    fields_desc: ClassVar[list[Field]] = [
        XByteField("reserved", 0),
        ByteEnumField("mcmd", MaskCommand.READ, _value_names(MaskCommand)),
        ByteEnumField("merror", MaskError.NONE, _value_names(MaskError)),
        FieldLenField("count", None, fmt="B", count_of="directives"),
        _DirectivesField("directives", [], AoEDirective),
    ]
    dispatch_hook = _needs(MASK_LENGTH)

    def _summary(self) -> str:
        count = len(self.directives)
        if not _is_response(self):
            return f"mask {_name(MaskCommand, self.mcmd)} x{count}"
        if int(self.merror):
            return f"mask response error: {_name(MaskError, self.merror)}"
        return f"mask response x{count}"


class AoEReserve(_Body):
    """Command 3: reserve/release. ``count`` defaults to the number of ``macs``."""

    name = "AoE reserve/release"
    fields_desc: ClassVar[list[Field]] = [
        ByteEnumField("rcmd", ReserveCommand.READ, _value_names(ReserveCommand)),
        FieldLenField("count", None, fmt="B", count_of="macs"),
        _MACsField("macs", [], MACField("mac", None)),
    ]
    dispatch_hook = _needs(RESERVE_LENGTH)

    def _summary(self) -> str:
        text = "response" if _is_response(self) else _name(ReserveCommand, self.rcmd)
        return f"reserve {text} x{len(self.macs)}"


_LINKS: Final = ((Ether, "type"), (CookedLinux, "proto"))


def install_layers() -> None:
    """Bind these layers to the AoE EtherType. Safe to call more than once.

    Scapy uses the first layer that was bound to an EtherType, so existing bindings are
    removed; later ones, as by ``load_contrib("aoe")``, have no effect. Packets built
    from other AoE layers keep their EtherType. VLAN tags (P24) follow ``Ether``.
    """
    for link, field in _LINKS:
        binding = {field: ETH_P_AOE}
        for values, upper in link.payload_guess:
            if values == binding:
                split_bottom_up(link, upper, **binding)
        bind_layers(link, AoE, **binding)
    # AoE has no address resolution: the default destination is the broadcast address.
    conf.neighbor.register_l3(Ether, AoE, lambda _l2, _l3: format_mac(MAC_BROADCAST))


@overload
def pad(frame: bytes) -> bytes: ...
@overload
def pad(frame: Packet) -> Packet: ...
def pad(frame: bytes | Packet) -> bytes | Packet:
    """Return a frame padded with zeroes to 60 bytes (P19); building does not pad."""
    missing = max(0, FRAME_MINIMUM - len(frame))
    if isinstance(frame, bytes):
        return frame + bytes(missing)
    return frame / Padding(bytes(missing)) if missing else frame


bind_layers(AoE, AoEATA, cmd=Command.ATA)
bind_layers(AoE, AoEConfig, cmd=Command.CONFIG)
bind_layers(AoE, AoEMask, cmd=Command.MASK)
bind_layers(AoE, AoEReserve, cmd=Command.RESERVE)
install_layers()
