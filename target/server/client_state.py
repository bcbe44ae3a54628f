"""What clients set on an export, in a file that a crash leaves whole (P59, P78).

A regular image has it beside itself, ``disk.img.aoe.json``, and one for each window
that begins elsewhere, ``disk.img@1048576.aoe.json``. What is no regular file has it by
its address, ``e7.3.aoe.json``, in a directory of the system; ``--state-dir`` has that
for all. Who removes the file while nothing is served begins anew.
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
from aoe.errors import AoEError, UsageError, from_os_error
from target.protocol.exports import ClientState

if TYPE_CHECKING:
    from target.config.settings import ExportSettings

log: Final = logging.getLogger("aoe-target")

_SYSTEM: Final = "/var/lib/aoe-target"
_VERSION: Final = 1


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    # The file, as JSON. A config string is any bytes: one character for each of them.
    version: int
    config_string: str
    mask: list[str]
    reserved_for: list[str]
    write_cache: bool | None = None

    @classmethod
    def describe(cls, state: ClientState) -> Self:
        return cls(
            _VERSION,
            state.config_string.decode("latin-1"),
            [format_mac(mac) for mac in state.mask],
            [format_mac(mac) for mac in state.holders],
            state.write_cache,
        )

    def state(self) -> ClientState:
        if self.version != _VERSION:
            raise UsageError("version", f"{self.version} is not {_VERSION}")
        return ClientState(
            self.config_string.encode("latin-1"),
            tuple(dict.fromkeys(map(parse_mac, self.mask))),
            tuple(dict.fromkeys(map(parse_mac, self.reserved_for))),
            self.write_cache,
        )


class StateFile:
    """The file that one export's state is kept in; there need not be one yet.

    Args:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> ClientState:
        """Read what was kept, nothing set where there is no file.

        Raises:
            AoEError: the file cannot be read, or is something else.
        """
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return ClientState()
        except OSError as error:
            raise from_os_error(str(self.path), error, "Or serve --no-state") from error
        try:
            return msgspec.json.decode(raw, type=_Document).state()
        except (msgspec.MsgspecError, UnicodeError, UsageError) as error:
            raise AoEError(
                str(self.path),
                f"not what clients had set: {error}",
                "Remove it to begin anew, or serve --no-state",
            ) from error

    def save(self, state: ClientState) -> None:
        """Replace the file, and return when the new one is on stable storage.

        Raises:
            OSError: it could not be replaced; it is logged, and the old one remains.
        """
        raw = msgspec.json.format(msgspec.json.encode(_Document.describe(state)))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _replace(self.path, raw + b"\n")
        except OSError as error:
            fix = "Until that works clients can set nothing; --no-state keeps nothing"
            log.warning("%s", from_os_error(str(self.path), error, fix))
            raise


def _replace(path: Path, raw: bytes) -> None:
    # Whatever happens in between, the name leads to the old file or to the new one.
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
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def state_path(chosen: ExportSettings) -> Path:
    """Find where an export's state is kept."""
    image = Path(chosen.overlay or chosen.path).resolve()
    if chosen.state_dir is None and image.is_file():
        window = f"@{chosen.disk.offset}" if chosen.disk.offset else ""
        return image.with_name(f"{image.name}{window}.aoe.json")
    directory = chosen.state_dir or os.environ.get("STATE_DIRECTORY", _SYSTEM)
    return Path(directory).resolve() / f"{chosen.address}.aoe.json"


def open_state(
    chosen: ExportSettings,
) -> tuple[ClientState, StateFile | None]:
    """Load what clients had set, and say where to keep it, if it is to be kept.

    A mask list of the command line stands in for the one that was kept.

    Raises:
        AoEError: the file cannot be read, or is something else.
    """
    file = StateFile(state_path(chosen)) if chosen.keep_state else None
    state = file.load() if file else ClientState()
    if chosen.mask:
        state = replace(state, mask=chosen.mask)
    return state, file
