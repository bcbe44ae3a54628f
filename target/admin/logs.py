"""How the log is written: for people, for systemd's journal, or as JSON.

A message is a sentence that says everything, in every format. JSON has the parts of it
beside it: ``what``, ``why`` and ``fix`` of an error that was logged, and whatever a
call gives as ``extra={"fields": {...}}``.
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
"""From syslog(3); 7 for what is less."""


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON.

    ``time`` is RFC 3339 in UTC, ``level`` Python's name in lower case, ``message`` the
    sentence; an exception's ``traceback`` follows, and the record's fields.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        time = datetime.fromtimestamp(record.created, UTC)
        document: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        for name, value in _fields(record).items():
            # A field does not stand in for the message.
            document.setdefault(name, value)
        return json.dumps(document, default=str)


class JournalFormatter(logging.Formatter):
    """Writes a record as the journal reads it: its priority, no program name, no time.

    Each line of a traceback has the priority, or it would be another message.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines, without the last one's end."""
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
    """Return the formatter for ``text`` or ``json``, and the stream that it writes to.

    Text that goes to the journal is written for it.
    """
    if log_format == "json":
        return JsonFormatter()
    if is_journal(stream, environ):
        return JournalFormatter()
    return logging.Formatter(f"{_PROGRAM}: %(message)s")


def is_journal(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether a stream leads to systemd's journal, and not just its parent's."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


@contextmanager
def logging_to_stderr(log_format: str = "text") -> Iterator[None]:
    """Have the log on standard error, and an error that ends the program in it as well.

    Args:
        log_format: ``text`` or ``json``.

    Raises:
        AoEError: passed on as it came, for the program to print, in text.
        SystemExit: the same, already logged, with its exit code.
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
        logger.error("%s", error)  # noqa: TRY400 - the traceback is for nobody
        raise SystemExit(error.exit_code) from error
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
