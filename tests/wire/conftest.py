from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.requirements import need_namespaces
from tests.rules import serve_clients
from tests.serving import NO_PROBE, serving
from tests.tools import vblade_serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aoe.net.netns import Wire
    from tests.rules import Clients


WAYS = {"rings": (), "plain": ("--plain",), "scapy": ("--engine", "scapy")}


@pytest.fixture(scope="module", params=WAYS)
def served_for_rules(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Clients]:
    """Serve a disk for all rule tests, by each implementation of the target.

    Skip only if no namespaces can be created.
    """
    need_namespaces()
    image = tmp_path_factory.mktemp("rules") / "disk.img"
    with serve_clients(image, *WAYS[request.param]) as clients:
        yield clients


@pytest.fixture
def clients(served_for_rules: Clients) -> Clients:
    """Return the clients with empty lists and the initial disk contents."""
    served_for_rules.reset()
    return served_for_rules


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Make an image of 1 MiB of random data."""
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(1 << 20))
    return path


@pytest.fixture
def served(wire: Wire, image: Path) -> Iterator[Wire]:
    """Serve the image as e7.3."""
    with serving(wire, image, NO_PROBE, "--no-state", "--serial", "S-7"):
        yield wire


@pytest.fixture
def vblade(wire: Wire, image: Path) -> Iterator[Wire]:
    """Serve the image as e7.3 with Debian's vblade."""
    with vblade_serving(wire, image):
        yield wire
