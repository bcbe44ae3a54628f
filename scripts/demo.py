"""The demonstration that scripts/demo runs, made of commands that users can run."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import subprocess
import tempfile
import time
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aoe.capture.annotated import read_capture
from aoe.common.commandline import run
from aoe.common.process.programs import program_command
from aoe.errors import AoEError, from_os_error
from aoe.net.netns import Namespace, Wire, ensure_root_or_user_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 64 << 20
ADDRESS = "e0.0"
DEFAULT_CAPTURE = Path("demo.pcapng")


def title(text: str) -> None:
    """Print the title of a step."""
    click.secho(f"\n{text}", bold=True)


def run_command(host: str, namespace: Namespace, *args: str) -> None:
    """Print a command with a prompt, and run it in a namespace.

    Raises:
        AoEError: it failed.
    """
    click.secho(f"{host}$ {shlex.join(args)}", fg="cyan")
    command = [*program_command(args[0]), *args[1:]]
    # Not interrupted by Ctrl-C: the demo terminates its children.
    done = namespace.run(command, check=False, start_new_session=True)
    if done.returncode:
        raise AoEError(shlex.join(args), f"exit code {done.returncode}")


def serve(wire: Wire, *args: str) -> subprocess.Popen[str]:
    """Start the target, and wait for its ready line."""
    click.secho(f"target$ {shlex.join(args)} &", fg="cyan")
    target: subprocess.Popen[str] = wire.target.popen(
        [*program_command(args[0]), *args[1:]],
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
    """Create an ext4 image with the packages of this checkout; needs no root."""
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
    click.echo(f"{image.name}: an ext4 file system of {SIZE >> 20} MiB")


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def descriptions(capture: Path) -> Iterator[str]:
    """Yield the time and description of each captured frame."""
    start = None
    for frame in read_capture(capture):
        start = frame.time if start is None else start
        yield f"{(frame.time - start) * 1000:8.3f} ms  {frame.comment}"


def save(capture: Path, wanted: Path | None) -> Path:
    """Copy the capture to a file, by default in the working directory.

    If that is not writable, copy it to a new directory for temporary files.

    Returns:
        The path of the copy.

    Raises:
        AoEError: the file cannot be written.
    """
    try:
        return Path(shutil.copyfile(capture, wanted or DEFAULT_CAPTURE))
    except OSError as error:
        if wanted is not None:
            raise from_os_error(str(wanted), error, "Choose another file") from error
    place = Path(tempfile.mkdtemp(prefix="pyaoe-demo-"))
    return Path(shutil.copyfile(capture, place / DEFAULT_CAPTURE))


def demonstrate(capture: Path) -> None:
    """Serve a disk, discover it, copy a file system to it and back, and compare.

    Files are in the working directory.
    """
    disk, image, back = map(Path, ("disk.img", "fs.img", "back.img"))
    with Wire(mtu=9000) as wire:
        title("1  Create two network namespaces with a veth pair, MTU 9000")
        click.echo("target     aoe0  " + wire.target_mac.hex(":"))
        click.echo("initiator  aoe0  " + wire.initiator_mac.hex(":"))

        title("2  Serve a file as a disk")
        args = ["serve", ADDRESS, "aoe0", str(disk), "--create", "64M"]
        serve(wire, "aoe-target", *args)

        title("3  Discover the disk")
        run_command("initiator", wire.initiator, "aoe", "discover", "-i", "aoe0")
        run_command("initiator", wire.initiator, "aoe", "stat", ADDRESS, "-i", "aoe0")

        title("4  Copy a file system to the disk and back")
        make_filesystem(image)
        write = ["copy", str(image), ADDRESS, "-i", "aoe0", "--verify"]
        run_command("initiator", wire.initiator, "aoe", *write)
        read = ["copy", ADDRESS, str(back), "-i", "aoe0"]
        run_command("initiator", wire.initiator, "aoe", *read)
        sums = {path.name: checksum(path) for path in (image, disk, back)}
        for name, value in sums.items():
            click.echo(f"{value}  {name}")
        if len(set(sums.values())) != 1:
            raise AoEError("demo", "checksums differ")
        click.secho("all checksums are equal", fg="green")

        title("5  Read the ext4 superblock; the frames on the wire")
        source = ["read", ADDRESS, "superblock", "-i", "aoe0"]
        options = ["--offset", "1K", "--length", "1K", "--pcap", str(capture)]
        run_command("initiator", wire.initiator, "aoe", *source, *options)
        for line in descriptions(capture):
            click.echo(line)
        magic = Path("superblock").read_bytes()[56:58]
        click.echo(f"ext4 magic number: {magic.hex()} (expected: 53ef)")


@click.command()
@click.option(
    "--pcap",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"File for the capture.  [default: {DEFAULT_CAPTURE}]",
)
def demo(pcap: Path | None) -> None:
    """Serve a file over raw Ethernet and use it as a disk, on one machine."""
    ensure_root_or_user_namespace()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pyaoe-demo-") as directory:
        with chdir(directory):
            demonstrate(DEFAULT_CAPTURE)
        saved = save(Path(directory, DEFAULT_CAPTURE), pcap)
    seconds = time.monotonic() - started
    title(f"Done in {seconds:.1f} s. Show the captured frames with:")
    click.echo(f"tshark -r {shlex.quote(str(saved))} -V")


if __name__ == "__main__":
    run(demo, "demo")
