"""The daemon's sockets: their mode from the first instant, and whose they are."""

import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from fake_daemon import FakeDaemon, open_fds

from ringd import errors
from ringd.border.endpoint import Endpoint
from ringd.border.listening import group_id
from ringd.border.lock import SocketLock
from ringd.host import holder
from ringd.host.credentials import MAX_SOCKET_PATH

SOCKETS = ("s", "s.life", "s.zmq")
FAKE = Path(__file__).with_name("fake_daemon.py")


def make(path, mode=0o660, group=""):
    """Open an endpoint and own its sockets."""
    return Endpoint(SocketLock(path, node="here"), mode=mode, group=group)


def shut(opened):
    """Close an endpoint and its sockets."""
    opened.socket.close()
    opened.lifeline_socket.close()
    opened.inner_socket.close()
    opened.close()


@pytest.mark.parametrize("mode", [0o660, 0o600, 0o666])
@pytest.mark.parametrize("group", ["", str(os.getgid())])
def test_mode_is_right_before_anyone_can_connect(tmp_path, monkeypatch, mode, group):
    """From bind to listen no one gets in who may not, and then the mode is as configured."""
    seen = []
    real_listen = socket.socket.listen
    real_chown = os.chown

    def listen(self, backlog):
        seen.append(stat.S_IMODE(Path(self.getsockname()).stat().st_mode))
        real_listen(self, backlog)

    def chown(path, uid, gid):
        assert stat.S_IMODE(Path(path).stat().st_mode) == mode & 0o700
        real_chown(path, uid, gid)

    monkeypatch.setattr(socket.socket, "listen", listen)
    monkeypatch.setattr(os, "chown", chown)
    umask = os.umask(0o022)
    try:
        shut(make(tmp_path / "s", mode, group))
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(umask)
    assert seen == [mode, mode, 0o600]  # the last one is for the daemon itself


@pytest.mark.parametrize("group", ["", str(os.getgid())])
def test_socket_is_in_its_place_only_when_it_listens(tmp_path, monkeypatch, group):
    """So nobody is turned away, or let in, by one that is not what it is to be."""
    real_listen, real_chown, there = socket.socket.listen, os.chown, []

    def look():
        there.extend(path for path in map(tmp_path.__truediv__, SOCKETS) if path.exists())

    def listen(self, backlog):
        look()
        real_listen(self, backlog)
        look()

    def chown(*args):
        look()
        real_chown(*args)

    monkeypatch.setattr(socket.socket, "listen", listen)
    monkeypatch.setattr(os, "chown", chown)
    opened = make(tmp_path / "s", group=group)
    assert there == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "s.life", "s.lock", "s.zmq"]
    for suffix in ("", ".life", ".zmq"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(opened.path + suffix)
    shut(opened)


def refuse(*_):
    """Do what the system does when something must not be."""
    raise OSError(errno.EPERM, "Operation not permitted")


FAILURES = [(os, "chown"), (socket.socket, "listen"), (socket, "socket"), (Path, "rename")]


@pytest.mark.parametrize(
    ("removed", "owner", "name"),
    [
        pytest.param(removed, owner, name, id=f"{removed}-{name}")
        for removed in (*SOCKETS, None)
        for owner, name in FAILURES
        if (removed, name) != ("s.zmq", "chown")  # it has no group
    ],
)
def test_failure_leaves_all_as_it_was(tmp_path, monkeypatch, removed, owner, name):
    """What works goes on to, what is lost is known to be, and the next try makes it."""
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, refuse)
        with pytest.raises(errors.ConfigError, match="not permitted"):
            make(tmp_path / "s", group=str(os.getgid()))
    assert [path.name for path in tmp_path.iterdir()] == ["s.lock"]
    opened = make(tmp_path / "s", group=str(os.getgid()))
    sockets = (opened.socket, opened.lifeline_socket, opened.inner_socket)
    if removed is not None:
        (tmp_path / removed).unlink()
    lost, fds = opened.lost(), open_fds()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, refuse)
        with pytest.raises(errors.ConfigError, match="not permitted"):
            opened.renew(*([] if removed else [opened.path]))
    assert (opened.socket, opened.lifeline_socket, opened.inner_socket) == sockets
    assert (opened.lost(), open_fds()) == (lost, fds)
    left = {*SOCKETS, "s.lock"} - {removed}
    assert {path.name for path in tmp_path.iterdir()} == left
    for path in left - {"s.lock"}:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / path))
    opened.renew()
    assert opened.lost() == []
    for listener in {*sockets, opened.socket, opened.lifeline_socket, opened.inner_socket}:
        listener.close()
    opened.close()


def test_socket_that_nobody_listens_on_is_not_left_in_its_place(tmp_path, monkeypatch):
    """When the second cannot be put in its place, the first is known to be lost."""
    opened, rename = make(tmp_path / "s"), Path.rename

    def rename_one(path, target):
        return refuse() if str(target).endswith(".life") else rename(path, target)

    sockets = (opened.socket, opened.lifeline_socket, opened.inner_socket)
    for name in SOCKETS:
        (tmp_path / name).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename_one)
        with pytest.raises(errors.ConfigError):
            opened.renew()
    assert opened.lost() == [str(tmp_path / name) for name in SOCKETS]
    assert [path.name for path in tmp_path.iterdir()] == ["s.lock"]
    opened.renew()
    for listener in sockets:
        listener.close()
    shut(opened)


