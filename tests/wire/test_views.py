"""``Disk``, ``AsyncDisk`` and ``DiskFile`` on real interfaces."""

from __future__ import annotations

import asyncio
import doctest
import io
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from aoe.address import Address
from aoe.errors import AccessError, NotFoundError, UnsupportedError, UsageError
from initiator.disk.async_disk import AsyncDisk
from initiator.disk.disk import Disk
from initiator.disk.file_view import DiskFile
from tests.requirements import program
from tests.serving import TIMEOUT, serving

if TYPE_CHECKING:
    from pathlib import Path

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns

MIB = 1 << 20
E73 = Address(7, 3)


@pytest.mark.parametrize("view", [Disk, AsyncDisk])
def test_the_examples_of_the_docstrings_run(
    wire: Wire, tmp_path: Path, view: type
) -> None:
    finder = doctest.DocTestFinder(recurse=False)
    [example] = finder.find(
        view, view.__name__, globs={view.__name__: view, "asyncio": asyncio}
    )
    assert example.examples
    for each in example.examples:
        each.source = each.source.replace("e0.0", "e7.3")
        each.source = each.source.replace("eth0", wire.interface)
    image = tmp_path / "disk.img"
    said: list[str] = []
    with serving(wire, image, "--create", "1M"), wire.initiator.enter():
        result = doctest.DocTestRunner().run(example, out=said.append)
    assert result.failed == 0, "".join(said)
    assert image.read_bytes()[1000:1020] == b"any byte, any length"


def test_disk_reads_writes_and_trims_at_any_byte(wire: Wire, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    with (
        serving(wire, image, "--create", "1M"),
        wire.initiator.enter(),
        Disk.open("e7.3", wire.interface) as disk,
    ):
        content = os.urandom(MIB)
        disk.write(0, content)
        disk.writev(999, [b"abc", b"", bytearray(b"x" * 5000)], fua=True)
        content = content[:999] + b"abc" + b"x" * 5000 + content[6002:]
        assert image.read_bytes() == content
        parts = [bytearray(3), bytearray(700)]
        disk.readv(998, parts)
        assert b"".join(parts) == content[998:1701]
        assert disk.can_trim
        disk.trim(8192, 65536)
        assert disk.read(8192, 65536) == bytes(65536)
        assert disk.read(8191, 1) + disk.read(73728, 1) == content[8191:73729:65537]
        assert len(disk) == MIB
        assert not disk.read_only
        with pytest.raises(UsageError):
            disk.read(MIB - 1, 2)
        disk.flush()


def test_p40_the_first_write_shows_that_a_disk_is_read_only(
    wire: Wire, tmp_path: Path
) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(MIB))
    with (
        serving(wire, tmp_path / "disk.img", "--read-only"),
        wire.initiator.enter(),
        Disk.open("e7.3", wire.interface) as disk,
    ):
        assert not disk.read_only
        with pytest.raises(AccessError, match="read-only"):
            disk.write(100, b"x")
        assert disk.read_only
        assert disk.read(0, 3) == bytes(3)


