"""Diagnosis of the host: versions, capabilities and user namespaces."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

from aoe.common.doctor.findings import Finding, Verdict, fail, from_error, ok
from aoe.common.process.capabilities import Capability, capability_sets
from aoe.errors import AoEError
from aoe.net.netns import check_user_namespaces

if TYPE_CHECKING:
    from collections.abc import Iterator

_HOST = "host"


def check_host() -> Iterator[Finding]:
    """Check versions, capabilities and, unless run by root, user namespaces."""
    yield ok(
        _HOST,
        "versions",
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    )
    yield diagnose_privileges(capability_sets().effective)
    if os.geteuid() != 0:
        yield _check_namespaces()


def diagnose_privileges(effective: int) -> Finding:
    """Diagnose a set of effective capabilities."""
    check = "capabilities"
    if effective & Capability.NET_RAW:
        return ok(_HOST, check, "CAP_NET_RAW is present: raw sockets can be opened")
    return fail(
        _HOST,
        check,
        "CAP_NET_RAW is missing: raw sockets, which AoE needs, cannot be opened",
        "run as root; or AmbientCapabilities=CAP_NET_RAW in a systemd unit; or, to try "
        "AoE in a network namespace of its own: unshare -Urn",
    )


def _check_namespaces() -> Finding:
    check = "namespaces"
    try:
        check_user_namespaces()
    except AoEError as error:
        # Only the tests and the demo need user namespaces.
        return from_error(check, error, Verdict.WARN, _HOST)
    return ok(
        _HOST, check, "user namespaces are allowed: tests and demo run without root"
    )
