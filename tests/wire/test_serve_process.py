"""Process options of ``aoe-target serve``: privileges, --run, parent, watchdog."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aoe.common.process.capabilities import Capability
from aoe.net.interfaces import set_mtu
from tests.accounts import HAS_NOBODY, IS_ROOT, NOBODY, OTHER_USER, process_status
from tests.asking import ata, config
from tests.programs import AOE, AOE_TARGET
from tests.serving import TIMEOUT, client, finish, ready_line, serving, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns


@pytest.fixture
def place() -> Iterator[Path]:
    """Make a directory writable by OTHER_USER, with a disk that only root may read."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        image = path / "disk.img"
        image.write_bytes(bytes(1 << 20))
        image.chmod(0o600)
        if OTHER_USER == "nobody":
            os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
        yield path


def until(is_so: Callable[[], bool]) -> bool:
    end = time.monotonic() + TIMEOUT
    while not is_so() and time.monotonic() < end:
        time.sleep(0.02)
    return is_so()


def is_gone(pid: int) -> bool:
    try:
        return process_status(pid)["State"].startswith("Z")
    except FileNotFoundError:
        return True


# --- privileges -----------------------------------------------------------------------


def test_root_serves_with_two_capabilities(wire: Wire, place: Path) -> None:
    with serving(wire, place / "disk.img") as process, client(wire) as asking:
        status = process_status(process.pid)
        expected = int(Capability.NET_RAW | Capability.DAC_OVERRIDE)
        for name in ("CapEff", "CapPrm", "CapBnd"):
            assert int(status[name], 16) == expected
        assert status["NoNewPrivs"] == "1"
        assert asking.ask(ata(0x24))


def test_other_user_survives_an_mtu_change(wire: Wire, place: Path) -> None:
    words = (place / "disk.img", "--user", OTHER_USER)
    with serving(wire, *words) as process, client(wire) as asking:
        status = process_status(process.pid)
        assert int(status["CapEff"], 16) == Capability.NET_RAW
        assert int(status["CapBnd"], 16) == Capability.NET_RAW
        assert status["NoNewPrivs"] == "1"
        if HAS_NOBODY:
            assert status["Uid"] == " ".join([str(NOBODY.pw_uid)] * 4)
            assert status["Gid"] == " ".join([str(NOBODY.pw_gid)] * 4)
            assert status["Groups"] == str(NOBODY.pw_gid)
        # CAP_NET_RAW is enough to write, and to save the client state.
        assert asking.ask(ata(0x34, aflags=0x41, data=b"\x5a" * 512))[27] == 0x40
        assert asking.ask(config(3, b"mine"))
        state_file = place / "disk.img.aoe.json"
        assert json.loads(state_file.read_bytes())["config_string"] == "mine"
        # An interface with another MTU is reopened, which needs CAP_NET_RAW.
        set_mtu(wire.interface, 9000, wire.target.pid)
        assert asking.receive()[28] == 17
        assert asking.ask(ata(0x24))[-512:] == b"\x5a" * 512
    assert place.joinpath("disk.img").read_bytes()[:512] == b"\x5a" * 512


def test_user_that_cannot_save_state_is_refused_at_start(
    wire: Wire, place: Path
) -> None:
    place.chmod(0o555)
    if IS_ROOT and HAS_NOBODY:
        os.chown(place, 0, 0)
    words = ("serve", "e7.3", wire.interface, place / "disk.img", "--user", OTHER_USER)
    process = start(wire.target, *words)
    out, err = process.communicate(timeout=TIMEOUT)
    place.chmod(0o755)
    assert (process.returncode, out) == (4, "")
    assert f"{place}/disk.img.aoe.json: " in err
    assert "--state-dir DIR" in err


def test_image_in_a_directory_of_root_is_not_reported_as_replaced(
    wire: Wire, place: Path
) -> None:
    words = (place / "disk.img", "--user", OTHER_USER, "--no-state")
    with serving(wire, *words) as process:
        place.chmod(0o700)
        if OTHER_USER == "nobody":
            os.chown(place, 0, 0)
        time.sleep(2.5)
        assert process_status(process.pid)["State"].startswith("S")
        process.terminate()
        assert "names another file" not in finish(process)


