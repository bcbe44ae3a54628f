"""The names of the session: those of scapy, our layers and constants, the helpers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scapy import all as scapy_all
from scapy.packet import Packet

from aoe import layers
from aoe.address import Address
from aoe.ata import AFlag, AtaError, Opcode, Status
from aoe.config import ConfigCommand
from aoe.header import Command, ErrorCode, Flag
from aoe.macmask import DirectiveCommand, MaskCommand, MaskError
from aoe.reserve import ReserveCommand
from initiator.session.helpers import HELPERS

if TYPE_CHECKING:
    from initiator.session.helpers import Session

_CONSTANTS: Final = (
    *(AFlag, AtaError, Command, ConfigCommand, DirectiveCommand, ErrorCode, Flag),
    *(MaskCommand, MaskError, Opcode, ReserveCommand, Status),
)


def own_names(session: Session) -> dict[str, object]:
    """Return the names that the session adds to those of scapy."""
    classes = [Address, *_CONSTANTS, *layer_classes()]
    helpers = {name: getattr(session, name) for name in HELPERS}
    return {each.__name__: each for each in classes} | helpers | {"pad": layers.pad}


def all_names(session: Session) -> dict[str, object]:
    """Return all names, as the program of a script gets them."""
    public = {name: value for name, value in vars(scapy_all).items() if name[0] != "_"}
    return public | own_names(session)


def layer_classes() -> list[type[Packet]]:
    """Return the layers of AoE."""
    return [
        value
        for name, value in vars(layers).items()
        if name.startswith("AoE") and issubclass(value, Packet)
    ]
