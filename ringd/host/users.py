"""Which users of this machine are in a group."""

from __future__ import annotations

import grp
import pwd


def is_in_group(uid: int, gid: int) -> bool:
    """Whether the user of this number is in the group of that number."""
    try:
        user = pwd.getpwuid(uid)
        return user.pw_gid == gid or user.pw_name in grp.getgrgid(gid).gr_mem
    except KeyError:
        return False


def group_id(name: str) -> int:
    """Return the number of a group, given by its name or number.

    Raises:
        KeyError: There is none.
    """
    return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid
