"""Two hosts on a wire, and programs that run there, one core each, and are watched.

One server runs at a time: several on one interface would all look at every frame.
"""

from __future__ import annotations

import resource
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from aoe.ata import SECTOR
from aoe.errors import AoEError
from scripts.bench_load import ADDRESS, OWN, external, own
from scripts.bench_stats import Sample
from scripts.bench_tools import pinned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import IO

    from aoe.net.netns import Wire
    from scripts.bench_images import Images
    from scripts.bench_load import Generator, Shape
    from scripts.bench_tools import Cores, Tools

PATIENCE: Final = 120.0
"""Seconds that a program gets beyond what it was told to take."""
TARGET_IP, LOAD_IP = "10.99.0.1", "10.99.0.2"


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is measured.

    Args:
        rounds: measurements of each side.
        seconds: of one measurement.
        copy_size: bytes that a copy moves.
        tries: for a measurement that nobody disturbs.
    """

    rounds: int
    seconds: float
    copy_size: int
    tries: int

    @property
    def idle_seconds(self) -> float:
        """How long an idle target is watched."""
        return 3 * self.seconds


class Server(NamedTuple):
    """A server that runs, by its name."""

    name: str
    process: subprocess.Popen[str]

    def cpu_seconds(self) -> float:
        """Return the processor time that it has used, all threads, to the nanosecond.

        Raises:
            AoEError: it has ended.
        """
        try:
            # The process's clock, by the kernel's MAKE_PROCESS_CPUCLOCK(pid, SCHED).
            return time.clock_gettime(~self.process.pid << 3 | 2)
        except OSError as error:
            raise AoEError(self.name, "ended while it was measured") from error

    def resident_bytes(self) -> int:
        """Return the memory that it holds: VmRSS, with its rings and libraries."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) << 10


