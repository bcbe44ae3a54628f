from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from aoe.address import Address
from aoe.errors import UsageError
from target.config.settings import ExportSettings, Settings
from target.disks import OpenFlags
from tests.programs import AOE_TARGET


def place(**fields: object) -> ExportSettings:
    """Return the settings of a disk at e0.0, by default on eth0."""
    required = {"address": Address(0, 0), "interfaces": ("eth0",), "path": "disk.img"}
    return ExportSettings(**required | fields)  # type: ignore[arg-type] # as given


def aoe_target(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AOE_TARGET, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.mark.parametrize("words", [("--help",), ("-h",), ("serve", "--help")])
def test_help_begins_with_an_example(words: tuple[str, ...]) -> None:
    done = aoe_target(*words)
    assert done.returncode == 0
    assert done.stderr == ""
    example = "aoe-target serve e0.0 eth0 disk.img --create 1G"
    assert example in "\n".join(done.stdout.splitlines()[:6])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("serve", "e0.0", "eth0"),
            (
                "serve: needs ADDRESS IFACE PATH. "
                "Try: aoe-target serve e0.0 eth0 disk.img"
            ),
        ),
        (
            ("serve", "x", "eth0", "disk.img"),
            "x: not an AoE address. Write it as e0.0 (shelf 0-65534, slot 0-254)",
        ),
        (
            ("serve", "65535", "0", "eth0", "disk.img"),
            (
                "65535 0: AoE address out of range. "
                "Write it as e0.0 (shelf 0-65534, slot 0-254)"
            ),
        ),
        (
            ("serve", "e0.0", "eth0", "disk.img", "-b", "1"),
            ("--buffers 1: the Linux driver needs at least 2. Choose 2 to 65535"),
        ),
        (
            ("serve", "e0.0", "eth0,eth0", "disk.img"),
            "eth0,eth0: duplicate interface. Name each only once",
        ),
        (
            ("serve", "e0.0", "eth0,", "disk.img"),
            "e0.0: no interface. Name one, or several: eth0,eth1",
        ),
        (
            ("serve", "e0.0", "eth0", "disk.img", "--create", "1e9"),
            (
                "Invalid value for '--create': 1e9: not a size. Write it as 512, "
                "10M, 1.5G or 2048s (s for sectors of 512 bytes). "
                "Try: aoe-target serve --help"
            ),
        ),
        (
            ("serve", "e0.0", "eth0", "disk.img", "--filter", "drop:chance=1"),
            (
                "Invalid value for '--filter': filter drop: unknown key chance. "
                "Choose one of probability, count, after, seed, direction, on, file. "
                "Try: aoe-target serve --help"
            ),
        ),
    ],
)
def test_a_usage_error_is_one_line_with_a_fix_and_code_2(
    words: tuple[str, ...], message: str
) -> None:
    done = aoe_target(*words)
    assert done.stderr == f"aoe-target: {message}\n"
    assert done.returncode == 2
    assert done.stdout == ""


def test_a_missing_interface_exits_with_3(tmp_path: Path) -> None:
    done = aoe_target("serve", "e0.0", "nope0", str(tmp_path / "disk.img"))
    assert done.stderr.startswith("aoe-target: nope0: no such interface (have: ")
    assert done.returncode == 3


def parse(*words: str) -> Settings:
    # As the command does, up to opening the disk.
    from target.cli.commands.serve import build_settings, serve

    with serve.make_context("serve", list(words)) as context:
        parameters = dict(context.params)
        return build_settings(parameters.pop("arguments"), parameters)


def test_the_defaults_serve_the_whole_disk_for_writing() -> None:
    chosen = parse("e7.3", "eth0", "disk.img")
    export = ExportSettings(
        address=Address(7, 3), interfaces=("eth0",), path="disk.img"
    )
    assert chosen == Settings(exports=(export,))
    assert export.buffers == 64


