"""A real shell in which somebody presses Tab."""

from __future__ import annotations

import os
import pty
import select
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.serving import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAMS = Path(sys.executable).parent


def environment() -> dict[str, str]:
    """Return one in which the commands are found, and nobody's settings are."""
    path = f"{PROGRAMS}:{os.environ['PATH']}"
    return {"PATH": path, "LC_ALL": "C.UTF-8", "TERM": "dumb"}


def completed(*words: str, before: Sequence[str] = ()) -> list[str]:
    """Press Tab in bash behind these words, the last of which is being typed.

    Returns:
        What bash would offer. What it looks for itself, as files, is not among it.
    """
    program = words[0]
    function = f"_{program.replace('-', '_')}_completion"
    # No line is being edited here for compopt to change.
    script = f"""
        compopt() {{ :; }}
        eval "$({program} completion bash)"
        COMP_WORDS=({shlex.join(words)}) COMP_CWORD={len(words) - 1}
        {function} {program}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        [*before, "bash", "-uc", script],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert done.stderr == ""
    return done.stdout.split()


def typed(program: str, keys: str, directory: Path, until: str) -> str:
    """Type into bash at a terminal, and return what it shows; ``until`` ends it."""
    terminal, end_of_shell = pty.openpty()
    shell = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        cwd=directory,
        env=environment(),
        stdin=end_of_shell,
        stdout=end_of_shell,
        stderr=end_of_shell,
        start_new_session=True,
    )
    os.close(end_of_shell)
    shown = ""
    try:
        os.write(terminal, f'eval "$({program} completion bash)"\n{keys}'.encode())
        end = time.monotonic() + PATIENCE
        while until not in shown and (left := end - time.monotonic()) > 0:
            if select.select([terminal], [], [], left)[0]:
                shown += os.read(terminal, 4096).decode()
    finally:
        shell.kill()
        shell.wait()
        os.close(terminal)
    return shown
