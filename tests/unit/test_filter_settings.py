from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe.errors import UsageError
from target.config.toml import load_settings
from target.filters.settings import (
    FILTERS,
    CorruptSettings,
    DelaySettings,
    Direction,
    DropSettings,
    ErrorSettings,
    FilterSettings,
    On,
    ReorderSettings,
    Where,
    make_filter,
    parse_filter,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("drop", DropSettings()),
        (
            "drop:probability=0.02,direction=in",
            DropSettings(probability=0.02, direction=Direction.IN),
        ),
        ("delay:seconds=0.05,on=write", DelaySettings(seconds=0.05, on=On.WRITE)),
        ("delay:seconds=50ms", DelaySettings(seconds=0.05)),
        ("delay:seconds=250us", DelaySettings(seconds=0.00025)),
        ("delay:seconds=2s", DelaySettings(seconds=2)),
        ("error:on=read,count=3,after=2", ErrorSettings(on=On.READ, count=3, after=2)),
        (
            "error:on=write,errno=ENOSPC,file=/run/fail=1",
            ErrorSettings(on=On.WRITE, errno="ENOSPC", file="/run/fail=1"),
        ),
        ("error:errno=enodev", ErrorSettings(errno="ENODEV")),
        (
            "corrupt:on=read,where=disk",
            CorruptSettings(on=On.READ, where=Where.DISK),
        ),
        ("corrupt", CorruptSettings(on=On.READ, where=Where.DISK)),
        (
            "corrupt:where=wire",
            CorruptSettings(where=Where.WIRE, direction=Direction.OUT),
        ),
        (
            "reorder:probability=0.1,hold=0.01,seed=7",
            ReorderSettings(probability=0.1, hold=0.01, seed=7),
        ),
    ],
)
def test_parse_filter(text: str, meant: FilterSettings) -> None:
    assert parse_filter(text) == meant


@pytest.mark.parametrize("name", FILTERS)
def test_every_filter_works_without_keys(name: str) -> None:
    assert isinstance(parse_filter(name), FILTERS[name])
    assert parse_filter(name).name == name


