"""A client for one target that sends one command at a time, without a driver.

For config strings, MAC mask lists, reservations, IDENTIFY and SMART. A request may be
lost or answered twice (P2): each has a tag of its own and is sent up to four times, and
any response with its tag is accepted.
"""

from __future__ import annotations

import itertools
import os
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final

from aoe.address import BROADCAST, format_mac
from aoe.ata import (
    ATA_DATA,
    SECTOR,
    STATUS_BAD,
    AtaError,
    Registers,
    Status,
    describe_failure,
)
from aoe.config import Config
from aoe.errors import (
    AoEError,
    BusyError,
    DecodeError,
    DeviceError,
    NotFoundError,
    UnsupportedError,
)
from aoe.header import ErrorCode, Flag, Header
from aoe.identify import Identity
from aoe.macmask import Directive, MaskCommand, MaskList
from aoe.reserve import Reserve, ReserveCommand
from initiator.client.discover import Query, discover
from initiator.client.requests import RequestBuilder
from initiator.io.tags import claim_tag_base

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aoe.address import Address
    from aoe.net.link import Link
    from initiator.client.discover import QueryResponse

_TRIES: Final = 4
_SETTLE: Final = 0.05
"""Seconds to wait for a second target with the same address."""
_ASK_INTERVAL: Final = 0.5
"""Seconds between requests to a target whose disk is unavailable."""
_ABORTED: Final = Status.READY | Status.ERROR
"""Status of a disk without a fault that does not support the command (P43)."""
_CLAIMED: Final = "To replace it: aoe config fset {address} STRING"
_RESERVED: Final = "To take over the reservation: aoe reserve force {address}"