# --- a command ------------------------------------------------------------------------


def captive(
    wire: Wire, image: Path, command: str, *words: object, **options: object
) -> subprocess.Popen[str]:
    first = ("serve", "e7.3", wire.interface, image)
    return start(wire.target, *first, "--run", command, *words, **options)


def test_command_inherits_streams_and_its_exit_code_is_returned(
    wire: Wire, place: Path
) -> None:
    command = 'echo "$aoe $iface"; cat; echo oops >&2; exit 7'
    process = captive(wire, place / "disk.img", command, stdin=subprocess.PIPE)
    out, err = process.communicate("from outside\n", timeout=TIMEOUT)
    assert out == "e7.3 aoe0\nfrom outside\n"
    assert err == "oops\n"
    assert process.returncode == 7


def test_command_runs_when_the_disk_is_served(wire: Wire, place: Path) -> None:
    inside = wire.initiator.command(AOE)
    command = f'{" ".join(inside)} stat "$aoe" -i "$iface" --json'
    process = captive(wire, place / "disk.img", command)
    out, err = process.communicate(timeout=TIMEOUT)
    assert err == ""
    assert '"e7.3"' in out
    assert process.returncode == 0


def test_command_keeps_the_privileges_that_the_target_drops(
    wire: Wire, place: Path
) -> None:
    command = "cat /proc/self/status; cat /proc/self/environ | tr '\\0' '\\n'"
    environ = {**os.environ, "NOTIFY_SOCKET": "@pyaoe-no-listener"}
    words = ("--user", OTHER_USER)
    process = captive(wire, place / "disk.img", command, *words, env=environ)
    out, _ = process.communicate(timeout=TIMEOUT)
    mine = process_status("self")
    for name in ("Uid", "Groups", "CapPrm", "CapBnd", "NoNewPrivs"):
        assert f"{name}:\t{mine[name]}".split() in [x.split() for x in out.split("\n")]
    assert "NOTIFY_SOCKET" not in out


def test_exit_code_of_a_command_killed_by_a_signal(wire: Wire, place: Path) -> None:
    process = captive(wire, place / "disk.img", "kill -9 $$")
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + 9


def test_command_is_not_run_if_the_target_cannot_start(wire: Wire, place: Path) -> None:
    process = captive(wire, place / "none.img", "echo never")
    out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out) == (3, "")
    assert err.count("\n") == 1


def test_signal_is_forwarded_to_the_command(wire: Wire, place: Path) -> None:
    command = "trap 'echo asked; exit 5' TERM; echo up; while :; do sleep 0.05; done"
    process = captive(wire, place / "disk.img", command)
    assert ready_line(process) == "up\n"
    process.terminate()
    out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out, err) == (5, "asked\n", "")


def test_second_signal_kills_the_command(wire: Wire, place: Path) -> None:
    command = "trap 'echo no' TERM; echo up; while :; do sleep 0.05; done"
    process = captive(wire, place / "disk.img", command)
    assert ready_line(process) == "up\n"
    process.terminate()
    assert ready_line(process) == "no\n"
    process.terminate()
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + 9


def test_ctrl_c_goes_to_the_command_and_the_disk_stays_served(
    wire: Wire, place: Path
) -> None:
    pidfile = place / "pid"
    command = f"""
        trap 'sleep 0.2; kill -0 $(cat "{pidfile}") && echo served; exit 6' INT
        echo up
        while :; do sleep 0.05; done
    """
    serve = [*AOE_TARGET, "serve", "e7.3", wire.interface]
    serve += [str(place / "disk.img"), "--pidfile", str(pidfile), "--run", command]
    keyboard, terminal = pty.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    process = wire.target.popen(["setsid", "--ctty", "--wait", *serve], **streams)
    os.close(terminal)
    with os.fdopen(keyboard, "r+b", buffering=0) as screen:
        assert b"up" in screen.read(100)
        screen.write(b"\x03")
        seen = b""
        while b"served" not in seen:
            seen += screen.read(100)
        process.wait(TIMEOUT)
    assert process.returncode == 6
    assert not pidfile.exists()