@pytest.mark.parametrize("name", ["7.3", "e7.3", "aoe:e7.3", "/dev/etherd/e7.3"])
def test_all_notations_of_an_address_are_accepted(name: str) -> None:
    assert parse(name, "eth0", "disk.img").exports[0].address == Address(7, 3)


def test_a_command_line_of_vblade_is_accepted() -> None:
    chosen = parse(
        *("-r", "-d", "-s", "-b", "16", "-o", "8", "-l", "100"),
        *("7", "3", "eth0,eth1", "disk.img"),
    )
    export = chosen.exports[0]
    assert export.address == Address(7, 3)
    assert export.interfaces == ("eth0", "eth1")
    assert export.buffers == 16
    # As in vblade, plain numbers are sectors.
    assert export.disk == OpenFlags(
        read_only=True, direct=True, sync=True, offset=4096, length=51200
    )


def test_offset_and_length_with_a_suffix_are_bytes() -> None:
    disk = parse("e0.0", "eth0", "d", "-o", "1M", "-l", "1024B").exports[0].disk
    assert (disk.offset, disk.length) == (1 << 20, 1024)


def test_options_set_the_settings_of_disk_and_process() -> None:
    chosen = parse(
        *("e0.0", "eth0", "d", "--create", "1G", "--force", "--plain"),
        *("--serial", "S1", "--model", "M1", "--pcap", "frames.pcapng"),
    )
    export = chosen.exports[0]
    assert export.disk == OpenFlags(create=1 << 30, force=True)
    assert (export.serial, export.model) == ("S1", "M1")
    assert chosen.force
    assert chosen.rings is False
    assert chosen.capture == Path("frames.pcapng")


def test_options_set_the_identity_and_the_mask_list() -> None:
    export = parse(
        *("e0.0", "eth0", "d", "-m", "525400000001", "--no-state"),
        *("--wwn", "0x5000000000000001", "--rotation", "7200"),
        *("--physical-block", "4096"),
    ).exports[0]
    assert export.mask == (bytes.fromhex("525400000001"),)
    assert not export.keep_state
    assert export.wwn == 0x5000_0000_0000_0001
    assert (export.rotation, export.physical_block) == (7200, 4096)


def test_filters_keep_their_order() -> None:
    words = ("--filter", "drop:probability=2e-2", "--filter", "log", "--filter", "drop")
    filters = parse("e0.0", "eth0", "d", *words).exports[0].filters
    assert [str(each) for each in filters] == ["drop:probability=0.02", "log", "drop"]


@pytest.mark.parametrize("rotation", [2, 1024, 65535, -1])
def test_a_rotation_rate_that_ata_cannot_report_is_refused(rotation: int) -> None:
    with pytest.raises(UsageError, match="not a valid rotation rate"):
        place(rotation=rotation)


@pytest.mark.parametrize("wwn", ["", "0", "0" * 16, "x" * 16, "1" * 17])
def test_a_world_wide_name_other_than_16_hex_digits_is_refused(wwn: str) -> None:
    done = aoe_target("serve", "e0.0", "eth0", "d", "--wwn", wwn)
    assert done.returncode == 2
    assert "not a world wide name. Write 16 hexadecimal digits" in done.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("serial", "x" * 21),
        ("model", "x" * 41),
        ("serial", "séries"),
        ("model", "a\nb"),
    ],
)
def test_texts_that_do_not_fit_into_the_identify_page_are_refused(
    name: str, text: str
) -> None:
    with pytest.raises(UsageError, match="does not fit in the IDENTIFY data"):
        place(**{name: text})


def test_two_disks_at_one_address_need_different_interfaces() -> None:
    there = place(interfaces=("eth1",))
    both = Settings(exports=(place(), there))
    assert both.frames() == {"eth0": 256, "eth1": 256}
    with pytest.raises(UsageError) as caught:
        Settings(exports=(place(), there, place()))
    assert str(caught.value) == (
        "e0.0 on eth0: duplicate address. Give each export its own"
    )
