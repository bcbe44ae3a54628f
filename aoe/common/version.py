"""The version of pyaoe."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def release() -> str:
    """Return the version of the installed package, "" if it is not installed.

    It is read once: a target may later be a user who cannot read it.
    """
    try:
        return version("pyaoe")
    except PackageNotFoundError:
        return ""