def test_longest_path_that_can_be(tmp_path):
    """What is made beside the sockets' places fits where these do."""
    room = MAX_SOCKET_PATH - len(str(tmp_path / "s")) - len(".life")
    if room < 0:
        pytest.skip("the tests' directory has a long name itself")
    shut(make(tmp_path / ("s" + room * "x")))


def test_second_daemon_is_told_whom_to_stop(tmp_path):
    """A path in use is refused with the holder's pid and node, and the holder is unharmed."""
    first = make(tmp_path / "s")
    with pytest.raises(errors.Refused) as refusal:
        make(tmp_path / "s")
    text = str(refusal.value)
    assert f"process {os.getpid()} on host {socket.gethostname()}, node here" in text
    assert f"kill {os.getpid()}" in text
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(first.path)
    shut(first)


def test_daemon_of_another_machine_is_told_apart(tmp_path, monkeypatch):
    """In a directory that machines share nobody is told to kill a process of his own by mistake."""
    first = make(tmp_path / "s")
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    with pytest.raises(errors.Refused) as refusal:
        make(tmp_path / "s")
    text = str(refusal.value)
    assert "stop it there" in text
    assert "kill" not in text
    (tmp_path / "s.lock").write_text("?")
    with pytest.raises(errors.Refused, match=r"a running daemon, another process; stop it with"):
        make(tmp_path / "s")
    shut(first)


def test_second_daemon_process_leaves_the_first_at_work(tmp_path):
    """A whole second daemon on the same socket fails with the pid, and the first goes on."""
    with FakeDaemon(tmp_path / "s") as daemon:
        second = subprocess.run(
            [sys.executable, str(FAKE), daemon.path], capture_output=True, text=True, check=False
        )
        assert second.returncode == 1
        assert f"process {os.getpid()}" in second.stderr
        assert Path(daemon.path).exists()


def test_stale_sockets_are_replaced(tmp_path):
    """What a killed daemon left behind is no obstacle."""
    for name in SOCKETS:
        with socket.socket(socket.AF_UNIX) as old:
            old.bind(str(tmp_path / name))
    (tmp_path / "s.lock").write_text("99999 gone\n")
    opened = make(tmp_path / "s")
    signature = f"{os.getpid()} here {socket.gethostname()}\n"
    assert (tmp_path / "s.lock").read_text() == signature
    shut(opened)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.lock"]


def test_file_that_is_no_socket_is_left_alone(tmp_path):
    """Somebody's file is not deleted, and nothing of ours stays."""
    (tmp_path / "s").write_text("precious")
    with pytest.raises(errors.ConfigError, match="is not a socket"):
        make(tmp_path / "s")
    assert (tmp_path / "s").read_text() == "precious"
    (tmp_path / "s").unlink()
    shut(make(tmp_path / "s"))


def test_lifeline_path_that_is_no_socket_undoes_the_first(tmp_path):
    """When the second socket fails, the first one and the lock are given back."""
    (tmp_path / "s.life").write_text("precious")
    fds = open_fds()
    with pytest.raises(errors.ConfigError, match=r"s\.life"):
        make(tmp_path / "s")
    assert not (tmp_path / "s").exists()
    assert open_fds() <= fds


def test_path_that_is_too_long_is_a_config_error(tmp_path):
    """The limit counts the longer lifeline path."""
    with pytest.raises(errors.ConfigError, match="shorter"):
        make(tmp_path / ("x" * 120))


def test_unknown_group_names_the_remedy(tmp_path):
    """A group that does not exist here is named."""
    with pytest.raises(errors.ConfigError, match="groupadd --system nosuchgroup"):
        make(tmp_path / "s", group="nosuchgroup")


def test_directory_is_made(tmp_path):
    """The socket's directory need not exist."""
    shut(make(tmp_path / "a" / "b" / "s"))
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) & 0o700 == 0o700


def test_directory_that_cannot_be_made_is_a_config_error(tmp_path):
    """An impossible place is named."""
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.ConfigError, match="cannot listen on"):
        make(tmp_path / "file" / "s")


def test_lock_is_no_way_to_another_file(tmp_path):
    """A link in the place of the lock is not followed."""
    (tmp_path / "target").write_text("precious")
    (tmp_path / "s.lock").symlink_to(tmp_path / "target")
    with pytest.raises(errors.ConfigError):
        make(tmp_path / "s")
    assert (tmp_path / "target").read_text() == "precious"


def test_group_may_be_a_name():
    """A group of this system is found by its name."""
    import grp  # noqa: PLC0415

    name = grp.getgrgid(os.getgid()).gr_name
    assert group_id(name) == os.getgid()


@pytest.mark.parametrize(("number", "passing"), [(errno.ENOSPC, True), (errno.EACCES, False)])
def test_what_mends_by_itself_is_no_fault_of_the_config(place, monkeypatch, number, passing):
    """A full disk ends a daemon with a code after which it is started again."""

    def refuse(*_words):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("ringd.border.lock.os.open", refuse)
    with pytest.raises(errors.RingError) as caught:
        SocketLock(place / "s", node="n")
    assert isinstance(caught.value, errors.ConfigError) != passing
    assert str(place / "s") in str(caught.value)


def test_a_lock_that_all_can_write_is_not_taken(tmp_path):
    """Somebody else could hold it, and keep the daemon from its socket."""
    lock = tmp_path / ("s" + holder.SUFFIX)
    lock.touch()
    lock.chmod(0o666)
    with pytest.raises(errors.ConfigError, match="can be written by all users"):
        SocketLock(tmp_path / "s", node="a")
