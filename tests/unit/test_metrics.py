from __future__ import annotations

import copy
import socket
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from aoe.errors import BusyError, NotFoundError, UsageError
from target.admin.metrics import MetricsServer, StatusCollector
from target.config.endpoint import parse_endpoint
from target.config.toml import load_settings
from tests.statuses import STATUS

if TYPE_CHECKING:
    from pathlib import Path


def exposed() -> str:
    registry = CollectorRegistry()
    registry.register(StatusCollector(lambda: STATUS))
    return generate_latest(registry).decode()


def values(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return the value of each sample by name and label values."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_scrape_has_all_counters() -> None:
    found = values(exposed())
    here = ("e0.0", "eth0")
    assert found[("aoe_target_requests_total", here)] == 17
    assert found[("aoe_target_requests_total", ("e0.0", "eth1"))] == 0
    assert found[("aoe_target_read_bytes_total", here)] == 4096
    assert found[("aoe_target_written_bytes_total", here)] == 3072
    assert found[("aoe_target_flushes_total", here)] == 1
    assert found[("aoe_target_errors_total", (*here, "DEVICE_FAULT"))] == 2
    assert found[("aoe_target_dropped_total", (*here, "masked"))] == 6
    assert found[("aoe_export_size_bytes", here)] == 1 << 30
    assert found[("aoe_export_reserved", here)] == 1
    assert found[("aoe_target_info", ("0.1.0",))] == 1
    assert found[("aoe_interface_frames_dropped_total", ("eth0",))] == 7
    assert found[("aoe_interface_frames_unmatched_total", ("eth0",))] == 3
    assert found[("aoe_interface_up", ("eth0",))] == 1
    assert found[("aoe_interface_mtu_bytes", ("eth0",))] == 9000
    assert found[("aoe_interface_sectors_per_frame", ("eth0",))] == 17


def test_export_without_requests_has_no_age() -> None:
    found = values(exposed())
    name = "aoe_target_last_request_age_seconds"
    assert [labels for known, labels in found if known == name] == [("e0.0", "eth0")]


def test_export_info_labels() -> None:
    families = {f.name: f for f in text_string_to_metric_families(exposed())}
    labels = families["aoe_export_info"].samples[0].labels
    assert labels == {
        "export": "e0.0",
        "interface": "eth0",
        "path": '/srv/"disk".img',
        "overlay": "",
        "serial": "0.0:host",
        "read_only": "false",
        "sync": "true",
        "direct": "false",
    }


def test_server_can_be_closed_without_start() -> None:
    with MetricsServer(("127.0.0.1", 0), lambda: STATUS) as server:
        assert server.port


def test_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(BusyError) as caught:
            MetricsServer(("127.0.0.1", port), lambda: STATUS)
    assert str(caught.value) == (
        f"--metrics 127.0.0.1:{port}: port in use. Choose another port"
    )
    assert caught.value.exit_code == 5


def test_unknown_host_is_refused() -> None:
    with pytest.raises(UsageError, match="no such address"):
        MetricsServer(("no address", 0), lambda: STATUS)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("9468", ("127.0.0.1", 9468)),
        ("0.0.0.0:9468", ("0.0.0.0", 9468)),
        ("localhost:80", ("localhost", 80)),
        ("[::1]:9468", ("::1", 9468)),
        ("[fe80::1%eth0]:0", ("fe80::1%eth0", 0)),
    ],
)
def test_endpoint_formats(text: str, endpoint: tuple[str, int]) -> None:
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize(
    "text", ["", "x", "65536", "-1", ":9468", "::1:9468", "[]:1", "host:", "1.5", "٣"]
)
def test_invalid_endpoint_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_endpoint(text)
    assert str(caught.value) == (
        f"--metrics {text}: not an address and port. "
        "Write PORT, ADDRESS:PORT or [ADDRESS]:PORT"
    )


def test_export_that_is_being_reopened_is_omitted() -> None:
    status = copy.deepcopy(STATUS)
    status["exports"][0]["interfaces"][0]["statistics"] = {}
    registry = CollectorRegistry()
    registry.register(StatusCollector(lambda: status))
    found = values(generate_latest(registry).decode())
    name = "aoe_target_requests_total"
    assert [labels for known, labels in found if known == name] == [("e0.0", "eth1")]


def test_status_is_requested_only_by_a_scrape() -> None:
    def snapshot() -> dict[str, Any]:
        raise NotFoundError("status", "unexpected call")

    with MetricsServer(("127.0.0.1", 0), snapshot) as server:
        server.start()


@pytest.mark.parametrize(
    ("line", "endpoint"),
    [
        ("", None),
        ("metrics = 9468", ("127.0.0.1", 9468)),
        ('metrics = "[::1]:9468"', ("::1", 9468)),
    ],
)
def test_metrics_in_a_configuration_file(
    line: str, endpoint: tuple[str, int] | None, tmp_path: Path
) -> None:
    path = tmp_path / "target.toml"
    export = '[[export]]\naddress = "e0.0"\ninterfaces = "eth0"\npath = "disk.img"\n'
    path.write_text(f"{line}\n{export}")
    assert load_settings(path).metrics == endpoint
    path.write_text(f'metrics = "nowhere"\n{export}')
    with pytest.raises(UsageError) as caught:
        load_settings(path)
    assert str(caught.value) == (
        f"{path}: metrics nowhere: not an address and port. "
        "Write PORT, ADDRESS:PORT or [ADDRESS]:PORT"
    )
