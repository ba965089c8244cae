"""The files that commands write where their user says: one rule, whichever command it is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ringd.cli import output
from ringd.cli.main import main
from ringd.cli.output import FILE, write_output
from tests.cluster import Cluster

WORDS = {
    "init": ("init", "{file}", "--member", "a=10.0.0.1:1"),
    "import": ("import", "{hosts}", "-o", "{file}"),
    "export": ("export", "--mlx", "--config", "{config}", "-o", "{file}"),
    "trace": ("trace", "--socket", "{socket}", "--chrome", "{file}"),
    "bench": ("bench", "--socket", "{socket}", "--max", "8", "--plot", "{file}"),
    "bugreport": ("bugreport", "--socket", "{socket}", "-o", "{file}"),
    "mlx-hostfile": ("mlx-hostfile", "--socket", "{socket}", "{file}"),
}
"""By command: how it is told to write a file."""

FEW_BYTES = "ulimit -f 0; exec "
"""For a shell: what it starts finds no room in any file, as on a full disk."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give a ring of one."""
    with Cluster(tmp_path_factory.mktemp("ring"), 1) as cluster:
        (cluster.directory / "hosts.json").write_text('["10.0.0.1:5000"]')
        cluster.start().wait_ready()
        yield cluster


def written(
    cluster: Cluster, command: str, file: Path, *more: str, shell: str = "exec "
) -> tuple[int, str]:
    """Have *command* write *file*; return its exit code and what it says on standard error."""
    places = {"file": file, "socket": cluster.sockets[0], "config": cluster.config}
    places["hosts"] = cluster.directory / "hosts.json"
    words = [word.format(**places) for word in (*WORDS[command], *more)]
    program = str(Path(sys.executable).with_name("ringd-cli"))
    done = subprocess.run(
        ["sh", "-c", f'{shell}"$0" "$@"', program, *words],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    return done.returncode, done.stderr


def test_each_option_that_names_a_file_to_write_is_of_the_rule() -> None:
    """All but keygen can be forced, which makes no key where one is already."""
    found = set()
    for name, command in main.commands.items():
        for parameter in command.params:
            kind = parameter.type
            if isinstance(kind, click.Path) and not (kind.readable or kind.dir_okay):
                assert kind is FILE, name
                found.add(name)
    assert found == {*WORDS, "keygen"}
    for name in WORDS:
        (force,) = (one for one in main.commands[name].params if one.name == "force")
        assert isinstance(force, click.Option)
        assert "left as it is otherwise" in str(force.help)


@pytest.mark.parametrize("command", WORDS)
def test_a_file_that_is_there_is_overwritten_only_when_told(
    alone: Cluster, place: Path, command: str
) -> None:
    """It is left as it is, in one line that names the option; with that it is another one."""
    file = place / "out"
    file.write_text("precious")
    refusal = f"Error: {file} is there already; --force overwrites it\n"
    assert written(alone, command, file) == (1, refusal)
    assert file.read_text() == "precious"
    code, said = written(alone, command, file, "--force")
    assert code == 0, said
    assert b"precious" not in file.read_bytes()
    assert [path.name for path in place.iterdir()] == ["out"]


@pytest.mark.parametrize("command", WORDS)
def test_without_its_directory(alone: Cluster, place: Path, command: str) -> None:
    """That is one line, and no directory comes to be."""
    file = place / "gone" / "out"
    said = f"Error: {file} cannot be written: No such file or directory\n"
    assert written(alone, command, file) == (1, said)
    assert list(place.iterdir()) == []


# A program of a ring has memory that is a file, too: bench does not come as far as to its picture.
@pytest.mark.parametrize("command", [name for name in WORDS if name != "bench"])
def test_a_full_disk(alone: Cluster, place: Path, command: str) -> None:
    """That is one line; no part of a file is left, and one that was there stays whole."""
    file = place / "out"
    said = f"Error: {file} cannot be written: File too large\n"
    assert written(alone, command, file, shell=FEW_BYTES) == (1, said)
    assert list(place.iterdir()) == []
    file.write_text("precious")
    assert written(alone, command, file, "--force", shell=FEW_BYTES) == (1, said)
    assert file.read_text() == "precious"
    assert list(place.iterdir()) == [file]


@pytest.mark.parametrize("mode", [0o666, 0o600])
def test_the_mode(place: Path, mode: int) -> None:
    """It is as of any new file, also where one with another mode was there; or as asked for."""
    file, other = place / "out", place / "other"
    other.touch()
    file.touch(mode=0o640)
    write_output(file, b"new", force=True, mode=mode)
    usual = other.stat().st_mode & 0o777
    assert file.stat().st_mode & 0o777 == usual & mode
    assert file.read_bytes() == b"new"


@pytest.mark.parametrize("force", [False, True])
def test_a_link_is_left_as_it_is(place: Path, force: bool) -> None:
    """Whether it leads to a file or nowhere: neither is it followed nor replaced."""
    file, link = place / "file", place / "link"
    link.symlink_to(file)
    for _ in range(2):
        with pytest.raises(click.ClickException, match="is a link and is left as it is"):
            write_output(link, b"new", force=force)
        assert link.readlink() == file
        file.write_bytes(b"precious")
    write_output(file, b"new", force=True)
    assert link.read_bytes() == b"new"


def test_a_socket_is_left_as_it_is(place: Path) -> None:
    """As all that is neither a file nor to be written to."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(place / "s"))
        with pytest.raises(click.ClickException, match="is no regular file"):
            write_output(place / "s", b"new", force=True)


def test_a_pipe_is_written_to(place: Path) -> None:
    """It stays a pipe, as where a shell gives one to a command that reads."""
    pipe, read = place / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_output(pipe, b"new", force=False)
    reader.join()
    assert (read, pipe.is_fifo()) == ([b"new"], True)


def test_the_pipe_of_another_user_is_not(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who can guess a report's name, and write to its directory, is not to read it."""
    os.mkfifo(place / "pipe")
    entry = (place / "pipe").lstat()
    monkeypatch.setattr(os, "geteuid", lambda: entry.st_uid + 1)
    monkeypatch.setattr(
        Path, "lstat", lambda _path: os.stat_result([*entry[:4], entry.st_uid + 2, *entry[5:10]])
    )
    with pytest.raises(click.ClickException, match="is no regular file"):
        write_output(place / "pipe", b"secret", force=True)


def test_a_file_that_comes_there_meanwhile(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left as it is, too."""
    file, put = place / "out", output._put

    def late(beside: Path, path: Path, *, force: bool) -> None:
        file.write_text("precious")
        put(beside, path, force=force)

    monkeypatch.setattr(output, "_put", late)
    with pytest.raises(click.ClickException, match="is there already"):
        write_output(file, b"new", force=False)
    assert file.read_text() == "precious"
    assert list(place.iterdir()) == [file]


def test_a_file_that_cannot_be_put_in_its_place(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left of it, nor of the name that was taken for it."""

    def fail(_path: Path, _target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(click.ClickException, match="cannot be written: Operation not permitted"):
        write_output(place / "out", b"new", force=False)
    assert list(place.iterdir()) == []
