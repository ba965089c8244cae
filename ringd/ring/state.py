"""What a member must remember across restarts: its generation and its incarnation.

One small JSON file, replaced as a whole: written beside, flushed, renamed, and the directory
flushed, so that a crash at any instant leaves the old state or the new. A damaged file is
set aside and reported, and the member begins anew; the ring tells it the generation, and its
own higher incarnation if others remember one. Numbers that no member would believe are damage, and
are not written either. A lock keeps a second daemon out of the directory; where somebody removes
both, they are made anew. No file here is followed if it is a link, or believed if another user
could have written it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from ringd.errors import RingError
from ringd.host.disk import flush
from ringd.host.holder import Holder
from ringd.host.ownfile import check_directory, open_own
from ringd.wire.link.bounds import MAX_COUNT

STATE_NAME = "state.json"
LOCK_NAME = "lock"

_LARGEST = 65536
"""Bytes that are read of a state file; one has some 100."""


@dataclass(frozen=True, slots=True)
class State:
    """The highest generation this member took part in, and its count of starts."""

    generation: int = 0
    incarnation: int = 0


class _InUseError(OSError):
    """Another daemon holds the directory: *holder*, if that is known."""

    def __init__(self, holder: Holder | None) -> None:
        super().__init__(errno.EBUSY, f"in use by another ringd ({holder or 'unknown'})")
        self.elsewhere = holder is not None and holder.elsewhere


class StateFile:
    """The state of the member *node* in *directory*, which is locked until :meth:`close`.

    ``state`` is what the file said, or zeros where there was none. ``warning`` is a text for
    the log if the file was damaged or another member's, else None.

    Raises:
        RingError: The directory cannot be made, read or written.
        RingError: Another daemon uses it.
    """

    def __init__(self, directory: Path, node: str) -> None:
        self.directory = directory
        self.path = directory / STATE_NAME
        self.node = node
        self.state = State()
        self.warning: str | None = None
        self._lock = -1
        try:
            self._take_lock()
            self._read()
        except _InUseError as error:
            first = "machines cannot share one" if error.elsewhere else "stop that one"
            raise RingError(
                f"{self.directory}: {error.strerror}; {first}, or give this one its own directory "
                "with --state-dir"
            ) from None
        except OSError as error:
            self.close()
            raise _unusable(directory, error) from None

    def save(self, state: State) -> None:
        """Put *state* on the disk; when this returns it is there to stay.

        Raises:
            OSError: It could not be written (a full disk, for instance): the old state stands.
        """
        if max(state.generation, state.incarnation) > MAX_COUNT:
            text = "the numbers are used up; run ringd-cli reset-state on all members"
            raise OSError(errno.ERANGE, text)
        if not self._locked():
            self._take_lock()
        host = socket.gethostname()
        text = json.dumps({"node": self.node, "host": host, **asdict(state)}) + "\n"
        beside = self.directory / (STATE_NAME + ".new")
        with contextlib.suppress(FileNotFoundError):  # of a save that a crash interrupted
            beside.unlink()
        fd = open_own(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            flush(fd)
        beside.rename(self.path)
        self._flush_directory()
        self.state = state

    def keep_locked(self) -> None:
        """Leave the directory locked until the process has ended: a write hangs in it."""
        self._lock = -1

    def close(self) -> None:
        """Let go of the directory; closing twice is harmless."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> StateFile:  # noqa: PYI034  Self is newer than Python 3.10
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _locked(self) -> bool:
        """Whether the lock that is held is the one that others would find."""
        try:
            found = (self.directory / LOCK_NAME).stat()
        except OSError:
            return False
        return os.path.samestat(found, os.fstat(self._lock))

    def _take_lock(self) -> None:
        self.directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        check_directory(self.directory)
        fd = open_own(self.directory / LOCK_NAME, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            Holder.here(self.node).write(fd)
        except BlockingIOError:
            holder = Holder.read(fd)
            os.close(fd)
            raise _InUseError(holder) from None
        except BaseException:
            os.close(fd)
            raise
        self.close()
        self._lock = fd

    def _read(self) -> None:
        try:
            fd = open_own(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return
        with os.fdopen(fd, "rb") as file:
            text = file.read(_LARGEST)
        try:
            content = json.loads(text)
            self.state = State(
                _number(content["generation"], MAX_COUNT),
                _number(content["incarnation"], MAX_COUNT - 1),  # this start is one more
            )
            node, host = content.get("node"), content.get("host")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            self.state = State()
            self.warning = (
                f"{self.path}: damaged ({type(error).__name__}: {error}); {self._set_aside()}"
            )
            return
        if node != self.node:
            # Numbers higher than needed do no harm, so they are kept.
            self.warning = (
                f"{self.path}: was written by the member {node!r}, this is {self.node!r}; its "
                "generation and incarnation are kept"
            )
        elif host is not None and host != socket.gethostname():
            self.warning = (
                f"{self.path}: was written on the host {host!r}, this is {socket.gethostname()!r}; "
                "its generation and incarnation are kept; if both machines run, give each its own "
                "directory with --state-dir"
            )

    def _set_aside(self) -> str:
        return f"set aside as {set_aside(self.path).name}, beginning anew"

    def _flush_directory(self) -> None:
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flush(fd)
        finally:
            os.close(fd)


def reset(directory: Path) -> Path | None:
    """Set the state in *directory* aside; return its new name, None where there was none.

    Raises:
        RingError: A daemon uses it, or it cannot be renamed.
    """
    try:
        with contextlib.ExitStack() as held:
            with contextlib.suppress(FileNotFoundError):  # no daemon has ever run there
                lock = open_own(directory / LOCK_NAME, os.O_RDWR, uid=directory.stat().st_uid)
                held.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path = directory / STATE_NAME
            return set_aside(path, "reset") if os.path.lexists(path) else None
    except BlockingIOError:
        raise RingError(f"{directory}: a daemon uses it; stop that first") from None
    except OSError as error:
        raise RingError(f"{error.filename or directory}: {error.strerror}") from None


def set_aside(path: Path, why: str = "damaged") -> Path:
    """Rename the state file *path*, and return its new name."""
    number = 1
    while (aside := path.with_name(f"{STATE_NAME}.{why}-{number}")).exists():
        number += 1
    return path.rename(aside)


def _number(value: object, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{value!r} is not a number from 0 to {most}")
    return value


def _unusable(directory: Path, error: OSError) -> RingError:
    # As mkdir says it of a file in the directory's place.
    what = "not a directory" if isinstance(error, FileExistsError) else error.strerror
    return RingError(
        f"{directory}: cannot keep state here: {what} ({error.filename or directory}); "
        "let the user that runs ringd own it, and nobody else write there, or name another with "
        "--state-dir"
    )