def test_toml_table_has_the_same_keys() -> None:
    table = tomllib.loads(
        'name = "delay"\nprobability = 1\nseconds = "50ms"\ndirection = "both"\n'
    )
    assert make_filter(table) == parse_filter("delay:seconds=0.05,direction=both")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "lose:probability=1",
            (
                "filter lose: no such filter. Choose one of "
                "delay, error, drop, duplicate, reorder, corrupt, log, readonly"
            ),
        ),
        (
            "drop:speed=1",
            (
                "filter drop: unknown key speed. Choose one of "
                "probability, count, after, seed, direction, on, file"
            ),
        ),
        ("readonly:count=1", "filter readonly: unknown key count. Choose one of file"),
        (
            "drop:0.02",
            (
                "filter drop:0.02: '0.02' is not key=value. "
                "Write it as drop:probability=0.02,direction=in"
            ),
        ),
        (
            "drop:count=1,count=2",
            (
                "filter drop:count=1,count=2: count is set twice. "
                "Write it as drop:probability=0.02,direction=in"
            ),
        ),
        (
            "drop:name=delay",
            (
                "filter drop:name=delay: name is set twice. "
                "Write it as drop:probability=0.02,direction=in"
            ),
        ),
        (
            "drop:probability=2",
            "filter drop: probability cannot be 2. Write a number from 0 to 1",
        ),
        (
            "drop:probability=nan",
            "filter drop: probability cannot be nan. Write a number from 0 to 1",
        ),
        (
            "drop:count=0",
            "filter drop: count cannot be 0. Write a whole number, 1 or more",
        ),
        (
            "drop:after=-1",
            "filter drop: after cannot be -1. Write a whole number, 0 or more",
        ),
        (
            "drop:direction=up",
            "filter drop: direction cannot be up. Write in, out or both",
        ),
        (
            "drop:on=trim",
            "filter drop: on cannot be trim. Write read, write, flush, discard or all",
        ),
        (
            "delay:seconds=1h",
            (
                "filter delay: seconds cannot be 1h. "
                "Write seconds, up to 3600, or a time such as 50ms"
            ),
        ),
        (
            "reorder:hold=0",
            (
                "filter reorder: hold cannot be 0. "
                "Write seconds, up to 3600, or a time such as 50ms"
            ),
        ),
        (
            "error:errno=EOOPS",
            (
                "filter error: errno cannot be EOOPS. "
                "Write a name such as EIO, ENOSPC or ENODEV"
            ),
        ),
        (
            "corrupt:direction=in",
            "filter corrupt: direction is only for frames. Add where=wire",
        ),
        (
            "corrupt:what=data",
            "filter corrupt: what is only for frames. Add where=wire",
        ),
        (
            "corrupt:on=flush",
            "filter corrupt: flush has no data. Write read, write or all",
        ),
        (
            "log:where=disk,direction=in",
            "filter log: direction is only for frames. Omit where=disk or direction",
        ),
    ],
)
def test_invalid_filter_message_has_the_allowed_values(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_filter(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"name": 3},
        {"name": "drop", "count": True},
        {"name": "drop", "count": 1.5},
        {"name": "drop", "probability": [1]},
        {"name": "drop", "probability": True},
        {"name": "drop", "probability": 10**400},
        {"name": "drop", "direction": 1},
        {"name": "drop", "file": 1},
        {"name": "delay", "seconds": float("inf")},
        {"name": "error", "errno": 5},
    ],
)
def test_value_of_wrong_type_is_a_usage_error(table: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        make_filter(table)


VALUES: dict[str, st.SearchStrategy[object]] = {
    "after": st.integers(0, 9),
    "count": st.integers(1, 9),
    "direction": st.sampled_from(["in", "out", "both"]),
    "errno": st.sampled_from(["EIO", "ENOSPC", "ENODEV"]),
    "file": st.sampled_from(["", "/run/fail", "C:\\x y"]),
    "hold": st.floats(0.001, 3600),
    "on": st.sampled_from(["read", "write", "all"]),
    "probability": st.floats(0, 1),
    "seconds": st.floats(0.001, 3600),
    "seed": st.integers(),
    "what": st.sampled_from(["frame", "data"]),
    "where": st.just("wire"),
}


@st.composite
def tables(draw: st.DrawFn) -> dict[str, object]:
    name = draw(st.sampled_from(sorted(FILTERS)))
    keys = FILTERS[name].__struct_fields__
    chosen = draw(st.sets(st.sampled_from(keys)))
    if "where" in keys:
        chosen.add("where")
    return {"name": name, **{key: draw(VALUES[key]) for key in sorted(chosen)}}


@given(tables())
def test_str_of_a_filter_can_be_parsed(table: dict[str, object]) -> None:
    made = make_filter(table)
    assert parse_filter(str(made)) == made


def test_str_omits_default_values() -> None:
    assert str(parse_filter("drop:probability=1,count=3,direction=both")) == (
        "drop:count=3"
    )
    assert str(parse_filter("error:errno=eio")) == "error"


FILE = """
[[export]]
address = "e0.0"
interfaces = "eth0"
path = "disk.img"

[[export.filter]]
name = "drop"
probability = 0.02

[[export.filter]]
name = "error"
on = "write"
file = "fail"
"""


def test_filters_of_a_configuration_file_are_in_order(tmp_path: Path) -> None:
    # The path of a trigger file is relative to the configuration file.
    path = tmp_path / "target.toml"
    path.write_text(FILE)
    (export,) = load_settings(path).exports
    assert export.filters == (
        parse_filter("drop:probability=0.02"),
        parse_filter(f"error:on=write,file={tmp_path / 'fail'}"),
    )


def test_error_in_a_configuration_file_has_its_position(
    tmp_path: Path,
) -> None:
    path = tmp_path / "target.toml"
    path.write_text(FILE.replace("0.02", "2"))
    with pytest.raises(UsageError) as caught:
        load_settings(path)
    assert str(caught.value) == (
        f"{path}: export[0]: filter drop: probability cannot be 2. "
        "Write a number from 0 to 1"
    )
