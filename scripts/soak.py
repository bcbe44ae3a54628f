"""Restart and exchange targets and forge announcements under verified load.

fio writes to a disk through ``aoe attach --nbd`` and verifies what it reads (crc32c).
Meanwhile its target is killed and restarted, another target with the same address
comes and goes, and announcements are forged: fio must not notice. Each round ends with
another disk in place of the target's: then fio must get an I/O error, the other disk
must not change, and the disk must be usable again when its target returns.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

import click

from aoe.address import MAC_BROADCAST
from aoe.common.commandline import run
from aoe.config import Config
from aoe.errors import AoEError
from aoe.header import FRAME_MINIMUM, Command, Flag, Header
from aoe.net.link import open_link
from aoe.net.netns import Switch, ensure_root_or_user_namespace
from tests.programs import AOE
from tests.serving import finish, ready_line, start

if TYPE_CHECKING:
    from aoe.net.netns import Namespace

SIZE: Final = 16 << 20
LOAD: Final = 15
"""Seconds of load per round."""
FORGED: Final = 300
"""Announcements per burst, each from another made-up MAC address."""


class FaultError(Exception):
    """What must not happen."""


class Soak:
    """The hosts, the disks and the load.

    Args:
        switch: the network.
        folder: for images and the socket.
        seed: for the times and order of events.
    """

    def __init__(self, switch: Switch, folder: Path, seed: int) -> None:
        self._here, self._there, self._elsewhere = (switch.add_host() for _ in range(3))
        self._folder = folder
        self._random = Random(seed)  # noqa: S311 - times and order, not a secret
        self._uri = f"nbd+unix:///e7.3?socket={folder}/nbd"
        self._target = self._serve("disk")
        words = ("attach", "e7.3", "-i", "aoe0", "--nbd", str(folder / "nbd"))
        log = (folder / "log").open("w")
        self._attached: subprocess.Popen[str] = self._here.popen(
            [*AOE, *words], stdout=subprocess.PIPE, stderr=log, text=True
        )
        ready_line(self._attached)

    def _serve(
        self, name: str, where: Namespace | None = None
    ) -> subprocess.Popen[str]:
        words = ("aoe0", self._folder / name, "--create", str(SIZE))
        options = ("--force", "--no-state", "--serial", name)
        process = start(where or self._there, "serve", "e7.3", *words, *options)
        ready_line(process)
        return process

    def _fio(self, *words: str) -> subprocess.Popen[str]:
        words = ("fio", "--name=soak", "--ioengine=nbd", f"--uri={self._uri}", *words)
        process: subprocess.Popen[str] = self._here.popen(
            [*words, "--bs=4k", "--verify=crc32c", "--iodepth=16", f"--size={SIZE}"],
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return process

    # --- events -----------------------------------------------------------------------

    def _restart(self) -> None:
        finish(self._target, signal.SIGKILL)
        time.sleep(self._random.uniform(0, 2))
        self._target = self._serve("disk")

    def _come_and_go(self) -> None:
        other = self._serve("other", self._elsewhere)
        time.sleep(self._random.uniform(0, 2))
        finish(other, signal.SIGTERM)

    def _forge(self) -> None:
        frame = bytearray(FRAME_MINIMUM)
        with self._elsewhere.enter(), open_link("aoe0") as link:
            for _ in range(FORGED):
                mac = b"\2" + self._random.randbytes(5)
                Header(
                    MAC_BROADCAST, mac, 7, 3, Command.CONFIG, 0, Flag.RESPONSE
                ).pack_into(frame)
                Config(buffer_count=64, sector_count=2).pack_into(frame)
                link.send(frame)

    # --- a round ----------------------------------------------------------------------

    def run_round(self) -> str:
        """Run a round; return a line about it.

        Raises:
            FaultError: wrong data, a hang, an error without cause, or none with cause.
        """
        counts = dict.fromkeys(("restart", "come_and_go", "forge"), 0)
        words = ("--rw=randrw", "--verify_backlog=64", "--verify_state_save=0")
        load = self._fio(*words, "--time_based", f"--runtime={LOAD}")
        while load.poll() is None:
            name = self._random.choice(list(counts))
            counts[name] += 1
            getattr(self, f"_{name}")()
            time.sleep(self._random.uniform(0, 1))
        output = load.communicate()[0]
        if load.returncode or "err= 0:" not in output:
            raise FaultError(f"fio failed under load:\n{output}")
        self._exchange()
        events = ", ".join(f"{count} {name}" for name, count in counts.items())
        return f"{events}, 1 exchange"

    def _exchange(self) -> None:
        finish(self._target, signal.SIGKILL)
        other = self._serve("other")
        # A write fails as soon as the other disk is refused.
        load = self._fio("--rw=write", "--do_verify=0", "--verify_state_save=0")
        try:
            output = load.communicate(timeout=120)[0]
        except subprocess.TimeoutExpired:
            load.kill()
            raise FaultError("writes hang after the disk was exchanged") from None
        finish(other, signal.SIGTERM)
        if load.returncode == 0:
            raise FaultError(f"writes to another disk succeed:\n{output}")
        if any((self._folder / "other").read_bytes()):
            raise FaultError("the other disk was written to")
        self._target = self._serve("disk")
        for _ in range(30):
            load = self._fio("--rw=write", "--do_verify=1", "--verify_state_save=0")
            output = load.communicate(timeout=300)[0]
            if load.returncode == 0:
                return
            time.sleep(1)
        raise FaultError(f"the disk is not usable again:\n{output}")

    def close(self) -> None:
        """Detach the disk, and check that all refusals were reported."""
        finish(self._target, signal.SIGTERM)
        self._attached.kill()
        self._attached.communicate()
        if "serves another disk" not in (self._folder / "log").read_text():
            raise FaultError("no refusal was reported")


@click.command()
@click.option("--seconds", default=300, show_default=True, help="Duration.")
@click.option("--seed", default=1, show_default=True, help="For the events.")
def main(seconds: int, seed: int) -> None:
    """Restart and exchange targets and forge announcements under verified load."""
    ensure_root_or_user_namespace()
    end = time.monotonic() + seconds
    rounds = 0
    with tempfile.TemporaryDirectory() as folder, Switch() as switch:
        soak = Soak(switch, Path(folder), seed)
        try:
            while time.monotonic() < end:
                rounds += 1
                print(f"round {rounds}: {soak.run_round()}", flush=True)
            soak.close()
        except FaultError as fault:
            print(Path(folder, "log").read_text(), file=sys.stderr)
            raise AoEError(f"round {rounds}", str(fault)) from None
    print(f"{rounds} rounds, 0 faults")


if __name__ == "__main__":
    run(main, "soak")
