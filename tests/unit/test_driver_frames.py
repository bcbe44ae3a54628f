"""Frames built from bios: contents, order and tags."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aoe.ata import SECTOR
from aoe.errors import DeviceError, UnsupportedError, UsageError
from initiator.driver.bio import Bio, Op, UserPages, bio_for
from initiator.driver.options import Options

if TYPE_CHECKING:
    from tests.unit.conftest import Connect, Sent, World

KERNEL = Options.kernel()
USER = Options()
in_both_modes = pytest.mark.parametrize(
    "options", [USER, KERNEL], ids=["user", "kernel"]
)
PAGE = 4096


def ata_part(frame: Sent) -> str:
    return frame.raw[24:36].hex(" ", 1)


def big_disk(connect: Connect, options: Options) -> World:
    """Return a device of 2**48 sectors whose frames are never answered."""
    world = connect(options, is_up=False)
    world.deliver(world.target.announce())
    [identify] = world.take()
    page = bytearray(world.target.identity.pack())
    page[200:208] = (1 << 48).to_bytes(8, "little")
    world.deliver(world.target.report(identify.raw, data=bytes(page)))
    return world


def paged(op: Op, sector: int, data: bytearray, world: World) -> Bio:
    bio = Bio(op, sector, world.ended.append)
    for start in range(0, len(data), PAGE):
        bio.add_page(UserPages(memoryview(data)[start : start + PAGE]), PAGE)
    return bio


# --- contents -------------------------------------------------------------------------


@in_both_modes
@pytest.mark.parametrize(
    ("registers", "lba48"),
    [
        ("40 00 02 24 {:02x} 00 00 00 00 00 00 00", True),
        ("00 00 02 20 {:02x} 00 00 e0 00 00 00 00", False),
    ],
    ids=["ext", "not ext"],
)
def test_k132_read_of_4_kib(
    connect: Connect, options: Options, registers: str, *, lba48: bool
) -> None:
    world = connect(options, lba48=lba48)
    world.read(8, bytearray(4096))
    sent = world.take()
    assert [ata_part(f) for f in sent] == [
        registers.format(lba) for lba in (0x08, 0x0A, 0x0C, 0x0E)
    ]
    assert [len(f.raw) for f in sent] == [36] * 4
    assert len({f.tag for f in sent}) == 4


@in_both_modes
def test_k132_with_two_buffers_one_frame_is_outstanding(
    connect: Connect, options: Options
) -> None:
    world = connect(options, buffers=2)
    world.read(8, bytearray(4096))
    assert len(world.take()) == 1


@in_both_modes
def test_k133_write_of_64_kib_at_mtu_9000(connect: Connect, options: Options) -> None:
    world = connect(options, mtus=[9000])
    data = bytearray(range(256)) * 256
    world.submit(paged(Op.WRITE, 0, data, world))
    sent = world.take()
    assert [f.frags for f in sent] == [
        [4096, 4096, 512],
        [3584, 4096, 1024],
        [3072, 4096, 1536],
        [2560, 4096, 2048],
        [2048, 4096, 2560],
        [1536, 4096, 3072],
        [1024, 4096, 3584],
        [512, 4096],
    ]
    assert [len(f.raw) for f in sent] == [8740] * 7 + [4644]
    assert [ata_part(f) for f in sent] == [
        f"41 00 {0x11 if lba < 119 else 9:02x} 34 {lba:02x} 00 00 00 00 00 00 00"
        for lba in (0, 17, 34, 51, 68, 85, 102, 119)
    ]
    assert b"".join(f.raw[36:] for f in sent) == data


@pytest.mark.parametrize(
    ("op", "registers"),
    [
        (Op.READ, "40 00 02 24 {:02x} 56 34 12 00 00 00 00"),
        (Op.WRITE, "41 00 02 34 {:02x} 56 34 12 00 00 00 00"),
    ],
)
def test_k134_an_lba_above_28_bits(connect: Connect, op: Op, registers: str) -> None:
    world = big_disk(connect, KERNEL)
    world.submit(paged(op, 0x12345678, bytearray(4096), world))
    assert [ata_part(f) for f in world.take()] == [
        registers.format(lba) for lba in (0x78, 0x7A, 0x7C, 0x7E)
    ]


@in_both_modes
def test_k34_an_lba_of_48_bits(connect: Connect, options: Options) -> None:
    world = big_disk(connect, options)
    world.read(0xABCD_EF01_2345, bytearray(SECTOR))
    [request] = world.take()
    assert ata_part(request) == "40 00 01 24 45 23 01 ef cd ab 00 00"


@in_both_modes
@pytest.mark.parametrize(
    ("registers", "lba48"),
    [
        ("41 00 01 34 ff 01 00 00 00 00 00 00", True),
        ("01 00 01 30 ff 01 00 e0 00 00 00 00", False),
    ],
    ids=["ext", "not ext"],
)
def test_k35_k36_write_of_one_sector(
    connect: Connect, options: Options, registers: str, *, lba48: bool
) -> None:
    world = connect(options, lba48=lba48)
    data = b"written!" * 64
    world.write(511, data)
    [request] = world.take()
    assert ata_part(request) == registers
    assert request.raw[36:] == data
    world.respond(request)
    assert world.target.disk[-SECTOR:] == data
    assert [bio.error for bio in world.ended] == [None]


@in_both_modes
def test_k29_k31_fragments_of_a_bio_with_scattered_pages(
    connect: Connect, options: Options
) -> None:
    world = connect(options, mtus=[4200])
    page = UserPages(bytes(range(16)) * 256)
    bio = Bio(Op.WRITE, 0, world.ended.append)
    for offset in (3584, 0, 1024):
        bio.add_page(page, SECTOR, offset)
    world.submit(bio)
    [request] = world.take()
    assert request.frags == [512, 512, 512]
    assert (request.registers.count, len(request.raw)) == (3, 36 + 1536)


@in_both_modes
@pytest.mark.parametrize("lba48", [True, False])
def test_flush_is_flush_cache(
    connect: Connect, options: Options, *, lba48: bool
) -> None:
    """K37: in kernel mode a flush succeeds without a frame."""
    world = connect(options, lba48=lba48)
    bio = world.flush()
    sent = world.take()
    if options is KERNEL:
        assert sent == []
    else:
        assert [ata_part(f) for f in sent] == ["00 00 00 e7 00 00 00 00 00 00 00 00"]
        assert world.ended == []
        world.respond(*sent)
        assert world.target.flushes == 1
    assert world.ended == [bio]
    assert bio.error is None


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (0x01, 0x04, UnsupportedError),
        (0xE7, 0x00, UnsupportedError),
        (0x21, 0x04, DeviceError),
        (0x01, 0x40, DeviceError),
        (0x80, 0x00, DeviceError),
    ],
)
def test_a_failed_flush_fails_its_bio(
    connect: Connect, status: int, error: int, kind: type[DeviceError]
) -> None:
    """An unsupported command is distinguished from a failed one."""
    world = connect()
    world.flush()
    [request] = world.take()
    world.deliver(world.target.report(request.raw, status, error))
    assert type(world.ended[0].error) is kind


def test_an_aborted_write_fails_but_is_not_unsupported(connect: Connect) -> None:
    """If writes succeeded before, the disk is not taken for read-only."""
    world = connect()
    world.write(8, bytes(SECTOR))
    world.run_until_idle()
    world.ended.clear()
    world.write(0, bytes(SECTOR))
    [request] = world.take()
    world.deliver(world.target.report(request.raw, 0x01, 0x04))
    assert type(world.ended[0].error) is DeviceError


# --- order ----------------------------------------------------------------------------


@in_both_modes
def test_k28_a_frame_never_spans_two_bios(connect: Connect, options: Options) -> None:
    world = connect(options)
    world.read(0, bytearray(3 * SECTOR))
    world.read(3, bytearray(3 * SECTOR))
    assert [(f.registers.lba, f.registers.count) for f in world.take()] == [
        (0, 2),
        (2, 1),
        (3, 2),
        (5, 1),
    ]


@in_both_modes
def test_k27_new_frames_are_sent_before_the_bio_of_a_response_ends(
    connect: Connect, options: Options
) -> None:
    world = connect(options, buffers=2)
    frames_at_end: list[int] = []
    for sector in (0, 1):
        bio = bio_for(
            Op.READ,
            sector,
            bytearray(SECTOR),
            lambda _: frames_at_end.append(len(world.frames)),
        )
        world.submit(bio)
    [first] = world.take()
    world.respond(first)
    assert frames_at_end == [1]


@in_both_modes
def test_k63_a_bio_ends_with_its_last_frame_in_any_order(
    connect: Connect, options: Options
) -> None:
    world = connect(options)
    first, second = bytearray(2048), bytearray(2048)
    bios = [world.read(0, first), world.read(4, second)]
    a, b, c, d = world.take()
    world.respond(d, c)
    assert world.ended == [bios[1]]
    world.respond(b)
    assert world.ended == [bios[1]]
    world.respond(a)
    assert world.ended == [bios[1], bios[0]]
    assert first + second == world.target.disk[:4096]


@in_both_modes
def test_end_io_may_submit_another_bio(connect: Connect, options: Options) -> None:
    world = connect(options, buffers=2)
    order: list[int] = []

    def submit_next(bio: Bio) -> None:
        order.append(bio.sector)
        if bio.sector < 3:
            world.submit(
                bio_for(Op.READ, bio.sector + 1, bytearray(SECTOR), submit_next)
            )

    world.submit(bio_for(Op.READ, 0, bytearray(SECTOR), submit_next))
    world.run_until_idle()
    assert order == [0, 1, 2, 3]


@in_both_modes
def test_k43_the_most_recently_freed_frame_is_reused(
    connect: Connect, options: Options
) -> None:
    world = connect(options)
    world.driver.open(world.device)
    world.write(0, bytes(4 * SECTOR))
    first, second = world.take()
    world.respond(second, first)
    world.read(0, bytearray(4 * SECTOR))
    assert [f.skb for f in world.frames] == [first.skb, second.skb]
    assert [f.frags for f in world.frames] == [[], []]


# --- tags -----------------------------------------------------------------------------


def test_k24_kernel_tags_are_a_counter_and_jiffies(connect: Connect) -> None:
    world = connect(KERNEL)
    world.now = 1000.004
    world.device.lasttag = 0x7FFD
    world.read(0, bytearray(4096))
    jiffies = 250_001 & 0xFFFF
    assert [f.tag for f in world.take()] == [
        0x7FFE << 16 | jiffies,
        0x7FFF << 16 | jiffies,
        jiffies,
        1 << 16 | jiffies,
    ]


def test_p11_user_tags_have_bit_31_and_the_tag_base(
    connect: Connect,
) -> None:
    # IDENTIFY has the first tag.
    world = connect(Options(tag_base=0x2BC, tag_start=0x1FFFFC))
    world.read(0, bytearray(4096))
    assert [f.tag - (0x8000_0000 | 0x2BC << 21) for f in world.take()] == [
        0x1FFFFE,
        0x1FFFFF,
        0,
        1,
    ]


@in_both_modes
def test_k26_a_tag_in_use_is_skipped(connect: Connect, options: Options) -> None:
    world = connect(options)
    world.read(0, bytearray(4096))
    old = world.take()
    # As after the counter has wrapped.
    world.device.lasttag -= 4
    world.write(8, bytes(4096))
    new = world.take()
    assert len({f.tag for f in old + new}) == 8
    world.respond(*old, *new)
    assert [bio.error for bio in world.ended] == [None, None]


# --- bios without frames --------------------------------------------------------------


@in_both_modes
@pytest.mark.parametrize(
    ("sector", "sectors"), [(511, 2), (512, 1), (-1, 1), (1 << 60, 1), (0, 513)]
)
def test_a_bio_beyond_the_end_fails_at_once(
    connect: Connect, options: Options, sector: int, sectors: int
) -> None:
    world = connect(options)
    bio = world.write(sector, bytes(sectors * SECTOR))
    assert world.take() == []
    assert world.ended == [bio]
    assert isinstance(bio.error, UsageError)


@in_both_modes
def test_a_bio_of_the_last_sector_succeeds(connect: Connect, options: Options) -> None:
    world = connect(options)
    buffer = bytearray(SECTOR)
    world.read(511, buffer)
    world.run_until_idle()
    assert buffer == world.target.disk[-SECTOR:]


@in_both_modes
def test_k40_bios_for_a_device_that_is_down_fail_at_once(
    connect: Connect, options: Options
) -> None:
    world = connect(options, is_up=False)
    world.deliver(world.target.announce())
    world.take()
    bio = world.read(0, bytearray(SECTOR))
    assert world.take() == []
    assert world.ended == [bio]
    assert isinstance(bio.error, DeviceError)


@in_both_modes
def test_an_empty_bio_succeeds_without_a_frame(
    connect: Connect, options: Options
) -> None:
    world = connect(options)
    bio = world.write(0, b"")
    assert world.take() == []
    assert world.ended == [bio]
    assert bio.error is None


@in_both_modes
def test_a_failed_bio_may_be_submitted_again(
    connect: Connect, options: Options
) -> None:
    world = connect(options)
    bio = world.read(512, bytearray(SECTOR))
    assert bio.error is not None
    bio.sector = 0
    world.submit(bio)
    world.run_until_idle()
    assert world.ended == [bio, bio]
    assert bio.error is None
