from __future__ import annotations

import shlex
import subprocess
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aoe.address import Address
from aoe.errors import AoEError, UsageError
from target.cli.main import cli
from target.config.settings import ExportSettings
from target.config.toml import load_settings
from target.config.vblade import read_fragment, to_settings, to_toml
from target.disks import OpenFlags

if TYPE_CHECKING:
    from pathlib import Path

# The examples of vblade-persistence(5) and of Debian's skeleton.conf.
MANUAL = """\
shelf=14
slot=2
netif=ens3
filename=/dev/mapper/export
options='-r -m 11:22:33:44:55:66,22:33:44:55:66:77 -o 8'
ionice='--class best-effort --classdata 7'
"""
SKELETON = """
# This is a POSIX shell fragment

# shelf address. Mandatory
# shelf=
shelf=10
slot=3
netif=em3
filename=/dev/mapper/export
options='-m 11:22:33:44:55:66 -o 8'
"""
LEAST = "shelf=1 slot=2 netif=eth0 filename=/srv/disk.img\n"
MACS = (bytes.fromhex("112233445566"), bytes.fromhex("223344556677"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "vblade.conf.d").mkdir()
    return tmp_path / "vblade.conf.d"


def write(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_bytes(text.encode())
    return path


class Outcome(NamedTuple):
    """What the command printed, and the error that it raised."""

    stdout: str
    stderr: str
    error: AoEError | None


def import_vblade(directory: Path) -> Outcome:
    stdout, stderr, error = StringIO(), StringIO(), None
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            cli.main(["import-vblade", str(directory)], standalone_mode=False)
        except AoEError as caught:
            error = caught
    return Outcome(stdout.getvalue(), stderr.getvalue(), error)


def reread(toml: str, directory: Path) -> tuple[ExportSettings, ...]:
    """Load a configuration file as ``serve`` does."""
    return load_settings(write(directory, "aoe-target.toml", toml)).exports


def read(directory: Path, text: str) -> ExportSettings:
    return to_settings(read_fragment(write(directory, "a.conf", text)))


def test_example_of_the_man_page(directory: Path) -> None:
    write(directory, "export.conf", MANUAL)
    write(directory, "other.conf", SKELETON)
    done = import_vblade(directory)
    assert done.error is None
    assert tomllib.loads(done.stdout) == {
        "export": [
            {
                "address": "e14.2",
                "interfaces": ["ens3"],
                "path": "/dev/mapper/export",
                "read_only": True,
                "offset": 8 * 512,
                "mask": ["11:22:33:44:55:66", "22:33:44:55:66:77"],
            },
            {
                "address": "e10.3",
                "interfaces": ["em3"],
                "path": "/dev/mapper/export",
                "offset": 8 * 512,
                "mask": ["11:22:33:44:55:66"],
            },
        ]
    }
    assert reread(done.stdout, directory)[0] == ExportSettings(
        address=Address(14, 2),
        interfaces=("ens3",),
        path="/dev/mapper/export",
        disk=OpenFlags(read_only=True, offset=4096),
        mask=MACS,
    )


def test_comments_name_the_file_and_ignored_variables(directory: Path) -> None:
    path = write(directory, "export.conf", MANUAL + "colour=red\n")
    lines = import_vblade(directory).stdout.splitlines()
    here = lines.index(f"# From {path}")
    assert lines[here + 1 : here + 4] == [
        "# colour: has no equivalent, ignored.",
        "# ionice: use IOSchedulingClass= of the systemd unit, systemd.exec(5).",
        "[[export]]",
    ]


def test_incomplete_files_are_skipped_as_in_vblade(directory: Path) -> None:
    skeleton = write(directory, "skeleton.conf", "# shelf=\n# slot=\nnetif=eth0")
    write(directory, "a.conf", LEAST)
    write(directory, "README", "`reboot`")
    done = import_vblade(directory)
    assert done.error is None
    assert f"# {skeleton} has no shelf, slot, filename: vblade" in done.stdout
    assert len(reread(done.stdout, directory)) == 1


@pytest.mark.parametrize(
    ("options", "disk", "rest"),
    [
        ("-s", OpenFlags(sync=True), {}),
        ("-d", OpenFlags(direct=True), {}),
        ("-rsd", OpenFlags(read_only=True, sync=True, direct=True), {}),
        ("-b 32", OpenFlags(), {"buffers": 32}),
        ("-b32 -b 16", OpenFlags(), {"buffers": 16}),
        ("-o 0 -l 1", OpenFlags(length=512), {}),
        # vblade parses sector numbers as C does: also 0x10 and 010.
        ("-o 0x10 -l 010", OpenFlags(offset=16 * 512, length=8 * 512), {}),
        ("-m 112233445566", OpenFlags(), {"mask": MACS[:1]}),
        ("-m '11:22:33:44:55:66' -m 22:33:44:55:66:77", OpenFlags(), {"mask": MACS}),
    ],
)
def test_options(
    directory: Path, options: str, disk: OpenFlags, rest: dict[str, object]
) -> None:
    expected = {
        "address": Address(1, 2),
        "interfaces": ("eth0",),
        "path": "/srv/disk.img",
        "disk": disk,
        **rest,
    }
    found = read(directory, f"{LEAST}options={shlex.quote(options)}")
    assert found == ExportSettings(**expected)  # type: ignore[arg-type] # as listed


def test_paths_are_relative_to_the_root_directory(directory: Path) -> None:
    text = LEAST.replace("/srv/disk.img", "disk.img")
    assert read(directory, text).path == "/disk.img"


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("shelf=$(cat /shelf)", 1, "substitution: $"),
        ("shelf=1\nslot=`cat /slot`", 2, "substitution: `"),
        ('\n\nfilename="/srv/$HOME"', 3, "substitution: $"),
        ('filename="two\nlines $x"', 1, "substitution: $"),
        ("filename=~/disk.img", 1, "tilde expansion"),
        ("echo shelf=1", 1, "'echo' is not NAME=VALUE"),
        ("shelf=1 slot=2 reboot", 1, "'reboot' is not NAME=VALUE"),
        ("options=-r -s", 1, "'-s' is not NAME=VALUE"),
        ("export shelf=1", 1, "'export' is not NAME=VALUE"),
        ("shelf=1 && slot=2", 1, "'&&' is not NAME=VALUE"),
        ("shelf=1&reboot", 1, "command: &"),
        ("shelf=1 # one\nslot=2>/etc/passwd", 2, "command: >"),
        ("filename='/srv/disk.img", 1, "unterminated quote"),
        ('filename="/srv/disk.img', 1, "unterminated quote"),
        ("shelf=1\\", 1, "unterminated quote"),
        ("shelf=1\r\n", 1, "character '\\r'"),
    ],
)
def test_shell_code_is_refused_and_not_executed(
    directory: Path, text: str, line: int, why: str
) -> None:
    path = write(directory, "bad.conf", text)
    write(directory, "good.conf", LEAST)
    done = import_vblade(directory)
    fix = "Use plain values: the file is parsed, not executed"
    assert done.stderr == f"aoe-target: {path}:{line}: {why}. {fix}\n"
    assert str(done.error) == f"{directory}: 1 of 2 files were skipped"
    assert f"# Skipped: {path}" in done.stdout
    assert len(reread(done.stdout, directory)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("options=-q", "a.conf:2: options: option -q not recognized. See vblade(8)"),
        ("options=-b", "a.conf:2: options: option -b requires argument. See vblade"),
        ("options='-r x'", "a.conf:2: options: 'x' is not an option. See vblade(8)"),
        ('options="-m \'x"', "a.conf:2: options: No closing quotation. See vblade"),
        ("options='-o 8k'", "a.conf:2: options: -o '8k' is not valid. Write a number"),
        ("options='-o 08'", "a.conf:2: options: -o '08' is not valid. Write a number"),
        ("options='-l 0'", "a.conf:2: options: -l '0' is not valid. Write a number"),
        ("options='-b 0x20'", "a.conf:2: options: -b '0x20' is not valid. Write a nu"),
        ("options='-b 1'", "a.conf: --buffers 1: the Linux driver needs at least 2"),
        ("options='-m 1:2'", "a.conf:2: options: -m 1:2: not a MAC address. Write"),
        ("shelf=0x1", "a.conf:2: shelf '0x1' is not a number. Write shelf=0"),
        ("shelf=65535", "a.conf: 65535 2: AoE address out of range. Write it as e0"),
    ],
)
def test_invalid_value_message(directory: Path, change: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(directory, f"{LEAST}{change}")
    assert str(caught.value).startswith(f"{directory}/{message}")


def test_duplicate_address_is_refused(directory: Path) -> None:
    first = write(directory, "a.conf", LEAST)
    write(directory, "b.conf", LEAST.replace("eth0", "eth1"))
    second = write(directory, "c.conf", LEAST)
    done = import_vblade(directory)
    assert done.stderr == (
        f"aoe-target: {second}: e1.2 on eth0 is already used by {first}. "
        "Give each disk an address of its own\n"
    )
    assert len(reread(done.stdout, directory)) == 1


def test_files_that_differ_only_in_the_interface_become_one_export(
    directory: Path,
) -> None:
    # vblade serves a disk on two interfaces with two processes, without a lock.
    first = write(directory, "a.conf", LEAST)
    second = write(directory, "b.conf", LEAST.replace("eth0", "eth1"))
    write(directory, "c.conf", LEAST.replace("eth0", "eth2") + "options=-r")
    done = import_vblade(directory)
    assert done.error is None
    assert f"# From {first}\n# From {second}\n[[export]]" in done.stdout
    both, other = reread(done.stdout, directory)
    assert both.interfaces == ("eth0", "eth1")
    assert other.interfaces == ("eth2",)
    assert other.disk.read_only


def test_output_begins_with_the_next_step(directory: Path) -> None:
    write(directory, "a.conf", LEAST)
    lines = import_vblade(directory).stdout.splitlines()
    assert "aoe-target check /etc/aoe-target.toml" in "".join(lines[:3])


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ((), "has no *.conf files"),
        (("skeleton.conf",), "its files define no disk"),
        (None, "no such directory"),
    ],
)
def test_nothing_to_import(
    directory: Path, files: tuple[str, ...] | None, why: str
) -> None:
    for name in files or ():
        write(directory, name, "# shelf=\n")
    if files is None:
        directory.rmdir()
    done = import_vblade(directory)
    assert str(done.error).startswith(f"{directory}: {why}")
    assert getattr(done.error, "exit_code", 0) == 3


