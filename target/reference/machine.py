"""The protocol as a scapy answering machine: request packet in, response packet out.

::

    is_request   EtherType, R flag, address, mask list
    make_reply   version --> COMMANDS[cmd] --> ata, config, mask or reserve --> padding

It implements the same rules as ``target.protocol`` on the same ``Export``, with scapy's
layers instead of structs: shorter, easy to change, and some hundred times slower. A
subclass changes the protocol by overriding the method of a command:

>>> class WrongTag(AoETarget):
...     def make_reply(self, req):
...         response = super().make_reply(req)
...         response[AoE].tag ^= 1
...         return response

``aoe-target serve --engine FILE.py:CLASS ...`` serves with it. Without the server, it
runs as any answering machine: ``AoETarget(export=..., mac=..., mtu=..., iface=...)()``.
"""
# scapy.* is not followed (see pyproject.toml), so that its classes are Any here.
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Final

from scapy.ansmachine import AnsweringMachine
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from aoe.address import MAC_BROADCAST, SHELF_ALL, SLOT_ALL, format_mac, parse_mac
from aoe.config import CONFIG_STRING, ConfigCommand
from aoe.header import (
    ETH_P_AOE,
    ETHERNET_LENGTH,
    HEADER_LENGTH,
    VERSION,
    Command,
    ErrorCode,
    Flag,
    sectors_per_frame,
)
from aoe.layers import AoE, AoEConfig, AoEDirective, AoEMask, AoEReserve, pad
from aoe.macmask import (
    DIRECTIVE_LENGTH,
    MASK_LENGTH,
    DirectiveCommand,
    MaskCommand,
    MaskError,
)
from aoe.reserve import RESERVE_LENGTH, ReserveCommand
from target.protocol.exports import LIST_LIMIT
from target.protocol.frames import Drop
from target.reference.ata import AtaCommands, NoResponse

if TYPE_CHECKING:
    from collections.abc import Callable

    from target.protocol.exports import ClientState, Export

_MAC_LENGTH: Final = 6


