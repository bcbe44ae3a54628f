"""Dissection of a frame into its fields, by scapy."""

from __future__ import annotations

from scapy.layers.l2 import Ether

from aoe.layers import install_layers


def dissect(frame: bytes) -> str:
    """Return all layers and fields of a frame as multi-line text."""
    install_layers()
    return str(Ether(frame).show(dump=True)).rstrip()
