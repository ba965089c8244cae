"""What the commands say of a socket at which nobody answers: what is wrong, and what to do."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from clientkit import unavailable

from ringd.border.endpoint import Endpoint
from ringd.border.lock import STARTING, SocketLock
from ringd.cli.ask import ask, find_socket
from ringd.cli.main import main
from ringd.errors import ConfigError, DaemonUnavailable, Refused
from ringd.host.holder import Holder
from ringd.wire.border import lifeline
from ringd.wire.border.messages import AskStatus
from tests.cluster import Cluster


def said(path: Path) -> str:
    """Return what asking at *path* ends with."""
    with pytest.raises(DaemonUnavailable) as caught:
        ask(path, AskStatus, timeout=0.2)
    return str(caught.value)


def test_a_daemon_that_is_gone(place: Path) -> None:
    """It has left its sockets behind."""
    path = place / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path) + lifeline.SUFFIX)
    assert "the daemon that made it is gone" in said(path)


def test_a_daemon_that_is_stuck(place: Path) -> None:
    """Nobody accepts, and no more may wait: to start a second daemon is no remedy."""
    path = place / "s"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path) + lifeline.SUFFIX)
        listener.listen(0)
        first.connect(listener.getsockname())
        text = said(path)
    assert "its daemon is stopped or stuck: see its log, or restart it" in text
    assert "gone" not in text


@pytest.mark.parametrize("name", ["x" * 200, "file/s"])
def test_a_path_that_is_none(place: Path, name: str) -> None:
    """Nothing is said of a daemon there."""
    (place / "file").touch()
    text = said(place / name)
    assert text.endswith("correct --socket")
    assert "gone" not in text


def found(path: Path) -> str:
    """Return what a command says that looks for a daemon at *path*."""
    with pytest.raises(DaemonUnavailable) as caught:
        find_socket(path)
    return str(caught.value)


def test_a_daemon_that_is_starting(place: Path) -> None:
    """It is named, with what it waits for; nobody is told to start another one."""
    path = place / "s"
    with SocketLock(path, node="mini") as lock:
        text = found(path)
        assert f"the daemon, process {os.getpid()} on host" in text
        assert f"is starting: {STARTING}" in text
        assert "start ringd" not in text
        lock.say("the disk\x1b is slow")
        assert "is starting: the disk? is slow" in found(path)
        with socket.socket(socket.AF_UNIX) as stale:  # of one that was killed before
            stale.bind(str(path) + lifeline.SUFFIX)
        assert "is starting" in found(path)
    assert "the daemon that made it is gone" in found(path)


def test_a_program_that_connects_is_told_the_same(place: Path) -> None:
    """What a daemon that starts waits for, or what stands in its socket's place."""
    with SocketLock(place / "s", node="mini") as lock:
        lock.say("the disk is slow")
        told = unavailable(place / "s")
        assert "is starting: the disk is slow" in told
        assert "start one" not in told
    (place / "s").mkdir()
    assert "is not a socket but a directory; move it" in unavailable(place / "s")


def test_a_daemon_whose_socket_is_gone(place: Path) -> None:
    """It runs, and makes the socket anew by itself."""
    with SocketLock(place / "s", node="mini", waits=""):
        text = found(place / "s")
    assert "it is made anew soon" in text
    assert "start ringd" not in text


def test_a_look_is_no_obstacle(place: Path) -> None:
    """Whoever looks whether a daemon starts keeps none from that, and sees none that has died."""
    lock = place / "s.lock"
    SocketLock(place / "s", node="mini").close()
    assert Holder.of(lock) is None
    lock.write_text(f"1 dead here\n{STARTING}\n")
    assert Holder.of(lock) is None
    assert "nothing at" in found(place / "s")


def test_a_lock_that_may_not_be_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said what cannot be seen."""

    def refuse(_path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Holder, "of", refuse)
    assert "whether a daemon is starting there cannot be seen" in found(place / "s")


OBSTACLES = {
    "a file": lambda path: path.touch(),
    "a directory": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a symbolic link to nowhere, where nothing is": lambda path: path.symlink_to("nowhere"),
    "a symbolic link to /": lambda path: path.symlink_to("/"),
}


@pytest.mark.parametrize("suffix", ["", lifeline.SUFFIX])
@pytest.mark.parametrize("what", OBSTACLES)
def test_something_else_at_the_sockets_place(place: Path, what: str, suffix: str) -> None:
    """It is said what is there, and that no daemon can start before it is moved away."""
    OBSTACLES[what](place / f"s{suffix}")
    text = found(place / "s")
    assert f"{place}/s{suffix} is not a socket but {what}; move it away" in text
    assert "start ringd" not in text
    with (
        SocketLock(place / "s", node="mini") as lock,
        pytest.raises(ConfigError, match=f"is not a socket but {what}; move it away"),
    ):
        Endpoint(lock, mode=0o660, group="")


@pytest.mark.parametrize("what", sorted(OBSTACLES.keys() - {"a file", "a pipe"}))  # can be locked
def test_something_else_at_the_locks_place(place: Path, what: str) -> None:
    """No other directory is asked for: it would not help the one who reads that."""
    OBSTACLES[what](place / "s.lock")
    with pytest.raises(ConfigError, match=f"s.lock, the lock of .*, is {what}; move it away"):
        SocketLock(place / "s", node="mini")


def test_all_that_is_found_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several places where a daemon may be, each with what is wrong there."""
    monkeypatch.setattr("ringd.host.paths.socket_candidates", lambda: (place / "a", place / "b"))
    with SocketLock(place / "b", node="mini"), pytest.raises(DaemonUnavailable) as caught:
        find_socket(None)
    assert "is starting" in str(caught.value)
    assert f"nothing at {place}/a" in str(caught.value)
    with SocketLock(place / "b", node="mini"), pytest.raises(Refused, match="node mini"):
        SocketLock(place / "b", node="other")


COMMANDS = [
    ["status"],
    ["health"],
    ["health", "--wait", "1s"],
    ["rejoin"],
    ["reload"],
    ["trace"],
    ["trace", "--chrome", "trace.json"],
]


def test_no_command_waits_for_one_that_is_stopped(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each says where and who that is, and what to do, and ends soon; also when it is gone."""
    monkeypatch.chdir(place)
    monkeypatch.setattr("ringd.cli.ask.ANSWER_WITHIN", 0.2)
    with Cluster(place, 1) as cluster:
        (node,) = cluster.start().nodes
        cluster.wait_ready()
        for sign, texts in (
            (signal.SIGSTOP, [f"process {node.pid} on", "is stopped or stuck", "restart it"]),
            (signal.SIGKILL, ["the daemon that made it is gone", "start ringd"]),
        ):
            node.signal(sign)
            if sign == signal.SIGKILL:
                node.kill()
            for words in COMMANDS:
                began = time.monotonic()
                done = CliRunner().invoke(main, [*words, "--socket", str(node.socket)])
                assert done.exit_code == 3, words
                assert str(node.socket) in done.output
                for text in texts:
                    assert text in done.output, words
                assert time.monotonic() - began < 8.0, words