def test_a_disk_opened_read_only_sends_no_write(wire: Wire, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    with (
        serving(wire, image, "--create", "1M"),
        wire.initiator.enter(),
        Disk.open("e7.3", wire.interface, read_only=True) as disk,
    ):
        assert disk.read_only
        refused = pytest.raises(AccessError, match="opened read-only")
        with refused:
            disk.write(0, bytes(512))
        with refused:
            disk.write(1, b"x")
        with refused:
            disk.trim(0, 512)
        disk.flush()
        assert image.read_bytes() == bytes(MIB)


def test_disk_file_works_with_functions_that_take_files(
    wire: Wire, tmp_path: Path
) -> None:
    image = tmp_path / "disk.img"
    content = os.urandom(MIB)
    with (
        serving(wire, image, "--create", "1M"),
        wire.initiator.enter(),
        Disk.open("e7.3", wire.interface) as disk,
    ):
        with io.BufferedRandom(DiskFile(disk)) as file:
            shutil.copyfileobj(io.BytesIO(content), file)
            assert file.seek(0, os.SEEK_END) == MIB
            assert file.read() == b""
            file.seek(-10, os.SEEK_CUR)
            assert file.read(100) == content[-10:]
            file.seek(77)
            assert file.read(7777) == content[77:7854]
        assert image.read_bytes() == content
        with DiskFile(disk) as raw:
            raw.seek(0, os.SEEK_END)
            with pytest.raises(UsageError, match="beyond the end of the disk"):
                raw.write(b"x")


def test_many_asyncio_operations_are_outstanding_at_once(
    wire: Wire, tmp_path: Path
) -> None:
    """Some of them within one sector: no update is lost."""
    image = tmp_path / "disk.img"
    content = os.urandom(64 * 1024)

    async def main() -> None:
        async with AsyncDisk.open(E73, wire.interface) as disk:
            pieces = range(0, len(content), 100)
            await asyncio.gather(
                *(disk.write(at, content[at : at + 100]) for at in pieces)
            )
            await disk.flush()
            found = await asyncio.gather(*(disk.read(at, 100) for at in pieces[:-1]))
            assert b"".join(found) == content[: len(found) * 100]
            assert len(disk) == MIB
            cancelled = asyncio.ensure_future(disk.read(0, 512))
            await asyncio.sleep(0)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            await disk.trim(0, 512)
            assert await disk.read(0, 512) == bytes(512)

    with serving(wire, image, "--create", "1M"), wire.initiator.enter():
        asyncio.run(asyncio.wait_for(main(), TIMEOUT))
    assert image.read_bytes()[512 : len(content)] == content[512:]


def test_errors_are_raised_in_the_coroutine(wire: Wire, tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncDisk.open(E73, wire.interface) as disk:
            with pytest.raises(UsageError):
                await disk.read(MIB, 1)
            with pytest.raises(AccessError):
                await disk.write(0, b"x")

    async def search() -> None:
        async with AsyncDisk.open("e9.9", wire.interface, timeout=0.3):
            pass

    (tmp_path / "disk.img").write_bytes(bytes(MIB))
    with (
        serving(wire, tmp_path / "disk.img", "--read-only"),
        wire.initiator.enter(),
    ):
        asyncio.run(asyncio.wait_for(main(), TIMEOUT))
        with pytest.raises(NotFoundError, match="no response"):
            asyncio.run(asyncio.wait_for(search(), TIMEOUT))


def test_a_lost_frame_is_retransmitted_with_asyncio(wire: Wire, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"

    async def main() -> None:
        async with AsyncDisk.open(E73, wire.interface) as disk:
            for number in range(20):
                await disk.write(512 * number, bytes([number]) * 512)
            assert disk.disk.retransmits > 0

    filters = ("--filter", "drop:probability=0.3,seed=5")
    with (
        serving(wire, image, "--create", "1M", *filters),
        wire.initiator.enter(),
    ):
        asyncio.run(asyncio.wait_for(main(), 3 * TIMEOUT))
    assert image.read_bytes()[: 20 * 512 : 512] == bytes(range(20))


def test_trim_raises_unsupported_error_if_the_disk_lacks_it(
    wire: Wire, tmp_path: Path
) -> None:
    """Debian's vblade does not support it."""
    vblade = program("vblade")
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    process = wire.target.popen([vblade, "7", "3", wire.interface, str(image)])
    try:
        with (
            wire.initiator.enter(),
            Disk.open("e7.3", wire.interface, timeout=TIMEOUT) as disk,
        ):
            assert not disk.can_trim
            with pytest.raises(UnsupportedError):
                disk.trim(0, 512)
            disk.write(5, b"stable", fua=True)
            assert image.read_bytes()[5:11] == b"stable"
    finally:
        process.kill()
        process.wait()
