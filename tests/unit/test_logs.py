from __future__ import annotations

import json
import logging
import os
import sys
from typing import TYPE_CHECKING

import pytest

from aoe.errors import BusyError
from target.admin.logs import (
    JournalFormatter,
    JsonFormatter,
    choose_formatter,
    is_journal,
    logging_to_stderr,
)

if TYPE_CHECKING:
    from pathlib import Path

ERROR = BusyError("e7.3", "already served", "Choose another address")
LOG = logging.getLogger("aoe-target")


def record(
    message: str, *arguments: object, level: int = logging.INFO, **extra: object
) -> logging.LogRecord:
    made = LOG.makeRecord("aoe-target", level, "", 0, message, arguments, None)
    made.created = 1_700_000_000.1234
    vars(made).update(extra)
    return made


def test_json_has_message_and_parts() -> None:
    line = JsonFormatter().format(record("%s", ERROR, level=logging.WARNING))
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.123Z",
        "level": "warning",
        "message": "e7.3: already served. Choose another address",
        "what": "e7.3",
        "why": "already served",
        "fix": "Choose another address",
    }


def test_json_has_extra_fields_and_keeps_the_message() -> None:
    fields = {"export": "e7.3", "requests": 5, "message": "other", "path": ERROR}
    document = json.loads(JsonFormatter().format(record("5 requests", fields=fields)))
    assert document.pop("time")
    assert document == {
        "level": "info",
        "message": "5 requests",
        "export": "e7.3",
        "requests": 5,
        "path": str(ERROR),
    }


def test_json_is_one_line() -> None:
    made = record("two\nlines", level=logging.ERROR)
    try:
        int("three")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = JsonFormatter().format(made)
    assert "\n" not in line
    document = json.loads(line)
    assert document["message"] == "two\nlines"
    assert document["traceback"].startswith("Traceback (most recent call last):\n")


@pytest.mark.parametrize(
    ("level", "number"),
    [
        (logging.CRITICAL, 2),
        (logging.ERROR, 3),
        (logging.WARNING, 4),
        (logging.INFO, 6),
        (logging.DEBUG, 7),
    ],
)
def test_journal_lines_have_a_priority(level: int, number: int) -> None:
    text = JournalFormatter().format(record("one\ntwo", level=level))
    assert text == f"<{number}>one\n<{number}>two"


def test_journal_is_detected_by_its_stream(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        found = os.fstat(stream.fileno())
        environ = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert is_journal(stream, environ)
        assert isinstance(choose_formatter("text", stream, environ), JournalFormatter)
        assert isinstance(choose_formatter("json", stream, environ), JsonFormatter)
        assert not is_journal(stream, {"JOURNAL_STREAM": f"{found.st_dev}:1"})
        assert not is_journal(stream, {})
    assert not is_journal(stream, environ)


def test_text_has_the_program_name(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr():
        LOG.warning("%s", ERROR, extra={"fields": {"export": "e7.3"}})
    LOG.warning("after the handler was removed")
    assert capsys.readouterr().err == (
        "aoe-target: e7.3: already served. Choose another address\n"
    )


def test_fatal_error_is_raised_with_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(BusyError), logging_to_stderr("text"):
        raise ERROR
    assert capsys.readouterr().err == ""


def test_fatal_error_is_logged_with_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught, logging_to_stderr("json"):
        raise ERROR
    assert caught.value.code == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["level"] == "error"
    assert json.loads(line)["what"] == "e7.3"
