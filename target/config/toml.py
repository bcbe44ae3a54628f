"""The configuration file of a process, in TOML.

::

    state_dir = "/var/lib/aoe-target"

    [defaults]
    interfaces = ["eth0"]

    [[export]]
    address = "e0.0"
    path = "disk.img"           # relative to the file

Sizes are bytes, or text with a suffix: ``"10G"``.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from aoe.address import Address, parse_mac
from aoe.common.sizes import parse_size
from aoe.errors import AoEError, UsageError, from_os_error
from aoe.identify import parse_wwn
from target.config.endpoint import parse_endpoint
from target.config.settings import ENGINE, ExportSettings, Settings
from target.disks import OpenFlags
from target.filters.settings import make_filter
from target.protocol.exports import BUFFER_COUNT, MODEL

if TYPE_CHECKING:
    from pathlib import Path

    from target.filters.settings import FilterSettings

_PLACE: Final = re.compile(r" - at `\$\.?(.*)`$")
_OPTION: Final = re.compile(r"^--([a-z-]+)")
_OPTION_WITH_VALUE: Final = re.compile(r"--([a-z]+(?:-[a-z]+)*)(?: ([A-Z0-9]\w*))?")
_UNKNOWN: Final = re.compile(r"unknown field `(.*?)`")


Size = Annotated[int | str, msgspec.Meta(title="size")]
"""Bytes, or text with a suffix. The man page shows the title as the type."""


class ExportTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The keys of ``[defaults]`` and of every ``[[export]]``.

    Args:
        interfaces: a name, or a list of names; here or in ``[defaults]``.
        read_only: refuse writes.
        sync: answer writes when they are on stable storage.
        direct: bypass the page cache.
        offset: start of the disk in ``path``.
        length: length of the disk; by default up to the end of ``path``.
        create: create ``path`` as a sparse file of this size if it does not exist.
        overlay: a copy-on-write file that takes all writes; ``path`` is only read.
        buffers: requests that a client may have outstanding, at least 2.
        serial: serial number, at most 20 ASCII characters; by default derived from
            address, host name and file.
        model: model name, at most 40 ASCII characters.
        wwn: world wide name, 16 hexadecimal digits; by default derived from address and
            serial number.
        rotation: rotation rate that is reported to clients, in revolutions per minute;
            1 for a non-rotating disk.
        physical_block: physical sector size that is reported to clients, 512 or 4096.
        mask: MAC addresses of the only clients to serve; replaces the saved list.
        keep_state: save the state that clients set.
        state_dir: directory of the state file; by default that of ``path`` if it is an
            image, else /var/lib/aoe-target.
        force: serve it although it seems to be in use.
        filter: filters, such as injected faults, each a ``name`` and its keys; the
            first is nearest to the wire.
        engine: what executes the requests: "struct", or for experiments "scapy" or
            a Python file, as FILE.py or FILE.py:CLASS.
    """

    interfaces: str | list[str] = []
    read_only: bool = False
    sync: bool = False
    direct: bool = False
    offset: Size = 0
    length: Size | None = None
    create: Size | None = None
    overlay: str = ""
    buffers: int = BUFFER_COUNT
    serial: str = ""
    model: str = MODEL
    wwn: str = ""
    rotation: int = 1
    physical_block: int = 512
    mask: list[str] = []
    keep_state: bool = True
    state_dir: str = ""
    force: bool = False
    filter: list[dict[str, Any]] = []
    engine: str = ENGINE


class Export(ExportTable, forbid_unknown_fields=True, kw_only=True):
    """An ``[[export]]`` table.

    Args:
        address: shelf and slot, such as e0.0.
        path: a disk image, a block device, or the URI of an NBD export.
    """

    address: str
    path: str