def test_binary_file_is_refused(directory: Path) -> None:
    (directory / "a.conf").write_bytes(b"filename=/srv/\xff.img")
    assert import_vblade(directory).stderr.startswith(
        f"aoe-target: {directory}/a.conf: not text: "
    )
    (directory / "a.conf").write_bytes(b"filename=/srv/\0.img")
    assert import_vblade(directory).stderr == (
        f"aoe-target: {directory}/a.conf: not text: contains a NUL byte\n"
    )


_TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12
)


@st.composite
def quoted(draw: st.DrawFn, value: str) -> str:
    """Quote a value for the shell at random, also with changes within the word."""
    parts, rest = "", value
    while rest:
        cut = draw(st.integers(1, len(rest)))
        part, rest = rest[:cut], rest[cut:]
        ways = [f'"{part.translate(_IN_QUOTES)}"', shlex.quote(part)]
        if "'" not in part:
            ways.append(f"'{part}'")
        if "\n" not in part:
            ways.append("".join(f"\\{char}" for char in part))
        parts += draw(st.sampled_from(ways))
        parts += draw(st.sampled_from(["", "''", '""', "\\\n"]))
    return parts or draw(st.sampled_from(["", "''", '""']))


_IN_QUOTES = str.maketrans({char: f"\\{char}" for char in '$`"\\'})
_SPACES = st.sampled_from(
    [" ", "\n", ";", " ;\t", " # shelf=7\n", "\\\n \n", "\n#\\\n"]
)


