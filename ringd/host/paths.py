"""Where config, socket and state live: for the system and for one user, on Linux and macOS.

======  ==================  ==================================  ================================
..      what                Linux                               macOS
======  ==================  ==================================  ================================
system  config              /etc/ringd/ringd.toml               /etc/ringd/ringd.toml
system  socket              /run/ringd/ringd.sock               /var/db/ringd/ringd.sock
system  state directory     /var/lib/ringd                      /var/db/ringd/state
user    config              $XDG_CONFIG_HOME/ringd/ringd.toml   ~/Library/Application Support/
                                                                ringd/ringd.toml
user    socket              $XDG_RUNTIME_DIR/ringd/ringd.sock   .../ringd/ringd.sock
user    state directory     $XDG_STATE_HOME/ringd               .../ringd/state
======  ==================  ==================================  ================================

macOS empties /var/run at boot and launchd makes no runtime directory, hence /var/db there.

A user has the same daemon whatever started it and the programs: a desktop, ssh, cron, su or a
service, which set these variables, do not, or leave those of another user. So a daemon without a
runtime directory in its environment takes /run/user/UID where there is one, and else the state
directory; and programs look in all of these places. A directory in which another user could put
a socket is no place of this user, whatever a variable says.
"""

from __future__ import annotations

import os
import pwd
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MACOS = sys.platform == "darwin"

RUNTIME_DIRS = Path("/run/user")
"""Where Linux makes a directory for each user that is logged in."""

_STATE = Path(".local", "state")
_LIBRARY = Path("Library", "Application Support", "ringd")


@dataclass(frozen=True, slots=True)
class Paths:
    """The three places that a daemon uses."""

    config: Path
    socket: Path
    state_dir: Path


@dataclass(frozen=True, slots=True)
class User:
    """Whose process this is, in the system's word."""

    uid: int
    home: Path | None


def current_user() -> User:
    """Return whose process this is."""
    uid = os.geteuid()
    try:
        home = Path(pwd.getpwuid(uid).pw_dir)
    except KeyError:  # in a container
        return User(uid, None)
    return User(uid, home if home.is_absolute() else None)


def system_paths(*, macos: bool = MACOS) -> Paths:
    """Return the places of the daemon that runs for the whole machine."""
    config = Path("/etc/ringd/ringd.toml")
    if macos:
        base = Path("/var/db/ringd")
        return Paths(config, base / "ringd.sock", base / "state")
    return Paths(config, Path("/run/ringd/ringd.sock"), Path("/var/lib/ringd"))


def user_paths(
    environ: Mapping[str, str] = os.environ, *, macos: bool = MACOS, user: User | None = None
) -> Paths:
    """Return the places of a daemon that a user runs for themselves."""
    user = user or current_user()
    home = next(iter(_homes(environ, user)))
    if macos:
        base = home / _LIBRARY
        return Paths(base / "ringd.toml", base / "ringd.sock", base / "state")
    config = _absolute(environ, "XDG_CONFIG_HOME") or home / ".config"
    state = _absolute(environ, "XDG_STATE_HOME")
    if state is None or not _ours(state / "ringd", user.uid):
        state = home / _STATE
    # Without a runtime directory the state directory is the next place that is the user's own;
    # a guessable name in /tmp could be taken by somebody else first.
    runtimes = [d for d in _runtimes(environ, user) if _owner(d) == user.uid]
    runtime = next((d for d in runtimes if _ours(d / "ringd", user.uid)), state)
    return Paths(config / "ringd" / "ringd.toml", runtime / "ringd" / "ringd.sock", state / "ringd")


def default_paths(
    environ: Mapping[str, str] = os.environ, *, root: bool | None = None, macos: bool = MACOS
) -> Paths:
    """Return the places for a daemon started by this process's user: system for root."""
    root = os.geteuid() == 0 if root is None else root
    return system_paths(macos=macos) if root else user_paths(environ, macos=macos)


def find_config(
    environ: Mapping[str, str] = os.environ, *, root: bool | None = None, macos: bool = MACOS
) -> Path:
    """Return the config that is used when none is named: a user's own, else the system's.

    Where neither exists, the first place that was looked at, for the error message.
    """
    own = default_paths(environ, root=root, macos=macos).config
    system = system_paths(macos=macos).config
    return system if not _exists(own) and _exists(system) else own


