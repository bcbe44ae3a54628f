"""Templates of the files with which a diskless machine boots from an AoE disk.

The templates are in this directory. ``@NAME@`` is replaced by a value, and a line that
begins with ``@condition: `` is included only if the condition is true.
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
"""The template of each format, in the order of use during boot."""

_CONDITION: Final = re.compile("^@([a-z]+): ?")
_NAME: Final = re.compile("@([A-Z]+)@")
_ROOT: Final = re.compile(r"[\w./:=+-]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Netboot:
    """A boot configuration.

    Args:
        address: the address of the disk.
        root: the value of ``root=``; the disk's first partition if empty.
        client: the MAC address of the only client, or empty for any client.
        server: the TFTP server; None for the DHCP server.

    Raises:
        UsageError: ``root`` has characters that are not allowed on the command line.
    """

    address: Address
    root: str = ""
    client: bytes = b""
    server: IPv4Address | None = None

    def __post_init__(self) -> None:
        if self.root and not _ROOT.fullmatch(self.root):
            raise UsageError(
                f"--root {self.root}",
                "not valid on a kernel command line",
                f"Write it as /dev/etherd/{self.address}p1 or UUID=...",
            )

    def render(self, form: str) -> str:
        """Return the file of a format, which is a key of ``FILES``."""
        from importlib import resources

        text = (resources.files(__name__) / FILES[form]).read_text("utf-8")
        return "".join(map(self._fill, text.splitlines(keepends=True)))

    def _fill(self, line: str) -> str:
        if condition := _CONDITION.match(line):
            if not self._is_true(condition[1]):
                return ""
            line = line[condition.end() :] or "\n"
        return _NAME.sub(lambda name: self._value(name[1]), line)

    def _is_true(self, condition: str) -> bool:
        return {
            "client": bool(self.client),
            "anyclient": not self.client,
            "server": self.server is not None,
            "noserver": self.server is None,
        }[condition]

    def _value(self, name: str) -> str:
        root = self.root or f"/dev/etherd/{self.address}p1"
        return {
            "ADDRESS": str(self.address),
            "CLIENT": format_mac(self.client),
            "CMDLINE": f"root={root} rootwait ro aoe.aoe_deadsecs=0",
            # The iPXE setting for the next server of the DHCP response.
            "SERVER": str(self.server or "${next-server}"),
        }[name]
