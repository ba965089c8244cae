"""Why a user may not use a socket, and what to type so that they may.

:func:`why_not` looks at the system; :func:`explain` finds the words, and looks at nothing.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

MACOS = sys.platform == "darwin"


@dataclass(frozen=True, slots=True)
class Barrier:
    """What is in the way: the socket, or the directory on the way to it that cannot be entered.

    Attributes:
        path: its own.
        mode: as of ``stat``.
        uid, gid: of its owner and its group.
        owner, group: their names; empty where they have none here.
    """

    path: str
    mode: int
    uid: int
    gid: int
    owner: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True)
class Asker:
    """Who is turned away.

    Attributes:
        uid: the process's.
        gids: the groups that this process is in.
        later: those that it would be in after a new login.
        user: the name; empty where there is none.
    """

    uid: int
    gids: frozenset[int]
    later: frozenset[int] = frozenset()
    user: str = ""


def why_not(path: str | os.PathLike[str]) -> str:
    """Return why this process may not connect to *path*, with the line to type."""
    socket = Path(path)
    return explain(socket, _barrier(socket), _asker())


def explain(socket: Path, barrier: Barrier | None, asker: Asker, *, macos: bool = MACOS) -> str:
    """Return why *asker* may not connect to *socket*; *barrier* is None where nothing is seen."""
    if barrier is None:
        return f"{socket}: no permission; name another socket with RINGD_SOCKET"
    directory = stat.S_ISDIR(barrier.mode)
    other = stat.S_IXOTH if directory else stat.S_IWOTH
    mine, groups = other << 6, other << 3
    what = f"{socket}: no permission" + (f" to enter {barrier.path}" if directory else "")
    mode = f"mode {stat.S_IMODE(barrier.mode):04o}"
    user = f"user {asker.user!r}" if asker.user else f"uid {asker.uid}"
    member = barrier.gid in asker.gids
    owns = asker.uid == barrier.uid
    decisive = mine if owns else groups if member else other  # the first that applies
    if barrier.mode & decisive:
        return (
            f"{what}, though owner, group and mode ({mode}) give it to {user}: SELinux, AppArmor "
            "or a sandbox must forbid it"
        )
    if owns:
        right = "x" if directory else "w"
        return (
            f"{what}; {mode} forbids it to its owner, {user}: type `chmod u+{right} {barrier.path}`"
        )
    if member or not barrier.mode & groups:
        owner = repr(barrier.owner) if barrier.owner else f"uid {barrier.uid}"
        remedy = "ipc.socket in another directory" if directory else 'ipc.mode = "0660"'
        return (
            f"{what}; it is for its owner, {owner}, alone ({mode}), and this is {user}: have its "
            f"owner set {remedy} in the daemon's config, or name another socket with RINGD_SOCKET"
        )
    group = repr(barrier.group) if barrier.group else f"of gid {barrier.gid}"
    what += f"; it is for group {group} ({mode}), and {user} is"
    if barrier.gid in asker.later:
        return (
            f"{what} in it, but not yet in this login: log out and in again, or type "
            f"`newgrp {barrier.group or barrier.gid}`"
        )
    if barrier.gid == 0:
        return (
            f"{what} not in it, nor should be: set ipc.group in the daemon's config to a group "
            "that is meant for it"
        )
    if not barrier.group:
        return (
            f"{what} not in it; it has no name here: start the program in that group (a container "
            f"with --group-add {barrier.gid})"
        )
    name = asker.user or "USER"
    line = f"usermod -aG {barrier.group} {name}"
    if macos:
        line = f"dseditgroup -o edit -a {name} -t user {barrier.group}"
    return f"{what} not in it: type `sudo {line}`, then log out and in again"


def _barrier(socket: Path) -> Barrier | None:
    for place in (socket, *socket.parents):
        try:
            status = place.stat()  # for which one must be able to enter what it lies in
        except PermissionError:
            continue
        except OSError:  # gone meanwhile
            return None
        owner, group = _user_name(status.st_uid), _group_name(status.st_gid)
        return Barrier(str(place), status.st_mode, status.st_uid, status.st_gid, owner, group)
    return None


def _asker() -> Asker:
    uid = os.geteuid()
    gids = frozenset([*os.getgroups(), os.getegid()])
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Asker(uid, gids)
    later = frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return Asker(uid, gids, later, entry.pw_name)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""
