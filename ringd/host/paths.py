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
Nothing here touches the file system but :func:`find_config`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MACOS = sys.platform == "darwin"


@dataclass(frozen=True, slots=True)
class Paths:
    """The three places that a daemon uses."""

    config: Path
    socket: Path
    state_dir: Path


def system_paths(*, macos: bool = MACOS) -> Paths:
    """Return the places of the daemon that runs for the whole machine."""
    config = Path("/etc/ringd/ringd.toml")
    if macos:
        base = Path("/var/db/ringd")
        return Paths(config, base / "ringd.sock", base / "state")
    return Paths(config, Path("/run/ringd/ringd.sock"), Path("/var/lib/ringd"))


def user_paths(environ: Mapping[str, str] = os.environ, *, macos: bool = MACOS) -> Paths:
    """Return the places of a daemon that a user runs for themselves."""
    home = Path(environ.get("HOME") or "/")
    if macos:
        base = home / "Library" / "Application Support" / "ringd"
        return Paths(base / "ringd.toml", base / "ringd.sock", base / "state")
    config = _xdg(environ, "XDG_CONFIG_HOME", home / ".config")
    state = _xdg(environ, "XDG_STATE_HOME", home / ".local" / "state")
    # Without a runtime directory the state directory is the next place that is the user's own;
    # a guessable name in /tmp could be taken by somebody else first.
    runtime = _xdg(environ, "XDG_RUNTIME_DIR", state)
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
    return system if not own.exists() and system.exists() else own


def socket_candidates(
    environ: Mapping[str, str] = os.environ, *, macos: bool = MACOS
) -> tuple[Path, ...]:
    """Return the sockets to try when none is named, in order: the user's, then the system's."""
    return (user_paths(environ, macos=macos).socket, system_paths(macos=macos).socket)


def _xdg(environ: Mapping[str, str], variable: str, default: Path) -> Path:
    # The XDG specification says to ignore relative paths.
    value = Path(environ.get(variable, ""))
    return value if value.is_absolute() else default
