from __future__ import annotations

import copy
import os
import socket
import threading
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aoe.errors import AoEError
from target.admin.metrics import MetricsServer
from tests.serving import NO_PROBE, finish, start
from tests.statuses import STATUS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns


@pytest.fixture(autouse=True)
def _inside(wire: Wire) -> Iterator[None]:
    # In the namespace the loopback interface is up.
    with wire.target.enter():
        yield


def scrape(port: int, address: str = "127.0.0.1") -> str:
    url = f"http://{address}:{port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        text: str = response.read().decode()
        return text


def value(text: str, name: str) -> float:
    """Return the value of the first sample with a name."""
    families = text_string_to_metric_families(text)
    samples = (sample for family in families for sample in family.samples)
    return next(s.value for s in samples if s.name == name)


@pytest.fixture
def status() -> dict[str, Any]:
    return copy.deepcopy(STATUS)


@pytest.fixture
def server(status: dict[str, Any]) -> Iterator[MetricsServer]:
    with MetricsServer(("127.0.0.1", 0), lambda: status) as server:
        server.start()
        yield server


def test_each_scrape_is_current_and_the_start_time_constant(
    server: MetricsServer, status: dict[str, Any]
) -> None:
    first = scrape(server.port)
    status["uptime_seconds"] = 99.0
    status["exports"][0]["size_bytes"] = 512
    second = scrape(server.port)
    started = "aoe_target_start_time_seconds"
    assert value(first, started) == value(second, started)
    assert value(first, "aoe_export_size_bytes") == 1 << 30
    assert value(second, "aoe_export_size_bytes") == 512


def test_failed_status_is_503_and_the_next_scrape_works(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outcomes = iter([AoEError("status", "no answer in time"), None])

    def snapshot() -> dict[str, Any]:
        if error := next(outcomes):
            raise error
        return STATUS

    with MetricsServer(("127.0.0.1", 0), snapshot) as server:
        server.start()
        with pytest.raises(HTTPError, match="503") as caught:
            scrape(server.port)
        caught.value.close()
        assert "aoe_target_info" in scrape(server.port)
    assert caplog.messages == ["metrics: status: no answer in time"]


def test_idle_client_does_not_block_others(server: MetricsServer) -> None:
    idle = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    with idle:
        assert "aoe_target_info" in scrape(server.port)


def test_close_releases_port_and_thread() -> None:
    before = threading.active_count()
    with MetricsServer(("127.0.0.1", 0), lambda: STATUS) as server:
        server.start()
        port = server.port
        scrape(port)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)
    for thread in threading.enumerate():
        if thread.daemon:
            # A server that has answered a scrape.
            thread.join(10)
    assert threading.active_count() == before
    with MetricsServer(("127.0.0.1", port), lambda: STATUS) as again:
        assert again.port == port


def test_foreign_address_is_refused() -> None:
    with pytest.raises(AoEError, match="Choose an address of this host"):
        MetricsServer(("192.0.2.1", 0), lambda: STATUS)


def test_ipv6_is_served(wire: Wire) -> None:
    up = (
        "echo 0 >/proc/sys/net/ipv6/conf/lo/disable_ipv6; ip address add ::1/128 dev lo"
    )
    wire.target.run(["sh", "-c", f"{up} 2>/dev/null || true"], check=True)
    with MetricsServer(("::1", 0), lambda: STATUS) as server:
        server.start()
        assert "aoe_target_info" in scrape(server.port, "[::1]")


def test_missing_prometheus_client_is_a_usage_error(
    wire: Wire, image: Path, tmp_path: Path
) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ImportError\n")
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    words = ("serve", "e7.3", wire.interface, image, "--metrics", "9", NO_PROBE)
    process = start(wire.target, *words, env={**os.environ, "PYTHONPATH": path})
    assert finish(process) == (
        "aoe-target: --metrics: prometheus-client is not installed. "
        "Install it with: pip install 'pyaoe[metrics]'\n"
    )
    assert process.returncode == 2
