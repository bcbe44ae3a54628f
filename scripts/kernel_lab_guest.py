"""The guest: Debian's kernel, our module built for it, and an initramfs."""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aoe.errors import AoEError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

SOURCES: Final = Path(__file__).parent / "kernel_lab.d"
HEADERS: Final = "linux-headers-amd64"
_PACKAGES: Final = {
    "qemu-system-x86": "/usr/bin/qemu-system-x86_64",
    "qemu-utils": "/usr/bin/qemu-img",
    "busybox-static": "/bin/busybox",
    "cpio": "/usr/bin/cpio",
    "make": "/usr/bin/make",
    "iproute2": "/sbin/ip",
    HEADERS: "",
}
"""Debian packages, and a file by which they are recognized."""
_DRIVERS: Final = ("virtio_pci", "virtio_net")
"""Modules that the guest loads before ours; those that they need come first."""
AOE: Final = "aoe"
"""Loaded by ``kernel_lab.d/init``, with the name of the interface."""
_DEPENDS: Final = re.compile(rb"\0depends=([\w,-]*)\0")


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest that is ready to boot.

    Args:
        release: version of its kernel, such as 6.1.0-57-amd64.
        kernel: the kernel image.
        initramfs: the compressed cpio archive.
    """

    release: str
    kernel: Path
    initramfs: Path


def prepare_guest(cache: Path, release: str) -> Guest:
    """Unpack a kernel, build the module and pack the initramfs.

    Args:
        cache: directory for all files.
        release: version of the kernel.

    Raises:
        AoEError: a program failed.
    """
    folder = cache / release
    folder.mkdir(parents=True, exist_ok=True)
    tree = folder / "kernel"
    if not tree.exists():
        _unpack(f"linux-image-{release}", folder, tree)
    module = _build(release, folder / "module")
    return Guest(release, tree / "boot" / f"vmlinuz-{release}", _pack(folder, module))


def install_packages(release: str | None) -> str:
    """Install the packages that are missing, and return the kernel's version.

    Args:
        release: version of the kernel, None for that of linux-headers-amd64.

    Raises:
        AoEError: apt failed.
    """
    headers = f"linux-headers-{release}" if release else HEADERS
    wanted = [
        headers if name == HEADERS else name
        for name, file in _PACKAGES.items()
        if not (file and Path(file).exists())
    ]
    missing = [name for name in wanted if not _is_installed(name)]
    if missing:
        _say(f"installing with apt: {' '.join(missing)}")
        _run(["apt-get", "install", "-qy", "--no-install-recommends", *missing])
    return release or _newest_release()


def _is_installed(package: str) -> bool:
    query = ["dpkg-query", "-W", "-f", "${Status}", package]
    result = subprocess.run(query, check=False, capture_output=True, text=True)
    return result.stdout == "install ok installed"


def _newest_release() -> str:
    depends = _run(["dpkg-query", "-W", "-f", "${Depends}", HEADERS])
    found = re.search(r"linux-headers-(\S+)", depends)
    if found is None:
        raise AoEError(HEADERS, f"depends on no linux-headers package: {depends}")
    return found[1]


def _unpack(package: str, folder: Path, tree: Path) -> None:
    _say(f"downloading with apt, not installing: {package} (70 MB)")
    for old in folder.glob("*.deb"):
        old.unlink()
    _run(["apt-get", "download", "-q", package], folder)
    archive = next(folder.glob("*.deb"))
    part = folder / "unpacked"
    shutil.rmtree(part, ignore_errors=True)
    _run(["dpkg-deb", "-x", str(archive), str(part)])
    archive.unlink()
    part.rename(tree)


def _build(release: str, folder: Path) -> Path:
    """Build the module if its source is newer, and return its path."""
    source, module = SOURCES / "kernel_lab.c", folder / "kernel_lab.ko"
    if module.exists() and module.stat().st_mtime > source.stat().st_mtime:
        return module
    _say(f"building the module for {release}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(source, folder)
    (folder / "Kbuild").write_text("obj-m := kernel_lab.o\n")
    headers = f"/lib/modules/{release}/build"
    if not Path(headers).exists():
        headers = f"/usr/src/linux-headers-{release}"
    _run(["make", "-s", "-C", headers, f"M={folder}", "modules"])
    return module


def _pack(folder: Path, module: Path) -> Path:
    root, archive = folder / "root", folder / "initramfs"
    shutil.rmtree(root, ignore_errors=True)
    for name in ("bin", "dev", "lib", "proc", "sys"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    (root / "bin/sh").symlink_to("busybox")
    shutil.copy(SOURCES / "init", root / "init")
    (root / "init").chmod(0o755)
    shutil.copy(module, root / "lib")
    files = {
        path.name.partition(".")[0].replace("-", "_"): path
        for path in (folder / "kernel/lib/modules").rglob("*.ko*")
    }
    loaded = load_order([*_DRIVERS, AOE], lambda name: _read_module(files[name]))
    for name in loaded:
        (root / "lib" / f"{name}.ko").write_bytes(_read_module(files[name]))
    loaded = [*(name for name in loaded if name != AOE), "kernel_lab"]
    (root / "lib/modules.order").write_text("".join(f"{name}.ko\n" for name in loaded))
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    packed = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc"],
        check=True,
        cwd=root,
        input=names.encode(),
        stdout=subprocess.PIPE,
    )
    archive.write_bytes(packed.stdout)
    return archive


def load_order(names: Iterable[str], read: Callable[[str], bytes]) -> list[str]:
    """Return modules and those that they need, each after those that it needs.

    Args:
        names: modules, with underscores.
        read: returns the contents of a module's file.
    """
    order: list[str] = []
    for name in names:
        found = _DEPENDS.search(read(name))
        needed = found[1].decode().replace("-", "_").split(",") if found else []
        for each in [*load_order(filter(None, needed), read), name]:
            if each not in order:
                order.append(each)
    return order


def _read_module(path: Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    return path.read_bytes()


def _run(command: Sequence[str], cwd: Path | None = None) -> str:
    result = subprocess.run(
        command, check=False, cwd=cwd, capture_output=True, text=True
    )
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines() or ["no message"]
        raise AoEError(command[0], f"exit code {result.returncode}: {lines[-1]}")
    return result.stdout


def _say(text: str) -> None:
    print(f"kernel-lab: {text}", file=sys.stderr, flush=True)