def test_sigusr1_logs_statistics_with_a_command(wire: Wire, place: Path) -> None:
    process = captive(wire, place / "disk.img", "echo up; read -r _", stdin=-1)
    assert ready_line(process) == "up\n"
    process.send_signal(signal.SIGUSR1)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("aoe-target: e7.3 on aoe0: 0 requests")
    process.communicate("\n", timeout=TIMEOUT)
    assert process.returncode == 0


def test_command_ends_with_the_target(wire: Wire, place: Path) -> None:
    pidfile = place / "pid"
    words = ("--pidfile", pidfile)
    process = captive(wire, place / "disk.img", "echo up; exec sleep 60", *words)
    assert ready_line(process) == "up\n"
    target = int(pidfile.read_text())
    assert target != process.pid
    os.kill(target, signal.SIGKILL)
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + 9


def test_ready_is_written_before_the_command_ends(wire: Wire, place: Path) -> None:
    read_fd, write_fd = os.pipe()
    words = ("--ready-fd", write_fd)
    command = "read -r _"
    pipes = {"stdin": subprocess.PIPE, "pass_fds": [write_fd]}
    process = captive(wire, place / "disk.img", command, *words, **pipes)
    os.close(write_fd)
    with os.fdopen(read_fd) as file:
        # Up to end of file: no other process has the pipe open.
        assert file.read() == "READY=1\n"
    process.communicate("\n", timeout=TIMEOUT)


# --- parents and process ids ----------------------------------------------------------


