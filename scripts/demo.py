"""The demonstration that scripts/demo runs; every command in it is one you can type."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aoe.capture.annotated import read_capture
from aoe.common.commandline import run
from aoe.errors import AoEError
from aoe.net.netns import Namespace, Wire, ensure_root_or_user_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 64 << 20
ADDRESS = "e0.0"


def title(text: str) -> None:
    """Print what comes now."""
    click.secho(f"\n{text}", bold=True)


def type_command(where: str, namespace: Namespace, *words: str) -> None:
    """Show a command as one would type it, run it in a namespace, show its output.

    Raises:
        AoEError: it failed.
    """
    click.secho(f"{where}$ {shlex.join(words)}", fg="cyan")
    program = Path(sys.executable).with_name(words[0])
    # Ctrl-C is for the demo alone, which ends what it runs.
    done = namespace.run(
        [str(program), *words[1:]], check=False, start_new_session=True
    )
    if done.returncode:
        raise AoEError(shlex.join(words), f"exit code {done.returncode}")


def serve(wire: Wire, *words: str) -> subprocess.Popen[str]:
    """Start the target and wait for the line that says it is ready."""
    click.secho(f"target$ {shlex.join(words)} &", fg="cyan")
    target: subprocess.Popen[str] = wire.target.popen(
        [str(Path(sys.executable).with_name(words[0])), *words[1:]],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    ready = target.stdout.readline() if target.stdout else ""
    if not ready:
        raise AoEError("aoe-target", f"exit code {target.wait()}")
    click.echo(ready, nl=False)
    return target


def make_filesystem(image: Path) -> None:
    """Make an ext4 image that holds this checkout's own packages; needs no root."""
    mkfs = shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if mkfs is None:
        raise AoEError("mkfs.ext4", "not installed", "apt install e2fsprogs")
    with tempfile.TemporaryDirectory() as directory:
        root = Path(__file__).parent.parent
        for package in ("aoe", "target", "initiator"):
            shutil.copytree(root / package, Path(directory, package))
        with image.open("wb") as file:
            file.truncate(SIZE)
        subprocess.run([mkfs, "-q", "-F", "-d", directory, str(image)], check=True)
    click.echo(f"an ext4 filesystem of {SIZE >> 20} MiB, made in {image.name}")


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def captions(capture: Path) -> Iterator[str]:
    """Say of each captured frame when it passed and what it was."""
    start = None
    for frame in read_capture(capture):
        start = frame.time if start is None else start
        yield f"{(frame.time - start) * 1000:8.3f} ms  {frame.comment}"


def demonstrate(directory: Path, capture: Path) -> None:
    """Serve, discover, write, read back, compare."""
    os.chdir(directory)
    disk, image, back = map(Path, ("disk.img", "fs.img", "back.img"))
    with Wire(mtu=9000) as wire:
        title("1  Two hosts: network namespaces, a veth pair between them, MTU 9000")
        click.echo("target     aoe0  " + wire.target_mac.hex(":"))
        click.echo("initiator  aoe0  " + wire.initiator_mac.hex(":"))

        title("2  The target serves a file as a disk")
        where = ["serve", ADDRESS, "aoe0", str(disk), "--create", "64M"]
        serve(wire, "aoe-target", *where)

        title("3  The initiator finds it")
        type_command("initiator", wire.initiator, "aoe", "discover", "-i", "aoe0")
        type_command("initiator", wire.initiator, "aoe", "stat", ADDRESS, "-i", "aoe0")

        title("4  A filesystem goes over the wire, and comes back")
        make_filesystem(image)
        there = ["copy", str(image), ADDRESS, "-i", "aoe0", "--verify"]
        type_command("initiator", wire.initiator, "aoe", *there)
        again = ["copy", ADDRESS, str(back), "-i", "aoe0"]
        type_command("initiator", wire.initiator, "aoe", *again)
        sums = {path.name: checksum(path) for path in (image, disk, back)}
        for name, value in sums.items():
            click.echo(f"{value}  {name}")
        if len(set(sums.values())) != 1:
            raise AoEError("demo", "checksums differ")
        click.secho("all three are equal", fg="green")

        title("5  What the wire carries: the ext4 superblock, frame by frame")
        head = ["read", ADDRESS, "superblock", "-i", "aoe0"]
        window = ["--offset", "1K", "--length", "1K", "--pcap", str(capture)]
        type_command("initiator", wire.initiator, "aoe", *head, *window)
        for line in captions(capture):
            click.echo(line)
        magic = Path("superblock").read_bytes()[56:58]
        click.echo(f"magic number of ext4: {magic.hex()} (53ef expected)")


@click.command()
@click.option(
    "--pcap",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("demo.pcapng"),
    show_default=True,
    help="Where to leave the capture.",
)
def demo(pcap: Path) -> None:
    """Serve a file over raw Ethernet and use it as a disk, on this one machine."""
    ensure_root_or_user_namespace()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pyaoe-demo-") as directory:
        demonstrate(Path(directory), pcap.absolute())
    seconds = time.monotonic() - started
    title(f"Done in {seconds:.1f} s. Left behind: {pcap}, for Wireshark or")
    click.echo(f"tshark -r {pcap} -V")


if __name__ == "__main__":
    run(demo, "demo")
