"""The engines of the target, for tests that run with each of them."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from target.protocol.target import Target
from target.reference.engine import ScapyEngine
from tests.programs import AOE_TARGET

if TYPE_CHECKING:
    from target.protocol.engine import MakeEngine


class StrictScapyEngine(ScapyEngine):
    """The scapy engine, except that an exception is not only logged."""

    def log_failure(self, error: Exception) -> None:
        raise error


ENGINES: dict[str, MakeEngine] = {"struct": Target, "scapy": StrictScapyEngine}
selected: ContextVar[str] = ContextVar("engine", default="struct")
"""The engine of this test; the fixture ``engine`` sets it."""


def serve_command(address: str, interface: str, *words: object) -> list[str]:
    """Return the command line of ``aoe-target serve`` with the selected engine."""
    options = [] if selected.get() == "struct" else ["--engine", selected.get()]
    return [*AOE_TARGET, "serve", address, interface, *map(str, words), *options]
