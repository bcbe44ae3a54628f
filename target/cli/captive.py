"""``--exit-with-parent`` and ``--pidfile`` of ``aoe-target serve``."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from aoe.common.process.capabilities import set_parent_death_signal
from aoe.errors import UsageError, from_os_error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def exit_with_parent(parent: int) -> None:
    """Request SIGTERM for the end of the parent, or exit if it has ended already.

    Call it after changing the user, which clears the request. The kernel sends the
    signal when the parent's thread that forked this process ends. A parent that ended
    before its process ID was read is not detected.

    Args:
        parent: its process ID, read as early as possible.
    """
    set_parent_death_signal(signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(0)


def _is_process_id(path: Path) -> bool:
    with path.open("rb") as file:
        return not file.read(32).strip(b"0123456789 \n")


@contextmanager
def pidfile(path: Path) -> Iterator[None]:
    """Write the process ID to a file, atomically, and remove the file at exit.

    Raises:
        AoEError: the file cannot be written.
    """
    content = f"{os.getpid()}\n"
    # A disk image in the place of the file would be lost.
    if path.exists() and not (path.is_file() and _is_process_id(path)):
        raise UsageError(
            f"--pidfile {path}", "exists and has no process ID", "Choose another path"
        )
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(content, "ascii")
        temporary.replace(path)
    except OSError as error:
        fix = "Choose a directory that the target's user may write"
        raise from_os_error(f"--pidfile {path}", error, fix) from error
    try:
        yield
    finally:
        # Not if another process has replaced the file.
        with suppress(OSError):
            if path.read_text("ascii") == content:
                path.unlink()
