from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeAlias

import pytest
from hypothesis import HealthCheck, settings

from aoe.net.link import open_link
from aoe.net.netns import Wire
from tests.engines import ENGINES, selected
from tests.requirements import need_namespaces
from tests.skips import pytest_terminal_summary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from aoe.net.link import Link
    from aoe.net.netns import Namespace

    MakeWire: TypeAlias = Callable[[int | tuple[int, int]], Wire]


__all__ = ["pytest_terminal_summary"]

# Tests must not fail on a busy machine.
settings.register_profile(
    "busy",
    settings.default,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("busy")


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test with each engine of the target."""
    before = selected.set(request.param)
    yield request.param
    selected.reset(before)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """Return a directory whose name has a space, as TMPDIR may have one."""
    path = tmp_path / "a b"
    path.mkdir()
    return path


@pytest.fixture
def make_wire() -> Iterator[MakeWire]:
    """Return a factory of wires, given an MTU or a pair (target, initiator).

    Skip the test if the system does not allow network namespaces.
    """
    with ExitStack() as stack:

        def make(mtu: int | tuple[int, int]) -> Wire:
            need_namespaces()
            return stack.enter_context(Wire(mtu))

        yield make


@pytest.fixture
def wire(make_wire: MakeWire) -> Wire:
    """Return a wire with an MTU of 1500."""
    return make_wire(1500)


@pytest.fixture
def links() -> Iterator[Callable[..., Link]]:
    """Return a function that opens a link in a namespace until the end of the test."""
    with ExitStack() as stack:

        def make(namespace: Namespace, **options: int | None) -> Link:
            with namespace.enter():
                return stack.enter_context(open_link("aoe0", **options))  # type: ignore[arg-type] # as given

        yield make