@pytest.mark.parametrize("words", [(), ("--user", OTHER_USER), ("--run", "sleep 60")])
def test_target_exits_with_its_parent(
    wire: Wire, place: Path, words: tuple[str, ...]
) -> None:
    pidfile = place / "pid"
    serve = [*AOE_TARGET, "serve", "e7.3", wire.interface]
    serve += [str(place / "disk.img"), "--exit-with-parent", "--pidfile", str(pidfile)]
    shell = ["sh", "-c", '"$@" & wait', "sh", *serve, *words]
    parent = wire.target.popen(shell, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert until(pidfile.exists)
    target = int(pidfile.read_text())
    assert not is_gone(target)
    parent.kill()
    parent.wait(TIMEOUT)
    assert until(lambda: is_gone(target))
    # It exited normally.
    assert not pidfile.exists()


def test_target_outlives_its_parent_by_default(wire: Wire, place: Path) -> None:
    pidfile = place / "pid"
    serve = [*AOE_TARGET, "serve", "e7.3", wire.interface]
    serve += [str(place / "disk.img"), "--pidfile", str(pidfile)]
    shell = ["sh", "-c", '"$@" & wait', "sh", *serve]
    parent = wire.target.popen(shell, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert until(pidfile.exists)
    target = int(pidfile.read_text())
    parent.kill()
    parent.wait(TIMEOUT)
    with client(wire) as asking:
        assert asking.ask(ata(0x24))
    os.kill(target, signal.SIGTERM)
    assert until(lambda: is_gone(target))


def test_pidfile_exists_while_serving(wire: Wire, place: Path) -> None:
    pidfile = place / "pid"
    with serving(wire, place / "disk.img", "--pidfile", pidfile) as process:
        assert pidfile.read_text() == f"{process.pid}\n"
        assert [path.name for path in place.glob(".*")] == []
    assert not pidfile.exists()


def test_pidfile_of_another_process_is_not_removed(wire: Wire, place: Path) -> None:
    pidfile = place / "pid"
    with serving(wire, place / "disk.img", "--pidfile", pidfile):
        pidfile.write_text("1\n")
    assert pidfile.read_text() == "1\n"


def test_unwritable_pidfile_is_an_error(wire: Wire, place: Path) -> None:
    words = ("serve", "e7.3", wire.interface, place / "disk.img", "--pidfile")
    process = start(wire.target, *words, place / "none" / "pid")
    out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out) == (3, "")
    assert err == (
        f"aoe-target: --pidfile {place}/none/pid: no such file or directory. "
        "Choose a directory that the target's user may write\n"
    )


# --- notifications and logs -----------------------------------------------------------


@pytest.fixture
def manager(place: Path) -> Iterator[socket.socket]:
    """Listen on a notification socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(place / "notify"))
        place.joinpath("notify").chmod(0o777)
        listener.settimeout(TIMEOUT)
        yield listener


def test_notifications_to_a_service_manager(
    wire: Wire, place: Path, manager: socket.socket
) -> None:
    variables = {
        "NOTIFY_SOCKET": str(place / "notify"),
        "WATCHDOG_USEC": "100000",
    }
    words = ("serve", "e7.3", wire.interface, place / "disk.img", "--user", OTHER_USER)
    process = start(wire.target, *words, env={**os.environ, **variables})
    line = ready_line(process)
    assert manager.recv(4096).decode() == f"READY=1\nSTATUS={line.rstrip()}"
    assert manager.recv(4096) == b"WATCHDOG=1"
    process.send_signal(signal.SIGHUP)
    notifications = [manager.recv(4096).decode() for _ in range(8)]
    assert [word[:27] for word in notifications if word != "WATCHDOG=1"] == [
        "RELOADING=1\nMONOTONIC_USEC=",
        "READY=1",
    ]
    finish(process, signal.SIGTERM)
    manager.setblocking(False)
    rest = []
    while True:
        try:
            rest.append(manager.recv(4096))
        except BlockingIOError:
            break
    assert rest[-1] == b"STOPPING=1"


def test_idle_target_sends_keep_alives_at_half_the_timeout(
    wire: Wire, place: Path, manager: socket.socket
) -> None:
    variables = {"NOTIFY_SOCKET": str(place / "notify"), "WATCHDOG_USEC": "400000"}
    words = ("serve", "e7.3", wire.interface, place / "disk.img")
    process = start(wire.target, *words, env={**os.environ, **variables})
    manager.recv(4096)
    manager.recv(4096)
    begin = time.monotonic()
    assert [manager.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    # Not all at once; there is no upper limit on a busy machine.
    assert time.monotonic() - begin > 0.4
    finish(process, signal.SIGTERM)


def test_json_log(wire: Wire, place: Path) -> None:
    words = ("serve", "e7.3", wire.interface, place / "disk.img", "-v")
    process = start(wire.target, *words, "--log-format", "json")
    ready_line(process)
    lines = [json.loads(line) for line in finish(process, 15).splitlines()]
    assert [line["level"] for line in lines] == ["info", "info"]
    assert lines[0]["message"].startswith("e7.3 on aoe0: 0 requests")
    refused = start(wire.target, *words[:3], place, "--log-format", "json")
    out, err = refused.communicate(timeout=TIMEOUT)
    assert (refused.returncode, out) == (2, "")
    assert json.loads(err)["why"] == "is a directory"


def test_metrics_of_a_running_target(wire: Wire, place: Path) -> None:
    words = ("--metrics", "19468", "--user", OTHER_USER)
    with serving(wire, place / "disk.img", *words), client(wire) as asking:
        asking.ask(ata(0x24, count=2))
        with (
            wire.target.enter(),
            urllib.request.urlopen("http://127.0.0.1:19468", timeout=10) as response,
        ):
            text = response.read().decode()
    where = '{export="e7.3",interface="aoe0"}'
    assert f"aoe_target_reads_total{where} 1.0" in text
    assert f"aoe_target_read_bytes_total{where} 1024.0" in text
    assert f"aoe_export_size_bytes{where} 1.048576e+06" in text
    assert 'aoe_interface_frames_received_total{interface="aoe0"} 1.0' in text
