"""The state file of an export: what clients set, replaced atomically (P59, P78).

For a regular image the file is in the same directory, ``disk.img.aoe.json``, or
``disk.img@1048576.aoe.json`` for a window at that offset. For anything else it is named
after the address, ``e7.3.aoe.json``, in a system directory. With ``--state-dir`` all
state files are in that directory. Removing the file while the export is not served
resets the state.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import msgspec

from aoe.address import format_mac, parse_mac
from aoe.common.files import sync_directory
from aoe.errors import AoEError, UsageError, from_os_error
from target.protocol.exports import ClientState

if TYPE_CHECKING:
    from target.config.settings import ExportSettings

log: Final = logging.getLogger("aoe-target")

_SYSTEM_DIRECTORY: Final = "/var/lib/aoe-target"
_VERSION: Final = 1


class _StateDocument(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    # The file, as JSON. A config string is arbitrary bytes, stored as latin-1.
    version: int
    config_string: str
    mask: list[str]
    reserved_for: list[str]
    write_cache: bool | None = None
    losses: int = 0

    @classmethod
    def from_state(cls, state: ClientState) -> Self:
        return cls(
            _VERSION,
            state.config_string.decode("latin-1"),
            [format_mac(mac) for mac in state.mask],
            [format_mac(mac) for mac in state.holders],
            state.write_cache,
            state.losses,
        )

    def state(self) -> ClientState:
        if self.version != _VERSION:
            raise UsageError("version", f"{self.version} is not {_VERSION}")
        return ClientState(
            self.config_string.encode("latin-1"),
            tuple(dict.fromkeys(map(parse_mac, self.mask))),
            tuple(dict.fromkeys(map(parse_mac, self.reserved_for))),
            self.write_cache,
            self.losses,
        )


class StateFile:
    """The state file of one export; it need not exist yet.

    Args:
        path: the path of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> ClientState:
        """Read the file; without one, return the default state.

        Raises:
            AoEError: the file cannot be read, or is not a state file.
        """
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return ClientState()
        except OSError as error:
            fix = "Or serve with --no-state, without the mask list that it may have"
            raise from_os_error(str(self.path), error, fix) from error
        try:
            return msgspec.json.decode(raw, type=_StateDocument).state()
        except (msgspec.MsgspecError, UnicodeError, UsageError) as error:
            raise AoEError(
                str(self.path),
                f"not a state file: {error}",
                "Restore it, or remove it to reset what clients set, the mask list "
                "included",
            ) from error

    def save(self, state: ClientState) -> None:
        """Replace the file, and return when the new one is on stable storage.

        Raises:
            OSError: the file could not be replaced; this is logged, and the old one
                remains.
        """
        raw = msgspec.json.format(msgspec.json.encode(_StateDocument.from_state(state)))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _replace(self.path, raw + b"\n")
        except OSError as error:
            fix = "Until this is fixed, clients cannot change it"
            log.warning("%s", from_os_error(str(self.path), error, fix))
            raise


def _replace(path: Path, raw: bytes) -> None:
    # rename(2) is atomic: after a crash the name refers to the old or the new file.
    new = path.with_name(f".{path.name}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with open(os.open(new, flags, 0o666), "wb") as file:  # noqa: PTH123 - takes no fd
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    sync_directory(path.parent)


def state_path(settings: ExportSettings) -> Path:
    """Return the path of an export's state file."""
    image = Path(settings.overlay or settings.path).resolve()
    if settings.state_dir is None and image.is_file():
        window = f"@{settings.disk.offset}" if settings.disk.offset else ""
        return image.with_name(f"{image.name}{window}.aoe.json")
    directory = settings.state_dir or os.environ.get(
        "STATE_DIRECTORY", _SYSTEM_DIRECTORY
    )
    return Path(directory).resolve() / f"{settings.address}.aoe.json"


def open_state(
    settings: ExportSettings,
) -> tuple[ClientState, StateFile | None]:
    """Load an export's client state; return it and the file to save it to, if any.

    A mask list in the settings replaces the saved one.

    Raises:
        AoEError: the file cannot be read, or is not a state file.
    """
    file = StateFile(state_path(settings)) if settings.keep_state else None
    state = file.load() if file else ClientState()
    if settings.mask:
        state = replace(state, mask=settings.mask)
    return state, file
