from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe.address import Address, format_mac
from aoe.errors import AoEError, NotFoundError, UsageError
from target.config.settings import ExportSettings, Settings
from target.config.toml import Document, Export, ExportTable, load_settings
from target.disks import OpenFlags
from target.protocol.exports import BUFFER_COUNT, MODEL

if TYPE_CHECKING:
    import msgspec

WHOLE = """
state_dir = "state"
force = true
control = "control.sock"

[defaults]
interfaces = ["eth0", "eth1"]
sync = true
model = "shared"

[[export]]
address = "e0.0"
path = "disk.img"

[[export]]
address = "e65534.254"
interfaces = "eth2"
path = "/dev/vg0/disk"
read_only = true
sync = false
direct = true
offset = "1M"
length = 1048576
buffers = 2
serial = "s"
model = "m"
wwn = "0x5000c50015ea71aa"
rotation = 7200
physical_block = 4096
mask = ["52:54:00:ae:00:02", "52-54-0-ae-0-3"]
state_dir = "/elsewhere"

[[export]]
address = "e0.1"
path = "nbd+unix:///?socket=/run/nbd"
keep_state = false
force = false
[[export.filter]]
name = "drop"
probability = 0.5

[[export]]
address = "e0.2"
path = "golden.img"
overlay = "client.ovl"
create = "10G"
"""
MINIMAL = '[[export]]\naddress = "e0.0"\ninterfaces = "eth0"\npath = "disk.img"\n'


def load(directory: Path, text: str) -> Settings:
    file = directory / "aoe.toml"
    file.write_text(text)
    return load_settings(file)


def test_all_keys_are_loaded(tmp_path: Path) -> None:
    settings = load(tmp_path, WHOLE)
    assert settings.force
    assert settings.source == tmp_path / "aoe.toml"
    assert settings.control == tmp_path / "control.sock"
    first, second, third, fourth = settings.exports
    assert first == ExportSettings(
        address=Address(0, 0),
        interfaces=("eth0", "eth1"),
        path=str(tmp_path / "disk.img"),
        disk=OpenFlags(sync=True, force=True),
        model="shared",
        state_dir=tmp_path / "state",
    )
    assert second == ExportSettings(
        address=Address(65534, 254),
        interfaces=("eth2",),
        path="/dev/vg0/disk",
        disk=OpenFlags(
            read_only=True, direct=True, offset=1 << 20, length=1 << 20, force=True
        ),
        buffers=2,
        serial="s",
        model="m",
        wwn=0x5000C50015EA71AA,
        rotation=7200,
        physical_block=4096,
        mask=(bytes.fromhex("525400ae0002"), bytes.fromhex("525400ae0003")),
        state_dir=Path("/elsewhere"),
    )
    assert third.path == "nbd+unix:///?socket=/run/nbd"
    assert not third.keep_state
    assert [str(each) for each in third.filters] == ["drop:probability=0.5"]
    assert fourth.overlay == str(tmp_path / "client.ovl")
    assert fourth.disk.create == 10 << 30


def test_defaults_are_those_of_the_command_line(tmp_path: Path) -> None:
    [export] = load(tmp_path, MINIMAL).exports
    assert export == ExportSettings(
        address=Address(0, 0), interfaces=("eth0",), path=str(tmp_path / "disk.img")
    )
    assert (export.buffers, export.model) == (BUFFER_COUNT, MODEL)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[export", "not TOML: Expected ']]'"),
        ("", "object missing required field `export`"),
        ("export = []", "nothing to serve. Add an [[export]]"),
        (MINIMAL + "read-only = true", "export[0]: object contains unknown field"),
        (MINIMAL + "readonly = true", "Did you mean read_only?"),
        (
            MINIMAL + "[defaults]\npath = 'x'",
            "`path`. Move it: it belongs in an [[export]]",
        ),
        (
            MINIMAL + "metrics = '9468'",
            "`metrics`. Move it: it belongs before all tables",
        ),
        (MINIMAL + "colour = 1", "Known: address, buffers, control, create"),
        ("[defaults]\nbufers = 3\n" + MINIMAL, "defaults: object contains unknown"),
        (
            MINIMAL + "buffers = '64'",
            "export[0].buffers: expected `int`, got `str`",
        ),
        (MINIMAL + "buffers = 1", "export[0]: buffers 1: the Linux driver needs"),
        (
            MINIMAL + "physical_block = 520",
            "export[0]: physical_block 520: not a supported",
        ),
        (MINIMAL + "offset = '1x'", "export[0]: 1x: not a size"),
        (MINIMAL + "offset = -512", "export[0]: offset -512: must not be negative"),
        (MINIMAL + "wwn = '1'", "export[0]: 1: not a world wide name"),
        (MINIMAL + "mask = ['x']", "export[0]: x: not a MAC address"),
        (MINIMAL.replace("e0.0", "e0"), "export[0]: e0: not an AoE address"),
        (MINIMAL.replace('"eth0"', "[]"), "export[0]: e0.0: no interface"),
        (MINIMAL * 2, "e0.0 on eth0: duplicate address. Give each export its own"),
        (
            MINIMAL + "[[export.filter]]\nname = 'dorp'",
            "export[0]: filter dorp: no such filter",
        ),
    ],
)
def test_error_message_has_the_position(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path}/aoe.toml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"aoe\.toml: no such file"):
        load_settings(tmp_path / "aoe.toml")


places = st.integers(0, len(WHOLE))


@given(start=places, end=places, filling=st.text(max_size=20))
def test_invalid_toml_is_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, start: int, end: int, filling: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "nonsense.toml"
    text = WHOLE[:start] + filling + WHOLE[end:]
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_settings(file)
    except AoEError as error:
        assert "\n" not in str(error)  # noqa: PT017 - it need not be raised


values = st.fixed_dictionaries(
    {},
    optional={
        "read_only": st.booleans(),
        "sync": st.booleans(),
        "buffers": st.integers(2, 65535),
        "offset": st.integers(0, 1 << 50).map(lambda n: n * 512),
        "length": st.integers(1, 1 << 50).map(lambda n: n * 512),
        "serial": st.text("abc123", max_size=20),
        "rotation": st.sampled_from([0, 1, 7200]),
        "mask": st.lists(st.binary(min_size=6, max_size=6).map(format_mac), max_size=4),
    },
)


@given(shared=values, own=values)
def test_export_overrides_defaults(
    tmp_path_factory: pytest.TempPathFactory,
    shared: dict[str, object],
    own: dict[str, object],
) -> None:
    place = {"address": "e0.0", "interfaces": "eth0", "path": "disk.img"}
    apart = table("[defaults]", shared) + table("[[export]]", {**place, **own})
    merged = table("[[export]]", {**place, **shared, **own})
    directory = tmp_path_factory.getbasetemp()
    assert load(directory, apart).exports == load(directory, merged).exports


def table(title: str, content: dict[str, object]) -> str:
    # The JSON form of these values is valid TOML.
    lines = [f"{key} = {json.dumps(value)}" for key, value in content.items()]
    return "\n".join([title, *lines, ""])


@pytest.mark.parametrize("kind", [Document, ExportTable, Export])
def test_every_key_is_documented(kind: type[msgspec.Struct]) -> None:
    # Python 3.13 and newer remove a docstring's indentation when they compile it.
    structs = (kind, ExportTable) if kind is Export else (kind,)
    text = "\n".join(inspect.cleandoc(struct.__doc__ or "") for struct in structs)
    for name in kind.__struct_fields__:
        assert f"\n    {name}: " in text
