"""The file that holds the ring's shared key: 32 or more bytes in base64, for one user's eyes.

It belongs to that user, or to root, who may let the group of the service's user read it.

No text made here ever contains a part of the key.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from pathlib import Path

KEY_BYTES = 32
_LARGEST_FILE = 4096
_REMEDY = (
    "copy the file of the other machines, or remove it and make one for all with ringd-cli keygen"
)
_FORBIDDEN_MODE = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO


def read_key(path: Path, uid: int | None = None) -> bytes:
    """Return the key in the file at *path*, for a daemon of the user *uid*: this process's if None.

    Raises:
        ValueError: The file is missing, unreadable, open to other users, or holds no good key;
            the text says which and what to do.
    """
    try:
        # Not blocking, so that a FIFO in the file's place cannot stop the daemon's start.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ValueError(
            f'no such file: {path}; make one with "ringd-cli keygen {path}", or copy the one of '
            "the other machines"
        ) from None
    except OSError as error:
        raise ValueError(
            f"cannot be read: {error.strerror}: {path}; run this as root or as the daemon's user, "
            "and let that user own the file, or root, with that user's group to read it"
        ) from None
    try:
        _check_access(path, os.fstat(fd), os.geteuid() if uid is None else uid)
        text = os.read(fd, _LARGEST_FILE + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}: {path}") from None
    finally:
        os.close(fd)
    if len(text) > _LARGEST_FILE:
        raise ValueError(f"{path} is not a key; {_REMEDY}")
    return _decode(path, text)


def create_key(path: Path) -> None:
    """Write a new random key to *path*, with mode 0600 from its first instant.

    Raises:
        FileExistsError: Something is at *path*; it is left as it is.
        OSError: The file cannot be written; nothing is left behind.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(base64.b64encode(os.urandom(KEY_BYTES)) + b"\n")
            file.flush()
            os.fsync(fd)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def is_key_text(text: str) -> bool:
    """Whether *text* could be a key itself, put where its file's name belongs."""
    try:
        return len(base64.b64decode(text, validate=True)) >= KEY_BYTES
    except ValueError:
        return False


def _check_access(path: Path, status: os.stat_result, uid: int) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is not a regular file; name the file that keygen made")
    if status.st_uid not in (0, uid):
        raise ValueError(
            f"belongs to user {status.st_uid}, who could replace the key; let root own it, or the "
            f"user that runs ringd: {path}"
        )
    if mode & _FORBIDDEN_MODE:
        raise ValueError(f'open to others (mode {mode:04o}); run "chmod 600 {path}"')
    # Root's own file is open to the group that root chose: the service's, as a rule. Which group a
    # daemon of another user has is not known here; it has looked itself.
    own_group = uid != os.geteuid() or status.st_gid == os.getegid()
    if mode & stat.S_IRGRP and status.st_uid and not own_group:
        raise ValueError(
            f"readable by a group that is not the daemon's own (mode {mode:04o}, group "
            f'{status.st_gid}); run "chmod 600 {path}"'
        )


def _decode(path: Path, text: bytes) -> bytes:
    try:
        key = base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error:
        raise ValueError(f"{path} holds no base64; {_REMEDY}") from None
    if len(key) < KEY_BYTES:
        raise ValueError(
            f"the key in {path} has {len(key)} bytes, fewer than {KEY_BYTES}; {_REMEDY}"
        )
    return key
