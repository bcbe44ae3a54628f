"""Helpers that run ``aoe`` and other programs in a namespace of a test wire."""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.programs import AOE
from tests.requirements import program
from tests.serving import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aoe.net.netns import Namespace, Wire


@contextmanager
def vblade_serving(wire: Wire, image: Path, *options: str) -> Iterator[None]:
    """Serve 7.3 with Debian's vblade."""
    words = [*options, "7", "3", wire.interface, str(image)]
    command = [program("vblade"), *words]
    process = wire.target.popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        process.terminate()
        process.wait(TIMEOUT)


def call(
    where: Namespace, *words: object, **options: object
) -> subprocess.CompletedProcess[str]:
    command = [*AOE, *map(str, words)]
    defaults: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60}
    done: subprocess.CompletedProcess[str] = where.run(
        command, **{**defaults, **options}
    )
    return done


def aoe(wire: Wire, *words: object, **options: object) -> tuple[int, str]:
    """Return the exit code, and standard output followed by standard error."""
    timeout = () if "-t" in words else ("-t", "2")
    common = ("-i", wire.interface, *timeout)
    done = call(wire.initiator, *words, *common, **options)
    return done.returncode, done.stdout + done.stderr


def aoe_json(wire: Wire, *words: object) -> dict[str, Any]:
    code, text = aoe(wire, *words, "--json")
    assert code in (0, 1), text
    document: dict[str, Any] = json.loads(text)
    assert document["schema_version"] == 1
    return document
