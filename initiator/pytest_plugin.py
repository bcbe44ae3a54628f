"""A pytest plugin: a test gets a disk that is really served, by naming it.

>>> def test_mine(aoe_disk):  # doctest: +SKIP
...     aoe_disk.run(["aoe", "stat", aoe_disk.address])

Each disk has a target of its own, a process, at one end of a veth pair; the test asks
at the other. All of it is gone with the test. The plugin is there wherever pyaoe is
installed, and costs nothing where no test names a fixture of it.

Fixtures:
    aoe_disk: a disk of 64 MiB, empty, behind an MTU of 1500.
    serve_aoe: makes such disks as the test wants them; see ``serve``.
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

# Whoever uses no disk waits for nothing but this: the rest is imported when it is used.
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aoe.net.netns import Wire
    from initiator.disk.disk import Disk

    ServeAoe: TypeAlias = Callable[..., "ServedDisk"]

_PATIENCE: Final = 30.0
"""Seconds that a busy machine gets to end a target."""
_FIX: Final = "Run as root, or root-free as: unshare -Urn pytest"


@dataclass(frozen=True, slots=True)
class ServedDisk:
    """A disk that is served for as long as the test runs.

    Args:
        address: shelf and slot, as ``"e0.0"``.
        path: the file that is served.
        wire: the veth pair, with a namespace at each end: ``wire.target`` and
            ``wire.initiator``.
        target: the process that serves it.
        log: what the process says on standard error.
    """

    address: str
    path: Path
    wire: Wire
    target: subprocess.Popen[Any]
    log: Path
    _opened: ExitStack = field(repr=False)

    @property
    def interface(self) -> str:
        """Where the disk is found, in the initiator's namespace."""
        return self.wire.interface

    @property
    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size

    def run(
        self, args: Sequence[str | os.PathLike[str]], **options: object
    ) -> subprocess.CompletedProcess[Any]:
        """Run a program where the disk is found, and wait for it.

        Only its network is another. It finds the commands of pyaoe, and ``aoe`` looks
        on the right interface without being told. Its output is captured as text and
        an exit code other than 0 is an error, unless the options say otherwise.

        Args:
            args: the program and its arguments.
            options: as of ``subprocess.run``.

        Raises:
            CalledProcessError: the exit code is not 0; with ``check=False`` never.
        """
        as_usual = {"check": True, "capture_output": True, "text": True}
        environment = {"env": self._environment()}
        words = [os.fspath(word) for word in args]
        return self.wire.initiator.run(words, **{**as_usual, **environment, **options})

    def open(self, **options: Any) -> Disk:  # noqa: ANN401 - as those of Disk.open
        """Open the disk in this process; it is closed with the test.

        >>> with aoe_disk.open() as disk:  # doctest: +SKIP
        ...     disk.write(0, b"hello")

        Args:
            options: as of ``initiator.disk.disk.Disk.open``.

        Raises:
            AoEError: as that.
        """
        from initiator.disk.disk import Disk

        # What is opened inside stays inside, wherever it is used.
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
    """Serve a disk on a wire of its own, for as long as a ``with`` statement.

    It is what ``serve_aoe`` calls, and there for fixtures of a wider scope.

    Args:
        directory: where image and log are kept.
        address: shelf and slot.
        size: of a new, empty image: bytes, or as ``"1G"``.
        path: what to serve instead of that.
        options: more of ``aoe-target serve``, as ``["--read-only"]``.
        mtu: bytes behind the Ethernet header, for both ends or for target and
            initiator.

    Raises:
        AccessError: network namespaces need root or a user namespace.
        AoEError: the target did not start, or ended by itself; with its last words.
    """
    from aoe.net.netns import Wire

    image = directory / f"{address}.img" if path is None else path
    create = ["--create", str(size)] if path is None else []
    log = directory / f"{address}.log"
    with ExitStack() as stack:
        wire = stack.enter_context(Wire(mtu))
        words = [address, wire.interface, str(image), *create, *options]
        target = _start(wire, words, log)
        stack.callback(_stop, target)
        opened = stack.enter_context(ExitStack())
        yield ServedDisk(address, image, wire, target, log, opened)
        _check(target, log)


def _start(wire: Wire, words: Sequence[str], log: Path) -> subprocess.Popen[Any]:
    # The wire is new: --force saves looking for other targets on it.
    serving = [sys.executable, "-m", "target", "serve", "--force", "--exit-with-parent"]
    with log.open("wb") as stderr:
        target = wire.target.popen(
            [*serving, *words], stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    if not (target.stdout and target.stdout.readline()):
        target.wait(_PATIENCE)
        _check(target, log)
    return target


def _check(target: subprocess.Popen[Any], log: Path) -> None:
    from aoe.errors import AoEError

    if target.poll() is not None:
        said = log.read_text(errors="replace").strip() or "nothing"
        why = f"ended with exit code {target.returncode}, and said: {said}"
        raise AoEError("aoe-target", why)


def _stop(target: subprocess.Popen[Any]) -> None:
    target.terminate()
    target.wait(_PATIENCE)


@pytest.fixture
def serve_aoe(tmp_path: Path) -> Iterator[ServeAoe]:
    """Serve AoE disks, each on a wire of its own, until the test ends.

    ``serve_aoe(size="1G", options=["--sync"], mtu=9000)``; see
    ``initiator.pytest_plugin.serve`` for what else there is. Skips where the system
    allows no network namespaces.
    """
    from aoe.errors import AccessError

    with ExitStack() as stack:

        def make(**options: Any) -> ServedDisk:  # noqa: ANN401 - as those of serve
            place = tmp_path / f"aoe{len(list(tmp_path.glob('aoe*')))}"
            place.mkdir()
            try:
                return stack.enter_context(serve(place, **options))
            except AccessError as error:
                pytest.skip(f"{error.what}: {error.why}. {_FIX}")

        yield make


@pytest.fixture
def aoe_disk(serve_aoe: ServeAoe) -> ServedDisk:
    """Return an AoE disk of 64 MiB that is served at the other end of a wire."""
    return serve_aoe()
