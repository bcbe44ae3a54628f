"""``aoe-target netboot``: configuration files to boot clients from an AoE disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from aoe.address import Address, parse_mac
from aoe.common.commandline import ADDRESS, Parsed
from aoe.errors import UsageError
from target.cli.complete import complete_served
from target.netboot import FILES, Netboot

if TYPE_CHECKING:
    from ipaddress import IPv4Address

_ALL: Final = "all"


def parse_ip(text: str) -> IPv4Address:
    """Parse an IPv4 address.

    Raises:
        UsageError: not an IPv4 address.
    """
    from ipaddress import IPv4Address

    try:
        return IPv4Address(text)
    except ValueError as error:
        why = "not an IPv4 address"
        raise UsageError(text, why, "Write it as 192.0.2.1") from error


MAC: Final = Parsed("mac", parse_mac)
IP: Final = Parsed("address", parse_ip)


@click.command()
@click.argument("address", type=ADDRESS, shell_complete=complete_served)
@click.option(
    "-f",
    "--format",
    "form",
    type=click.Choice([_ALL, *FILES]),
    default=_ALL,
    show_default=True,
    help="The file to print; all of them is for reading, one is ready for use.",
)
@click.option(
    "--client",
    type=MAC,
    default=b"",
    help="MAC address of the only client to boot from this disk; default: any client.",
)
@click.option(
    "--server-ip",
    type=IP,
    help="IPv4 address of the TFTP server; default: the DHCP server.",
)
@click.option(
    "--root",
    default="",
    metavar="DEVICE",
    help="Root device for the kernel; default: the first partition of the disk.",
)
def netboot(
    address: Address, form: str, client: bytes, server_ip: IPv4Address | None, root: str
) -> None:
    """Print configuration files to boot from the disk at ADDRESS.

    \b
    Try:  aoe-target netboot e0.0 | less
          aoe-target netboot e0.0 -f dnsmasq --client 52:54:00:ae:00:02 >aoe.conf
          aoe-target netboot e0.0 -f initramfs-tools | ssh root@client sh

    \b
    ipxe             iPXE script that boots the disk, a kernel or an installer
    dnsmasq, dhcpd   configuration fragment for the DHCP server
    cmdline          kernel command line
    initramfs-tools  script that makes the initramfs wait for the disk
    dracut           the same for dracut

    Nothing is sent or changed, and ADDRESS need not be served yet.
    """
    boot = Netboot(address=address, root=root, client=client, server=server_ip)
    if form != _ALL:
        click.echo(boot.render(form), nl=False)
        return
    for each, name in FILES.items():
        click.echo(f"{_title(address, each, name)}\n\n{boot.render(each)}")


def _title(address: Address, form: str, name: str) -> str:
    return f"######## {name}: aoe-target netboot {address} -f {form} ########"
