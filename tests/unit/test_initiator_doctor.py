from __future__ import annotations

from typing import TYPE_CHECKING

from aoe.address import Address
from aoe.common.doctor.findings import Verdict
from initiator.doctor import examine_kernel, judge_kernel, judge_ways

if TYPE_CHECKING:
    from pathlib import Path

E73 = Address(7, 3)
A, B = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")


def test_p11_a_kernel_driver_is_told_of_and_warned_of_once_it_has_disks() -> None:
    assert judge_kernel([], loaded=False).verdict is Verdict.OK
    idle = judge_kernel([], loaded=True)
    assert idle.verdict is Verdict.OK
    assert "bit 31" in idle.text
    busy = judge_kernel(["e0.0", "e7.3"], loaded=True)
    assert busy.verdict is Verdict.WARN
    assert "it has e0.0, e7.3 too" in busy.text
    assert "aoe-interfaces" in busy.fix


def test_p11_a_kernel_driver_is_found_by_its_module(tmp_path: Path) -> None:
    assert "is not loaded" in examine_kernel(tmp_path).text
    (tmp_path / "aoe").mkdir()
    assert "is loaded" in examine_kernel(tmp_path).text


def test_as_many_interfaces_are_wanted_there_as_here() -> None:
    same = judge_ways(E73, ["eth0", "eth1"], [A, B])
    assert (same.verdict, same.text) == (Verdict.OK, "2 here (eth0, eth1), 2 there")
    fewer = judge_ways(E73, ["eth0"], [A, B])
    assert fewer.verdict is Verdict.WARN
    assert fewer.text.startswith(f"1 here (eth0), 2 there ({A.hex(':')}, {B.hex(':')})")
