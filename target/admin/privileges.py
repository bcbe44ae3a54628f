"""Rights that opening needs and serving does not: given up in between.

::

    root ------------> root with CAP_NET_RAW and CAP_DAC_OVERRIDE
    root, --user NAME -> NAME with CAP_NET_RAW
    anybody else ------> no change

CAP_NET_RAW opens an interface again when its MTU has changed, CAP_DAC_OVERRIDE images
and state files that belong to others. What is open stays open.
"""

from __future__ import annotations

import grp
import logging
import os
import pwd
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from aoe.common.capabilities import (
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

log: Final = logging.getLogger("aoe-target")

_AS_ROOT: Final = Capability.NET_RAW | Capability.DAC_OVERRIDE
_AS_USER: Final = Capability.NET_RAW


class Account(NamedTuple):
    """Who to become.

    Args:
        name: as it was asked for.
        uid: the user's number.
        gid: the number of the group that new files get.
        groups: the numbers of all groups that it is in.
    """

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def find_account(text: str) -> Account:
    """Look up ``NAME[:GROUP]``, names or numbers, and make sure that we can be it.

    Raises:
        UsageError: no name at all, or a user's number without a group's.
        NotFoundError: no such user or group.
        AccessError: we are not root, or the user namespace has no such user.
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
            "no user has this number, so that its group is unknown",
            f"Name that too: --user {name}:{name}",
        )
    account = Account(text, uid, gid, _groups_of(uid, gid))
    _check_reachable(account)
    return account


def _find_user(name: str) -> tuple[int, int | None]:
    try:
        found = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        if name.isdecimal():
            return int(name), None
        raise NotFoundError(
            f"--user {name}", "no such user", f"Make it: useradd --system {name}"
        ) from None
    return found.pw_uid, found.pw_gid


def _find_group(name: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise NotFoundError(
            f"--user :{name}", "no such group", f"Make it: groupadd --system {name}"
        ) from None


def _groups_of(uid: int, gid: int) -> tuple[int, ...]:
    try:
        name = pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return (gid,)
    return tuple(g for g in os.getgrouplist(name, gid) if _is_mapped("gid_map", g))


def _check_reachable(account: Account) -> None:
    what = f"--user {account.name}"
    if os.geteuid() != 0 and not _is_current(account):
        raise AccessError(
            what, "only root can become another user", "Run as root, or leave it out"
        )
    if _is_mapped("uid_map", account.uid) and _is_mapped("gid_map", account.gid):
        return
    raise AccessError(
        what,
        f"this user namespace has no user {account.uid} with group {account.gid}",
        "Leave it out here, or map them: unshare -Un --map-auto --map-root-user",
    )


def _is_mapped(table: str, number: int) -> bool:
    # Lines of: first number inside, first number outside, how many.
    try:
        lines = Path("/proc/self", table).read_text("ascii").splitlines()
    except OSError:
        return True
    ranges = (tuple(map(int, line.split())) for line in lines)
    return any(first <= number < first + count for first, _, count in ranges)


def _is_current(account: Account) -> bool:
    return os.getresuid() == (account.uid,) * 3 and os.getresgid() == (account.gid,) * 3


def drop(account: Account | None = None, kept: Iterable[Path] = ()) -> None:
    """Give up all rights but those that serving needs, for good.

    To be called when all is open and before the first thread is started.

    Args:
        account: who to become; None remains whoever we are.
        kept: files that the account must be able to make and replace.

    Raises:
        AccessError: the account could not replace one of the files.
        AoEError: the system refuses it.
        RuntimeError: there are threads, whose rights would remain.
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
        _check_code(account)
        for path in kept:
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
        # Where a user namespace forbids it, its one user keeps the groups it has.
        if Path("/proc/self/setgroups").read_text("ascii") != "deny\n":
            raise
    os.setresgid(*(account.gid,) * 3)
    os.setresuid(*(account.uid,) * 3)


def _check_code(account: Account) -> None:
    # An interpreter in root's home still runs, and imports nothing any more.
    for path in (os.__file__, __file__):
        if not os.access(path, os.R_OK):
            log.warning(
                "--user %s: may not read %s: a reload may miss parts of the program. "
                "Install it where everybody may read",
                account.name,
                path,
            )
            return


def _check_replaceable(path: Path, account: Account) -> None:
    # It is written under another name in its directory, and renamed.
    place = next(place for place in path.parents if os.access(place, os.F_OK))
    if os.access(place, os.W_OK | os.X_OK) and not _sticks(path, place, account):
        return
    user = account.name.partition(":")[0]
    raise AccessError(
        str(path),
        f"{user} may not write what clients set there",
        f"Name a directory of {user}'s: --state-dir DIR, or chown {user} {place}, "
        "or keep nothing: --no-state",
    )


def _sticks(path: Path, place: Path, account: Account) -> bool:
    # As in /tmp: only its owner can replace a file.
    directory = place.stat()
    return (
        bool(directory.st_mode & stat.S_ISVTX)
        and os.access(path, os.F_OK)
        and account.uid not in (directory.st_uid, path.stat().st_uid)
    )
