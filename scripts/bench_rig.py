"""Run servers and loads in two network namespaces, pinned to a core each.

One server runs at a time: with several on one interface, each would receive all frames.
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
from aoe.common.process.programs import program_command
from aoe.errors import AoEError
from scripts.bench_load import ADDRESS, AOE_BENCH, external
from scripts.bench_stats import Sample
from scripts.bench_tools import pinned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import IO

    from aoe.net.netns import Wire
    from scripts.bench_images import Images
    from scripts.bench_load import LoadGenerator, Workload
    from scripts.bench_tools import Cores, Tools

TIMEOUT: Final = 120.0
"""Seconds that a program may take longer than its measurement."""
TARGET_IP, LOAD_IP = "10.99.0.1", "10.99.0.2"


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How long and how often to measure.

    Args:
        rounds: samples of each side.
        seconds: length of a measurement.
        copy_size: bytes to copy.
        tries: attempts at an undisturbed measurement.
    """

    rounds: int
    seconds: float
    copy_size: int
    tries: int

    @property
    def idle_seconds(self) -> float:
        """Return how long to observe an idle target."""
        return 3 * self.seconds


class Server(NamedTuple):
    """A running server."""

    name: str
    process: subprocess.Popen[str]

    def cpu_seconds(self) -> float:
        """Return the CPU time of all its threads.

        Raises:
            AoEError: it has exited.
        """
        try:
            # The process's CPU clock: the kernel's MAKE_PROCESS_CPUCLOCK(pid, SCHED).
            return time.clock_gettime(~self.process.pid << 3 | 2)
        except OSError as error:
            raise AoEError(self.name, "exited during the measurement") from error

    def resident_bytes(self) -> int:
        """Return its resident memory (VmRSS), including rings and libraries."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) << 10


class Rig:
    """Servers and loads on one veth pair.

    Args:
        wire: the veth pair with its two namespaces.
        tools: the programs.
        cores: the cores for server and load.
        settings: how long to measure.
        images: the disk images.
    """

    def __init__(
        self,
        wire: Wire,
        tools: Tools,
        cores: Cores,
        settings: RunSettings,
        images: Images,
    ) -> None:
        self.settings = settings
        self.images = images
        self._wire = wire
        self._tools = tools
        self._cores = cores

    # --- servers ----------------------------------------------------------------------

    def aoe_target(self, image: Path, *options: str) -> AbstractContextManager[Server]:
        """Serve an image with ``aoe-target``, by default with its default settings."""
        # --force skips the search for other targets: the veth pair is new.
        args = [f"e{ADDRESS}", self._wire.interface, str(image), "--force"]
        return self._target([*args, "--no-state", *options])

    def aoe_target_config(self, config: Path) -> AbstractContextManager[Server]:
        """Serve the exports of a configuration file with ``aoe-target``."""
        return self._target(["--config", str(config)])

    def _target(self, args: Sequence[str]) -> AbstractContextManager[Server]:
        command = [*program_command("aoe-target"), "serve", *args]
        return self._serving("aoe-target", command, _printed_a_line)

    def vblade(self, image: Path) -> AbstractContextManager[Server]:
        """Serve with vblade; its default of 16 buffers drops frames at depth 64."""
        shelf, slot = ADDRESS.split(".")
        command = [self._tools.paths["vblade"], "-b", "256", shelf, slot]
        command += [self._wire.interface, str(image)]
        return self._serving("vblade", command, _printed_a_line)

    def echo(self) -> AbstractContextManager[Server]:
        """Run the echo target; the load retries until it responds."""
        shelf, slot = ADDRESS.split(".")
        command = [self._tools.paths["echo"], shelf, slot, self._wire.interface, "none"]
        return self._serving("echo", command, lambda _process: True)

    def nbdkit(self, image: Path) -> AbstractContextManager[Server]:
        """Serve with nbdkit over TCP; it is ready when it has written its pidfile."""
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
            args = ["address", "replace", f"{address}/24", "dev", self._wire.interface]
            host.run(["ip", *args], check=True)
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
                # Not interrupted by Ctrl-C: terminated below.
                start_new_session=True,
            )
        try:
            if not is_ready(process):
                raise AoEError(name, _last_line(log.read_text()) or "did not start")
            yield Server(name, process)
            if process.poll() is not None:
                raise AoEError(name, _last_line(log.read_text()) or "exited early")
        finally:
            self._wire.target.terminate_processes()

    # --- loads ------------------------------------------------------------------------

    def load_generator(self) -> LoadGenerator:
        """Return the load generator: that of ``--load``, else ``aoe bench``."""
        return self.external_generator() if self._tools.has(["load"]) else AOE_BENCH

    def external_generator(self) -> LoadGenerator:
        """Return the load generator of ``--load``."""
        return external(Path(self._tools.paths["load"]))

    def load(
        self,
        server: Server,
        load_generator: LoadGenerator,
        workload: Workload,
        size: int,
    ) -> Sample:
        """Load the first ``size`` bytes of a disk; the value is in requests/s."""
        seconds = self.settings.seconds
        command = load_generator.command(self._wire.interface, workload, size, seconds)
        before, waited = server.cpu_seconds(), _pressure_seconds()
        done = self._run(command, seconds)
        used, waited = server.cpu_seconds() - before, _pressure_seconds() - waited
        result = load_generator.parse(done.output)
        details = {
            "p50_seconds": result.p50,
            "p99_seconds": result.p99,
            "retransmits": result.retransmits,
            "bytes_per_second": result.iops * workload.sectors * SECTOR,
            "server_cpu_seconds_per_request": used / (result.iops * seconds),
            "server_resident_bytes": server.resident_bytes(),
            "load_busy": done.cpu_seconds / done.seconds,
            "cpu_pressure": waited / done.seconds,
        }
        return Sample(result.iops, details)

    def copy(self, server: Server, args: Sequence[str], source: Path) -> Sample:
        """Run a command that copies a disk to the file that is its last argument.

        The value is in bytes per second, including start and exit of the command.

        Raises:
            AoEError: it failed, or the copy differs from ``source``.
        """
        copy = self.images.directory / "copy.img"
        before = server.cpu_seconds()
        done = self._run([*args, str(copy)], 0.0)
        used = server.cpu_seconds() - before
        size = source.stat().st_size
        same = subprocess.run(["cmp", "--silent", source, copy], check=False)
        copy.unlink()
        if same.returncode:
            raise AoEError(Path(args[0]).name, f"the copy differs from {server.name}'s")
        details = {
            "seconds": done.seconds,
            "server_cpu_seconds": used,
            "load_cpu_seconds": done.cpu_seconds,
        }
        return Sample(size / done.seconds, details)

    def aoe_copy(self, server: Server, source: Path) -> Sample:
        """Copy with ``aoe copy``."""
        args = [
            *program_command("aoe"),
            "copy",
            f"e{ADDRESS}",
            "-i",
            self._wire.interface,
        ]
        return self.copy(server, args, source)

    def nbdcopy(self, server: Server, source: Path) -> Sample:
        """Copy with ``nbdcopy``."""
        args = [self._tools.paths["nbdcopy"], f"nbd://{TARGET_IP}/"]
        return self.copy(server, args, source)

    def idle(self, server: Server) -> Sample:
        """Measure the CPU time of an idle server, in percent of a core."""
        time.sleep(self.settings.seconds)
        before, start = server.cpu_seconds(), time.monotonic()
        time.sleep(self.settings.idle_seconds)
        used, took = server.cpu_seconds() - before, time.monotonic() - start
        return Sample(100 * used / took)

    def _run(self, args: Sequence[str], seconds: float) -> _Completed:
        before, start = _children_seconds(), time.monotonic()
        try:
            done = self._wire.initiator.run(
                pinned(self._cores.load, args),
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                start_new_session=True,
                timeout=seconds + TIMEOUT,
            )
        except subprocess.TimeoutExpired as error:
            why = f"still running after {error.timeout:.0f} s"
            raise AoEError(Path(args[0]).name, why) from error
        took = time.monotonic() - start
        if done.returncode:
            why = _last_line(done.stderr) or f"exit code {done.returncode}"
            raise AoEError(Path(args[0]).name, why)
        return _Completed(done.stdout, took, _children_seconds() - before)


class _Completed(NamedTuple):
    output: str
    seconds: float
    cpu_seconds: float


def _children_seconds() -> float:
    # Of children that were waited for: the load, because the server still runs.
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _pressure_seconds() -> float:
    # Time in which some task has waited for a core (PSI); 0 without CONFIG_PSI.
    try:
        some = Path("/proc/pressure/cpu").read_text().partition("\n")[0]
    except OSError:
        return 0.0
    return int(some.rpartition("total=")[2]) / 1e6


def _printed_a_line(process: subprocess.Popen[str]) -> bool:
    return bool(cast("IO[str]", process.stdout).readline())


def _appears(path: Path, process: subprocess.Popen[str]) -> bool:
    end = time.monotonic() + TIMEOUT
    while not path.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    return path.exists()


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
