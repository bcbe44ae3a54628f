from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aoe.common.process.capabilities import Capability, capability_sets
from aoe.errors import AccessError, NotFoundError, UsageError
from target.admin.privileges import Account, find_account
from tests.accounts import (
    HAS_NOBODY,
    IS_ROOT,
    NOBODY,
    OTHER_USER,
    process_status,
    read_status,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).resolve().parents[2]
DROP = """
import sys
from pathlib import Path
from aoe.errors import AoEError
from target.admin.privileges import drop, find_account
user, *kept = sys.argv[1:]
try:
    drop(find_account(user) if user else None, map(Path, kept))
except AoEError as error:
    sys.exit(f"{error.exit_code} {error}")
print(open("/proc/self/status").read())
"""


def dropped(
    user: str = "", *kept: Path, inside: tuple[str, ...] = ()
) -> dict[str, str]:
    """Return /proc/self/status of a process that has dropped its privileges."""
    done = subprocess.run(
        [*inside, sys.executable, "-c", DROP, user, *map(str, kept)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"refused": done.stderr.rstrip("\n").splitlines()[-1]}
    return read_status(done.stdout)


def capabilities(status: dict[str, str]) -> dict[str, int]:
    return {name: int(status[f"Cap{name}"], 16) for name in ("Eff", "Prm", "Inh")}


def test_capability_sets_match_proc_status() -> None:
    shown = capabilities(process_status("self"))
    assert list(shown.values()) == [*capability_sets()]


@pytest.mark.parametrize("inside", [(), ("unshare", "--user", "--map-root-user")])
def test_root_keeps_two_capabilities_and_cannot_regain_others(
    inside: tuple[str, ...],
) -> None:
    status = dropped(inside=inside)
    if not IS_ROOT and not inside:
        # An unprivileged user has nothing to drop.
        assert status["NoNewPrivs"] == "0"
        return
    kept = int(Capability.NET_RAW | Capability.DAC_OVERRIDE)
    assert capabilities(status) == {"Eff": kept, "Prm": kept, "Inh": 0}
    assert int(status["CapBnd"], 16) == kept
    assert int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Uid"] == "0 0 0 0"


def test_other_user_keeps_only_cap_net_raw() -> None:
    if not IS_ROOT:
        assert "only root can switch to another user" in dropped("root")["refused"]
        return
    status = dropped("nobody")
    if not HAS_NOBODY:
        assert status["refused"].startswith(
            "4 --user nobody: this user namespace does not map"
        )
        return
    kept = int(Capability.NET_RAW)
    assert capabilities(status) == {"Eff": kept, "Prm": kept, "Inh": 0}
    assert int(status["CapBnd"], 16) == kept
    assert status["NoNewPrivs"] == "1"
    assert status["Uid"] == " ".join([str(NOBODY.pw_uid)] * 4)
    assert status["Gid"] == " ".join([str(NOBODY.pw_gid)] * 4)
    assert status["Groups"] == str(NOBODY.pw_gid)


def test_unmapped_user_is_refused_in_a_user_namespace() -> None:
    inside = ("unshare", "--user", "--map-root-user")
    assert dropped("nobody", inside=inside) == {
        "refused": (
            f"4 --user nobody: this user namespace does not map user {NOBODY.pw_uid}, "
            f"group {NOBODY.pw_gid}. Omit --user, or map them: "
            "unshare -Un --map-auto --map-root-user"
        )
    }


def test_root_of_a_user_namespace_can_stay_root() -> None:
    status = dropped("root", inside=("unshare", "--user", "--map-root-user"))
    assert int(status["CapEff"], 16) == Capability.NET_RAW


def test_unwritable_state_directory_is_refused(tmp_path: Path) -> None:
    # Without root there is no other user; the test's own user cannot write here either.
    tmp_path.chmod(0o555)
    kept = tmp_path / "disk.img.aoe.json"
    refused = dropped(OTHER_USER, kept)["refused"]
    tmp_path.chmod(0o755)
    user = OTHER_USER.partition(":")[0]
    assert refused.startswith(f"4 {kept}: user {user} may not write this state file")
    # Never chown: the directory may be one of the system, such as /var/lib.
    assert f"install -d -o {user} DIR; then use --state-dir DIR" in refused
    assert refused.endswith(", or --no-state to store none")


def test_writable_state_directory_is_accepted(tmp_path: Path) -> None:
    user = str(os.getuid())
    kept = tmp_path / "new" / "e7.3.aoe.json"
    assert "refused" not in dropped(f"{user}:{os.getgid()}", kept)


@pytest.fixture
def sticky() -> Iterator[Path]:
    """Make a directory with the sticky bit, such as /tmp."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o1777)
        yield Path(name)


def test_sticky_directory_allows_only_own_files(
    sticky: Path,
) -> None:
    kept = sticky / "e7.3.aoe.json"
    assert "refused" not in dropped(OTHER_USER, kept)
    kept.touch()
    if HAS_NOBODY and IS_ROOT:
        assert "may not write" in dropped(OTHER_USER, kept)["refused"]
        os.chown(kept, NOBODY.pw_uid, NOBODY.pw_gid)
    assert "refused" not in dropped(OTHER_USER, kept)


@pytest.mark.parametrize(
    ("user", "error", "words"),
    [
        ("", UsageError, "--user : no name. Write NAME or NAME:GROUP"),
        (":root", UsageError, "--user :root: no name. Write NAME or NAME:GROUP"),
        ("root:", UsageError, "--user root:: no name. Write NAME or NAME:GROUP"),
        (
            "no-one-at-all",
            NotFoundError,
            (
                "--user no-one-at-all: no such user. "
                "Create it: useradd --system no-one-at-all"
            ),
        ),
        (
            "root:no-such-group",
            NotFoundError,
            (
                "--user :no-such-group: no such group. "
                "Create it: groupadd --system no-such-group"
            ),
        ),
        (
            "4000000000",
            UsageError,
            (
                "--user 4000000000: no user with this ID, so its group is unknown. "
                "Add a group: --user 4000000000:4000000000"
            ),
        ),
    ],
)
def test_unknown_user_is_refused(user: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        find_account(user)
    assert str(caught.value) == words


def test_ids_are_accepted() -> None:
    if not IS_ROOT:
        with pytest.raises(AccessError, match="only root can switch to another user"):
            find_account("0:0")
        return
    assert find_account("0:0") == Account("0:0", 0, 0, (0,))
    assert find_account("root")[1:3] == (0, 0)
