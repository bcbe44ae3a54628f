"""A guest under QEMU, and an ``aoe-target`` at the other end of its tap interface.

The guest boots once. Its state, with the disk discovered, is a snapshot from which each
case begins. All processes and the tap end with the network namespace.
"""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import time
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Final, Self, cast

from aoe.common.process.programs import program_command
from aoe.errors import AoEError
from aoe.net.netns import Namespace
from scripts.kernel_lab_journal import length_of, order_of, parse

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from initiator.lab.cases import Case
    from scripts.kernel_lab_guest import Guest
    from scripts.kernel_lab_journal import Journal

BOOT: Final = 300.0
"""Seconds for the guest to boot."""
CASE: Final = 120.0
"""Seconds for a case."""
_DISK: Final = 1 << 20
_OFFSET: Final = 8 * 512
_TAP: Final = "tap0"
_CMDLINE: Final = (
    "console=ttyS0 rdinit=/init quiet panic=0 oops=panic mitigations=off"
    " no_timer_check page_poison=1"
)
"""A slow guest fails the check of the timer. Poisoning fills free pages with 0xaa, as
the lab does."""
_PROMPT: Final = b"(qemu) "
_STOPPED: Final = ("end Kernel panic", "lab: done")
_KILLED_WITH_PARENT: Final = ("setpriv", "--pdeathsig", "KILL")


class Rig:
    """A booted guest.

    Args:
        guest: what to boot.
        folder: for the disk image, the snapshot and the monitor's socket.

    Raises:
        AoEError: a program did not start, or the guest did not boot.
    """

    def __init__(self, guest: Guest, folder: Path) -> None:
        self._image = folder / "disk.img"
        self._image.write_bytes(bytes(_DISK))
        with ExitStack() as stack:
            self._network = stack.enter_context(Namespace())
            self._create_tap()
            self._serve()
            self._console = _Console(self._start(guest, folder))
            self._wait_ready()
            self._monitor = stack.enter_context(_Monitor(folder / "monitor"))
            self._monitor.ask("savevm booted")
            self._stack = stack.pop_all()

    def _create_tap(self) -> None:
        for command in (
            f"tuntap add {_TAP} mode tap",
            f"link set {_TAP} mtu 9000 up",
        ):
            result = self._network.run(
                ["ip", *command.split()], capture_output=True, text=True
            )
            if result.returncode:
                raise AoEError("ip", f"{command}: {result.stderr.strip()}")

    def _serve(self) -> None:
        command = [*program_command("aoe-target"), "serve", "e0.0", _TAP]
        target: subprocess.Popen[str] = self._network.popen(
            [*_KILLED_WITH_PARENT, *command, str(self._image), "--force", "--no-state"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if not cast("IO[str]", target.stdout).readline():
            why = cast("IO[str]", target.stderr).read().strip()
            raise AoEError("aoe-target", why or f"exit code {target.wait()}")

    def _start(self, guest: Guest, folder: Path) -> subprocess.Popen[bytes]:
        snapshot = folder / "snapshot.qcow2"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", str(snapshot), "1M"], check=True
        )
        words = [
            *("qemu-system-x86_64", "-accel", "tcg", "-smp", "1", "-m", "256"),
            *("-display", "none", "-nodefaults", "-no-reboot", "-serial", "stdio"),
            *("-monitor", f"unix:{folder}/monitor,server=on,wait=off"),
            *("-drive", f"if=none,format=qcow2,file={snapshot}"),
            *("-netdev", f"tap,id=net,ifname={_TAP},script=no,downscript=no"),
            *("-device", "virtio-net-pci,netdev=net,host_mtu=9000,romfile="),
            *("-kernel", str(guest.kernel), "-initrd", str(guest.initramfs)),
            *("-append", _CMDLINE),
        ]
        qemu: subprocess.Popen[bytes] = self._network.popen(
            [*_KILLED_WITH_PARENT, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Keep SIGINT of the terminal from QEMU: close() ends it.
            start_new_session=True,
        )
        return qemu

    def _wait_ready(self) -> None:
        log = self._console.read_until(("lab: ready", "end Kernel panic"), BOOT)
        broken = [line for line in log if "lab: broken" in line]
        if broken or not log or "lab: ready" not in log[-1]:
            why = "no output" if not log else (broken[:1] or log)[-1].strip()
            raise AoEError("guest", f"did not boot: {why}")

    def run(self, case: Case) -> tuple[Journal, bytes, list[str]]:
        """Run a case from the snapshot.

        Returns:
            The journal, the sectors of the bio afterwards, and the guest's log.
        """
        with self._image.open("r+b") as file:
            file.write(bytes(_DISK))
        self._monitor.ask("loadvm booted")
        orders = [f"echo {order_of(case)} >/sys/module/kernel_lab/parameters/run"]
        if " fails" in orders[0]:
            orders.insert(0, "echo 1 >/sys/module/aoe/parameters/aoe_deadsecs")
        self._console.write("; ".join(orders))
        log = self._console.read_until(_STOPPED, CASE)
        journal = parse(log)
        with self._image.open("rb") as file:
            file.seek(_OFFSET)
            return journal, file.read(length_of(case)), log

    def close(self) -> None:
        """Stop QEMU and the target, and remove the tap."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Console:
    """The guest's serial console."""

    def __init__(self, qemu: subprocess.Popen[bytes]) -> None:
        self._input = cast("IO[bytes]", qemu.stdin)
        self._output = cast("IO[bytes]", qemu.stdout)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._output, selectors.EVENT_READ)
        self._rest = b""

    def write(self, line: str) -> None:
        self._input.write(line.encode() + b"\n")
        self._input.flush()

    def read_until(self, ends: Sequence[str], timeout: float) -> list[str]:
        """Return the lines up to one that contains an end, or within the timeout.

        Raises:
            AoEError: QEMU has ended.
        """
        lines: list[str] = []
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            if not self._selector.select(left):
                break
            data = os.read(self._output.fileno(), 1 << 16)
            if not data:
                why = lines[-1] if lines else self._rest.decode(errors="replace")
                raise AoEError("qemu-system-x86_64", why.strip() or "ended")
            *complete, self._rest = (self._rest + data).split(b"\n")
            for raw in complete:
                lines.append(raw.decode(errors="replace").rstrip("\r"))
                if any(end in lines[-1] for end in ends):
                    return lines
        return lines


class _Monitor:
    """QEMU's monitor."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(path))
        self._read()

    def _read(self) -> str:
        text = b""
        while not text.endswith(_PROMPT):
            data = self._socket.recv(1 << 16)
            if not data:
                raise AoEError("qemu-system-x86_64", "ended")
            text += data
        return text.decode(errors="replace")

    def ask(self, command: str) -> None:
        """Give a command and wait until it is done.

        Raises:
            AoEError: QEMU reported an error.
        """
        self._socket.sendall(command.encode() + b"\n")
        answer = self._read()
        if "Error" in answer:
            raise AoEError(
                "qemu-system-x86_64", answer[answer.index("Error") :].strip()
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
