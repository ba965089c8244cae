"""The sockets removed under a daemon that lives on: by a cleaner, a logout, a hasty hand."""

from __future__ import annotations

import gc
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from borderkit import Raw
from fake_daemon import FakeDaemon, open_fds
from structlog.testing import capture_logs

import ringd
from ringd.border import upkeep
from ringd.border.endpoint import Endpoint
from ringd.border.lock import SocketLock
from ringd.wire.border import messages as border
from tests.cluster import wait_until

EVERY = 0.02
"""Seconds between looks."""


@pytest.fixture
def daemon(place, monkeypatch):
    """Give a fake daemon that looks often, in a directory of its own."""
    monkeypatch.setattr(upkeep, "LOOK_EVERY", EVERY)
    with capture_logs() as logged, FakeDaemon(place / "d" / "s") as daemon:
        daemon.logged = logged
        yield daemon


def files(daemon):
    """Return the paths of the sockets and the lock."""
    return [Path(daemon.path + suffix) for suffix in ("", ".life", ".lock")]


def remove_everything(daemon):
    """What rm -r does, with no look in its midst: it would find a file that was not there."""
    daemon.run(lambda: shutil.rmtree(Path(daemon.path).parent))


def replace_directory(daemon):
    """What a boot script does that makes the directory again."""

    def replace():
        shutil.rmtree(Path(daemon.path).parent)
        Path(daemon.path).parent.mkdir()

    daemon.run(replace)


def move_directory(daemon):
    """All files live on, in another place."""
    directory = Path(daemon.path).parent
    directory.rename(directory.with_name("moved"))


def remove(suffix):
    """Return what removes one file."""
    return lambda daemon: Path(daemon.path + suffix).unlink()


def put_another_socket(daemon):
    """A second program took the path, as libzmq does, and died."""
    Path(daemon.path).unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(daemon.path)


FAULTS = {
    "everything": remove_everything,
    "directory replaced": replace_directory,
    "directory moved": move_directory,
    "socket": remove(""),
    "lifeline": remove(".life"),
    "lock": remove(".lock"),
    "another socket in its place": put_another_socket,
}


def errors(daemon):
    """Return what was logged as an error."""
    return [line for line in daemon.logged if line["log_level"] == "error"]


def whole(daemon):
    """Whether all is in its place."""
    return daemon.run(lambda: not daemon.server._endpoint.lost())


def stop_looking(daemon):
    """Let somebody else be first."""

    def stop():
        daemon.server._upkeep._next.cancel()

    daemon.run(stop)


def look(daemon, times=5):
    """Have the daemon look *times* times, now."""

    def look():
        daemon.server._upkeep._next.cancel()  # a look orders the next one
        daemon.server._upkeep._look()

    for _ in range(times):
        daemon.run(look)


@pytest.mark.parametrize("name", FAULTS)
def test_sockets_are_made_anew_and_programs_notice_nothing(daemon, name):
    """Who is attached goes on, over and over; who comes later gets in; the lock holds again."""
    x = np.ones(100_000, np.float32)
    with ringd.connect(daemon.path, "old") as old, Raw(daemon, group="raw") as raw:
        for _ in range(3):
            FAULTS[name](daemon)
            wait_until(lambda: whole(daemon), "everything in its place")
            if name == "directory moved":
                shutil.rmtree(Path(daemon.path).parent.with_name("moved"))
            assert (old.all_reduce(x) == 2).all()
            assert raw.ask(border.AskStatus(border.VERSION)) == border.Answer(
                b'{"schema_version": 1}'
            )
            with ringd.connect(daemon.path, "new", timeout=10) as new:
                assert (new.all_reduce(x) == 2).all()
            with pytest.raises(ringd.Refused, match="belongs to a running daemon"):
                Endpoint(SocketLock(daemon.path, node="other"), mode=0o660, group="")
        assert len(daemon.handler.attaches) == 5  # nobody attached a second time
    assert [stat.st_mode & 0o777 for stat in map(Path.stat, files(daemon)[:2])] == [0o660] * 2


def test_old_sockets_are_closed_when_nobody_is_left_on_them(daemon):
    """While somebody is attached each costs a descriptor; no removal more is needed to end that."""
    gc.collect()  # what former tests have left
    before = open_fds()
    with ringd.connect(daemon.path) as ring:
        ring.barrier()
        for _ in range(3):
            remove_everything(daemon)
            wait_until(lambda: whole(daemon), "everything in its place")
        assert daemon.run(lambda: daemon.server._upkeep._old_sockets) == 3
        ring.barrier()
    wait_until(lambda: open_fds() <= before, "the old ones are closed")
    with ringd.connect(daemon.path, timeout=10) as ring:
        ring.barrier()
    wait_until(lambda: open_fds() <= before, "and nothing else is open")
    assert len([line for line in daemon.logged if "made anew" in line["event"]]) == 3


def test_descriptors_are_bounded_while_somebody_is_attached(daemon, monkeypatch):
    """What removes the socket without end costs that many descriptors, and is said once."""
    monkeypatch.setattr(upkeep, "MAX_REMOVALS", 2)
    with ringd.connect(daemon.path) as ring:
        for _ in range(2):
            remove_everything(daemon)
            wait_until(lambda: whole(daemon), "everything in its place")
        remove_everything(daemon)
        look(daemon)
        (line,) = errors(daemon)
        assert "was removed 2 times" in line["reason"]
        ring.barrier()
    wait_until(lambda: whole(daemon), "everything in its place")
    with ringd.connect(daemon.path, timeout=10) as ring:
        ring.barrier()


def test_another_daemon_that_has_the_path_keeps_it(daemon):
    """No fight: the first goes on for those that it has, says so once, and returns afterwards."""
    with ringd.connect(daemon.path) as ring:
        stop_looking(daemon)
        remove_everything(daemon)
        other = Endpoint(SocketLock(daemon.path, node="other"), mode=0o660, group="")
        look(daemon)
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(daemon.path)
            other.socket.accept()[0].close()
        ring.barrier()
        (line,) = errors(daemon)
        assert "node other" in line["reason"]
        for sock in (other.socket, other.lifeline_socket):
            sock.close()
        other.close()
        wait_until(lambda: whole(daemon), "everything in its place")
        ring.barrier()


def test_what_cannot_be_made_anew_is_said_once(daemon):
    """Where the directory may not be made, the log says why; it is made when it may."""
    directory = Path(daemon.path).parent
    with ringd.connect(daemon.path) as ring:
        stop_looking(daemon)
        shutil.rmtree(directory)
        directory.write_text("in the way")
        look(daemon)
        ring.barrier()
        (line,) = errors(daemon)
        assert daemon.path in line["reason"]
        directory.unlink()
        wait_until(lambda: whole(daemon), "everything in its place")
        ring.barrier()
    assert daemon.logged[-1]["event"] == "the sockets were removed; they are made anew"


def test_closing_leaves_another_daemons_sockets(daemon):
    """What took the path over is not ours to remove."""
    stop_looking(daemon)
    remove_everything(daemon)
    other = Endpoint(SocketLock(daemon.path, node="other"), mode=0o660, group="")
    daemon.stop()
    assert [path.exists() for path in files(daemon)] == [True] * 3
    for sock in (other.socket, other.lifeline_socket):
        sock.close()
    other.close()
