"""Log formats: text, systemd's journal, and JSON.

The message is the same in all formats. JSON also has its parts as fields: ``what``,
``why`` and ``fix`` of a logged error, and the dict that a call passes as
``extra={"fields": {...}}``.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TextIO

from aoe.errors import AoEError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PROGRAM: Final = "aoe-target"
_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
"""Minimum level and priority as in syslog(3); lower levels have priority 7."""


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON.

    ``time`` is RFC 3339 in UTC, ``level`` Python's name in lower case, ``message`` the
    text; ``traceback`` follows if there is an exception, and the record's fields.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without a newline."""
        time = datetime.fromtimestamp(record.created, UTC)
        document: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        for name, value in _fields(record).items():
            # A field does not replace one of the standard keys.
            document.setdefault(name, value)
        return json.dumps(document, default=str)


class JournalFormatter(logging.Formatter):
    """Formats a record for the journal: a priority prefix, no program name, no time.

    Each line of a traceback has the prefix (sd-daemon(3)).
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines without a final newline."""
        prefix = f"<{_priority(record.levelno)}>"
        lines = super().format(record).splitlines() or [""]
        return "\n".join(prefix + line for line in lines)


def _priority(level: int) -> int:
    return next((number for least, number in _PRIORITIES if level >= least), 7)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    arguments = record.args if isinstance(record.args, tuple) else ()
    for error in arguments:
        if isinstance(error, AoEError):
            fields |= {"what": error.what, "why": error.why, "fix": error.fix}
    return {**fields, **getattr(record, "fields", {})}


def choose_formatter(
    log_format: str, stream: TextIO, environ: Mapping[str, str] = os.environ
) -> logging.Formatter:
    """Return the formatter for ``text`` or ``json`` on a stream.

    For ``text`` on a stream that is connected to the journal, use its format.
    """
    if log_format == "json":
        return JsonFormatter()
    if is_journal(stream, environ):
        return JournalFormatter()
    return logging.Formatter(f"{_PROGRAM}: %(message)s")


def is_journal(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Return True if a stream is the journal's socket that ``JOURNAL_STREAM`` names."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


@contextmanager
def logging_to_stderr(log_format: str = "text") -> Iterator[None]:
    """Log to standard error; with ``json`` also an error that ends the program.

    Args:
        log_format: ``text`` or ``json``.

    Raises:
        AoEError: with ``text``, an error of the body, for the program to print.
        SystemExit: with ``json``, an error of the body was logged; has its exit code.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(choose_formatter(log_format, sys.stderr))
    logger = logging.getLogger(_PROGRAM)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    except AoEError as error:
        if log_format == "text":
            raise
        logger.error("%s", error)  # noqa: TRY400 - a traceback does not help users
        raise SystemExit(error.exit_code) from error
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
