"""FUSE without its libraries."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from aoe.errors import NotFoundError
from initiator.export.fuse import FuseMount

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from pathlib import Path


class Missing:
    """A finder that fails for mfusepy as Python does, or as mfusepy itself does."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        if name == "mfusepy":
            raise self._error
        return None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError("Unable to find libfuse"),
            "libfuse: not installed. Install it with: apt install fuse3",
        ),
        (
            ImportError("No module named 'mfusepy'"),
            "mfusepy: not installed. Install it with: pip install 'pyaoe[fuse]'",
        ),
    ],
)
def test_missing_library_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    monkeypatch.delitem(sys.modules, "mfusepy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(error), *sys.meta_path])
    with pytest.raises(NotFoundError) as caught:
        FuseMount(
            ModuleType("disk"),  # type: ignore[arg-type] # not used before the error
            tmp_path / "file",
            read_only=False,
            on_last_close=lambda: None,
            on_unmount=lambda: None,
        )
    assert str(caught.value) == message
    assert not (tmp_path / "file").exists()
