"""What stands at a place in the file system, in words."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ringd.host import holder
from ringd.host.holder import Holder

SOCKET, FILE = "a socket", "a file"

_KINDS = {
    stat.S_IFSOCK: SOCKET,
    stat.S_IFREG: FILE,
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def what_is_at(path: str | os.PathLike[str]) -> str:
    """Return what stands at *path*, such as "a directory"; empty where nothing is, or is seen."""
    place = Path(path)
    try:
        mode = place.lstat().st_mode
        if not stat.S_ISLNK(mode):
            return _KINDS.get(stat.S_IFMT(mode), "something else")
        target = place.readlink()
    except (OSError, ValueError):
        return ""
    there = "" if os.path.exists(path) else ", where nothing is"  # noqa: PTH110 - never raises
    return f"a symbolic link to {target}{there}"


def why_silent(path: Path, lifeline: Path) -> str:
    """Return why nobody listens at a daemon's *path*, or at its *lifeline*; empty if none is there.

    Raises:
        OSError: Whether a daemon is starting there is not to be seen.
    """
    daemon = Holder.of(Path(f"{path}{holder.SUFFIX}"))
    if daemon is not None and daemon.waits:
        return f"{path}: the daemon, {daemon}, is starting: {daemon.waits}"
    for place in (path, lifeline):
        if (there := what_is_at(place)) not in {"", SOCKET}:
            return f"{place} is not a socket but {there}; move it away, or name another socket"
    if daemon is not None:
        return f"{path}: the socket of the daemon, {daemon}, is gone; it is made anew soon"
    return ""
