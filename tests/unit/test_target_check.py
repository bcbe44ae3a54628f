"""``aoe-target check`` reports what ``serve`` would refuse when it starts."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from aoe.errors import AccessError
from aoe.net.interfaces import find_interface, set_up
from target.disks import OpenFlags, check_disk, open_disk
from tests.accounts import HAS_NOBODY, IS_ROOT, NOBODY
from tests.programs import AOE_TARGET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture(autouse=True)
def loopback() -> None:
    """Bring up lo, which is down in the namespace in which a user's tests run."""
    if not find_interface("lo").up:
        set_up("lo")


def check(directory: Path, *exports: str, top: str = "") -> tuple[int, list[str]]:
    """Return the exit code and all problems of a file with these exports on lo."""
    tables = "".join(
        f"[[export]]\naddress = 'e7.{slot}'\n{lines}\n"
        for slot, lines in enumerate(exports)
    )
    config = directory / "aoe.toml"
    config.write_text(f"{top}\n[defaults]\ninterfaces = 'lo'\n{tables}")
    done = aoe_target("check", str(config), "--json")
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    problems = [line for each in found["exports"] for line in each["problems"]]
    return done.returncode, problems + found["problems"]


def aoe_target(*words: str) -> subprocess.CompletedProcess[str]:
    command = [*AOE_TARGET, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def truncated(overlay: Path, base: Path) -> None:
    os.truncate(overlay, 8192)
    assert base.exists()


def changed(overlay: Path, base: Path) -> None:
    assert overlay.exists()
    os.utime(base, ns=(0, 0))


def missing(overlay: Path, base: Path) -> None:
    assert overlay.exists()
    base.unlink()


def replaced(overlay: Path, base: Path) -> None:
    overlay.write_bytes(base.read_bytes())


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (truncated, "the overlay is truncated"),
        (changed, "has changed since the overlay was made"),
        (missing, "no such file"),
        (replaced, "not an overlay"),
    ],
)
def test_overlay_that_cannot_be_opened(
    image: Path, spoil: Callable[[Path, Path], None], why: str
) -> None:
    overlay = image.with_name("disk.ovl")
    lines = f"path = '{image}'\noverlay = '{overlay}'"
    assert check(image.parent, lines) == (0, [])
    assert not overlay.exists()
    open_disk(image, overlay=str(overlay)).close()
    assert check(image.parent, lines) == (0, [])
    spoil(overlay, image)
    code, [problem] = check(image.parent, lines)
    assert (code, why in problem) == (1, True), problem


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("path = 'none/disk.img'\ncreate = '1M'", "no directory"),
        ("path = 'disk.img'\noverlay = 'none/x.ovl'", "no directory"),
        ("path = 'disk.img'\noverlay = 'x.ovl'\nread_only = true", "no such overlay"),
        ("path = 'disk.img'\noverlay = 'x'\ndirect = true", "not support O_DIRECT"),
        ("path = 'new.img'\ncreate = '1M'\noffset = '2M'", "the window ends at"),
        ("path = 'disk.img'\ncreate = '2M'", "already exists with 1 MiB"),
        ("path = 'other.ovl'", "this is an overlay, not a disk image"),
        ("path = 'disk.img'\nengine = 'none.py'", "no such file"),
        ("path = 'read-only.img'", "no user may write to it"),
        ("path = 'nbd+unix:///?socket=/none'", "Is the server running?"),
        ("path = 'nbd+unix:///?socket=/none'\ndirect = true", "is only for files"),
    ],
)
def test_disk_that_cannot_be_opened(image: Path, lines: str, why: str) -> None:
    open_disk(image, overlay=str(image.with_name("other.ovl"))).close()
    image.with_name("read-only.img").write_bytes(bytes(SIZE))
    image.with_name("read-only.img").chmod(0o444)
    before = sorted(image.parent.iterdir())
    code, [problem] = check(image.parent, lines)
    assert (code, why in problem) == (1, True), problem
    after = sorted(image.parent.iterdir())
    assert [each for each in after if each.name != "aoe.toml"] == before


def test_advice_names_keys_of_the_file(image: Path) -> None:
    image.chmod(0o444)
    for lines, fix in (
        ("path = 'none.img'", 'Make one with create = "1G"'),
        ("path = 'disk.img'", "or use read_only = true"),
        ("path = 'disk.img'\noverlay = 'x'\ndirect = true", "Omit direct"),
    ):
        _, [problem] = check(image.parent, lines)
        assert problem.endswith(fix)
    missing = aoe_target("serve", "--config", str(image.with_name("aoe.toml")))
    assert "direct" in missing.stderr
    assert "--direct" not in missing.stderr


def test_exports_that_exclude_each_other(image: Path) -> None:
    path = f"path = '{image}'"
    half = f"{path}\nlength = 524288"
    rest = f"{path}\noffset = 524288"
    reading = f"{path}\nread_only = true"
    overlay = f"{path}\noverlay = '{image.with_name('a.ovl')}'"
    for exports in ((half, rest), (reading, reading), (reading, overlay)):
        assert check(image.parent, *exports) == (0, [])
    for exports in ((path, path), (path, rest), (reading, path), (overlay, path)):
        code, [problem] = check(image.parent, *exports)
        assert code == 1
        assert f"{image}: e7.0 serves the same part of it" in problem
    open_disk(image, overlay=str(image.with_name("a.ovl"))).close()
    code, [problem] = check(image.parent, overlay, overlay)
    assert f"{image.with_name('a.ovl')}: e7.0 serves the same part" in problem


def test_settings_of_the_process(image: Path) -> None:
    path = f"path = '{image}'"
    for top, why in (
        ("control = '/none/socket'", "no directory /none"),
        ("metrics = 'no.such.host.invalid:9000'", "no such address"),
    ):
        code, [problem] = check(image.parent, path, top=top)
        assert (code, why in problem) == (1, True), problem


@pytest.fixture
def owned(image: Path) -> Iterator[Path]:
    """Yield an image that the user owns; root becomes nobody, if possible."""
    if not (IS_ROOT and HAS_NOBODY):
        yield image
        return
    with TemporaryDirectory() as directory:
        path = Path(directory) / "disk.img"
        image.rename(path)
        for each in (path, Path(directory)):
            os.chown(each, NOBODY.pw_uid, NOBODY.pw_gid)
        os.seteuid(NOBODY.pw_uid)
        yield path
        os.seteuid(0)


def test_image_that_the_user_may_not_write(owned: Path) -> None:
    check_disk(str(owned), OpenFlags())
    # The group may write to it, its owner may not.
    owned.chmod(0o420)
    if os.access(owned, os.W_OK, effective_ids=True):
        return  # CAP_DAC_OVERRIDE in a user namespace.
    for attempt in (check_disk, open_disk):
        with pytest.raises(AccessError) as caught:
            attempt(str(owned), OpenFlags())
        assert str(caught.value) == (
            f"{owned}: not allowed to write. Run as a user that may write to it, or "
            "use --read-only"
        )
    check_disk(str(owned), OpenFlags(read_only=True))


def test_what_check_accepts_can_be_served(image: Path) -> None:
    assert check(image.parent, f"path = '{image}'") == (0, [])
    open_disk(image, OpenFlags()).close()
