"""A pytest plugin with fixtures that give a test its own AoE disk.

>>> def test_mine(aoe_disk):  # doctest: +SKIP
...     aoe_disk.run(["aoe", "stat", aoe_disk.address])

Each disk is served by an ``aoe-target`` process of its own at one end of a veth pair;
the test uses the other end. Everything is removed at the end of the test. pytest finds
the plugin wherever pyaoe is installed; it imports nothing until a fixture is used.

Fixtures:
    aoe_disk: an empty disk of 64 MiB, MTU 1500.
    serve_aoe: a function that serves disks with other options; see ``serve``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pytest

# Every pytest run loads this module: the rest is imported when a fixture is used.
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aoe.net.netns import Wire
    from initiator.disk.disk import Disk

    ServeAoe: TypeAlias = Callable[..., "ServedDisk"]

_STOP_TIMEOUT: Final = 30.0
"""Seconds for a target to exit, on a loaded machine."""
_FIX: Final = "Run as root, or without root as: unshare -Urn pytest"


@dataclass(frozen=True, slots=True)
class ServedDisk:
    """A disk that is served until the end of the test.

    Args:
        address: shelf and slot, such as ``"e0.0"``.
        path: the image file.
        wire: the veth pair, with a network namespace at each end: ``wire.target`` and
            ``wire.initiator``.
        target: the process that serves the disk.
        log: a file with the standard error of that process.
    """

    address: str
    path: Path
    wire: Wire
    target: subprocess.Popen[Any]
    log: Path
    _opened: ExitStack = field(repr=False)

    @property
    def interface(self) -> str:
        """Return the interface in the initiator's namespace that leads to the disk."""
        return self.wire.interface

    @property
    def size(self) -> int:
        """Return the size in bytes."""
        return self.path.stat().st_size

    def run(
        self, args: Sequence[str | os.PathLike[str]], **options: object
    ) -> subprocess.CompletedProcess[Any]:
        """Run a program in the initiator's network namespace, and wait for it.

        ``PATH`` includes the commands of pyaoe, and ``AOE_INTERFACE`` is set, so that
        ``aoe`` needs no ``-i``. By default the output is captured as text and a
        nonzero exit code raises an exception.

        Args:
            args: the program and its arguments.
            options: options of ``subprocess.run``.

        Raises:
            CalledProcessError: the exit code is not 0, and not ``check=False``.
        """
        defaults = {"check": True, "capture_output": True, "text": True}
        environment = {"env": self._environment()}
        command = [os.fspath(arg) for arg in args]
        return self.wire.initiator.run(
            command, **{**defaults, **environment, **options}
        )

    def open(self, **options: Any) -> Disk:  # noqa: ANN401 - as those of Disk.open
        """Open the disk in this process; it is closed at the end of the test.

        >>> with aoe_disk.open() as disk:  # doctest: +SKIP
        ...     disk.write(0, b"hello")

        Args:
            options: options of ``initiator.disk.disk.Disk.open``.

        Raises:
            AoEError: as ``Disk.open``.
        """
        from initiator.disk.disk import Disk

        # A socket stays in the network namespace that it was opened in.
        with self.wire.initiator.enter():
            disk = Disk.open(self.address, self.interface, **options)
        return self._opened.enter_context(disk)

    def _environment(self) -> dict[str, str]:
        programs = str(Path(sys.executable).parent)
        path = os.pathsep.join([programs, os.environ.get("PATH", os.defpath)])
        return {**os.environ, "PATH": path, "AOE_INTERFACE": self.interface}


@contextmanager
def serve(
    directory: Path,
    *,
    address: str = "e0.0",
    size: int | str = "64M",
    path: Path | None = None,
    options: Sequence[str] = (),
    mtu: int | tuple[int, int] = 1500,
) -> Iterator[ServedDisk]:
    """Serve a disk on a veth pair of its own, in a ``with`` statement.

    ``serve_aoe`` calls it; fixtures with a wider scope can call it as well.

    Args:
        directory: where to put image and log.
        address: shelf and slot.
        size: size of a new, empty image, in bytes or such as ``"1G"``.
        path: an existing image to serve instead.
        options: further options of ``aoe-target serve``, such as ``["--read-only"]``.
        mtu: MTU in bytes, of both ends or of target and initiator.

    Raises:
        AccessError: network namespaces need root or a user namespace.
        AoEError: the target did not start, or exited early; with its standard error.
    """
    from aoe.net.netns import Wire

    image = directory / f"{address}.img" if path is None else path
    create = ["--create", str(size)] if path is None else []
    log = directory / f"{address}.log"
    with ExitStack() as stack:
        wire = stack.enter_context(Wire(mtu))
        args = [address, wire.interface, str(image), *create, *options]
        target = _start(wire, args, log)
        stack.callback(_stop, target)
        opened = stack.enter_context(ExitStack())
        yield ServedDisk(address, image, wire, target, log, opened)
        _check(target, log)


def _start(wire: Wire, args: Sequence[str], log: Path) -> subprocess.Popen[Any]:
    from aoe.common.process.programs import program_command

    # --force skips the search for other targets: the veth pair is new.
    options = ["--force", "--exit-with-parent"]
    with log.open("wb") as stderr:
        target = wire.target.popen(
            [*program_command("aoe-target"), "serve", *options, *args],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    if not (target.stdout and target.stdout.readline()):
        target.wait(_STOP_TIMEOUT)
        _check(target, log)
    return target


def _check(target: subprocess.Popen[Any], log: Path) -> None:
    from aoe.errors import AoEError

    if target.poll() is not None:
        errors = log.read_text(errors="replace").strip() or "no error message"
        why = f"exited with code {target.returncode}: {errors}"
        raise AoEError("aoe-target", why)


def _stop(target: subprocess.Popen[Any]) -> None:
    target.terminate()
    target.wait(_STOP_TIMEOUT)


@pytest.fixture
def serve_aoe(tmp_path: Path) -> Iterator[ServeAoe]:
    """Serve AoE disks until the end of the test, each on a veth pair of its own.

    For example ``serve_aoe(size="1G", options=["--sync"], mtu=9000)``; see
    ``initiator.pytest_plugin.serve`` for all options. Skips the test if network
    namespaces are not permitted.
    """
    from aoe.errors import AccessError

    with ExitStack() as stack:

        def make(**options: Any) -> ServedDisk:  # noqa: ANN401 - as those of serve
            directory = tmp_path / f"aoe{len(list(tmp_path.glob('aoe*')))}"
            directory.mkdir()
            try:
                return stack.enter_context(serve(directory, **options))
            except AccessError as error:
                pytest.skip(f"{error.what}: {error.why}. {_FIX}")

        yield make


@pytest.fixture
def aoe_disk(serve_aoe: ServeAoe) -> ServedDisk:
    """Serve an empty AoE disk of 64 MiB at the other end of a veth pair."""
    return serve_aoe()
