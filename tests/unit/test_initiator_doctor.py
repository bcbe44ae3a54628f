from __future__ import annotations

from typing import TYPE_CHECKING

from aoe.address import Address
from aoe.common.doctor.findings import Verdict
from initiator.doctor import check_kernel_driver, diagnose_kernel_driver, diagnose_paths

if TYPE_CHECKING:
    from pathlib import Path

E73 = Address(7, 3)
A, B = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")


def test_p11_a_kernel_driver_is_reported_and_a_warning_once_it_has_disks() -> None:
    assert diagnose_kernel_driver([], loaded=False).verdict is Verdict.OK
    idle = diagnose_kernel_driver([], loaded=True)
    assert idle.verdict is Verdict.OK
    assert "bit 31" in idle.text
    busy = diagnose_kernel_driver(["e0.0", "e7.3"], loaded=True)
    assert busy.verdict is Verdict.WARN
    assert "it has e0.0, e7.3 too" in busy.text
    assert "aoe-interfaces" in busy.fix


def test_p11_the_kernel_driver_is_detected_by_its_module(tmp_path: Path) -> None:
    assert "is not loaded" in check_kernel_driver(tmp_path).text
    (tmp_path / "aoe").mkdir()
    assert "is loaded" in check_kernel_driver(tmp_path).text


def test_different_numbers_of_interfaces_at_both_ends_are_a_warning() -> None:
    same = diagnose_paths(E73, ["eth0", "eth1"], [A, B])
    assert (same.verdict, same.text) == (Verdict.OK, "2 here (eth0, eth1), 2 there")
    fewer = diagnose_paths(E73, ["eth0"], [A, B])
    assert fewer.verdict is Verdict.WARN
    assert fewer.text.startswith(f"1 here (eth0), 2 there ({A.hex(':')}, {B.hex(':')})")
