"""Request and response over a link, with retransmission of lost frames."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from aoe.address import SHELF_ALL, SLOT_ALL
from aoe.describe import describe
from aoe.errors import AoEError, DecodeError
from aoe.header import Header
from initiator.check.runner import UnreachableError

if TYPE_CHECKING:
    from aoe.net.link import Link
    from initiator.client.requests import RequestBuilder

_PARTS: Final = (0.25, 0.25, 0.5)
"""Parts of the timeout to wait after each transmission of a request."""
_GRACE: Final = 0.02
"""Seconds to wait for a response that is overtaken by that to a later request."""


class WireExchange:
    """Exchange with one target over one link; see ``runner.Exchange``.

    To detect silence without waiting for the timeout, a query config is sent after the
    request: its response shows that the target has dropped the request.

    Args:
        link: the interface; in promiscuous mode it also receives responses to other
            clients.
        t: the target.
        timeout: seconds to wait for a response.
    """

    def __init__(self, link: Link, t: RequestBuilder, timeout: float) -> None:
        self._link = link
        self._t = t
        self._timeout = timeout

    def __call__(self, request: bytes, *, is_silence: bool) -> bytes:
        """Return the response, or nothing for silence.

        Raises:
            UnreachableError: the target does not respond to a query config either.
            AoEError: the interface accepts no frames.
        """
        if is_silence:
            return self._expect_silence(request)
        unmatched: list[bytes] = []
        for part in _PARTS:
            self._send(request)
            response = self._receive([request], part * self._timeout, unmatched)
            if response:
                return response
        self._expect_silence(request)
        # Return a response with an unknown tag, so that the wrong tag is reported
        # instead of silence (P10).
        return unmatched[0] if unmatched else b""

    def _expect_silence(self, request: bytes) -> bytes:
        fence = self._t.config()
        self._send(request)
        for part in _PARTS:
            self._send(fence)
            response = self._receive([request, fence], part * self._timeout)
            if response and _tag(response) == _tag(fence):
                return self._receive([request], _GRACE)
            if response:
                return response
        raise UnreachableError(
            str(self._t.address),
            f"no response to any request after: {describe(request)}",
        )

    def _send(self, frame: bytes) -> None:
        end = time.monotonic() + self._timeout
        while not self._link.send(frame):
            if time.monotonic() > end:
                raise AoEError(self._link.name, "accepts no frames")
            self._link.wait(_GRACE)

    def _receive(
        self, requests: list[bytes], wait: float, unmatched: list[bytes] | None = None
    ) -> bytes:
        tags = {_tag(request) for request in requests}
        end = time.monotonic() + wait
        while True:
            while (frame := self._link.receive()) is not None:
                response = bytes(frame)
                if not self._is_from_target(response):
                    continue
                if _tag(response) in tags:
                    return response
                if unmatched is not None and _may_match(requests[0], response):
                    unmatched.append(response)
            left = end - time.monotonic()
            if left <= 0:
                return b""
            self._link.wait(left)

    def _is_from_target(self, response: bytes) -> bool:
        # A response with a broadcast address is wrong, so attribute it to this target
        # (P9).
        try:
            header = Header.unpack_from(response)
        except DecodeError:
            return False
        is_broadcast = header.shelf == SHELF_ALL or header.slot == SLOT_ALL
        return is_broadcast or self._t.address == (header.shelf, header.slot)


def _tag(frame: bytes) -> bytes:
    return frame[20:24]


def _may_match(request: bytes, response: bytes) -> bool:
    return response[:6] == request[6:12] and response[19] == request[19]
