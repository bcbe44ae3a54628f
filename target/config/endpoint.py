"""Where to listen for HTTP, as one writes it."""

from __future__ import annotations

import re
from typing import Final

from aoe.errors import UsageError

HERE: Final = "127.0.0.1"
FIX: Final = "Write PORT, ADDRESS:PORT or [ADDRESS]:PORT"
_ENDPOINT: Final = re.compile(r"(?:(?:\[([^][]+)\]|([^][:]+)):)?(\d{1,5})", re.ASCII)


def parse_endpoint(text: str) -> tuple[str, int]:
    """Read ``PORT``, ``ADDRESS:PORT`` or ``[ADDRESS]:PORT``; by default 127.0.0.1.

    Raises:
        UsageError: neither, or a port out of range.
    """
    match = _ENDPOINT.fullmatch(text)
    if match is None or int(match[3]) > 0xFFFF:
        raise UsageError(f"--metrics {text}", "no address and port", FIX)
    return match[1] or match[2] or HERE, int(match[3])