class AoETarget(AtaCommands, AnsweringMachine):
    """One export on one interface, as a scapy answering machine.

    Args:
        export: the export to serve.
        mac: the interface's address, such as ``52:54:00:ae:00:01`` (P12).
        mtu: the interface's MTU, at least 548: one sector per frame.
        clock: returns the time, seconds.

    Other keyword arguments are those of ``AnsweringMachine``, such as ``iface``.

    Attributes:
        counts: requests, reads, read_bytes, writes, written_bytes and flushes.
        errors: error responses, by kind.
        dropped: frames that were not answered, by ``Drop``.
    """

    function_name = "aoe_target"

    COMMANDS: ClassVar[dict[int, str]] = {
        Command.ATA: "ata",
        Command.CONFIG: "config",
        Command.MASK: "mask",
        Command.RESERVE: "reserve",
    }
    """AoE command: the name of its method, which gets the request and returns the
    response, or raises ``NoResponse``."""

    def parse_options(
        self,
        export: Export,
        mac: str,
        mtu: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the options of the constructor; scapy calls it."""
        self.export, self.clock = export, clock
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.largest_advertised = 0
        self.reconfigure(mac, mtu)

    def reconfigure(self, mac: str, mtu: int) -> None:
        """Apply a new address or MTU of the interface."""
        self.mac, self.mtu = mac, mtu
        self.largest_advertised = max(self.largest_advertised, sectors_per_frame(mtu))

    # --- requests -----------------------------------------------------------------

    def is_request(self, req: Packet) -> bool:
        """Return True if the frame is a request that this target has to answer."""
        reason = self.reason_to_drop(req)
        if reason in {None, Drop.MASKED}:
            self.counts["requests"] += 1
        if reason is not None:
            self.dropped[reason] += 1
        return reason is None

    def reason_to_drop(self, req: Packet) -> Drop | None:
        """Return why a frame is not answered, None if it is."""
        aoe, (shelf, slot) = req.payload, self.export.address
        if not isinstance(aoe, AoE):
            return Drop.SHORT if len(req) < HEADER_LENGTH else Drop.FOREIGN
        if aoe.flags.response:
            return Drop.RESPONSE  # P7
        if aoe.shelf not in {shelf, SHELF_ALL} or aoe.slot not in {slot, SLOT_ALL}:
            return Drop.ADDRESS  # P8
        mask = self.export.state.mask
        return Drop.MASKED if mask and parse_mac(req.src) not in mask else None  # P61

    def make_reply(self, req: Packet) -> Packet | None:
        """Execute a request, and return its response; None if there is none."""
        aoe = req[AoE]
        try:
            if aoe.version != VERSION:
                response = self.refuse(req, ErrorCode.BAD_VERSION)  # P6
            elif aoe.cmd not in self.COMMANDS:
                response = self.refuse(req, ErrorCode.BAD_COMMAND)  # P16
            else:
                response = getattr(self, self.COMMANDS[aoe.cmd])(req)
        except NoResponse as dropped:
            self.dropped[dropped.args[0]] += 1
            return None
        return pad(response)  # P19

    def header(self, req: Packet, code: int = 0) -> Packet:
        """Return the headers of a response: P8, P9, P10, P12, and P14 with a code."""
        shelf, slot = self.export.address
        if code:
            self.errors[ErrorCode(code).name.lower()] += 1
        return Ether(dst=req.src, src=self.mac, type=ETH_P_AOE) / AoE(
            flags=Flag.RESPONSE | (Flag.ERROR if code else 0),
            error=code,
            shelf=shelf,
            slot=slot,
            cmd=req[AoE].cmd,
            tag=req[AoE].tag,
        )

    def refuse(self, req: Packet, code: int, limit: int | None = None) -> Packet:
        """Return an error response, which echoes the argument of the request (P18).

        Args:
            req: the request.
            code: the AoE error.
            limit: bytes of the argument to echo; never more than the MTU allows.
        """
        room = ETHERNET_LENGTH + self.mtu - HEADER_LENGTH
        argument = bytes(req[AoE].payload)[: min(room, limit or room)]
        return self.header(req, code) / Raw(argument)

    def update(self, state: ClientState) -> int:
        """Replace the client state; return an AoE error if it cannot be saved."""
        try:
            self.export.update_state(state)
        except OSError:
            return ErrorCode.DEVICE_UNAVAILABLE
        return 0

    # --- command 1: query config --------------------------------------------------

    def config(self, req: Packet) -> Packet:
        """Read, test or set the config string (P49 to P58)."""
        if AoEConfig not in req:
            raise NoResponse(Drop.SHORT)  # P17
        config = req[AoEConfig]
        current, code = self.export.config_string, 0
        match config.ccmd:
            case ConfigCommand.READ:
                pass  # The string and length in the request are ignored (P51).
            case ConfigCommand.TEST | ConfigCommand.PREFIX if config.is_valid:
                is_test = config.ccmd == ConfigCommand.TEST
                known = current if is_test else current[: len(config.string)]
                if known != config.string:
                    raise NoResponse(Drop.NO_MATCH)  # P52, P53
            case ConfigCommand.SET if config.is_valid:
                if current not in (b"", config.string):
                    code = ErrorCode.CONFIG_PRESENT  # P54
                else:
                    code = self.set_config(config.string)
            case ConfigCommand.FORCE if config.is_valid:
                code = self.set_config(config.string)  # P55
            case _:
                code = ErrorCode.BAD_ARGUMENT  # P56, P57
        return self.header(req, code) / self.config_body(config.ccmd)

    def set_config(self, string: bytes) -> int:
        """Set the config string; return an AoE error if it cannot be saved."""
        return self.update(replace(self.export.state, config_string=string))

    def config_body(self, ccmd: int = ConfigCommand.READ) -> Packet:
        """Return the body of a query config response, truncated to the MTU (P50)."""
        return AoEConfig(
            buffer_count=self.export.buffer_count,
            firmware=self.export.firmware_number,
            sector_count=sectors_per_frame(self.mtu),
            version=VERSION,
            ccmd=ccmd,
            string=self.export.config_string[
                : ETHERNET_LENGTH + self.mtu - CONFIG_STRING
            ],
        )

    def announcement(self, dst: str = format_mac(MAC_BROADCAST)) -> Packet:
        """Return an announcement, an unsolicited query config response (P48)."""
        request = Ether(src=dst) / AoE(cmd=Command.CONFIG, tag=0)
        return pad(self.header(request) / self.config_body())

    # --- command 2: MAC mask list -------------------------------------------------

    def mask(self, req: Packet) -> Packet:
        """Read or edit the MAC mask list (P61 to P70)."""
        if AoEMask not in req:
            raise NoResponse(Drop.SHORT)
        mask = req[AoEMask]
        if mask.mcmd == MaskCommand.READ:
            return self.header(req) / self.mask_body(mask.mcmd)  # P62
        if mask.mcmd != MaskCommand.EDIT or len(mask.directives) < mask.count:
            return self.refuse(req, ErrorCode.BAD_ARGUMENT)  # P68, P69
        macs = dict.fromkeys(self.export.state.mask)
        done, problem = 0, MaskError.NONE
        for directive in mask.directives:
            problem = self.edit_mask(macs, directive.dcmd, parse_mac(directive.mac))
            if problem:
                break
            done += 1
        # Directives before a bad one take effect (P65).
        if code := self.update(replace(self.export.state, mask=tuple(macs))):
            return self.header(req, code) / self.mask_body(mask.mcmd)
        if not problem:
            return self.header(req) / self.mask_body(mask.mcmd)  # P67
        self.errors[f"mask_{problem.name.lower()}"] += 1
        directives = [
            AoEDirective(dcmd=directive.dcmd, mac=directive.mac)
            for directive in mask.directives[: self.mask_limit]
        ]
        return self.header(req) / AoEMask(
            mcmd=mask.mcmd, merror=problem, count=done, directives=directives
        )  # P64, P66

    @property
    def mask_limit(self) -> int:
        """The number of addresses in a mask list that a frame has room for."""
        room = ETHERNET_LENGTH + self.mtu - HEADER_LENGTH - MASK_LENGTH
        return min(LIST_LIMIT, room // DIRECTIVE_LENGTH)

    def edit_mask(self, macs: dict[bytes, None], dcmd: int, mac: bytes) -> MaskError:
        """Apply a directive (P63)."""
        match dcmd:
            case DirectiveCommand.NONE:
                pass
            case DirectiveCommand.ADD:
                if mac not in macs and len(macs) >= self.mask_limit:
                    return MaskError.FULL
                macs[mac] = None
            case DirectiveCommand.DELETE:
                macs.pop(mac, None)
            case _:
                return MaskError.BAD_DIRECTIVE
        return MaskError.NONE

    def mask_body(self, mcmd: int) -> Packet:
        """Return the body of a response with the current mask list."""
        macs = self.export.state.mask[: self.mask_limit]
        directives = [AoEDirective(mac=format_mac(mac)) for mac in macs]
        return AoEMask(mcmd=mcmd, directives=directives)

    # --- command 3: reserve/release -----------------------------------------------

    def reserve(self, req: Packet) -> Packet:
        """Read, set or force the reservation (P71 to P78)."""
        if AoEReserve not in req:
            raise NoResponse(Drop.SHORT)
        reserve = req[AoEReserve]
        state, code = self.export.state, 0
        holders = tuple(dict.fromkeys(map(parse_mac, reserve.macs)))
        match reserve.rcmd:
            case ReserveCommand.READ:
                pass  # P73
            case ReserveCommand.SET | ReserveCommand.FORCE if (
                len(reserve.macs) == reserve.count
            ):
                if reserve.rcmd == ReserveCommand.SET and self.is_reserved(req):
                    code = ErrorCode.RESERVED  # P72
                else:
                    code = self.update(replace(state, holders=holders))
            case _:
                code = ErrorCode.BAD_ARGUMENT  # P75
        room = ETHERNET_LENGTH + self.mtu - HEADER_LENGTH - RESERVE_LENGTH
        current = self.export.state.holders[: room // _MAC_LENGTH]
        return self.header(req, code) / AoEReserve(
            rcmd=reserve.rcmd, macs=[format_mac(mac) for mac in current]
        )  # P71
