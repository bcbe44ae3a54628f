"""One export: a disk, the address it is served at, and what clients set on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.ata import SECTOR
from aoe.config import STRING_LIMIT
from aoe.errors import UsageError
from aoe.identify import Identity

if TYPE_CHECKING:
    from aoe.address import Address
    from target.disks import Disk

MODEL: Final = "pyaoe"
BUFFER_COUNT: Final = 64
"""As many as the Linux driver ever keeps outstanding (P60)."""
BUFFER_MINIMUM: Final = 2
"""With less than this the Linux driver never brings the device up (P60)."""
BUFFER_LIMIT: Final = 0xFFFF


class Export:
    """A disk under an AoE address, on as many interfaces as one likes.

    What clients set is shared by all interfaces: it belongs to the export.

    Args:
        address: the shelf and slot.
        disk: where the bytes live.
        serial: at most 20 ASCII characters, the address where none is given.
        model: at most 40 ASCII characters.
        firmware: at most 8 ASCII characters.
        firmware_number: the same for the query config reply, 16 bits.
        buffer_count: messages that a client may have outstanding.
        config_string: the config string it starts with.

    Raises:
        UsageError: a buffer count below 2 or above 65535, or a config string of more
            than 1024 bytes.
    """

    def __init__(
        self,
        address: Address,
        disk: Disk,
        *,
        serial: str = "",
        model: str = MODEL,
        firmware: str = "",
        firmware_number: int = 0,
        buffer_count: int = BUFFER_COUNT,
        config_string: bytes = b"",
    ) -> None:
        if not BUFFER_MINIMUM <= buffer_count <= BUFFER_LIMIT:
            raise UsageError(
                f"{buffer_count} buffers",
                "clients need room for two messages at least",
                f"Choose {BUFFER_MINIMUM} to {BUFFER_LIMIT}",
            )
        if len(config_string) > STRING_LIMIT:
            raise UsageError(
                "config string",
                f"{len(config_string)} bytes are too long",
                f"Keep to {STRING_LIMIT}",
            )
        self.address = address
        self.disk = disk
        self.sectors = disk.size // SECTOR
        self.buffer_count = buffer_count
        self.firmware_number = firmware_number
        self.config_string = config_string
        self.identity = Identity(
            self.sectors, serial or str(address)[1:], firmware, model
        )
        self.identity_page = self.identity.pack()

    def claim(self, string: bytes) -> bool:
        """Set the config string if there is none, and tell whether it is now this one.

        Saying the same again succeeds, as a retransmitted request must (P2, P54).
        """
        if not self.config_string:
            self.config_string = string
        return self.config_string == string

    def force(self, string: bytes) -> None:
        """Set the config string whatever it was; the empty one clears it (P55)."""
        self.config_string = string
