"""Prometheus metrics of a target, over HTTP.

A thread answers each scrape from one status document, made by the event loop.
Requires prometheus-client, the ``metrics`` extra.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import socketserver
import sys
import threading
import time
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final, Self

from prometheus_client import CollectorRegistry, MetricsHandler
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
)

from aoe.common.hosts import resolve
from aoe.errors import AoEError, BusyError, UsageError, from_os_error
from target.config.endpoint import FIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from http.server import BaseHTTPRequestHandler

    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector

    Status = Mapping[str, Any]

log: Final = logging.getLogger("aoe-target")

_TIMEOUT: Final = 10.0
"""Seconds in which a client must send its request."""
_TARGET_COUNTERS: Final = {
    "requests": "Frames addressed to this export, answered or not.",
    "reads": "READ commands that succeeded.",
    "writes": "WRITE commands that succeeded.",
    "read_bytes": "Bytes of disk data sent.",
    "written_bytes": "Bytes of disk data received.",
    "flushes": "FLUSH commands that succeeded.",
}
_FRAME_COUNTERS: Final = {
    "received": "AoE frames that the kernel received on the interface.",
    "sent": "Frames passed to the interface.",
    "dropped": "Frames that arrived while the receive buffers were full.",
    "truncated": "Frames longer than a receive buffer.",
    "unsent": "Frames that could not be sent: interface down, or its MTU reduced.",
    "unmatched": "Frames addressed to none of the exports.",
    "repeats": "Repeats of requests in progress, not executed again.",
}
_FLAGS: Final = ("read_only", "sync", "direct")


class StatusCollector:
    """Converts a status document to metrics at each scrape.

    Args:
        snapshot: returns the document of one target, as in ``targets`` of
            ``aoe-target status --json``.
    """

    def __init__(self, snapshot: Callable[[], Status]) -> None:
        self._snapshot = snapshot
        self._started: float | None = None

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, from one status document.

        Raises:
            AoEError: raised by ``snapshot``.
        """
        status = self._snapshot()
        if self._started is None:
            # Computed once, so that it does not change when the clock is set.
            self._started = time.time() - status["uptime_seconds"]
        yield from _about_target(status, self._started)
        rows = [
            (export, interface)
            for export in status["exports"]
            for interface in export["interfaces"]
            # Empty while an export is being reopened.
            if interface["statistics"]
        ]
        yield from _about_exports(rows)
        yield from _about_traffic(rows)
        yield from _about_interfaces(status["interfaces"])


def _about_target(status: Status, started: float) -> Iterator[Metric]:
    about = {"version": str(status["version"])}
    yield InfoMetricFamily("aoe_target", "The program.", value=about)
    yield GaugeMetricFamily(
        "aoe_target_start_time_seconds", "When it was started, Unix time.", started
    )


def _about_exports(rows: list[tuple[Status, Status]]) -> Iterator[Metric]:
    labels = ("export", "interface")
    info = InfoMetricFamily("aoe_export", "A disk and how it is served.", labels=labels)
    size = GaugeMetricFamily(
        "aoe_export_size_bytes", "Size of the disk.", labels=labels
    )
    reserved = GaugeMetricFamily(
        "aoe_export_reserved", "1 while clients hold it for themselves.", labels=labels
    )
    failed = GaugeMetricFamily(
        "aoe_export_flush_failed",
        "1 after a flush failed, until the disk is reopened.",
        labels=labels,
    )
    for export, interface in rows:
        where = (export["address"], interface["name"])
        about = {name: export[name] for name in ("path", "overlay", "serial")}
        about |= {name: str(export[name]).lower() for name in _FLAGS}
        info.add_metric(where, about)
        size.add_metric(where, export["size_bytes"])
        reserved.add_metric(where, float(bool(export["reserved_for"])))
        failed.add_metric(where, float(export["flush_failed"]))
    yield from (info, size, reserved, failed)


def _about_traffic(rows: list[tuple[Status, Status]]) -> Iterator[Metric]:
    labels = ("export", "interface")
    for name, text in _TARGET_COUNTERS.items():
        family = CounterMetricFamily(f"aoe_target_{name}", text, labels=labels)
        for export, interface in rows:
            where = (export["address"], interface["name"])
            family.add_metric(where, interface["statistics"][name])
        yield family
    yield _by_kind(rows, "errors", "kind", "Error responses.")
    yield _by_kind(rows, "dropped", "reason", "Frames dropped without a response.")
    age = GaugeMetricFamily(
        "aoe_target_last_request_age_seconds",
        "Time since the last request.",
        labels=labels,
    )
    for export, interface in rows:
        seconds = interface["statistics"]["last_request_age_seconds"]
        if seconds is not None:
            age.add_metric((export["address"], interface["name"]), seconds)
    yield age


