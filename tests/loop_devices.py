"""Loop devices, which need root outside a user namespace."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.requirements import program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def loop_device(image: Path) -> Iterator[str]:
    """Attach an image to a loop device; yield "" if that is not permitted."""
    losetup = program("losetup")
    command = [losetup, "--find", "--show", str(image)]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    device = made.stdout.strip()
    try:
        yield device
    finally:
        if device:
            subprocess.run([losetup, "--detach", device], check=True)