@st.composite
def fragments(draw: st.DrawFn) -> tuple[str, ExportSettings]:
    """Make a fragment and the settings that it describes."""
    mac = st.binary(min_size=6, max_size=6)
    expected = ExportSettings(
        address=Address(draw(st.integers(0, 65534)), draw(st.integers(0, 254))),
        interfaces=(draw(_NAME),),
        path="/" + draw(_TEXT.map(lambda text: text.strip("/."))),
        disk=OpenFlags(
            read_only=draw(st.booleans()),
            sync=draw(st.booleans()),
            direct=draw(st.booleans()),
            offset=512 * draw(st.integers(0, 1 << 40)),
            length=draw(st.none() | st.integers(1, 1 << 40).map(lambda n: 512 * n)),
        ),
        buffers=draw(st.integers(2, 65535)),
        mask=tuple(draw(st.lists(mac, max_size=3, unique=True))),
    )
    values = {
        "shelf": str(expected.address.shelf),
        "slot": str(expected.address.slot),
        "netif": expected.interfaces[0],
        "filename": expected.path,
        "options": draw(options(expected)),
    }
    order = draw(st.permutations(list(values.items())))
    parts = [f"{name}={draw(quoted(value))}" for name, value in order]
    text = "".join(each + draw(_SPACES) for each in parts)
    return draw(st.sampled_from(["", "# shelf='\n", " \t"])) + text, expected