def socket_candidates(
    environ: Mapping[str, str] = os.environ, *, macos: bool = MACOS, user: User | None = None
) -> tuple[Path, ...]:
    """Return the sockets to try when none is named, in order: the user's, then the system's."""
    user = user or current_user()
    own = [path for path in _user_sockets(environ, user, macos) if _ours(path.parent, user.uid)]
    return (*own, system_paths(macos=macos).socket)


def by_environment(
    environ: Mapping[str, str] = os.environ, *, macos: bool = MACOS, user: User | None = None
) -> str:
    """Return how programs without this environment find the socket of the user's daemon.

    Empty where they look there anyway, as nothing leads there but what all programs know. No file
    elsewhere points to it: who sets these variables may mean to keep two daemons apart.
    """
    user = user or current_user()
    socket = user_paths(environ, macos=macos, user=user).socket
    if socket in socket_candidates({}, macos=macos, user=user):
        return ""
    names = ("HOME",) if macos else ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "HOME")
    lead = ", ".join(f"{name}={environ[name]}" for name in names if name in environ)
    return (
        f"{socket} is found only by programs with the same environment ({lead or 'without HOME'}); "
        f"have others set RINGD_SOCKET={socket}"
    )


def left_out(
    environ: Mapping[str, str] = os.environ, *, macos: bool = MACOS, user: User | None = None
) -> str:
    """Return which sockets the environment leads to that are not this user's; empty for none."""
    user = user or current_user()
    others = [
        str(path)
        for path in _user_sockets(environ, user, macos)
        if not _ours(path.parent, user.uid)
    ]
    if not others:
        return ""
    return (
        f"not looked for at {', '.join(others)}, where another user than this one (uid {user.uid}) "
        "may put one; if that is meant, name it with RINGD_SOCKET"
    )


def _user_sockets(environ: Mapping[str, str], user: User, macos: bool) -> list[Path]:
    """Return all places in which a user's daemon may be, by this environment or by another."""
    homes = [_absolute(environ, "HOME"), user.home]
    if macos:
        found = [home / _LIBRARY / "ringd.sock" for home in homes if home]
    else:
        states = [_absolute(environ, "XDG_STATE_HOME"), *(home / _STATE for home in homes if home)]
        bases = [*_runtimes(environ, user), *(state for state in states if state)]
        found = [base / "ringd" / "ringd.sock" for base in bases]
    return list(dict.fromkeys(found))


def _runtimes(environ: Mapping[str, str], user: User) -> list[Path]:
    named = _absolute(environ, "XDG_RUNTIME_DIR")
    return [*([named] if named else []), RUNTIME_DIRS / str(user.uid)]


def _homes(environ: Mapping[str, str], user: User) -> list[Path]:
    """Return the home of the environment, unless it is another user's, the account's, and /."""
    named = _absolute(environ, "HOME")
    ours = named is not None and _ours(named, user.uid)
    return [home for home in (named if ours else None, user.home, Path("/")) if home]


def _absolute(environ: Mapping[str, str], variable: str) -> Path | None:
    # The XDG specification says to ignore relative paths.
    value = Path(environ.get(variable, ""))
    return value if value.is_absolute() else None


def _ours(directory: Path, uid: int) -> bool:
    """Whether nobody but user *uid*, and root, can put anything in *directory*, or make it.

    The group of a directory of the user's own is theirs to choose: often it is the user's alone.
    """
    for place in (directory, *directory.parents):
        try:
            status = place.stat()
        except FileNotFoundError:
            continue
        except OSError:  # what we cannot even look at is none of ours
            return False
        others = stat.S_IWOTH if status.st_uid == uid else stat.S_IWOTH | stat.S_IWGRP
        return status.st_uid in (uid, 0) and not status.st_mode & others
    return False


def _owner(directory: Path) -> int | None:
    try:
        return directory.stat().st_uid
    except OSError:
        return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # by Python's version: in a directory that may not be entered
        return False
