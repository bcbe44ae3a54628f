"""The machine and what we may do on it."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

from aoe.common.capabilities import Capability, capability_sets
from aoe.common.doctor.findings import Finding, Verdict, fail, from_error, ok
from aoe.errors import AoEError
from aoe.net.netns import check_user_namespaces

if TYPE_CHECKING:
    from collections.abc import Iterator

_HOST = "host"


def examine_host() -> Iterator[Finding]:
    """Look at versions, rights and namespaces."""
    yield ok(
        _HOST,
        "versions",
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    )
    yield judge_rights(capability_sets().effective)
    if os.geteuid() != 0:
        yield _examine_namespaces()


def judge_rights(effective: int) -> Finding:
    """Judge the set of effective capabilities."""
    if effective & Capability.NET_RAW:
        return ok(_HOST, "rights", "CAP_NET_RAW is there: raw sockets can be opened")
    return fail(
        _HOST,
        "rights",
        "CAP_NET_RAW is missing: no raw socket can be opened, and so no AoE spoken",
        "run as root; or AmbientCapabilities=CAP_NET_RAW in a systemd unit; or, to try "
        "it on interfaces of your own: unshare -Urn",
    )


def _examine_namespaces() -> Finding:
    check = "namespaces"
    try:
        check_user_namespaces()
    except AoEError as error:
        # The tests and the demo want them, AoE itself does not.
        return from_error(check, error, Verdict.WARN, _HOST)
    return ok(
        _HOST, check, "user namespaces are allowed: tests and demo run without root"
    )
