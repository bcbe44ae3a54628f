from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe.common.sizes import (
    check_sectors,
    format_count,
    format_size,
    parse_size,
    short_size,
)
from aoe.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("0", 0),
        ("10M", 10 << 20),
        ("10G", 10 << 30),
        ("1T", 1 << 40),
        ("2p", 2 << 50),
        ("1E", 1 << 60),
        ("10k", 10 << 10),
        ("1.5G", 3 << 29),
        ("0.5K", 512),
        ("10MiB", 10 << 20),
        ("10mib", 10 << 20),
        (" 10 M ", 10 << 20),
        ("2048s", 1 << 20),
        ("1000B", 1000),
    ],
)
def test_suffixes_are_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_unit_applies_to_numbers_without_a_suffix() -> None:
    assert parse_size("8", unit=512) == 4096
    assert parse_size("8k", unit=512) == 8192
    assert parse_size("8b", unit=512) == 8
    assert parse_size("8s", unit=512) == 4096


@pytest.mark.parametrize(
    "text", ["", "M", "-1", "1e9", "10MB", "1,5G", "10 M M", "0x10", "ten", "1.M", "٣"]
)
def test_an_invalid_size_is_refused_with_a_fix(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert str(caught.value) == (
        f"{text}: not a size. "
        "Write it as 512, 10M, 1.5G or 2048s (s for sectors of 512 bytes)"
    )
    assert caught.value.exit_code == 2


def test_a_fraction_of_a_byte_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^0\.3K: not a whole number of bytes\."):
        parse_size("0.3K")


@pytest.mark.parametrize(
    ("size", "choice"),
    [(1000, "512 or 1024"), (513, "512 or 1024"), (1, "at least 512")],
)
def test_a_partial_sector_is_refused_with_the_nearest_sizes(
    size: int, choice: str
) -> None:
    with pytest.raises(UsageError) as caught:
        check_sectors("disk.img", size)
    assert str(caught.value) == (
        f"disk.img: {size:,} bytes are not a whole number of 512-byte sectors. "
        f"Make it {choice} bytes"
    )


def test_a_size_of_zero_is_refused() -> None:
    with pytest.raises(UsageError, match="Make it at least 512 bytes"):
        check_sectors("disk.img", 0)
    assert check_sectors("disk.img", 1024) == 1024


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (512, "512 bytes"),
        (1 << 20, "1 MiB (1,048,576 bytes)"),
        (10 << 30, "10 GiB (10,737,418,240 bytes)"),
        (3 << 29, "1.5 GiB (1,610,612,736 bytes)"),
        (1_000_000, "976.6 KiB (1,000,000 bytes)"),
        ((1 << 48) * 512, "128 PiB (144,115,188,075,855,872 bytes)"),
    ],
)
def test_sizes_are_formatted_with_unit_and_bytes(size: int, text: str) -> None:
    assert format_size(size) == text
    assert short_size(size) == text.partition(" (")[0]


@given(st.integers(0, 1 << 57), st.sampled_from(["", "B", "s", "K", "m", "GiB"]))
def test_any_integer_is_parsed_exactly(number: int, suffix: str) -> None:
    units = {"": 1, "B": 1, "s": 512, "K": 1 << 10, "m": 1 << 20, "GiB": 1 << 30}
    assert parse_size(f"{number}{suffix}") == number * units[suffix]


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 frames"), (1, "1 frame"), (1890, "1,890 frames")]
)
def test_counts_are_formatted_with_plural(number: int, text: str) -> None:
    assert format_count(number, "frame") == text
