"""Drop the privileges that are needed to open resources, but not to serve.

::

    root ------------> root with CAP_NET_RAW and CAP_DAC_OVERRIDE
    root, --user NAME -> NAME with CAP_NET_RAW
    other users -------> no change

CAP_NET_RAW is needed to open an interface again after an MTU change, CAP_DAC_OVERRIDE
for images and state files of other users. Open files and sockets are not affected.

The user may be unable to read Python's modules, for example in root's home directory.
All that a serving target needs, for a reload as well, must have been imported before.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from aoe.common.process.capabilities import (
    Capability,
    CapabilitySets,
    capability_sets,
    drop_from_bounding_set,
    set_capabilities,
    set_keep_capabilities,
    set_no_new_privileges,
)
from aoe.errors import AccessError, NotFoundError, UsageError, from_os_error

if TYPE_CHECKING:
    from collections.abc import Iterable

_AS_ROOT: Final = Capability.NET_RAW | Capability.DAC_OVERRIDE
_AS_USER: Final = Capability.NET_RAW


class Account(NamedTuple):
    """The user and groups to switch to.

    Args:
        name: the value of ``--user``.
        uid: the user ID.
        gid: the primary group ID, which new files get.
        groups: the IDs of all groups.
    """

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def find_account(text: str) -> Account:
    """Look up ``NAME[:GROUP]``, names or IDs, and check that the process can switch.

    Raises:
        UsageError: no name, or the ID of an unknown user without a group.
        NotFoundError: no such user or group.
        AccessError: the process is not root, or the user namespace does not map the
            user.
    """
    name, colon, group = text.partition(":")
    if not name or (colon and not group):
        raise UsageError(f"--user {text}", "no name", "Write NAME or NAME:GROUP")
    uid, gid = _find_user(name)
    if group:
        gid = _find_group(group)
    if gid is None:
        raise UsageError(
            f"--user {text}",
            "no user with this ID, so its group is unknown",
            f"Add a group: --user {name}:{name}",
        )
    account = Account(text, uid, gid, _groups_of(uid, gid))
    _check_permitted(account)
    return account


def _find_user(name: str) -> tuple[int, int | None]:
    try:
        found = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        if name.isdecimal():
            return int(name), None
        raise NotFoundError(
            f"--user {name}", "no such user", f"Create it: useradd --system {name}"
        ) from None
    return found.pw_uid, found.pw_gid


def _find_group(name: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise NotFoundError(
            f"--user :{name}", "no such group", f"Create it: groupadd --system {name}"
        ) from None


def _groups_of(uid: int, gid: int) -> tuple[int, ...]:
    try:
        name = pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return (gid,)
    return tuple(g for g in os.getgrouplist(name, gid) if _is_mapped("gid_map", g))


def _check_permitted(account: Account) -> None:
    what = f"--user {account.name}"
    if os.geteuid() != 0 and not _is_current(account):
        raise AccessError(
            what, "only root can switch to another user", "Run as root, or omit --user"
        )
    if _is_mapped("uid_map", account.uid) and _is_mapped("gid_map", account.gid):
        return
    raise AccessError(
        what,
        f"this user namespace does not map user {account.uid}, group {account.gid}",
        "Omit --user, or map them: unshare -Un --map-auto --map-root-user",
    )


def _is_mapped(table: str, number: int) -> bool:
    # Each line has: first ID inside, first ID outside, count (user_namespaces(7)).
    try:
        lines = Path("/proc/self", table).read_text("ascii").splitlines()
    except OSError:
        return True
    ranges = (tuple(map(int, line.split())) for line in lines)
    return any(first <= number < first + count for first, _, count in ranges)


def _is_current(account: Account) -> bool:
    return os.getresuid() == (account.uid,) * 3 and os.getresgid() == (account.gid,) * 3


def drop(account: Account | None = None, replaceable: Iterable[Path] = ()) -> None:
    """Drop all privileges but those that serving needs, permanently.

    Call it when everything is open and before the first thread is started.

    Args:
        account: the account to switch to; None keeps the user.
        replaceable: files that the account must be able to create and replace.

    Raises:
        AccessError: the account cannot replace one of the files.
        AoEError: a system call failed.
        RuntimeError: there are threads, which would keep their capabilities.
    """
    if account is None and os.geteuid() != 0:
        return
    if threading.active_count() > 1:
        raise RuntimeError("privileges must be dropped before threads are started")
    try:
        _drop(account)
    except OSError as error:
        what = "privileges" if account is None else f"--user {account.name}"
        raise from_os_error(what, error) from error
    if account is not None:
        for path in replaceable:
            _check_replaceable(path, account)


def _drop(account: Account | None) -> None:
    wanted = _AS_ROOT if account is None else _AS_USER
    keep = wanted & capability_sets().permitted
    drop_from_bounding_set(keep)
    if account is not None and not _is_current(account):
        set_keep_capabilities(keep=True)
        _become(account)
    set_capabilities(CapabilitySets(keep, keep, 0))
    set_keep_capabilities(keep=False)
    set_no_new_privileges()


def _become(account: Account) -> None:
    try:
        os.setgroups(account.groups)
    except PermissionError:
        # A user namespace with a single mapped user denies setgroups(2).
        if Path("/proc/self/setgroups").read_text("ascii") != "deny\n":
            raise
    os.setresgid(*(account.gid,) * 3)
    os.setresuid(*(account.uid,) * 3)


def _check_replaceable(path: Path, account: Account) -> None:
    # A file is replaced by renaming a new file in the same directory.
    directory = next(each for each in path.parents if os.access(each, os.F_OK))
    if os.access(directory, os.W_OK | os.X_OK) and not _is_sticky(
        path, directory, account
    ):
        return
    user = account.name.partition(":")[0]
    raise AccessError(
        str(path),
        f"user {user} may not write this state file",
        f"Make a directory for it: install -d -o {user} DIR; then use --state-dir DIR, "
        "or --no-state to store none",
    )


def _is_sticky(path: Path, directory: Path, account: Account) -> bool:
    # With the sticky bit, only the owner of directory or file can replace the file.
    status = directory.stat()
    return (
        bool(status.st_mode & stat.S_ISVTX)
        and os.access(path, os.F_OK)
        and account.uid not in (status.st_uid, path.stat().st_uid)
    )
