"""ATA over Ethernet on the wire: frame codecs, raw links and capture files."""

from aoe.address import BROADCAST, Address, format_mac, parse_mac
from aoe.errors import (
    AccessError,
    AoEError,
    BusyError,
    DecodeError,
    DeviceError,
    NotFoundError,
    UsageError,
)

__all__ = [
    "BROADCAST",
    "AccessError",
    "Address",
    "AoEError",
    "BusyError",
    "DecodeError",
    "DeviceError",
    "NotFoundError",
    "UsageError",
    "format_mac",
    "parse_mac",
]
