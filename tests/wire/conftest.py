from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from aoe.errors import AccessError
from tests.rules import serve_clients

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.rules import Clients


@pytest.fixture(scope="module", params=[(), ("--plain",)], ids=["rings", "plain"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Clients]:
    """Serve for all rules, from ring to ring, and with care and a call for each frame.

    It skips only where no namespaces can be made.
    """
    image = tmp_path_factory.mktemp("rules") / "disk.img"
    with ExitStack() as stack:
        try:
            clients = stack.enter_context(serve_clients(image, *request.param))
        except AccessError as error:
            pytest.skip(str(error))
        yield clients


@pytest.fixture
def clients(served: Clients) -> Clients:
    """Begin with empty lists and the disk as it was, whatever was asked before."""
    served.begin()
    return served
