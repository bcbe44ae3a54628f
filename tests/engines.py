"""The engines of the target, for tests that run with each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from target.protocol.target import Target
from target.reference.engine import ScapyEngine

if TYPE_CHECKING:
    from target.protocol.engine import MakeEngine


class StrictScapyEngine(ScapyEngine):
    """The scapy engine, except that an exception is not only logged."""

    def log_failure(self, error: Exception) -> None:
        raise error


ENGINES: dict[str, MakeEngine] = {"struct": Target, "scapy": StrictScapyEngine}