class Rig:
    """One wire, with what is measured on it.

    Args:
        wire: the two hosts.
        tools: the programs.
        cores: where they run.
        pace: how long they run.
        images: what is served.
    """

    def __init__(
        self, wire: Wire, tools: Tools, cores: Cores, pace: Pace, images: Images
    ) -> None:
        self.pace = pace
        self.images = images
        self._wire = wire
        self._tools = tools
        self._cores = cores

    # --- servers ----------------------------------------------------------------------

    def ours(self, image: Path) -> AbstractContextManager[Server]:
        """Serve an image with our target and its default settings."""
        # Nobody else is on the wire, so that it need not search for another there.
        words = [f"e{ADDRESS}", self._wire.interface, str(image), "--force"]
        return self._target([*words, "--no-state"])

    def ours_by(self, config: Path) -> AbstractContextManager[Server]:
        """Serve what a configuration says with our target."""
        return self._target(["--config", str(config)])

    def _target(self, words: Sequence[str]) -> AbstractContextManager[Server]:
        command = [own("aoe-target"), "serve", *words]
        return self._serving("aoe-target", command, _has_said_so)

    def vblade(self, image: Path) -> AbstractContextManager[Server]:
        """Serve with vblade, whose default of 16 buffers drops what is deeper."""
        shelf, slot = ADDRESS.split(".")
        command = [self._tools.paths["vblade"], "-b", "256", shelf, slot]
        command += [self._wire.interface, str(image)]
        return self._serving("vblade", command, _has_said_so)

    def echo(self) -> AbstractContextManager[Server]:
        """Answer without a disk; it says nothing, and is asked until it answers."""
        shelf, slot = ADDRESS.split(".")
        command = [self._tools.paths["echo"], shelf, slot, self._wire.interface, "none"]
        return self._serving("echo", command, lambda _process: True)

    def nbdkit(self, image: Path) -> AbstractContextManager[Server]:
        """Serve with nbdkit over TCP; its file of the process id says that it is up."""
        pidfile = self.images.directory / "nbdkit.pid"
        pidfile.unlink(missing_ok=True)
        command = [self._tools.paths["nbdkit"], "--foreground", "--pidfile"]
        command += [
            str(pidfile),
            "--ipaddr",
            TARGET_IP,
            "--readonly",
            "file",
            str(image),
        ]
        for host, address in (
            (self._wire.target, TARGET_IP),
            (self._wire.initiator, LOAD_IP),
        ):
            words = ["address", "replace", f"{address}/24", "dev", self._wire.interface]
            host.run(["ip", *words], check=True)
        return self._serving(
            "nbdkit", command, lambda process: _appears(pidfile, process)
        )

    @contextmanager
    def _serving(
        self,
        name: str,
        command: Sequence[str],
        is_ready: Callable[[subprocess.Popen[str]], bool],
    ) -> Iterator[Server]:
        log = self.images.directory / "server.log"
        with log.open("w") as errors:
            process = self._wire.target.popen(
                pinned(self._cores.target, command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # Ctrl-C is for us, who end what we run.
                start_new_session=True,
            )
        try:
            if not is_ready(process):
                raise AoEError(name, _last_line(log.read_text()) or "did not start")
            yield Server(name, process)
            if process.poll() is not None:
                raise AoEError(name, _last_line(log.read_text()) or "ended by itself")
        finally:
            self._wire.target.terminate_processes()

    # --- what is done with them -------------------------------------------------------

    def generator(self) -> Generator:
        """Return who asks: the user's load generator, or our own."""
        return self.other_generator() if self._tools.has(["load"]) else OWN

    def other_generator(self) -> Generator:
        """Return the user's load generator."""
        return external(Path(self._tools.paths["load"]))

    def load(
        self, server: Server, generator: Generator, shape: Shape, size: int
    ) -> Sample:
        """Load the first bytes of what is served; the value is in requests a second."""
        seconds = self.pace.seconds
        words = generator.words(self._wire.interface, shape, size, seconds)
        before, waited = server.cpu_seconds(), _pressure_seconds()
        done = self._run(words, seconds)
        used, waited = server.cpu_seconds() - before, _pressure_seconds() - waited
        said = generator.parse(done.output)
        details = {
            "p50_seconds": said.p50,
            "p99_seconds": said.p99,
            "resent": said.resent,
            "bytes_per_second": said.iops * shape.sectors * SECTOR,
            "server_cpu_seconds_per_request": used / (said.iops * seconds),
            "server_resident_bytes": server.resident_bytes(),
            "load_busy": done.cpu_seconds / done.seconds,
            "cpu_pressure": waited / done.seconds,
        }
        return Sample(said.iops, details)

    def copy(self, server: Server, words: Sequence[str], source: Path) -> Sample:
        """Run a command that copies all of a disk to the file that is its last word.

        The value is in bytes a second, the command's start and end included.

        Raises:
            AoEError: it failed, or the copy differs from what was served.
        """
        copy = self.images.directory / "copy.img"
        before = server.cpu_seconds()
        done = self._run([*words, str(copy)], 0.0)
        used = server.cpu_seconds() - before
        size = source.stat().st_size
        same = subprocess.run(["cmp", "--silent", source, copy], check=False)
        copy.unlink()
        if same.returncode:
            raise AoEError(
                Path(words[0]).name, f"the copy differs from {server.name}'s"
            )
        details = {
            "seconds": done.seconds,
            "server_cpu_seconds": used,
            "load_cpu_seconds": done.cpu_seconds,
        }
        return Sample(size / done.seconds, details)

    def aoe_copy(self, server: Server, source: Path) -> Sample:
        """Copy with ``aoe copy``."""
        words = [own("aoe"), "copy", f"e{ADDRESS}", "-i", self._wire.interface]
        return self.copy(server, words, source)

    def nbdcopy(self, server: Server, source: Path) -> Sample:
        """Copy with ``nbdcopy``."""
        words = [self._tools.paths["nbdcopy"], f"nbd://{TARGET_IP}/"]
        return self.copy(server, words, source)

    def idle(self, server: Server) -> Sample:
        """Watch a server that has nothing to do; the value is in percent of a core."""
        time.sleep(self.pace.seconds)
        before, start = server.cpu_seconds(), time.monotonic()
        time.sleep(self.pace.idle_seconds)
        used, took = server.cpu_seconds() - before, time.monotonic() - start
        return Sample(100 * used / took)

    def _run(self, words: Sequence[str], seconds: float) -> _Done:
        # On the load's core, from the first instruction to the last.
        before, start = _children_seconds(), time.monotonic()
        try:
            done = self._wire.initiator.run(
                pinned(self._cores.load, words),
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                start_new_session=True,
                timeout=seconds + PATIENCE,
            )
        except subprocess.TimeoutExpired as error:
            why = f"no end after {error.timeout:.0f} s"
            raise AoEError(Path(words[0]).name, why) from error
        took = time.monotonic() - start
        if done.returncode:
            why = _last_line(done.stderr) or f"exit code {done.returncode}"
            raise AoEError(Path(words[0]).name, why)
        return _Done(done.stdout, took, _children_seconds() - before)


class _Done(NamedTuple):
    output: str
    seconds: float
    cpu_seconds: float


def _children_seconds() -> float:
    # Of those that were waited for: meanwhile that is what we run, not the server.
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _pressure_seconds() -> float:
    # How long anybody on this machine has waited for a core; 0 where it is not known.
    try:
        some = Path("/proc/pressure/cpu").read_text().partition("\n")[0]
    except OSError:
        return 0.0
    return int(some.rpartition("total=")[2]) / 1e6


def _has_said_so(process: subprocess.Popen[str]) -> bool:
    return bool(cast("IO[str]", process.stdout).readline())


def _appears(path: Path, process: subprocess.Popen[str]) -> bool:
    end = time.monotonic() + PATIENCE
    while not path.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    return path.exists()


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
