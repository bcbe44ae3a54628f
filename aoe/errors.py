"""The errors that pyaoe raises: a few, each with its exit code.

``str(error)`` is always one line, ``what: why``, followed by the fix where there is
one, so that a command prints it as it is behind its own name.
"""

from __future__ import annotations

import errno


class AoEError(Exception):
    """Something went wrong that a user can act on.

    Args:
        what: the thing it happened to, for example an interface or a file.
        why: the reason, lower case, without a full stop.
        fix: a sentence that says what to do about it, or nothing.
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
    """The request itself is wrong: a bad size, address or combination. Exit code 2."""

    exit_code = 2


class NotFoundError(AoEError):
    """No such interface, file or target, or no answer in time. Exit code 3."""

    exit_code = 3


class AccessError(AoEError):
    """The system refuses it to this user. Exit code 4."""

    exit_code = 4


class BusyError(AoEError):
    """Somebody else holds it: address served, disk reserved. Exit code 5."""

    exit_code = 5


class DecodeError(AoEError):
    """Bytes that are not the message they should be. Exit code 1."""


class DeviceError(AoEError):
    """A disk operation that failed, as the ATA registers or AoE error tell it."""


class UnsupportedError(DeviceError):
    """A command that the target does not know; nothing else is wrong."""


def from_os_error(what: str, error: OSError, fix: str = "") -> AoEError:
    """Turn an ``OSError`` into the matching AoEError, with the system's own words."""
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
