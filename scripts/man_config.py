"""The man page of the configuration file, from the structs that it is parsed into."""

from __future__ import annotations

import inspect
import re
import types
import typing
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from scripts.man_prose import add_section, read_prose
from scripts.roff import Page, bold, escape, italic
from target.config import toml as config_file
from target.filters.settings import FILTERS, FilterSettings, allowed

if TYPE_CHECKING:
    from collections.abc import Sequence

    Struct = type[msgspec.Struct]

_KINDS: Final = {
    bool: "true or false",
    dict: "table",
    float: "number",
    int: "whole number",
    str: "text",
}


EXAMPLE: Final = """\
[defaults]                      # for every disk that does not set the key itself
interfaces = ["eth0", "eth1"]
sync = true

[[export]]
address = "e0.0"
path = "/dev/vg0/disk"

[[export]]
address = "e0.1"
path = "golden.img"             # relative to the directory of the file
overlay = "client1.ovl"
mask = ["52:54:00:ae:00:02"]
"""


def documented(struct: Struct) -> tuple[str, dict[str, str]]:
    """Return the description of a struct and of each field, from its docstring."""
    text = inspect.cleandoc(struct.__doc__ or "")
    description = re.split(r"\n\n(?:Raises|Args):\n", text)[0]
    fields: dict[str, str] = {}
    if arguments := re.search(r"^Args:\n((?:    .*\n?)+)", text, re.MULTILINE):
        for name, words in re.findall(
            r"^    (\w+): ((?:.*\n?)(?:        .*\n?)*)", arguments[1], re.MULTILINE
        ):
            fields[name] = _without_rules(words)
    return _without_rules(description), fields


def _without_rules(text: str) -> str:
    # Administrators do not need the rule numbers.
    return " ".join(re.sub(r" \(P\d+\)", "", text).split())


def explain(struct: Struct, name: str) -> str:
    """Return the description of a field, from the struct's docstring or a base's.

    Raises:
        LookupError: the field has no description.
    """
    return documented(_documents(struct, name))[1][name]


def _documents(struct: Struct, name: str) -> Struct:
    for each in struct.__mro__:
        if issubclass(each, msgspec.Struct) and name in documented(each)[1]:
            return each
    raise LookupError(f"{struct.__name__}: {name} has no description")


def kind(hint: Any) -> str:  # noqa: ANN401 - a type hint has no type
    """Describe the values of a key with this type hint.

    >>> kind(list[str] | str | None)
    'list of texts, or text'
    """
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return str(hint.__metadata__[0].title)
    if origin in (types.UnionType, typing.Union):
        parts = [kind(each) for each in typing.get_args(hint) if each is not type(None)]
        return ", or ".join(parts)
    if origin is list:
        return f"list of {kind(typing.get_args(hint)[0])}s"
    if inspect.isclass(hint) and issubclass(hint, msgspec.Struct):
        return "table"
    return _KINDS[origin or hint]


def default_of(field: msgspec.structs.FieldInfo) -> str:
    """Return a default in TOML syntax; empty if there is none."""
    value = field.default
    if value in (msgspec.NODEFAULT, None, "", []):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else f"{value:g}"


def config_page() -> Page:
    """Return the page of the configuration file."""
    page = Page("aoe-target.toml", 5, "configuration file of aoe-target")
    prose = read_prose(page.file_name)
    add_section(page, prose, "DESCRIPTION")
    page.block(*EXAMPLE.splitlines())
    _add_process(page)
    add_section(page, prose, "DISKS")
    _add_disk_keys(page)
    add_section(page, prose, "FILTERS")
    _add_filters(page)
    for heading in prose.tail():
        add_section(page, prose, heading)
    return page


def _add_process(page: Page) -> None:
    page.heading("THE PROCESS")
    page.text("These keys precede the first table.")
    for field in msgspec.structs.fields(config_file.Document):
        if field.name not in ("export", "defaults"):
            _add_key(page, config_file.Document, field)


def _add_disk_keys(page: Page) -> None:
    own = ("address", "path")
    fields = msgspec.structs.fields(config_file.Export)
    for field in sorted(fields, key=lambda each: each.name not in own):
        _add_key(page, config_file.Export, field)


def _add_key(page: Page, struct: Struct, field: msgspec.structs.FieldInfo) -> None:
    default = default_of(field)
    more = (
        ["Required."]
        if field.required
        else [f"Default: `{default}`."]
        if default
        else []
    )
    text = " ".join([_sentence(explain(struct, field.name)), *more])
    page.tagged(f"{bold(field.name)} = {italic(kind(field.type))}", text)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:].rstrip(".") + "."


def _add_filters(page: Page) -> None:
    for shared in _shared():
        page.subheading(escape(_title(shared)))
        _add_filter_keys(page, shared, _own_keys(shared))
    for name, struct in FILTERS.items():
        page.subheading(escape(f'name = "{name}"'))
        page.text(documented(struct)[0])
        own = _own_keys(struct)
        _add_filter_keys(page, struct, own)
        page.text(f"Also: {', '.join(_others(struct, own))}.")


def _shared() -> Sequence[Struct]:
    bases = [base for struct in FILTERS.values() for base in struct.__mro__[1:]]
    return [
        base
        for base in dict.fromkeys(reversed(bases))
        if issubclass(base, FilterSettings)
    ]


def _title(struct: Struct) -> str:
    names = [name for name, each in FILTERS.items() if issubclass(each, struct)]
    missing = [name for name in FILTERS if name not in names]
    if not missing:
        return "Keys of all filters"
    if len(missing) == 1:
        return f"Keys of all but {missing[0]}"
    return f"Keys of {', '.join(names[:-1])} and {names[-1]}"


def _own_keys(struct: Struct) -> list[str]:
    """Return the keys that the docstring of a struct describes."""
    return list(documented(struct)[1])


def _others(struct: Struct, own: list[str]) -> list[str]:
    # The keys of the base classes, with the default if it differs from the base's.
    names = []
    for name, field in _fields(struct).items():
        if name not in own:
            default = default_of(field)
            usual = default_of(_fields(_documents(struct, name))[name])
            names.append(f"`{name}`" if default == usual else f"`{name}` = `{default}`")
    return names


def _fields(struct: Struct) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.name: field for field in msgspec.structs.fields(struct)}


def _add_filter_keys(page: Page, struct: Struct, names: list[str]) -> None:
    fields = _fields(struct)
    for name in names:
        text = _sentence(explain(struct, name))
        if default := default_of(fields[name]):
            text += f" Default: `{default}`."
        page.tagged(f"{bold(name)} = {italic(allowed(name))}", text)
