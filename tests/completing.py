"""Helpers that run shell completion in a real bash."""

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

from tests.serving import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAMS = Path(sys.executable).parent


def environment() -> dict[str, str]:
    """Return an environment with the commands on PATH and without user settings."""
    path = f"{PROGRAMS}:{os.environ['PATH']}"
    return {"PATH": path, "LC_ALL": "C.UTF-8", "TERM": "dumb"}


def completed(*words: str, before: Sequence[str] = ()) -> list[str]:
    """Return the candidates that bash gets from the completion function.

    Args:
        words: the command line; the last word is incomplete.
        before: a command to run bash with, such as that of a namespace.

    Returns:
        The candidates, without the files that bash adds itself.
    """
    program = words[0]
    function = f"_{program.replace('-', '_')}_completion"
    # compopt fails outside of a completion by readline.
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
        timeout=TIMEOUT,
    )
    assert done.stderr == ""
    return done.stdout.split()


def typed(program: str, keys: str, directory: Path, until: str) -> str:
    """Type keys into bash at a terminal, and return what it shows.

    Args:
        program: the command whose completion is loaded.
        keys: the keys to type.
        directory: the working directory.
        until: return when this text is shown.
    """
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
        end = time.monotonic() + TIMEOUT
        while until not in shown and (left := end - time.monotonic()) > 0:
            if select.select([terminal], [], [], left)[0]:
                shown += os.read(terminal, 4096).decode()
    finally:
        shell.kill()
        shell.wait()
        os.close(terminal)
    return shown
