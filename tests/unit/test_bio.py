from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe.ata import SECTOR
from aoe.errors import UsageError
from initiator.driver.bio import Bio, BioIter, Op, UserPages, bio_for
from initiator.driver.skbuff import Skb

if TYPE_CHECKING:
    from initiator.driver.bio import BioVec


def ignore(_: Bio) -> None:
    pass


def content(vecs: list[BioVec]) -> bytes:
    return b"".join(bytes(v.page.data[v.offset : v.offset + v.length]) for v in vecs)


def test_the_size_of_a_bio_is_that_of_all_its_pages() -> None:
    bio = Bio(Op.WRITE, 8, ignore)
    bio.add_page(UserPages(bytes(4096)), 4096)
    bio.add_page(UserPages(bytes(4096)), 512, 3584)
    assert bio.size == 4608
    assert [(vec.offset, vec.length) for vec in bio.vecs] == [(0, 4096), (3584, 512)]


@pytest.mark.parametrize("length", [0, -512])
def test_a_part_of_a_page_is_not_empty(length: int) -> None:
    bio = Bio(Op.WRITE, 0, ignore)
    with pytest.raises(UsageError, match="not positive"):
        bio.add_page(UserPages(bytes(4096)), length)
    assert bio.vecs == []


@pytest.mark.parametrize("length", [1, 511, 513])
def test_bio_for_rejects_partial_sectors(length: int) -> None:
    with pytest.raises(UsageError, match="sectors"):
        bio_for(Op.WRITE, 0, bytes(length), ignore)


def test_only_the_sum_of_parts_has_to_be_whole_sectors() -> None:
    bio = Bio(Op.WRITE, 8, ignore)
    bio.add_page(UserPages(b"a" * 4096), 960, 3136)
    bio.add_page(UserPages(b"b" * 4096), 64)
    position = BioIter(bio.vecs, bio.sector)
    first, second = position.advance(512), position.advance(512)
    assert [vec.length for vec in first + second] == [512, 448, 64]
    assert content(first + second) == b"a" * 960 + b"b" * 64
    assert (position.sector, position.size) == (10, 0)


@pytest.mark.parametrize(("length", "offset"), [(4608, 0), (512, 4096), (512, -512)])
def test_a_part_is_within_its_page(length: int, offset: int) -> None:
    bio = Bio(Op.WRITE, 0, ignore)
    with pytest.raises(UsageError, match="not within the page"):
        bio.add_page(UserPages(bytes(4096)), length, offset)


def test_reading_into_read_only_memory_is_rejected() -> None:
    with pytest.raises(UsageError, match="read-only"):
        bio_for(Op.READ, 0, bytes(512), ignore)


def test_bio_for_refers_to_the_buffer() -> None:
    buffer = bytearray(1024)
    bio = bio_for(Op.READ, 3, buffer, ignore)
    bio.vecs[0].page.data[0:5] = b"hello"
    assert buffer[:5] == b"hello"
    assert (bio.op, bio.sector, bio.size, bio.error) == (Op.READ, 3, 1024, None)


def test_bio_for_counts_bytes_of_a_buffer_of_wider_items() -> None:
    buffer = memoryview(bytearray(1024)).cast("I")
    assert bio_for(Op.READ, 0, buffer, ignore).size == 1024


def test_a_bio_without_memory_is_empty() -> None:
    assert bio_for(Op.FLUSH, 0, b"", ignore).vecs == []


def test_k29_advance_spans_pages() -> None:
    bio = Bio(Op.WRITE, 100, ignore)
    for number in range(3):
        bio.add_page(UserPages(bytes([number]) * 4096), 4096)
    position = BioIter(bio.vecs, bio.sector)

    first, second = position.advance(17 * SECTOR), position.advance(7 * SECTOR)

    assert [vec.length for vec in first] == [4096, 4096, 512]
    assert [(vec.offset, vec.length) for vec in second] == [(512, 3584)]
    assert content(first) == b"\0" * 4096 + b"\1" * 4096 + b"\2" * 512
    assert (position.sector, position.size) == (124, 0)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 8)), min_size=1, max_size=8),
    st.lists(st.integers(1, 9), min_size=64, max_size=64),
)
def test_k29_advances_of_any_length_return_the_bio_in_order(
    pieces: list[tuple[int, int]], cuts: list[int]
) -> None:
    bio = Bio(Op.WRITE, 7, ignore)
    stamp = iter(range(1 << 16))
    for offset, length in pieces:
        sectors = [next(stamp).to_bytes(2, "big") * 256 for _ in range(offset + length)]
        bio.add_page(
            UserPages(b"".join(sectors)), length * SECTOR, offset=offset * SECTOR
        )
    whole = content(bio.vecs)
    position = BioIter(bio.vecs, bio.sector)

    taken = []
    for cut in cuts:
        length = min(cut * SECTOR, position.size)
        vecs = position.advance(length)
        assert sum(vec.length for vec in vecs) == length
        assert all(vec.length > 0 for vec in vecs)
        taken.append(content(vecs))

    assert b"".join(taken) == whole
    assert position.size == 0
    assert position.sector == 7 + len(whole) // SECTOR


def test_k31_an_skb_is_head_followed_by_fragments() -> None:
    page = UserPages(b"a" * 512 + b"b" * 512)
    bio = Bio(Op.WRITE, 0, ignore)
    bio.add_page(page, 512, 512)
    bio.add_page(page, 512)
    skb = Skb()
    skb.frags = bio.vecs
    assert len(skb) == 36 + 1024
    assert bytes(skb) == bytes(36) + b"b" * 512 + b"a" * 512


def test_k72_fragments_are_borrowed_without_a_copy() -> None:
    buffer = bytearray(512)
    skb = Skb()
    skb.frags = bio_for(Op.WRITE, 0, buffer, ignore).vecs
    buffer[:] = b"z" * 512
    assert bytes(skb)[36:] == b"z" * 512
