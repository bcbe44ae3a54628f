"""What tests need beyond Python, git, util-linux and iproute2.

A test whose requirement is missing skips, with a reason of the form
``no strace: apt install strace``; ``tests.skips`` sums up the reasons. No other module
of the tests skips a test.
"""

from __future__ import annotations

import os
import shutil
import sys
from functools import cache
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from typing import TYPE_CHECKING, Final, NoReturn

import pytest

from aoe.errors import AccessError
from aoe.net.netns import Wire, check_user_namespaces
from target.disks.nbd.libnbd import find_libnbd

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGES: Final = {
    "aoecfg": "aoetools",
    "aoeping": "aoetools",
    "aoe-sancheck": "aoetools",
    "blockdev": "util-linux",
    "chromium": "chromium",
    "dhcpd": "isc-dhcp-server",
    "dnsmasq": "dnsmasq-base",
    "fio": "fio",
    "fish": "fish",
    "fsck.ext3": "e2fsprogs",
    "fsck.ext4": "e2fsprogs",
    "groff": "groff-base",
    "losetup": "mount",
    "mandoc": "mandoc",
    "mkfs.ext3": "e2fsprogs",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "mount": "mount",
    "nbdcopy": "libnbd-bin",
    "nbdinfo": "libnbd-bin",
    "nbdkit": "nbdkit",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "setpriv": "util-linux",
    "shellcheck": "shellcheck",
    "strace": "strace",
    "systemd-analyze": "systemd",
    "tc": "iproute2",
    "tcpdump": "tcpdump",
    "tshark": "tshark",
    "vblade": "vblade",
    "xfs_repair": "xfsprogs",
    "zsh": "zsh",
}
"""The programs that tests run, and their Debian packages."""
LIBRARIES: Final = {"libfuse": "fuse3", "libnbd": "python3-libnbd"}
"""The libraries that tests use, and their Debian packages."""
SBIN: Final = "/usr/local/sbin:/usr/sbin:/sbin"
"""Directories of programs that Debian has in root's PATH only."""


def missing(what: str, fix: str) -> NoReturn:
    """Skip the test; the fix follows a colon, ``apt install PACKAGES`` if possible."""
    pytest.skip(f"no {what}: {fix}")


def need(*names: str) -> None:
    """Skip the test unless all of these programs and libraries are installed."""
    lacking = [name for name in names if not _is_installed(name)]
    if lacking:
        known = PACKAGES | LIBRARIES
        packages = sorted({known[name] for name in lacking})
        missing(" and no ".join(lacking), f"apt install {' '.join(packages)}")


def program(name: str) -> str:
    """Return the path of a program; skip the test if it is not installed."""
    need(name)
    path = find_program(name)
    assert path is not None
    return path


def find_program(name: str) -> str | None:
    """Return the path of a program, even if its directory is in root's PATH only."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{SBIN}")


def need_libnbd() -> None:
    """Skip the test unless this Python can import libnbd's binding."""
    if sys.base_prefix != "/usr" and find_libnbd() is None:
        suffix = EXTENSION_SUFFIXES[0]
        fix = f"python3-libnbd is for /usr/bin/python3, and {sys.executable} is another"
        missing(f"libnbd that ends in {suffix}", fix)
    need("libnbd")


def need_namespaces() -> None:
    """Skip the test unless this process may create network namespaces."""
    _permitted("network namespaces", _try_namespaces)


def need_user_namespaces() -> None:
    """Skip the test unless this user may create user namespaces."""
    _permitted("user namespaces", check_user_namespaces)


def _permitted(what: str, attempt: Callable[[], None]) -> None:
    refusal = _refusal(attempt)
    if refusal is not None:
        missing(what, f"{refusal.why}. {refusal.fix}")


@cache
def _refusal(attempt: Callable[[], None]) -> AccessError | None:
    try:
        attempt()
    except AccessError as error:
        return error
    return None


def _try_namespaces() -> None:
    if os.geteuid():
        # Its error says why they are not permitted.
        check_user_namespaces()
    Wire().close()


def _is_installed(name: str) -> bool:
    if name == "libnbd":
        return find_libnbd() is not None
    if name == "libfuse":
        return _has_libfuse()
    return find_program(name) is not None


@cache
def _has_libfuse() -> bool:
    # mfusepy loads libfuse when it is imported.
    try:
        import_module("mfusepy")
    except OSError:
        return False
    return True
