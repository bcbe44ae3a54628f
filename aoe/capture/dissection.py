"""A frame field by field, as scapy shows it."""

from __future__ import annotations

from scapy.layers.l2 import Ether

from aoe.layers import install_layers


def dissect(frame: bytes) -> str:
    """Return all fields of all layers of a frame, in many lines."""
    install_layers()
    return str(Ether(frame).show(dump=True)).rstrip()