class Document(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The configuration file.

    Args:
        export: the exports, at least one.
        defaults: default values for the exports.
        state_dir: as in an export, for all of them.
        force: serve although addresses or disks seem to be in use.
        control: an additional control socket for ``aoe-target status`` and the like;
            there is always one for the network namespace.
        metrics: port or ADDRESS:PORT of the Prometheus metrics.
    """

    export: list[Export]
    defaults: ExportTable = msgspec.field(default_factory=ExportTable)
    state_dir: str = ""
    force: bool = False
    control: str = ""
    metrics: int | str = ""


def load_settings(path: Path) -> Settings:
    """Load a configuration file.

    Raises:
        NotFoundError: the file does not exist.
        UsageError: the file is not valid; the message has the position.
        AoEError: the file cannot be read.
    """
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise from_os_error(str(path), error) from error
    except (tomllib.TOMLDecodeError, UnicodeError) as error:
        raise UsageError(str(path), f"not TOML: {error}") from error
    document = _convert(path, _with_defaults(raw))
    if not document.export:
        raise UsageError(str(path), "nothing to serve", "Add an [[export]]")
    exports = [
        _settings(path, number, document) for number in range(len(document.export))
    ]
    try:
        return Settings(
            exports=tuple(exports),
            force=document.force,
            source=path,
            control=path.parent / document.control if document.control else None,
            metrics=_metrics(document.metrics),
        )
    except UsageError as error:
        what = _file_key(error.what)
        raise UsageError(f"{path}: {what}", error.why, error.fix) from error


def _metrics(value: int | str) -> tuple[str, int] | None:
    return None if value == "" else parse_endpoint(str(value))


def _file_key(what: str) -> str:
    # Converts an option name, --physical-block, to the key, physical_block.
    return _OPTION.sub(lambda match: match[1].replace("-", "_"), what)


def advise_keys(error: AoEError) -> AoEError:
    """Return the error with keys of the file in its fix, instead of options of serve.

    ``serve --config`` refuses these options.
    """
    fix = _OPTION_WITH_VALUE.sub(_key_with_value, error.fix)
    return type(error)(error.what, error.why, fix)


def _key_with_value(match: re.Match[str]) -> str:
    option, value = match[1], match[2]
    if option == "no-state":
        return "keep_state = false"
    key = option.replace("-", "_")
    if key not in {*Export.__struct_fields__, *Document.__struct_fields__} - {"force"}:
        return match[0]
    if key == "read_only":
        return "read_only = true"
    return f'{key} = "{value}"' if value else key


def _with_defaults(raw: dict[str, Any]) -> dict[str, Any]:
    # Merged before validation; the keys of an export override the defaults.
    defaults, exports = raw.get("defaults"), raw.get("export")
    if not (isinstance(defaults, dict) and isinstance(exports, list)):
        return raw
    merged = [
        {**defaults, **each} if isinstance(each, dict) else each for each in exports
    ]
    return {**raw, "export": merged}


def _convert(path: Path, raw: dict[str, Any]) -> Document:
    # Defaults are validated first, so that an error in them is reported there.
    try:
        if "defaults" in raw:
            msgspec.convert({"defaults": raw["defaults"], "export": []}, Document)
        return msgspec.convert(raw, Document)
    except msgspec.ValidationError as error:
        text = str(error)
        place = _PLACE.search(text)
        location = f"{path}: {place[1]}" if place and place[1] else str(path)
        why = _PLACE.sub("", text)
        raise UsageError(location, why[0].lower() + why[1:], _suggest(why)) from error


def _suggest(why: str) -> str:
    unknown = _UNKNOWN.search(why)
    if unknown is None:
        return ""
    in_export = {*Export.__struct_fields__}
    names = {*in_export, *Document.__struct_fields__}
    if unknown[1] in names:
        place = "in an [[export]]" if unknown[1] in in_export else "before all tables"
        return f"Move it: it belongs {place}"
    close = difflib.get_close_matches(unknown[1], names, 1, 0.5)
    return (
        f"Did you mean {close[0]}?" if close else f"Known: {', '.join(sorted(names))}"
    )


def _settings(path: Path, number: int, document: Document) -> ExportSettings:
    table = document.export[number]
    try:
        return _build(path.parent, table, document)
    except UsageError as error:
        location = f"{path}: export[{number}]: {_file_key(error.what)}"
        raise UsageError(location, error.why, error.fix) from error


def _build(directory: Path, table: Export, document: Document) -> ExportSettings:
    names = table.interfaces
    state_dir = table.state_dir or document.state_dir
    is_uri = "://" in table.path
    return ExportSettings(
        address=Address.parse(table.address),
        interfaces=tuple(names.split(",") if isinstance(names, str) else names),
        path=table.path if is_uri else str(directory / table.path),
        disk=OpenFlags(
            read_only=table.read_only,
            sync=table.sync,
            direct=table.direct,
            offset=_size(table.offset),
            length=None if table.length is None else _size(table.length),
            create=None if table.create is None else _size(table.create),
            force=table.force or document.force,
        ),
        overlay=str(directory / table.overlay) if table.overlay else "",
        buffers=table.buffers,
        serial=table.serial,
        model=table.model,
        wwn=parse_wwn(table.wwn) if table.wwn else 0,
        rotation=table.rotation,
        physical_block=table.physical_block,
        mask=tuple(dict.fromkeys(map(parse_mac, table.mask))),
        state_dir=directory / state_dir if state_dir and table.keep_state else None,
        keep_state=table.keep_state,
        filters=tuple(_filter(directory, each) for each in table.filter),
        engine=_engine(directory, table.engine),
    )


def _filter(directory: Path, table: dict[str, Any]) -> FilterSettings:
    settings = make_filter(table)
    if not settings.file:
        return settings
    return msgspec.structs.replace(settings, file=str(directory / settings.file))


def _engine(directory: Path, name: str) -> str:
    return str(directory / name) if ".py" in name else name


def _size(value: int | str) -> int:
    return value if isinstance(value, int) else parse_size(value)
