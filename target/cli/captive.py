"""A target that ends with who started it, and says which process it is."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from aoe.common.capabilities import set_parent_death_signal
from aoe.errors import from_os_error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def end_with_parent(parent: int) -> None:
    """Have the kernel send us SIGTERM when the parent ends, or end if it has already.

    A change of user would undo it: call it afterwards. It is the parent's thread that
    started us whose end counts, and a parent that ended before it was looked at
    remains unnoticed.

    Args:
        parent: its process id, looked at as early as possible.
    """
    set_parent_death_signal(signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(0)


@contextmanager
def pidfile(path: Path) -> Iterator[None]:
    """Keep our process id in a file; whoever sees the file sees the number in it.

    Raises:
        AoEError: it cannot be written.
    """
    mine = f"{os.getpid()}\n"
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_text(mine, "ascii")
        new.replace(path)
    except OSError as error:
        fix = "Choose a directory that the target's user may write"
        raise from_os_error(f"--pidfile {path}", error, fix) from error
    try:
        yield
    finally:
        # Somebody else's, who has taken its place, is left alone.
        with suppress(OSError):
            if path.read_text("ascii") == mine:
                path.unlink()
