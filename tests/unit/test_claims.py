"""Claims of disks, and disks of the kernel's AoE driver."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest

from aoe.address import Address
from aoe.errors import BusyError
from aoe.identify import Identity
from initiator.client import claims
from initiator.client.claims import claimed, disk_keys

E00, E01 = Address(0, 0), Address(0, 1)
MAC = bytes.fromhex("525400ae0001")
ETH0 = [("eth0", MAC)]
FIX = "Use --force"
SERIAL = f"test-{os.getpid()}"


@pytest.fixture(autouse=True)
def indexes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give interfaces that only this process has, as tests run in parallel."""
    base = 10 * os.getpid()
    monkeypatch.setattr(claims, "_index", lambda name: base + int(name[3:]))


def identity(serial: str = SERIAL, wwn: int = 0) -> Identity:
    return Identity(8, serial=serial, model="M", wwn=wwn)


def is_claimed(
    address: Address, data: Identity | None, interface: str = "eth0"
) -> bool:
    with suppress(BusyError), claimed(address, data, [(interface, MAC)], FIX):
        return False
    return True


def test_a_disk_is_claimed_by_address_and_identity() -> None:
    with claimed(E00, identity(), ETH0, FIX):
        assert is_claimed(E00, None)
        assert is_claimed(E00, identity("another"))
        assert is_claimed(E01, identity())
        assert is_claimed(E00, identity(), "eth1")
        # Another disk, and one of the same address on another network.
        assert not is_claimed(E01, identity("another"))
        assert not is_claimed(E00, identity("another"), "eth1")
    assert not is_claimed(E00, identity())


def test_a_refused_claim_leaves_no_part_of_it() -> None:
    with claimed(E00, identity(), ETH0, FIX):
        assert is_claimed(E01, identity())
        assert not is_claimed(E01, identity("another"))


def test_the_owner_is_named() -> None:
    expected = f"e0.0: being written to on this host by process {os.getpid()}. {FIX}"
    with (
        claimed(E00, None, ETH0, FIX),
        pytest.raises(BusyError) as caught,
        claimed(E00, None, ETH0, FIX),
    ):
        pass
    assert str(caught.value) == expected


def test_a_disk_without_serial_number_is_claimed_by_address_only() -> None:
    anonymous = identity("")
    assert disk_keys(anonymous) == set()
    with claimed(E00, anonymous, ETH0, FIX):
        assert not is_claimed(E01, anonymous)


def test_either_serial_number_or_wwn_identifies_a_disk() -> None:
    both = disk_keys(identity("S", 1))
    assert both & disk_keys(identity("S", 2))
    assert both & disk_keys(identity("T", 1))
    assert not both & disk_keys(identity("T", 2))


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pretend that the kernel's driver has the device e0.0 on eth0, mounted."""
    attributes = tmp_path / "sys" / "etherd!e0.0"
    attributes.mkdir(parents=True)
    (attributes / "netif").write_text("eth0,eth1\n")
    (attributes / "mac").write_text(f"{MAC.hex()}\n")
    device = tmp_path / "dev" / "e0.0"
    device.parent.mkdir()
    device.touch()
    monkeypatch.setattr(claims, "_SYS", attributes.parent)
    monkeypatch.setattr(claims, "_DEV", device.parent)
    monkeypatch.setattr(claims, "find_use", lambda *_: "mounted on /mnt")
    monkeypatch.setattr(Path, "is_block_device", lambda path: path == device)
    return attributes


@pytest.mark.parametrize(
    "path", [("eth0", bytes(6)), ("eth1", bytes(6)), ("eth9", MAC)]
)
def test_a_disk_that_the_kernel_has_mounted_is_refused(
    kernel: Path, path: tuple[str, bytes]
) -> None:
    device = kernel.parents[1] / "dev" / "e0.0"
    with (
        pytest.raises(
            BusyError, match=f"the kernel has it as {device}: mounted on /mnt. "
        ),
        claimed(E00, None, [path], FIX),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "path"), [(E00, ("eth9", bytes(6))), (E01, ("eth0", MAC))]
)
def test_another_disk_than_that_of_the_kernel_is_accepted(
    kernel: Path, address: Address, path: tuple[str, bytes]
) -> None:
    assert kernel.is_dir()
    with claimed(address, None, [path], FIX):
        pass


def test_a_disk_that_the_kernel_has_but_does_not_use_is_accepted(
    kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "find_use", lambda *_: "")
    device = kernel.parents[1] / "dev" / "e0.0"

    def is_held() -> bool:
        links = [*Path("/proc/self/fd").iterdir()]
        return str(device) in [os.path.realpath(each) for each in links]

    # Held, so that the kernel does not mount it meanwhile.
    with claimed(E00, None, [("eth0", MAC)], FIX):
        assert is_held()
    assert not is_held()


def test_a_disk_mounted_in_another_mount_namespace_is_refused(
    kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(_: Path, flags: int) -> int:
        assert flags & os.O_EXCL
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(claims, "find_use", lambda *_: "")
    monkeypatch.setattr(os, "open", deny)
    assert kernel.is_dir()
    with (
        pytest.raises(BusyError, match=": mounted or in use"),
        claimed(E00, None, [("eth0", MAC)], FIX),
    ):
        pass
