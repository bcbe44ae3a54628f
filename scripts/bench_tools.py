"""Find the programs to compare, choose cores, and describe the machine."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aoe.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

SEARCH: Final = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"
"""Searched after PATH, which may lack the directories of daemons."""
PACKAGES: Final = {"vblade": "vblade", "nbdkit": "nbdkit", "nbdcopy": "libnbd-bin"}
"""Debian packages of the peers."""
_VERSION_COMMANDS: Final = {
    # vblade has no option for its version.
    "vblade": ("dpkg-query", "--show", "--showformat", "${Version}", "vblade"),
    "nbdkit": ("nbdkit", "--version"),
    "nbdcopy": ("nbdcopy", "--version"),
}


@dataclass(frozen=True, slots=True)
class Tools:
    """The installed programs.

    Args:
        paths: paths by name: of ``PACKAGES``, ``load`` and ``echo``.
    """

    paths: dict[str, str]

    @classmethod
    def find(cls, load: Path | None, echo: Path | None) -> Tools:
        """Find the peers, and add the user's load generator and echo target.

        Raises:
            NotFoundError: one of the user's is not executable.
        """
        paths = {
            name: path
            for name in PACKAGES
            if (path := shutil.which(name, path=f"{os.environ['PATH']}:{SEARCH}"))
        }
        for name, program in (("load", load), ("echo", echo)):
            if program is not None:
                paths[name] = _runnable(program)
        return cls(paths)

    def has(self, names: Sequence[str]) -> bool:
        """Return True if all of these are installed."""
        return all(name in self.paths for name in names)

    def fix(self, names: Sequence[str]) -> str:
        """Return the command that installs the missing peers, "" if none is missing."""
        packages = [
            PACKAGES[name]
            for name in names
            if name in PACKAGES and name not in self.paths
        ]
        return f"apt install {' '.join(packages)}" if packages else ""


def _runnable(program: Path) -> str:
    path = program.resolve()
    if not path.is_file() or not os.access(path, os.X_OK):
        raise NotFoundError(str(program), "not an executable file")
    return str(path)


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores of target and load; None: not pinned."""

    target: int | None
    load: int | None

    @classmethod
    def choose(cls, allowed: Sequence[int]) -> Cores:
        """Choose the first and the last allowed core; pin nothing if there is only one.

        >>> Cores.choose([0, 1, 2, 3]), Cores.choose([5])
        (Cores(target=0, load=3), Cores(target=None, load=None))
        """
        if len(allowed) < 2:
            return cls(None, None)
        return cls(min(allowed), max(allowed))

    def __str__(self) -> str:
        if self.target is None:
            return "target and load share one core"
        return f"target on core {self.target}, load on core {self.load}"


def pinned(core: int | None, args: Sequence[str]) -> list[str]:
    """Return a command that runs another on one core and ends with its parent."""
    command = ["setpriv", "--pdeathsig", "TERM", "--"]
    if core is not None:
        command += ["taskset", "--cpu-list", str(core)]
    return [*command, *args]


def machine_facts(tools: Tools, directory: Path) -> dict[str, str | int | float]:
    """Return versions of programs, kernel and CPU, for the header of the table.

    Args:
        tools: the peers.
        directory: the directory of the images.
    """
    facts: dict[str, str | int | float] = {
        "pyaoe": version("pyaoe"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "kernel": f"{platform.system()} {platform.release()}",
        "cpu": cpu_model(Path("/proc/cpuinfo").read_text("ascii", "replace")),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "filesystem": filesystem(directory),
    }
    facts.update(
        (name, _peer_version(name)) for name in PACKAGES if name in tools.paths
    )
    for name in ("load", "echo"):
        if name in tools.paths:
            facts[name] = Path(tools.paths[name]).name
    return facts


def cpu_model(cpuinfo: str) -> str:
    """Return the model name in ``/proc/cpuinfo``, or else the architecture.

    >>> cpu_model("processor: 0\\nmodel name\\t: A CPU @ 2 GHz\\n")
    'A CPU @ 2 GHz'
    """
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def filesystem(directory: Path) -> str:
    """Return the type of the file system of a directory."""
    return _output(["stat", "--file-system", "--format=%T", str(directory)])


def _peer_version(name: str) -> str:
    words = _output(_VERSION_COMMANDS[name]).split()
    return words[-1] if words else "unknown"


def _output(command: Sequence[str]) -> str:
    # Returns the first line, "" if the program is not installed.
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.partition("\n")[0]
