"""Binding of the layers to the EtherType, in place of ``scapy.contrib.aoe``."""

from __future__ import annotations

import subprocess
import sys

from scapy.config import conf
from scapy.layers.l2 import CookedLinux, Dot1Q, Ether

from aoe.layers import AoE, AoEConfig, install_layers

MAC = "00:1b:21:aa:bb:cc"
FRAME = bytes(Ether(dst=MAC, src=MAC) / AoE(flags="response") / AoEConfig())
OURS = ["aoe.layers.AoE", "aoe.layers.AoEConfig"]


def layers_after(*statements: str) -> list[str]:
    """Run the statements in a new interpreter; return the layers of FRAME."""
    program = "\n".join(
        [
            "from scapy.layers.l2 import Ether",
            "from scapy.main import load_contrib",
            *statements,
            f"layers = Ether({FRAME!r}).layers()",
            "print(*(f'{layer.__module__}.{layer.__name__}' for layer in layers))",
        ]
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return run.stdout.split()[1:3]


def test_layers_replace_those_of_scapy_loaded_before() -> None:
    contrib = layers_after("load_contrib('aoe')")
    assert contrib == ["scapy.contrib.aoe.AOE"]
    assert layers_after("load_contrib('aoe')", "import aoe.layers") == OURS


def test_layers_of_scapy_loaded_later_are_not_used() -> None:
    loads = ["import aoe.layers", "load_contrib('aoe')"]
    reload = ["import importlib", "import scapy.contrib.aoe as contrib"]
    assert layers_after(*loads) == OURS
    assert layers_after(*loads, *reload, "importlib.reload(contrib)") == OURS


def test_install_layers_restores_a_lost_binding() -> None:
    rebind = "Ether.payload_guess.insert(0, ({'type': 0x88A2}, contrib.AOE))"
    loads = ["import aoe.layers", "import scapy.contrib.aoe as contrib", rebind]
    assert layers_after(*loads) != OURS
    assert layers_after(*loads, *["aoe.layers.install_layers()"] * 2) == OURS


def test_installing_twice_binds_once() -> None:
    install_layers()
    install_layers()
    bound = [upper for values, upper in Ether.payload_guess if upper is AoE]
    assert bound == [AoE]


def test_packets_of_scapys_layers_keep_their_ethertype() -> None:
    built = f"raw = bytes(Ether(dst='{MAC}', src='{MAC}') / contrib.AOE())"
    code = f"{built}; assert raw[12:14] == b'\\x88\\xa2', raw"
    loads = ["import aoe.layers", "import scapy.contrib.aoe as contrib", code]
    assert layers_after(*loads) == OURS


def test_vlan_tags_and_cooked_captures_are_dissected() -> None:
    """P24."""
    tagged = Ether(dst=MAC, src=MAC) / Dot1Q(vlan=5) / AoE() / AoEConfig()
    assert bytes(tagged)[12:18] == bytes.fromhex("8100 0005 88a2")
    for packet in (tagged, CookedLinux() / AoE() / AoEConfig()):
        dissected = packet.__class__(bytes(packet))
        assert dissected.layers()[-2:] == [AoE, AoEConfig]


def test_the_default_destination_is_broadcast() -> None:
    """No address is resolved, so scapy does not warn about a failed resolution."""
    conf.raise_no_dst_mac = True
    try:
        packet = bytes(Ether(src=MAC) / AoE() / AoEConfig())
    finally:
        conf.raise_no_dst_mac = False
    assert packet[:6] == b"\xff" * 6
