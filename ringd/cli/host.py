"""The machine on which the service is installed: its files, and its commands."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ringd.errors import RingError
from ringd.host.ownfile import open_own
from ringd.service.steps import RemoveEmpty, Run, Step, Write

_WITHIN = 120.0
"""Seconds for one command; a daemon with a slow disk takes some of them to start."""

_RETRY_AFTER = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class Host:
    """This machine, or (for files) a tree like it under *root*."""

    root: Path = Path("/")

    def place(self, path: Path) -> Path:
        """Return where *path*, a full one, is in the tree."""
        return self.root / path.relative_to("/")

    def has(self, path: Path) -> bool:
        """Whether something is at *path*."""
        return os.path.lexists(self.place(path))

    def text(self, path: Path) -> str:
        """Return what stands in the file at *path*; empty where there is none."""
        try:
            return self.place(path).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def output(self, argv: tuple[str, ...]) -> str | None:
        """Return what the command *argv* prints; None if it fails.

        Raises:
            RingError: It cannot be run.
        """
        done = _run(argv)
        return done.stdout if done.returncode == 0 else None

    @contextlib.contextmanager
    def alone(self, definition: Path, waiting: Callable[[], None]) -> Iterator[None]:
        """Keep others from changing the service of *definition* meanwhile.

        They wait for a lock beside it, of which nothing is left behind; *waiting* is called first
        if this one has to. Directories that were not there before the definition are made, and go
        with it when they are empty: a user may have none for units or agents yet. Meanwhile they
        are named in a file beside it.

        Raises:
            RingError: There can be no lock.
        """
        path = self.place(definition.with_name(f".{definition.name}.lock"))
        record = self.place(definition.with_name(f".{definition.name}.made"))
        try:
            fd, made = _lock(path, waiting)
        except OSError as error:
            raise RingError(f"{path}: {error.strerror or error}") from error
        made = made or _recorded(record)
        try:
            yield
        finally:
            # Before the lock is let go, or they would be the next one's.
            with contextlib.suppress(OSError):
                _record(record, made if self.has(definition) else [])
            path.unlink(missing_ok=True)
            if not self.has(definition):
                with contextlib.suppress(OSError):  # a directory with something in it stays
                    for directory in made:
                        directory.rmdir()
            os.close(fd)

    def carry_out(self, steps: Iterable[Step]) -> None:
        """Take *steps*, one after the other, up to the first that fails.

        Raises:
            RingError: One failed; what was done before it stays.
        """
        for step in steps:
            try:
                if isinstance(step, Run):
                    _insist(step)
                elif isinstance(step, Write):
                    _write(self.place(step.path), step.text, step.mode)
                elif isinstance(step, RemoveEmpty):
                    _remove_empty(self.place(step.path))
                else:
                    _remove(self.place(step.path))
            except OSError as error:
                path = step.argv[0] if isinstance(step, Run) else step.path
                raise RingError(f"{path}: {error.strerror or error}") from error


def _lock(path: Path, waiting: Callable[[], None]) -> tuple[int, list[Path]]:
    """Return a descriptor of the file at *path*, with the lock of it, and directories made for it.

    The innermost of them is the first.
    """
    while True:
        made = [directory for directory in path.parents if not directory.exists()]
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            fd = open_own(path, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:  # whoever had the lock has just taken the directory away
            continue
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(fd, fcntl.LOCK_EX)
            # Whoever had it took the file away: others lock the one that is there by now.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.lstat(), os.fstat(fd)):
                    return fd, made
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _recorded(record: Path) -> list[Path]:
    """Return the directories around *record* that stand there as made, the innermost first."""
    try:
        names = set(record.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        return []
    return [directory for directory in record.parents if str(directory) in names]


def _record(record: Path, made: Iterable[Path]) -> None:
    text = "".join(f"{directory}\n" for directory in made)
    if text:
        _write(record, text, 0o644)
    else:
        record.unlink(missing_ok=True)


def _insist(step: Run) -> None:
    for attempt in range(step.tries):
        if attempt:
            time.sleep(_RETRY_AFTER)
        done = _run(step.argv)
        if done.returncode == 0:
            return
    if not step.optional:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        remedy = f"; {step.remedy}" if step.remedy else ""
        raise RingError(f"`{shlex.join(step.argv)}` failed: {said}{remedy}")


def _run(argv: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    environ = dict(os.environ)
    runtime = f"/run/user/{os.geteuid()}"
    if Path(runtime).is_dir():  # which su and cron do not say, and systemctl --user asks for
        environ.setdefault("XDG_RUNTIME_DIR", runtime)
    try:
        return subprocess.run(  # noqa: S603 - our own words
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environ,
            timeout=_WITHIN,
            check=False,
        )
    except FileNotFoundError:
        raise RingError(f"there is no {argv[0]} here") from None
    except subprocess.TimeoutExpired:
        raise RingError(f"`{shlex.join(argv)}` has not ended within {_WITHIN:g} s") from None


def _write(path: Path, text: str, mode: int) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.new-{os.getpid()}")  # two installs at once are no mix
    try:
        with beside.open("x", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:
        if path.is_dir() and not any(path.iterdir()):
            raise
