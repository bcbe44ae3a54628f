"""Parse the address and port of the metrics server."""

from __future__ import annotations

import re
from typing import Final

from aoe.errors import UsageError

DEFAULT_ADDRESS: Final = "127.0.0.1"
FIX: Final = "Write PORT, ADDRESS:PORT or [ADDRESS]:PORT"
_ENDPOINT: Final = re.compile(r"(?:(?:\[([^][]+)\]|([^][:]+)):)?(\d{1,5})", re.ASCII)


def parse_endpoint(text: str) -> tuple[str, int]:
    """Parse ``PORT``, ``ADDRESS:PORT`` or ``[ADDRESS]:PORT``; default is 127.0.0.1.

    Raises:
        UsageError: another format, or the port is out of range.
    """
    match = _ENDPOINT.fullmatch(text)
    if match is None or int(match[3]) > 0xFFFF:
        raise UsageError(f"--metrics {text}", "not an address and port", FIX)
    return match[1] or match[2] or DEFAULT_ADDRESS, int(match[3])
