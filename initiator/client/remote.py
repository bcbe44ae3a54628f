"""A target at the other end of a link, asked one command after the other.

For what is no disk I/O: config string, lists, IDENTIFY, SMART. There is no driver in
it. Every question may be answered twice or have to be asked again (P2), so each has a
tag of its own, and the answer to any of its transmissions will do.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager
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
    BusyError,
    DecodeError,
    DeviceError,
    NotFoundError,
    UnsupportedError,
)
from aoe.header import ErrorCode, Flag, Header
from aoe.macmask import Directive, MaskCommand, MaskList
from aoe.reserve import Reserve, ReserveCommand
from initiator.client.discover import discover
from initiator.client.requests import RequestBuilder
from initiator.io.tags import claim_tag_base

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aoe.address import Address
    from aoe.errors import AoEError
    from aoe.net.link import Link
    from initiator.client.discover import QueryResponse

_TRIES: Final = 4
_ABORTED: Final = Status.READY | Status.ERROR
"""The status of a disk that is well and does not know the command (P43)."""
_CLAIMED: Final = "Take it all the same: aoe config fset {address} STRING"
_RESERVED: Final = "Take it from them: aoe reserve force {address}"


class RemoteTarget:
    """One target, and how it is reached.

    Args:
        links: all that reach it; the first one is used.
        answer: what it answered on that one.
        tag_base: twelve bits that nobody else here uses, see ``claim_tag_base``.
        patience: seconds to wait for an answer, in which it is asked four times.
    """

    def __init__(
        self,
        links: Sequence[Link],
        answer: QueryResponse,
        tag_base: int,
        patience: float,
    ) -> None:
        self.link = links[0]
        self.address = answer.address
        self.mac = answer.mac
        self.config = answer.config
        self.own_macs = {link.mac: link.name for link in links}
        """The MAC addresses that it knows us by, and the interfaces that have them."""
        self.builder = RequestBuilder(self.address, self.mac, self.link.mac, tag_base)
        self.patience = patience

    # --- asking -------------------------------------------------------------------

    def try_exchange(
        self, request: bytes, patience: float, tries: int = _TRIES
    ) -> bytes:
        """Send a request and return what is answered to it, nothing for silence.

        Args:
            request: a frame that ``asking`` has built.
            patience: seconds in all.
            tries: how often it is sent in that time.

        Raises:
            NotFoundError: the interface is gone.
        """
        for _ in range(tries):
            self.link.send(request)
            reply = self._hear(request, patience / tries)
            if reply:
                return reply
        return b""

    def _hear(self, request: bytes, patience: float) -> bytes:
        deadline = time.monotonic() + patience
        while (left := deadline - time.monotonic()) > 0:
            while (frame := self.link.receive()) is not None:
                if self._is_answer(frame, request):
                    return bytes(frame)
            self.link.wait(left)
        return b""

    def _is_answer(self, frame: memoryview, request: bytes) -> bool:
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
        """Send a request and return the answer, be it an AoE error.

        Raises:
            NotFoundError: there is none.
            UnsupportedError: it does not know the command.
        """
        reply = self.try_exchange(request, self.patience)
        if not reply:
            why = f"no answer to {what} within {self.patience:g} s"
            raise NotFoundError(str(self.address), why)
        if _error(reply) == ErrorCode.BAD_COMMAND:
            raise UnsupportedError(str(self.address), f"knows no {what}")
        return reply

    # --- the four commands --------------------------------------------------------

    def set_config(self, ccmd: int, string: bytes) -> bytes:
        """Set the config string, and return what it is afterwards.

        Args:
            ccmd: ``ConfigCommand.SET`` or ``FORCE``.
            string: at most 1024 bytes.

        Raises:
            BusyError: there is another (P54), which the error names.
            DeviceError: it was refused.
            NotFoundError: no answer.
        """
        reply = self.exchange(self.builder.config(ccmd, string), "query config")
        current = _config(reply).string
        if _error(reply) == ErrorCode.CONFIG_PRESENT:
            if not current:
                # Some do not tell (P54).
                again = self.exchange(self.builder.config(), "query config")
                current = _config(again).string
            why = f'claimed, its config string is "{Config(string=current).text}"'
            fix = _CLAIMED.format(address=self.address)
            raise BusyError(str(self.address), why, fix)
        self._refuse(reply, "query config")
        return current

    def mask_list(self, *edits: Directive) -> MaskList:
        """Read the MAC mask list, or edit it; ``merror`` tells how that went (P64).

        Raises:
            UnsupportedError: the target has none.
            DeviceError: it was refused.
            NotFoundError: no answer.
        """
        what = "MAC mask list"
        mcmd = MaskCommand.EDIT if edits else MaskCommand.READ
        reply = self.exchange(self.builder.mask_list(*edits, mcmd=mcmd), what)
        self._refuse(reply, what)
        try:
            return MaskList.unpack_from(reply)
        except DecodeError as error:
            raise self._garbled(error) from error

    def holders(self) -> tuple[bytes, ...]:
        """Ask for whom the target is reserved; raises as ``reserve``."""
        return self._reserve(ReserveCommand.READ, ())

    def reserve(self, macs: Sequence[bytes], *, force: bool) -> tuple[bytes, ...]:
        """Reserve the target for these, or release it for all with none (P72, P73).

        Returns:
            The holders afterwards.

        Raises:
            BusyError: others hold it, whom the error names.
            UnsupportedError: the target knows no reservations.
            DeviceError: it was refused.
            NotFoundError: no answer.
        """
        command = ReserveCommand.FORCE if force else ReserveCommand.SET
        return self._reserve(command, tuple(macs))

    def _reserve(self, rcmd: int, macs: tuple[bytes, ...]) -> tuple[bytes, ...]:
        what = "reserve/release"
        reply = self.exchange(self.builder.reserve(*macs, rcmd=rcmd), what)
        try:
            holders = Reserve.unpack_from(reply).macs
        except DecodeError as error:
            raise self._garbled(error) from error
        if _error(reply) == ErrorCode.RESERVED:
            if rcmd == ReserveCommand.SET and holders == macs:
                # Our own, which was heard twice: who is not on it may not repeat it.
                return holders
            raise self._is_reserved(holders)
        self._refuse(reply, what)
        return holders

    def ata(self, request: bytes, what: str) -> tuple[Registers, bytes]:
        """Send an ATA command, and return the registers and data of a success.

        Raises:
            BusyError: others hold the target, whom the error names.
            UnsupportedError: the disk aborts the command.
            DeviceError: it failed, or was refused.
            NotFoundError: no answer.
        """
        reply = self.exchange(request, what)
        if _error(reply) == ErrorCode.RESERVED:
            raise self._is_reserved(self.holders())
        self._refuse(reply, what)
        try:
            registers = Registers.unpack_from(reply)
        except DecodeError as error:
            raise self._garbled(error) from error
        if registers.command & STATUS_BAD:
            status, code = registers.command, registers.feature
            why = f"{what} failed: {describe_failure(status, code)}"
            aborted = (status, code) == (_ABORTED, AtaError.ABORTED)
            kind = UnsupportedError if aborted else DeviceError
            raise kind(str(self.address), why)
        return registers, reply[ATA_DATA:]

    def identity_page(self) -> bytes:
        """Ask for the 512 bytes of IDENTIFY DEVICE.

        Raises:
            AoEError: as ``ata`` raises it.
            DeviceError: the page is too short.
        """
        _, page = self.ata(self.builder.identify(), "IDENTIFY")
        if len(page) < SECTOR:
            why = f"{len(page)} bytes"
            raise DeviceError(str(self.address), f"runt IDENTIFY page: {why}")
        return page[:SECTOR]

    # --- what went wrong ----------------------------------------------------------

    def _refuse(self, reply: bytes, what: str) -> None:
        code = _error(reply)
        if code is not None:
            text = ErrorCode(code).text if code in list(ErrorCode) else f"error {code}"
            raise DeviceError(str(self.address), f"{what} refused: {text}")

    def _is_reserved(self, holders: Sequence[bytes]) -> AoEError:
        names = ", ".join(map(format_mac, holders)) or "others"
        fix = _RESERVED.format(address=self.address)
        return BusyError(str(self.address), f"reserved for {names}", fix)

    def _garbled(self, error: DecodeError) -> AoEError:
        return DeviceError(str(self.address), f"answers with half a message: {error}")


def _error(reply: bytes) -> int | None:
    header = Header.unpack_from(reply)
    return header.error if header.flags & Flag.ERROR else None


def _config(reply: bytes) -> Config:
    try:
        return Config.unpack_from(reply)
    except DecodeError:
        return Config()


@contextmanager
def open_target(
    links: Sequence[Link], address: Address, timeout: float
) -> Iterator[RemoteTarget]:
    """Find a target on these links.

    Args:
        links: where to look.
        address: the one that is wanted.
        timeout: seconds to look for it, and then to wait for each answer.

    Raises:
        NotFoundError: it does not answer.
    """
    with open_targets(links, address, timeout) as found:
        yield found[0]


@contextmanager
def open_targets(
    links: Sequence[Link], address: Address, timeout: float
) -> Iterator[list[RemoteTarget]]:
    """Find a target, or all of them, each once for every MAC address and link.

    Args:
        links: where to look.
        address: whom to look for; ``BROADCAST`` is everybody.
        timeout: seconds to look, and then to wait for each answer.

    Raises:
        NotFoundError: nobody answers.
    """

    def enough(answers: list[QueryResponse]) -> bool:
        everywhere = {answer.interface for answer in answers} == set(by_name)
        return address != BROADCAST and everywhere

    by_name = {link.name: link for link in links}
    answers = discover(links, address, timeout, enough)
    answers = [answer for answer in answers if answer.error is None]
    if not answers:
        raise not_found(address, by_name, timeout)
    with ExitStack() as stack:
        tag_base, holder = claim_tag_base()
        stack.callback(os.close, holder)
        yield [
            _from_answer(each, answers, by_name, tag_base, timeout) for each in answers
        ]


def _from_answer(
    answer: QueryResponse,
    answers: Sequence[QueryResponse],
    by_name: dict[str, Link],
    tag_base: int,
    patience: float,
) -> RemoteTarget:
    names = [each.interface for each in answers if each.address == answer.address]
    names = list(dict.fromkeys([answer.interface, *names]))
    return RemoteTarget([by_name[name] for name in names], answer, tag_base, patience)


def not_found(
    address: Address, names: Sequence[str] | dict[str, Link], timeout: float
) -> AoEError:
    """Make the error that says that nobody answers."""
    where = ",".join(names)
    what = "everybody" if address == BROADCAST else str(address)
    return NotFoundError(
        what,
        f"no answer on {where} within {timeout:g} s",
        f"See who is there: aoe discover -i {where}",
    )
