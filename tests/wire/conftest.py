from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from aoe.errors import AccessError
from tests.rules import serve_clients

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.rules import Clients


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    """Serve once for all rules; skip only where no namespaces can be made."""
    image = tmp_path_factory.mktemp("rules") / "disk.img"
    with ExitStack() as stack:
        try:
            clients = stack.enter_context(serve_clients(image))
        except AccessError as error:
            pytest.skip(str(error))
        yield clients


@pytest.fixture
def clients(served: Clients) -> Clients:
    """Begin with empty lists and the disk as it was, whatever was asked before."""
    served.begin()
    return served