class RemoteTarget:
    """A target and the links to it.

    Args:
        links: all links on which it responds; the first one is used.
        response: its response to the query on that link.
        tag_base: ten bits of the tags, see ``claim_tag_base``.
        timeout: seconds to wait for a response, in which a request is sent four times.

    Attributes:
        unavailable_timeout: seconds for which an ATA command is repeated while the
            target says that its disk is unavailable.
        on_warning: called then with the address and a line for the user.
    """

    def __init__(
        self,
        links: Sequence[Link],
        response: QueryResponse,
        tag_base: int,
        timeout: float,
    ) -> None:
        self.link = links[0]
        self.address = response.address
        self.mac = response.mac
        self.config = response.config
        self.own_macs = {link.mac: link.name for link in links}
        """The initiator's MAC addresses that it sees, with their interface names."""
        self.builder = RequestBuilder(self.address, self.mac, self.link.mac, tag_base)
        self.timeout = timeout
        self.unavailable_timeout = 0.0
        self.on_warning: Callable[[Address, str], None] = lambda *_: None

    # --- request and response -----------------------------------------------------

    def try_exchange(
        self, request: bytes, timeout: float, tries: int = _TRIES
    ) -> bytes:
        """Send a request and return the response, empty if there is none.

        Args:
            request: a frame that ``builder`` has built.
            timeout: seconds in all.
            tries: how often the request is sent in that time.

        Raises:
            NotFoundError: the interface has disappeared.
        """
        for _ in range(tries):
            self.link.send(request)
            response = self._receive(request, timeout / tries)
            if response:
                return response
        return b""

    def _receive(self, request: bytes, timeout: float) -> bytes:
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            while (frame := self.link.receive()) is not None:
                if self._is_response(frame, request):
                    return bytes(frame)
            self.link.wait(left)
        return b""

    def _is_response(self, frame: memoryview, request: bytes) -> bool:
        try:
            header = Header.unpack_from(frame)
        except DecodeError:
            return False
        return (
            bool(header.flags & Flag.RESPONSE)
            and self.address == (header.shelf, header.slot)
            # Command and tag.
            and frame[19:24] == request[19:24]
        )

    def exchange(self, request: bytes, what: str) -> bytes:
        """Send a request and return the response, which may be an AoE error.

        Args:
            request: a frame that ``builder`` has built.
            what: the name of the command, for errors.

        Raises:
            NotFoundError: no response within the timeout.
            UnsupportedError: the target does not support the AoE command.
        """
        response = self.try_exchange(request, self.timeout)
        if not response:
            why = f"no response to {what} within {self.timeout:g} s"
            raise NotFoundError(str(self.address), why)
        if _error(response) == ErrorCode.BAD_COMMAND:
            raise UnsupportedError(str(self.address), f"does not support {what}")
        return response

    # --- the four commands --------------------------------------------------------

    def set_config(self, ccmd: int, string: bytes) -> bytes:
        """Set the config string; return the string that is set afterwards.

        Args:
            ccmd: ``ConfigCommand.SET`` or ``FORCE``.
            string: at most 1024 bytes.

        Raises:
            BusyError: another string is set (P54), which the error contains.
            DeviceError: the target refused it.
            NotFoundError: no response.
        """
        response = self.exchange(self.builder.config(ccmd, string), "query config")
        current = _config(response).string
        if _error(response) == ErrorCode.CONFIG_PRESENT:
            if not current:
                # Some targets do not include the string in the error (P54).
                again = self.exchange(self.builder.config(), "query config")
                current = _config(again).string
            why = f'claimed, its config string is "{Config(string=current).text}"'
            fix = _CLAIMED.format(address=self.address)
            raise BusyError(str(self.address), why, fix)
        self._check_refusal(response, "query config")
        return current

    def mask_list(self, *edits: Directive) -> MaskList:
        """Read the MAC mask list, or edit it; ``merror`` is the result of edits (P64).

        Raises:
            UnsupportedError: the target has no MAC mask list.
            DeviceError: the target refused the command.
            NotFoundError: no response.
        """
        what = "MAC mask list"
        mcmd = MaskCommand.EDIT if edits else MaskCommand.READ
        response = self.exchange(self.builder.mask_list(*edits, mcmd=mcmd), what)
        self._check_refusal(response, what)
        try:
            return MaskList.unpack_from(response)
        except DecodeError as error:
            raise self._malformed_error(error) from error

    def holders(self) -> tuple[bytes, ...]:
        """Return the MAC addresses that the target is reserved for.

        Raises:
            UnsupportedError: the target does not support reservations.
            DeviceError: the target refused the command.
            NotFoundError: no response.
        """
        return self._reserve(ReserveCommand.READ, ())

    def reserve(self, macs: Sequence[bytes], *, force: bool) -> tuple[bytes, ...]:
        """Reserve the target for MAC addresses; with none, release it (P72, P73).

        Args:
            macs: the new holders.
            force: replace a reservation of others.

        Returns:
            The holders afterwards.

        Raises:
            BusyError: it is reserved for others, which the error lists.
            UnsupportedError: the target does not support reservations.
            DeviceError: the target refused the command.
            NotFoundError: no response.
        """
        command = ReserveCommand.FORCE if force else ReserveCommand.SET
        return self._reserve(command, tuple(macs))

    def _reserve(self, rcmd: int, macs: tuple[bytes, ...]) -> tuple[bytes, ...]:
        what = "reserve/release"
        response = self.exchange(self.builder.reserve(*macs, rcmd=rcmd), what)
        try:
            holders = Reserve.unpack_from(response).macs
        except DecodeError as error:
            raise self._malformed_error(error) from error
        if _error(response) == ErrorCode.RESERVED:
            if rcmd == ReserveCommand.SET and holders == macs:
                # The request was executed twice, and the second one refused because
                # this client is not among the new holders.
                return holders
            raise self._reserved_error(holders)
        self._check_refusal(response, what)
        return holders

    def ata(self, request: bytes, what: str) -> tuple[Registers, bytes]:
        """Send an ATA command; return the registers and data of the response.

        Raises:
            BusyError: the target is reserved for others, which the error lists.
            UnsupportedError: the disk aborted the command.
            DeviceError: the command failed, or the target refused it.
            NotFoundError: no response.
        """
        response = self._exchange_when_available(request, what)
        if _error(response) == ErrorCode.RESERVED:
            raise self._reserved_error(self.holders())
        self._check_refusal(response, what)
        try:
            registers = Registers.unpack_from(response)
        except DecodeError as error:
            raise self._malformed_error(error) from error
        if registers.command & STATUS_BAD:
            status, code = registers.command, registers.feature
            why = f"{what} failed: {describe_failure(status, code)}"
            aborted = (status, code) == (_ABORTED, AtaError.ABORTED)
            kind = UnsupportedError if aborted else DeviceError
            raise kind(str(self.address), why)
        return registers, response[ATA_DATA:]

    def _exchange_when_available(self, request: bytes, what: str) -> bytes:
        """Repeat a request while the disk is unavailable (P14)."""
        deadline = time.monotonic() + self.unavailable_timeout
        response = self.exchange(request, what)
        if self.unavailable_timeout and _is_unavailable(response):
            limit = f"{self.unavailable_timeout:g} s"
            why = f"device unavailable (AoE error 3): asking again for up to {limit}"
            self.on_warning(self.address, why)
        while _is_unavailable(response) and time.monotonic() < deadline:
            time.sleep(_ASK_INTERVAL)
            response = self.exchange(request, what)
        return response

    def identity_page(self) -> bytes:
        """Return the 512 bytes of IDENTIFY DEVICE.

        Raises:
            AoEError: as ``ata`` raises it.
            DeviceError: the page is too short.
        """
        _, page = self.ata(self.builder.identify(), "IDENTIFY")
        if len(page) < SECTOR:
            why = f"{len(page)} bytes"
            raise DeviceError(str(self.address), f"runt IDENTIFY page: {why}")
        return page[:SECTOR]

    # --- errors -------------------------------------------------------------------

    def _check_refusal(self, response: bytes, what: str) -> None:
        code = _error(response)
        if code is not None:
            text = ErrorCode(code).text if code in list(ErrorCode) else f"error {code}"
            raise DeviceError(str(self.address), f"{what} refused: {text}")

    def _reserved_error(self, holders: Sequence[bytes]) -> AoEError:
        names = ", ".join(map(format_mac, holders)) or "others"
        fix = _RESERVED.format(address=self.address)
        return BusyError(str(self.address), f"reserved for {names}", fix)

    def _malformed_error(self, error: DecodeError) -> AoEError:
        return DeviceError(str(self.address), f"sent a malformed response: {error}")


