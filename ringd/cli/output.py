"""Files that a command writes where its user says: one rule for all.

A file that is there already is left as it is, unless --force is given; a link is in any case. A
file comes to be as a whole or not at all: it is written beside its place and then put there, so a
full disk takes nothing away. Pipes and terminals are written to.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

FILE = click.Path(dir_okay=False, readable=False, path_type=Path)
"""The type of an argument or option that names such a file."""


def force_option(command: _Command) -> _Command:
    """Add ``--force`` to *command*."""
    return click.option(
        "--force",
        is_flag=True,
        help="Overwrite a file that is there already, which is left as it is otherwise.",
    )(command)


def check_output(path: Path, *, force: bool) -> None:
    """See that a file can be written at *path*: to be said before it is found out what is in it.

    Raises:
        click.ClickException: It cannot, or something is there and *force* is not given.
    """
    try:
        if not _is_channel(path, force=force):
            fd, beside = _open_beside(path, 0o600)
            os.close(fd)
            beside.unlink()
    except OSError as error:
        raise _failed(path, error) from None


def write_output(path: Path, data: bytes, *, force: bool, mode: int = 0o666) -> None:
    """Write *data* to *path*, as a whole or not at all.

    Args:
        path: Where it is to be.
        data: All that is to be in it.
        force: Whether it may be there already.
        mode: Of the file, less what the process's umask forbids.

    Raises:
        click.ClickException: It cannot be written; what was there stays.
    """
    try:
        if _is_channel(path, force=force):
            with path.open("wb") as channel:
                channel.write(data)
            return
        fd, beside = _open_beside(path, mode)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)  # some disks say only then that they are full
            _put(beside, path, force=force)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _failed(path, error) from None


def _is_channel(path: Path, *, force: bool) -> bool:
    """Whether *path* is a pipe or a device of characters, which can only be written to.

    Raises:
        FileExistsError: It is a file, and *force* is not given.
        click.ClickException: It is a link, or something else that is not replaced.
    """
    try:
        entry = path.lstat()
    except FileNotFoundError:
        return False
    with contextlib.suppress(OSError):  # a link that leads nowhere
        target = path.stat().st_mode
        # Another user can put a pipe where our file is to be, and would read it.
        trusted = entry.st_uid in (0, os.geteuid())
        if trusted and (stat.S_ISFIFO(target) or stat.S_ISCHR(target)):
            return True
    if not stat.S_ISREG(entry.st_mode):
        what = "a link" if stat.S_ISLNK(entry.st_mode) else "no regular file"
        raise click.ClickException(f"{path} is {what} and is left as it is; name a file")
    if not force:
        raise FileExistsError
    return False


def _open_beside(path: Path, mode: int) -> tuple[int, Path]:
    """Return a new file in the directory of *path*: its descriptor, and its path."""
    beside = path.with_name(f".ringd-{secrets.token_hex(8)}")  # nobody can have put a link there
    return os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), beside


def _put(beside: Path, path: Path, *, force: bool) -> None:
    if force:
        beside.replace(path)
        return
    # The name is taken first: a file that has come there meanwhile is left as it is, too.
    path.open("xb").close()
    try:
        beside.replace(path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _failed(path: Path, error: OSError) -> click.ClickException:
    if isinstance(error, FileExistsError):
        return click.ClickException(f"{path} is there already; --force overwrites it")
    return click.ClickException(f"{path} cannot be written: {error.strerror or error}")
