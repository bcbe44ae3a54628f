"""The pytest plugin, used as its users do: in test files of their own."""

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


def test_aoe_disk_fixture_serves_an_empty_disk(aoe_disk: ServedDisk) -> None:
    with aoe_disk.open() as disk:
        disk.write(1000, b"hello")
        disk.flush()
        assert disk.size == aoe_disk.size == 64 << 20
    assert aoe_disk.path.read_bytes()[1000:1005] == b"hello"


def test_run_starts_programs_in_the_network_of_the_disk(aoe_disk: ServedDisk) -> None:
    done = aoe_disk.run(["aoe", "stat", aoe_disk.address])
    assert done.stdout.split()[:3] == ["e0.0", "0.067GB", aoe_disk.interface]
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        aoe_disk.run(["aoe", "ping", "e9.9", "-t", "0.1"])


def test_serve_aoe_passes_size_mtu_path_and_options(
    serve_aoe: ServeAoe, tmp_path: Path
) -> None:
    image = tmp_path / "mine.img"
    image.write_bytes(bytes(1 << 20))
    here = serve_aoe(size=4 << 20, mtu=9000, options=["--filter", "log"])
    there = serve_aoe(address="e7.3", path=image, options=["--read-only"])
    assert (here.size, there.size) == (4 << 20, 1 << 20)
    assert "17 sectors" in here.run(["aoe", "discover"]).stdout
    refused = there.run(["aoe", "write", "e7.3", str(image)], check=False)
    assert "read-only" in refused.stderr
    assert "CONFIG" in here.log.read_text().upper()


def test_processes_end_with_the_test(pytester: pytest.Pytester) -> None:
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


def test_a_file_target_py_of_the_user_is_not_run(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        target="raise SystemExit('mine')",
        test_mine="def test_one(aoe_disk): aoe_disk.open()",
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_target_that_fails_to_start_is_an_error_with_its_message(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile("def test_one(serve_aoe): serve_aoe(options=['--buffers=1'])")
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*aoe-target: exited with code 2*buffers*"])


def test_target_that_exits_early_is_an_error(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_one(aoe_disk):
            aoe_disk.target.kill()
            aoe_disk.target.wait()
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*aoe-target: exited with code -9*"])


def test_skips_with_a_fix_where_namespaces_are_not_permitted(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    unshare = pytester.path / "unshare"
    unshare.write_text(REFUSING)
    unshare.chmod(0o755)
    monkeypatch.setenv("PATH", str(pytester.path), prepend=":")
    pytester.makepyfile("def test_one(aoe_disk): pass")
    # This inner pytest runs without tests.no_skip.
    result = pytester.runpytest_subprocess("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*not permitted*unshare -Urn pytest"])


def test_nothing_is_imported_until_a_fixture_is_used(pytester: pytest.Pytester) -> None:
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


def test_pytest_loads_the_installed_plugin() -> None:
    command = [sys.executable, "-m", "pytest", "--trace-config", "--collect-only"]
    done = subprocess.run(
        [*command, "-q", __file__],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    assert "initiator/pytest_plugin.py" in done.stdout
