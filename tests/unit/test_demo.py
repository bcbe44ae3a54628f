"""Where the demo leaves its capture."""

from __future__ import annotations

from pathlib import Path

import pytest

from aoe.errors import NotFoundError
from scripts.demo import save


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    path = tmp_path / "made"
    path.write_bytes(b"frames")
    return path


def test_capture_is_saved_in_the_working_directory(
    capture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(capture.parent)
    assert save(capture, None) == Path("demo.pcapng")
    assert Path("demo.pcapng").read_bytes() == b"frames"


def test_capture_is_saved_among_temporary_files_if_that_is_not_writable(
    capture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(capture.parent))
    monkeypatch.chdir("/proc")  # for root, too
    saved = save(capture, None)
    assert saved.parents[1] == capture.parent
    assert saved.read_bytes() == b"frames"


def test_capture_is_saved_where_the_user_wants_it_or_nowhere(capture: Path) -> None:
    wanted = capture.with_name("a file")
    assert save(capture, wanted) == wanted
    with pytest.raises(NotFoundError, match="Choose another file"):
        save(capture, capture.parent / "none" / "file")
