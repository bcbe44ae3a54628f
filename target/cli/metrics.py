"""Start the metrics server, which needs an optional dependency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aoe.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from types import ModuleType

    from target.admin.metrics import MetricsServer
    from target.config.settings import Settings


def open_metrics(
    settings: Settings, status: Callable[[], dict[str, Any]], stack: ExitStack
) -> MetricsServer | None:
    """Open the metrics server if the settings have one; the stack closes it.

    Raises:
        UsageError: prometheus-client is not installed.
        AoEError: as ``MetricsServer``.
    """
    if settings.metrics is None:
        return None
    server: MetricsServer = import_metrics().MetricsServer(settings.metrics, status)
    return stack.enter_context(server)


def import_metrics() -> ModuleType:
    """Import ``target.admin.metrics``, which needs the extra ``metrics``.

    Raises:
        UsageError: prometheus-client is not installed.
    """
    try:
        from target.admin import metrics
    except ImportError as error:
        # Exit code 2: a restart by the service manager would not help.
        raise UsageError(
            "--metrics",
            "prometheus-client is not installed",
            "Install it with: pip install 'pyaoe[metrics]'",
        ) from error
    return metrics