def _by_kind(
    rows: list[tuple[Status, Status]], name: str, label: str, text: str
) -> Metric:
    labels = ("export", "interface", label)
    family = CounterMetricFamily(f"aoe_target_{name}", text, labels=labels)
    for export, interface in rows:
        for kind, count in interface["statistics"][name].items():
            family.add_metric((export["address"], interface["name"], str(kind)), count)
    return family


def _about_interfaces(interfaces: list[Status]) -> Iterator[Metric]:
    labels = ("interface",)
    for name, text in _FRAME_COUNTERS.items():
        frames = CounterMetricFamily(
            f"aoe_interface_frames_{name}", text, labels=labels
        )
        for interface in interfaces:
            frames.add_metric((interface["name"],), interface["statistics"][name])
        yield frames
    gauges: dict[str, tuple[str, Callable[[Status], float]]] = {
        "up": ("1 while the interface is up.", lambda i: float(i["state"] == "up")),
        "mtu_bytes": ("MTU of the interface.", lambda i: float(i["mtu"])),
        "sectors_per_frame": (
            "Sectors that fit in a frame.",
            lambda i: float(i["sectors_per_frame"]),
        ),
    }
    for name, (text, value) in gauges.items():
        gauge = GaugeMetricFamily(f"aoe_interface_{name}", text, labels=labels)
        for interface in interfaces:
            gauge.add_metric((interface["name"],), value(interface))
        yield gauge


class MetricsServer:
    """HTTP server for scrapes, in threads of its own.

    The port is bound by the constructor, so that privileges can be dropped before
    ``start``.

    Args:
        endpoint: as ``parse_endpoint`` returns it; port 0 selects a free one.
        snapshot: see ``StatusCollector``; called in another thread.

    Raises:
        BusyError: the port is in use.
        AccessError: no permission to bind the port.
        AoEError: the address is not one of this host.
    """

    def __init__(
        self, endpoint: tuple[str, int], snapshot: Callable[[], Status]
    ) -> None:
        self._server = _listen(endpoint, _make_handler(StatusCollector(snapshot)))
        self._wakeup_read, self._wakeup_write = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)

    @property
    def port(self) -> int:
        """The port that is bound."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Start the server thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and close the port; do not wait for active requests."""
        if self._thread.is_alive():
            os.write(self._wakeup_write, b"\0")
            self._thread.join()
        self._server.server_close()
        os.close(self._wakeup_read)
        os.close(self._wakeup_write)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        # serve_forever() would wake up twice a second to check for the end.
        poll = select.poll()
        poll.register(self._wakeup_read, select.POLLIN)
        poll.register(self._server, select.POLLIN)
        while self._wakeup_read not in dict(poll.poll()):
            self._server.handle_request()


class _Server(ThreadingHTTPServer):
    timeout = 0
    block_on_close = False

    def __init__(
        self,
        family: socket.AddressFamily,
        server_address: tuple[str, int],
        handler: type[BaseHTTPRequestHandler],
    ) -> None:
        self.address_family = family
        super().__init__(server_address, handler)

    def server_bind(self) -> None:
        # HTTPServer.server_bind() would look up the host name in the DNS.
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: tuple[str, int]) -> None:
        """Log an error of a request, except disconnects and timeouts."""
        del request
        error = sys.exception()
        if not isinstance(error, (ConnectionError, TimeoutError)):
            log.warning("metrics: %s: %r", client_address[0], error)


def check_metrics(endpoint: tuple[str, int]) -> None:
    """Check that metrics can be served, without listening.

    Raises:
        UsageError: no such address.
    """
    try:
        resolve(*endpoint)
    except socket.gaierror as error:
        raise _no_such_address(endpoint, error) from error


def _no_such_address(endpoint: tuple[str, int], error: socket.gaierror) -> UsageError:
    what = "--metrics {}:{}".format(*endpoint)
    return UsageError(what, f"no such address: {error.strerror}", FIX)


def _listen(
    endpoint: tuple[str, int], handler: type[BaseHTTPRequestHandler]
) -> _Server:
    address, port = endpoint
    what = f"--metrics {address}:{port}"
    try:
        family, sockaddr = resolve(address, port, socket.AI_PASSIVE)[0]
        return _Server(family, (str(sockaddr[0]), port), handler)
    except socket.gaierror as error:
        raise _no_such_address(endpoint, error) from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise BusyError(what, "port in use", "Choose another port") from error
        raise from_os_error(
            what, error, "Choose an address of this host and a port from 1024 on"
        ) from error


def _make_handler(collector: Collector) -> type[BaseHTTPRequestHandler]:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)

    class Handler(MetricsHandler):
        timeout = _TIMEOUT

        def do_GET(self) -> None:  # noqa: N802 - http.server looks for this name
            try:
                super().do_GET()
            except AoEError as error:
                log.warning("metrics: %s", error)
                self.send_error(503)

    Handler.registry = registry
    return Handler
