"""Exception hierarchy, one exit code per class.

``str(error)`` is one line, ``what: why``, followed by the fix if there is one. Commands
print it after their own name: ``program: what: why. fix``.
"""

from __future__ import annotations

import errno


class AoEError(Exception):
    """Base class of all errors that are reported to the user. Exit code 1.

    Args:
        what: the object concerned, for example an interface or a file.
        why: the reason, in lower case and without a full stop.
        fix: a sentence that says how to fix it; empty if there is none.
    """

    exit_code = 1

    def __init__(self, what: str, why: str, fix: str = "") -> None:
        super().__init__(what, why, fix)
        self.what = what
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        line = f"{self.what}: {self.why}"
        return f"{line}. {self.fix}" if self.fix else line


class UsageError(AoEError):
    """An invalid argument: a size, an address or a combination. Exit code 2."""

    exit_code = 2


class NotFoundError(AoEError):
    """No such interface, file or target, or a timeout. Exit code 3."""

    exit_code = 3


class AccessError(AoEError):
    """A missing permission or capability. Exit code 4."""

    exit_code = 4


class BusyError(AoEError):
    """An address already served, or a disk reserved for others. Exit code 5."""

    exit_code = 5


class DecodeError(AoEError):
    """A malformed message or file. Exit code 1."""


class DeviceError(AoEError):
    """A failed disk operation: an ATA error (P32) or an AoE error (P14)."""


class UnsupportedError(DeviceError):
    """A command that the target does not implement."""


def from_os_error(what: str, error: OSError, fix: str = "") -> AoEError:
    """Return the AoEError for an ``OSError``, with ``strerror`` as the reason."""
    why = (error.strerror or str(error)).lower() if error.errno else str(error)
    kind: type[AoEError] = {
        errno.ENOENT: NotFoundError,
        errno.ENODEV: NotFoundError,
        errno.ETIMEDOUT: NotFoundError,
        errno.EACCES: AccessError,
        errno.EPERM: AccessError,
        errno.EBUSY: BusyError,
    }.get(error.errno or 0, AoEError)
    return kind(what, why, fix)