_NAME = st.from_regex(r"[a-z][a-z0-9.@-]{0,14}", fullmatch=True)


@st.composite
def options(draw: st.DrawFn, expected: ExportSettings) -> str:
    disk = expected.disk
    parts = [f"-b {expected.buffers}"]
    for letter, is_set in (("r", disk.read_only), ("s", disk.sync), ("d", disk.direct)):
        parts += [f"-{letter}"] * is_set
    for letter, size in (("o", disk.offset), ("l", disk.length)):
        if size:
            form = draw(st.sampled_from(["-{}{}", "-{} {}", "-{} {:#x}", "-{} 0{:o}"]))
            parts.append(form.format(letter, size // 512))
    separator = draw(st.sampled_from(["", ":"]))
    macs = [mac.hex(":").replace(":", separator) for mac in expected.mask]
    if macs:
        joined = draw(st.booleans())
        parts += ["-m " + ",".join(macs)] if joined else [f"-m {mac}" for mac in macs]
    return draw(st.sampled_from([" ", "  ", "\t"])).join(draw(st.permutations(parts)))


@given(made=fragments())
def test_any_fragment_gives_the_same_settings_in_toml(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[str, ExportSettings]
) -> None:
    text, expected = made
    directory = tmp_path_factory.getbasetemp()
    found = read(directory, text)
    # The order of the mask is that of the options, which is random.
    assert sorted(found.mask) == sorted(expected.mask)
    (again,) = reread(to_toml(found), directory)
    assert again == found
    for name in ("address", "interfaces", "path", "disk", "buffers"):
        assert getattr(found, name) == getattr(expected, name)


@settings(max_examples=60, deadline=None)
@given(made=fragments())
def test_any_fragment_is_parsed_as_by_the_shell(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[str, ExportSettings]
) -> None:
    path = write(tmp_path_factory.getbasetemp(), "a.conf", made[0])
    names = ("shelf", "slot", "netif", "filename", "options")
    show = 'printf "%s\\0" ' + " ".join(f'"${name}"' for name in names)
    shell = subprocess.run(
        ["sh", "-c", f'. "$0"; {show}', str(path)], capture_output=True, check=True
    )
    found = read_fragment(path)
    assert [found.text(name) for name in names] == (
        shell.stdout.decode().split("\0")[:-1]
    )
