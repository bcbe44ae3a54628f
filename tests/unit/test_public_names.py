from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import initiator
import target

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = [initiator, target]
packages = pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.__name__)


@packages
def test_every_public_name_can_be_imported_from_the_package(package: object) -> None:
    name = package.__name__  # type: ignore[attr-defined]
    module = import_module(name)
    for public in module.__all__:
        value = getattr(module, public)
        assert value is getattr(import_module(value.__module__), public)
        assert public in dir(module)


@packages
def test_every_public_name_is_in_the_package_docstring(package: object) -> None:
    module = import_module(package.__name__)  # type: ignore[attr-defined]
    assert [name for name in module.__all__ if name not in str(module.__doc__)] == []


@packages
def test_an_unknown_name_is_an_attribute_error(package: object) -> None:
    with pytest.raises(AttributeError, match="no attribute 'Floppy'"):
        package.Floppy  # type: ignore[attr-defined] # noqa: B018


def test_importing_a_package_imports_no_socket_and_no_library() -> None:
    probe = "import sys, initiator, target; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"socket", "click", "msgspec", "scapy", "pyroute2"}
    assert not [name for name in loaded if name.startswith(("initiator.", "target."))]


def test_mypy_sees_the_types_of_public_names(tmp_path: Path) -> None:
    user = tmp_path / "user.py"
    user.write_text(
        "from initiator import Disk, Options\n"
        "from target import MemoryDisk\n"
        "def size(disk: Disk, options: Options) -> int:\n"
        "    return disk.size + MemoryDisk(512).size\n"
        "reveal_type(size)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(user)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "initiator.disk.disk.Disk" in done.stdout


def test_the_reference_names_every_option_and_every_public_member() -> None:
    readme = (CHECKOUT / "initiator/README.md").read_text()
    reference = readme.partition("\n## API\n")[2]
    names = [field.name for field in dataclasses.fields(initiator.Options)]
    for cls in (initiator.Disk, initiator.AsyncDisk):
        names += [name for name in vars(cls) if not name.startswith("_")]
    assert [name for name in names if not re.search(rf"\b{name}\b", reference)] == []
