"""Client state is persistent (P59, P78) and replaced atomically."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe.address import Address, parse_macs
from aoe.errors import AccessError, AoEError, UsageError
from target.config.settings import ExportSettings
from target.disks import OpenFlags
from target.protocol.exports import ClientState
from target.server.client_state import StateFile, open_state, state_path

if TYPE_CHECKING:
    from collections.abc import Callable

ONE, TWO = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")
STATE = ClientState(b"owner\0\xff", (TWO, ONE), (ONE,), write_cache=False)
MACS = st.lists(st.binary(min_size=6, max_size=6), max_size=255, unique=True).map(tuple)


@pytest.fixture
def file(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path / "disk.img.aoe.json")


def settings_for(path: Path | str, **fields: object) -> ExportSettings:
    required = {"address": Address(7, 3), "interfaces": ("eth0",), "path": str(path)}
    return ExportSettings(**required, **fields)  # type: ignore[arg-type] # as given


def test_missing_file_is_the_default_state(file: StateFile) -> None:
    assert file.load() == ClientState()


def test_state_is_saved_as_readable_json(
    file: StateFile,
) -> None:
    file.save(ClientState(b"before"))
    file.save(STATE)
    assert file.load() == STATE
    assert json.loads(file.path.read_text()) == {
        "version": 1,
        "config_string": "owner\0\xff",
        "mask": ["52:54:00:00:00:02", "52:54:00:00:00:01"],
        "reserved_for": ["52:54:00:00:00:01"],
        "write_cache": False,
    }
    assert [path.name for path in file.path.parent.iterdir()] == [file.path.name]


@given(st.binary(max_size=1024), MACS, MACS)
def test_any_state_survives_a_save_and_load(
    tmp_path_factory: pytest.TempPathFactory,
    string: bytes,
    mask: tuple[bytes, ...],
    holders: tuple[bytes, ...],
) -> None:
    file = StateFile(tmp_path_factory.getbasetemp() / "any.aoe.json")
    state = ClientState(string, mask, holders)
    file.save(state)
    assert file.load() == state


def test_file_is_fsynced_before_the_rename_and_the_directory_after(
    file: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def note_fsync(fd: int) -> None:
        steps.append(f"fsync {Path(f'/proc/self/fd/{fd}').readlink().name}")
        fsync(fd)

    def note_rename(path: Path, target: Path) -> Path:
        steps.append(f"rename {path.name} {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    file.save(STATE)
    name = file.path.name
    assert steps == [
        f"fsync .{name}.new",
        f"rename .{name}.new {name}",
        f"fsync {file.path.parent.name}",
    ]


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_failed_save_leaves_the_old_file(
    file: StateFile,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file.save(STATE)
    if step == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="No space left"):
        file.save(ClientState(b"after"))
    monkeypatch.undo()
    assert file.load() == STATE
    assert [path.name for path in file.path.parent.iterdir()] == [file.path.name]
    assert caplog.messages == [
        (
            f"{file.path}: no space left on device. "
            "Until this is fixed, clients cannot change it; or use --no-state"
        )
    ]


def test_leftover_temporary_file_is_replaced(file: StateFile) -> None:
    file.path.with_name(f".{file.path.name}.new").write_bytes(b"{half" * 1000)
    file.save(STATE)
    assert file.load() == STATE


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"version": 1}',
        b'{"version": 2, "config_string": "", "mask": [], "reserved_for": []}',
        b'{"version": 1, "config_string": "\\u0100", "mask": [], "reserved_for": []}',
        b'{"version": 1, "config_string": "", "mask": ["x"], "reserved_for": []}',
        b'{"version": 1, "config_string": "", "mask": [], "reserved_for": [], "a": 1}',
    ],
)
def test_invalid_file_is_refused_with_a_fix(file: StateFile, content: bytes) -> None:
    file.path.write_bytes(content)
    with pytest.raises(AoEError) as caught:
        file.load()
    assert caught.value.what == str(file.path)
    assert caught.value.why.startswith("not a state file: ")
    assert (
        caught.value.fix
        == "Remove it to reset what clients set, or serve with --no-state"
    )


def test_unreadable_file_is_an_error(
    file: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(AccessError, match="Or serve with --no-state"):
        file.load()


def test_state_file_of_an_image_is_in_its_directory_per_window(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    assert state_path(settings_for(image)) == tmp_path / "disk.img.aoe.json"
    there = settings_for(image, disk=OpenFlags(offset=1 << 20))
    assert state_path(there) == tmp_path / "disk.img@1048576.aoe.json"
    link = tmp_path / "link"
    link.symlink_to(image)
    assert state_path(settings_for(link)) == tmp_path / "disk.img.aoe.json"


def test_state_file_of_a_device_is_named_after_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path / "disk.img", state_dir=tmp_path / "kept")
    assert state_path(settings) == tmp_path / "kept" / "e7.3.aoe.json"
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    device = settings_for("/dev/null")
    assert state_path(device) == Path("/var/lib/aoe-target/e7.3.aoe.json")
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    assert state_path(device) == tmp_path / "e7.3.aoe.json"


def test_state_directory_is_created_at_the_first_save(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "disk.img", state_dir=tmp_path / "a" / "b")
    state, file = open_state(settings)
    assert state == ClientState()
    assert file
    assert not (tmp_path / "a").exists()
    file.save(STATE)
    assert open_state(settings)[0] == STATE


def test_configured_mask_replaces_the_saved_one(
    tmp_path: Path,
) -> None:
    settings = settings_for(tmp_path / "disk.img", state_dir=tmp_path, mask=(ONE,))
    StateFile(state_path(settings)).save(STATE)
    expected = replace(STATE, mask=(ONE,))
    assert open_state(settings)[0] == expected


def test_no_state_neither_loads_nor_saves(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    StateFile(state_path(settings_for(image))).save(STATE)
    assert open_state(settings_for(image, keep_state=False)) == (ClientState(), None)


def test_state_dir_conflicts_with_no_state(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--state-dir: conflicts with --no-state"):
        settings_for("disk.img", state_dir=tmp_path, keep_state=False)


@pytest.mark.parametrize(
    "text",
    [
        "52:54:00:00:00:01,52:54:00:00:00:02",
        "525400000001,525400000002",
        "52-54-00-00-00-01,52:54:0:0:0:2,525400000001",
    ],
)
def test_mask_syntax_with_and_without_colons(text: str) -> None:
    assert parse_macs(text) == (ONE, TWO)


@pytest.mark.parametrize("text", ["", "x", "525400000001,", "5254000000012"])
def test_invalid_mask_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a MAC address"):
        parse_macs(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClientState(bytes(1025)),
        lambda: ClientState(mask=(ONE,) * 256),
        lambda: ClientState(holders=(ONE,) * 256),
        lambda: settings_for("disk.img", mask=(ONE,) * 256),
    ],
)
def test_values_beyond_the_protocol_limits_are_refused(
    make: Callable[[], object],
) -> None:
    with pytest.raises(UsageError):
        make()
