from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeAlias

import pytest
from hypothesis import settings

from aoe.errors import AccessError
from aoe.net.link import open_link
from aoe.net.netns import Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aoe.net.link import Link
    from aoe.net.netns import Namespace

    MakeWire: TypeAlias = Callable[[int | tuple[int, int]], Wire]


# A machine that is busy with something else is no failure.
settings.register_profile("patient", settings.default, deadline=None)
settings.load_profile("patient")


@pytest.fixture
def make_wire() -> Iterator[MakeWire]:
    """Make wires of a given MTU, or of one for the target's end and one for the other.

    Skips only where the system lets us make no namespaces; the message says what to do.
    """
    with ExitStack() as stack:

        def make(mtu: int | tuple[int, int]) -> Wire:
            try:
                return stack.enter_context(Wire(mtu))
            except AccessError as error:
                pytest.skip(str(error))

        yield make


@pytest.fixture
def wire(make_wire: MakeWire) -> Wire:
    """Make a wire with an MTU of 1500 between two namespaces."""
    return make_wire(1500)


@pytest.fixture
def links() -> Iterator[Callable[..., Link]]:
    """Open links inside a namespace that are closed with the test."""
    with ExitStack() as stack:

        def make(namespace: Namespace, **options: int | None) -> Link:
            with namespace.enter():
                return stack.enter_context(open_link("aoe0", **options))  # type: ignore[arg-type] # as given

        yield make
