"""Files with which a machine without disks boots from an AoE disk.

They stand beside this module as people would write them, but for two things: ``@NAME@``
is replaced, and a line that begins with ``@word: `` is there only where that holds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aoe.address import format_mac
from aoe.errors import UsageError

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from aoe.address import Address

FILES: Final = {
    "ipxe": "boot.ipxe",
    "dnsmasq": "dnsmasq.conf",
    "dhcpd": "dhcpd.conf",
    "cmdline": "cmdline",
    "initramfs-tools": "initramfs-tools.sh",
    "dracut": "dracut.sh",
}
"""The formats, in the order in which they matter to a machine that boots."""

_CONDITION: Final = re.compile("^@([a-z]+): ?")
_NAME: Final = re.compile("@([A-Z]+)@")
_ROOT: Final = re.compile(r"[\w./:=+-]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Netboot:
    """Who boots from what.

    Args:
        address: the disk's.
        root: what the kernel's ``root=`` says; the first partition if empty.
        client: MAC address of the one client, or nothing for all of them.
        server: the TFTP server; the DHCP server itself where not given.

    Raises:
        UsageError: ``root`` is no word that a command line can hold.
    """

    address: Address
    root: str = ""
    client: bytes = b""
    server: IPv4Address | None = None

    def __post_init__(self) -> None:
        if self.root and not _ROOT.fullmatch(self.root):
            raise UsageError(
                f"--root {self.root}",
                "cannot stand on a kernel's command line",
                f"Write it as /dev/etherd/{self.address}p1 or UUID=...",
            )

    def render(self, form: str) -> str:
        """Fill in the file of a format, one of ``FILES``."""
        from importlib import resources

        text = (resources.files(__name__) / FILES[form]).read_text("utf-8")
        return "".join(map(self._fill, text.splitlines(keepends=True)))

    def _fill(self, line: str) -> str:
        if condition := _CONDITION.match(line):
            if not self._holds(condition[1]):
                return ""
            line = line[condition.end() :] or "\n"
        return _NAME.sub(lambda name: self._value(name[1]), line)

    def _holds(self, condition: str) -> bool:
        return {
            "client": bool(self.client),
            "everybody": not self.client,
            "server": self.server is not None,
            "here": self.server is None,
        }[condition]

    def _value(self, name: str) -> str:
        root = self.root or f"/dev/etherd/{self.address}p1"
        return {
            "ADDRESS": str(self.address),
            "CLIENT": format_mac(self.client),
            "CMDLINE": f"root={root} rootwait ro aoe.aoe_deadsecs=0",
            # iPXE's own name for what DHCP told it.
            "SERVER": str(self.server or "${next-server}"),
        }[name]
