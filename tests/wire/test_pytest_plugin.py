"""What users of pytest get of us, used as they would: in test files of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from initiator.pytest_plugin import ServeAoe, ServedDisk

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.netns

REFUSING = """#!/bin/sh
echo "unshare: unshare failed: Operation not permitted" >&2
exit 1
"""


def test_a_test_that_names_it_has_a_disk(aoe_disk: ServedDisk) -> None:
    with aoe_disk.open() as disk:
        disk.write(1000, b"hello")
        disk.flush()
        assert disk.size == aoe_disk.size == 64 << 20
    assert aoe_disk.path.read_bytes()[1000:1005] == b"hello"


def test_programs_run_where_the_disk_is(aoe_disk: ServedDisk) -> None:
    done = aoe_disk.run(["aoe", "stat", aoe_disk.address])
    assert done.stdout.split()[:3] == ["e0.0", "0.067GB", aoe_disk.interface]
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        aoe_disk.run(["aoe", "ping", "e9.9", "-t", "0.1"])


def test_disks_are_as_a_test_wants_them(serve_aoe: ServeAoe, tmp_path: Path) -> None:
    image = tmp_path / "mine.img"
    image.write_bytes(bytes(1 << 20))
    here = serve_aoe(size=4 << 20, mtu=9000, options=["--filter", "log"])
    there = serve_aoe(address="e7.3", path=image, options=["--read-only"])
    assert (here.size, there.size) == (4 << 20, 1 << 20)
    assert "17 sectors" in here.run(["aoe", "discover"]).stdout
    refused = there.run(["aoe", "write", "e7.3", str(image)], check=False)
    assert "read-only" in refused.stderr
    assert "CONFIG" in here.log.read_text().upper()


def test_all_of_it_is_gone_with_the_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from pathlib import Path

        def test_one(aoe_disk):
            pids = [aoe_disk.target.pid, aoe_disk.wire.initiator.pid]
            Path("pids").write_text(" ".join(map(str, pids)))
            aoe_disk.open()
        """
    )
    result = pytester.runpytest_subprocess("-W", "error")
    result.assert_outcomes(passed=1)
    for pid in (pytester.path / "pids").read_text().split():
        assert not Path(f"/proc/{pid}").exists()


def test_a_target_that_cannot_start_says_why(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_one(serve_aoe): serve_aoe(options=['--buffers=1'])")
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*aoe-target: ended with exit code 2*buffers*"])


def test_a_target_that_ends_by_itself_is_an_error(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_one(aoe_disk):
            aoe_disk.target.kill()
            aoe_disk.target.wait()
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*aoe-target: ended with exit code -9*"])


def test_where_namespaces_are_refused_a_skip_says_what_to_do(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    unshare = pytester.path / "unshare"
    unshare.write_text(REFUSING)
    unshare.chmod(0o755)
    monkeypatch.setenv("PATH", str(pytester.path), prepend=":")
    pytester.makepyfile("def test_one(aoe_disk): pass")
    # Where nothing may be skipped, this may.
    result = pytester.runpytest_subprocess("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*not permitted*unshare -Urn pytest"])


def test_tests_that_name_no_disk_pay_for_none(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_one():
            libraries = {"pyroute2", "scapy", "click"}
            ours = {"aoe.net.netns", "initiator.disk.disk"} | libraries
            assert not ours & set(sys.modules)
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_pytest_finds_it_wherever_we_are_installed() -> None:
    command = [sys.executable, "-m", "pytest", "--trace-config", "--collect-only"]
    done = subprocess.run(
        [*command, "-q", __file__],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    assert "initiator/pytest_plugin.py" in done.stdout
