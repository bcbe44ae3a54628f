"""The helpers of the session: ask targets, watch the network."""

from __future__ import annotations

import itertools
from contextlib import ExitStack, closing
from datetime import datetime
from typing import TYPE_CHECKING, Final

import click
from scapy.config import conf
from scapy.error import log_interactive
from scapy.interfaces import network_name
from scapy.layers.l2 import Ether
from scapy.plist import PacketList
from scapy.sendrecv import sniff

from aoe.address import BROADCAST, Address
from aoe.ata import SECTOR, STATUS_BAD, Opcode, describe_failure
from aoe.describe import describe
from aoe.errors import DeviceError, NotFoundError, UsageError
from aoe.header import TAG_USER, Flag
from aoe.layers import AoE, AoEATA, AoEConfig
from initiator.session.exchange import Exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from scapy.packet import Packet

    from aoe.net.link import Link

HELPERS: Final = (
    *("ask", "ask_all", "discover", "watch"),
    *("read_sectors", "write_sectors"),
)
"""The methods of ``Session`` that are names in the session."""


class Session:
    """Interfaces, and the helpers that use them.

    An interface is opened for each call, so that one that was down or absent can be
    used again, and no late response is left from an earlier call.

    Args:
        interfaces: names of the interfaces.
        open_interface: opens an interface by name.
        tag_base: twelve bits that all tags have in common (P11).
        timeout: seconds to wait for responses unless a call says otherwise.
    """

    def __init__(
        self,
        interfaces: Sequence[str],
        open_interface: Callable[[str], Link],
        tag_base: int,
        timeout: float,
    ) -> None:
        self.interfaces = interfaces
        self._open = open_interface
        self._timeout = timeout
        first = TAG_USER | tag_base << 19
        self._tags = itertools.cycle(range(first, first + (1 << 19)))

    def ask(
        self, packet: Packet, /, *, timeout: float | None = None, iface: object = None
    ) -> Packet | None:
        """Send a request and return the first response, or None after the timeout.

        >>> ask(AoE() / AoEConfig()).show()
        >>> ask(AoE(shelf=7, slot=3) / AoEATA(cmd_status="READ EXT", lba=8)).data
        >>> ask(Ether(dst="52:54:00:ae:00:01") / AoE() / AoEReserve(), timeout=0.2)

        The frame is sent once. Unless set: source and destination are the interface and
        broadcast, the tag is new, and the frame is padded to 60 bytes. A response has
        command and tag, shelf and slot of the request; its ``time`` and ``sniffed_on``
        say when and where it arrived. An error response is a response.

        Args:
            packet: begins with AoE, or with Ether; it is not modified.
            timeout: seconds; by default those of aoe scapy --timeout.
            iface: the interface; by default conf.iface.
        """
        name = _name(iface)
        response = self._first_response(packet, timeout, name)
        if response is None:
            _warn(name)
        return response

    def ask_all(
        self, packet: Packet, /, *, timeout: float | None = None, iface: object = None
    ) -> PacketList:
        """Send a request and return all responses that arrive before the timeout.

        >>> ask_all(AoE(shelf=0xFFFF, slot=0xFF) / AoEConfig()).nsummary()
        >>> ask_all(AoE(slot=(0, 15)) / AoEATA(), timeout=3)

        Arguments are those of ask(). A packet with lists or ranges of values stands for
        several requests, as in scapy.
        """
        responses = list(self._exchange(packet, timeout, [_name(iface)]))
        return PacketList(responses, "Responses")

    def discover(self, *, timeout: float | None = None) -> PacketList:
        """Print the targets on all interfaces of the session; return their responses.

        >>> targets = discover()
        >>> ask(Ether(dst=targets[0].src) / AoE() / AoEATA())
        """
        query = AoE(shelf=BROADCAST.shelf, slot=BROADCAST.slot) / AoEConfig()
        found = PacketList(name="Targets")
        for response in self._exchange(query, timeout, self.interfaces):
            found.append(response)
            header = response[AoE]
            address = Address(header.shelf, header.slot)
            click.echo(f"{address!s:<10} {response.src}  {response.sniffed_on}")
        if not found:
            _warn(*self.interfaces)
        return found

    def watch(
        self, count: int = 0, *, timeout: float | None = None, iface: object = None
    ) -> PacketList:
        """Print AoE frames as they arrive, until Ctrl-C; return them.

        >>> wrpcap("seen.pcap", watch(100))

        Requests and responses of all hosts are shown, as far as the switch delivers
        them. sniff(), which this is based on, has more options.

        Args:
            count: stop after this number of frames; 0 means never.
            timeout: stop after this many seconds.
            iface: the interface; by default conf.iface.
        """
        return sniff(
            iface=_name(iface),
            count=count,
            timeout=timeout,
            lfilter=lambda packet: AoE in packet,
            prn=_line,
        )

    def read_sectors(
        self, address: str, lba: int, count: int = 1, *, timeout: float | None = None
    ) -> bytes:
        """Read sectors with one READ EXT, by broadcast, and return the data.

        >>> hexdump(read_sectors("e7.3", 2))

        Raises:
            NotFoundError: no response.
            DeviceError: the target reported an error, or returned less data.
        """
        request = AoEATA(
            aflags="extended", cmd_status=Opcode.READ_EXT, lba=lba, count=count
        )
        data = self._transfer(address, request, timeout).data
        if len(data) != count * SECTOR:
            why = f"{len(data)} bytes in the response to a read of {count} sectors"
            raise DeviceError(address, why)
        return bytes(data)

    def write_sectors(
        self, address: str, lba: int, data: bytes, *, timeout: float | None = None
    ) -> None:
        """Write whole sectors with one WRITE EXT, by broadcast.

        >>> write_sectors("e7.3", 8, b"hello".ljust(512, bytes(1)))

        Raises:
            NotFoundError: no response. The target may have written the data.
            DeviceError: the target reported an error.
            UsageError: the data is not a number of sectors of 512 bytes.
        """
        if not data or len(data) % SECTOR:
            why = f"{len(data)} bytes are not a multiple of {SECTOR}"
            raise UsageError(address, why, "Pad the data")
        request = AoEATA(
            aflags="extended+write", cmd_status=Opcode.WRITE_EXT, lba=lba, data=data
        )
        self._transfer(address, request, timeout)

    def _transfer(self, address: str, request: Packet, timeout: float | None) -> Packet:
        shelf, slot = Address.parse(address)
        name = _name(None)
        packet = AoE(shelf=shelf, slot=slot) / request
        response = self._first_response(packet, timeout, name)
        if response is None:
            raise NotFoundError(address, f"no response on {name}")
        if response[AoE].flags & Flag.ERROR or AoEATA not in response:
            raise DeviceError(address, _text(response))
        body = response[AoEATA]
        if body.cmd_status & STATUS_BAD:
            why = describe_failure(body.cmd_status, body.err_feature)
            raise DeviceError(address, why)
        return body

    def _first_response(
        self, packet: Packet, timeout: float | None, interface: str
    ) -> Packet | None:
        with closing(self._exchange(packet, timeout, [interface])) as responses:
            return next(responses, None)

    def _exchange(
        self, packet: Packet, timeout: float | None, interfaces: Sequence[str]
    ) -> Generator[Packet]:
        seconds = self._timeout if timeout is None else timeout
        with ExitStack() as stack:
            links = [stack.enter_context(self._open(name)) for name in interfaces]
            exchange = Exchange(links, lambda: next(self._tags))
            yield from exchange.responses(packet, seconds)


def _name(iface: object) -> str:
    return str(network_name(iface or conf.iface))


def _warn(*interfaces: str) -> None:
    if conf.verb:
        log_interactive.warning("no response on %s", ",".join(interfaces))


def _line(packet: Packet) -> str:
    time = datetime.fromtimestamp(float(packet.time)).astimezone()
    return f"{time:%T.%f} {packet.src} > {packet.dst} {_text(packet)}"


def _text(packet: Packet) -> str:
    # Without a VLAN tag, which describe() does not read.
    return describe(bytes(Ether() / packet[AoE]))
