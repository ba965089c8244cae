"""What stands at a place in the file system, in words."""

from __future__ import annotations

import os
import stat
from pathlib import Path

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