def _is_unavailable(response: bytes) -> bool:
    return _error(response) == ErrorCode.DEVICE_UNAVAILABLE


def _error(response: bytes) -> int | None:
    header = Header.unpack_from(response)
    return header.error if header.flags & Flag.ERROR else None


def _config(response: bytes) -> Config:
    try:
        return Config.unpack_from(response)
    except DecodeError:
        return Config()


@contextmanager
def open_target(
    links: Sequence[Link], address: Address, timeout: float
) -> Iterator[RemoteTarget]:
    """Find a target on these links.

    Args:
        links: the links to query.
        address: the target.
        timeout: seconds to wait for it, and later for each response.

    Raises:
        NotFoundError: no response.
        DeviceError: targets with different disks respond.
    """
    with open_targets(links, address, timeout, _SETTLE) as found:
        macs = {each.mac for each in found}
        if len(macs) > 1:
            _check_same_disk(address, found)
        yield found[0]


def _check_same_disk(address: Address, targets: Sequence[RemoteTarget]) -> None:
    disks: dict[str, Identity] = {}
    for target in targets:
        # One that does not answer IDENTIFY may have been announced by anybody.
        with suppress(AoEError):
            identity = Identity.unpack(target.identity_page())
            where = f"{format_mac(target.mac)} on {target.link.name}"
            disks[f"{where} serves {identity.describe()}"] = identity
    pairs = itertools.pairwise(disks.values())
    if not all(one.is_same_disk(other) for one, other in pairs):
        why = f"different disks at one address: {', '.join(disks)}"
        raise DeviceError(str(address), why, "Give one of them another address")


@contextmanager
def open_targets(
    links: Sequence[Link], address: Address, timeout: float, settle: float = 0
) -> Iterator[list[RemoteTarget]]:
    """Find a target, or all targets, each once per MAC address and link.

    Args:
        links: the links to query.
        address: the target; ``BROADCAST`` means all.
        timeout: seconds to wait for targets, and later for each response.
        settle: seconds to wait for further responses to another query.

    Raises:
        NotFoundError: no target responds.
    """

    def enough(responses: list[QueryResponse]) -> bool:
        everywhere = {response.interface for response in responses} == set(by_name)
        return address != BROADCAST and everywhere

    by_name = {link.name: link for link in links}
    responses = discover(links, address, timeout, enough)
    if settle and responses:
        known = {(each.mac, each.interface) for each in responses}
        query = Query(links, address)
        query.send()
        for response in query.responses(settle):
            if (response.mac, response.interface) not in known:
                known.add((response.mac, response.interface))
                responses.append(response)
    responses = [response for response in responses if response.error is None]
    if not responses:
        raise not_found(address, by_name, timeout)
    with ExitStack() as stack:
        tag_base, holder = claim_tag_base()
        stack.callback(os.close, holder)
        yield [
            _from_response(each, responses, by_name, tag_base, timeout)
            for each in responses
        ]


def _from_response(
    response: QueryResponse,
    responses: Sequence[QueryResponse],
    by_name: dict[str, Link],
    tag_base: int,
    timeout: float,
) -> RemoteTarget:
    names = [each.interface for each in responses if each.address == response.address]
    names = list(dict.fromkeys([response.interface, *names]))
    return RemoteTarget([by_name[name] for name in names], response, tag_base, timeout)


def not_found(
    address: Address, names: Sequence[str] | dict[str, Link], timeout: float
) -> AoEError:
    """Return the error for a query without a response."""
    where = ",".join(names)
    what = "discover" if address == BROADCAST else str(address)
    return NotFoundError(
        what,
        f"no response on {where} within {timeout:g} s",
        f"List the targets with: aoe discover -i {where}",
    )
