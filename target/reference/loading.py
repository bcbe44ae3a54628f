"""Find an engine by its name, or in a Python file of the user."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aoe.errors import NotFoundError, UsageError
from target.reference.engine import ScapyEngine
from target.reference.machine import AoETarget

if TYPE_CHECKING:
    from types import ModuleType

    from target.protocol.engine import MakeEngine


def load_engine(name: str) -> MakeEngine:
    """Return the engine ``scapy``, or that of a subclass of ``AoETarget`` in a file.

    Args:
        name: ``scapy``, ``FILE.py`` or ``FILE.py:CLASS``. The file is executed.

    Raises:
        NotFoundError: no such file, or no such class in it.
        UsageError: the file cannot be executed, or has several such classes.
    """
    if name == "scapy":
        return ScapyEngine
    file, _, wanted = name.partition(":")
    module = _execute(file)
    classes = {
        each.__name__: each
        for _, each in inspect.getmembers(module, inspect.isclass)
        if issubclass(each, AoETarget) and each.__module__ == module.__name__
    }
    if wanted in classes:
        return partial(ScapyEngine, machine=classes[wanted])
    if wanted or not classes:
        what = f"no subclass {wanted or 'of AoETarget'}"
        have = f" (have: {', '.join(classes)})" if classes else ""
        raise NotFoundError(file, what + have, "Derive it from target.AoETarget")
    if len(classes) > 1:
        names = ", ".join(classes)
        raise UsageError(
            file, f"several engines: {names}", f"Choose one, as {file}:{min(classes)}"
        )
    return partial(ScapyEngine, machine=classes.popitem()[1])


def _execute(file: str) -> ModuleType:
    path = Path(file)
    if not path.is_file():
        raise NotFoundError(file, "no such file", "Name a Python file, or use: scapy")
    # By its path, because another engine's file can have the same name.
    name = str(path.resolve())
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(file, "not a Python file", "Name one that ends in .py")
    # Modules such as dataclasses and inspect look a class up by its module.
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UsageError(
            file, f"{type(error).__name__}: {error}", f"Test it with: python3 {file}"
        ) from error
    return module
