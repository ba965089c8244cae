"""Word to the service manager: nothing that it waits for is lost when it is busy."""

from __future__ import annotations

import os
import socket

import pytest
from netkit import run_until

from ringd.daemon.notify import ServiceManager
from ringd.daemon.statusline import StatusLine


@pytest.fixture
def manager_socket(place):
    """Give the service manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(place / "notify"))
        sock.setblocking(False)
        yield sock


def made(manager_socket, **environ):
    """Return a ServiceManager that speaks to *manager_socket*."""
    return ServiceManager({"NOTIFY_SOCKET": manager_socket.getsockname(), **environ})


def heard(manager_socket):
    """Return what has arrived, message by message."""
    messages = []
    while True:
        try:
            messages.append(manager_socket.recv(4096).decode().split("\n"))
        except BlockingIOError:
            return messages


def fill(manager_socket):
    """Send it messages until it takes no more; return how many it took."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(manager_socket.getsockname())
        for count in range(100_000):
            try:
                sock.send(b"X=1")
            except OSError:
                return count
    raise AssertionError("it takes them all")


def test_a_word_is_a_message(manager_socket):
    """One datagram for each call, and the environment is cleared for children."""
    environ = {"NOTIFY_SOCKET": manager_socket.getsockname(), "WATCHDOG_PID": "1"}
    manager = ServiceManager(environ)
    manager.tell("READY=1", "STATUS=forming: a = b")
    manager.tell("STOPPING=1")
    assert heard(manager_socket) == [["READY=1", "STATUS=forming: a = b"], ["STOPPING=1"]]
    assert environ == {}


def test_nothing_is_lost_while_it_is_busy(loop, manager_socket):
    """READY and the latest status arrive once there is room, and no older status after it."""
    manager = made(manager_socket)
    manager.use(loop, lambda: True)
    filled = fill(manager_socket)
    manager.tell("READY=1", "STATUS=forming")
    manager.tell("STATUS=ready")
    loop.call_later(0.01, loop.stop)
    loop.run()
    assert heard(manager_socket) == [["X=1"]] * filled
    messages = []
    run_until(loop, lambda: messages.extend(heard(manager_socket)) or messages)
    assert messages == [["READY=1", "STATUS=ready"]]
    manager.tell("STATUS=forming")
    assert heard(manager_socket) == [["STATUS=forming"]]
    assert loop._earliest() is None  # nothing is tried again any more


def test_what_was_said_before_there_was_a_loop_is_sent_too(loop, manager_socket):
    """A status from the start that found no room is not forgotten."""
    filled = fill(manager_socket)
    manager = made(manager_socket)
    manager.tell("STATUS=starting")
    assert heard(manager_socket) == [["X=1"]] * filled
    manager.use(loop, lambda: True)
    assert heard(manager_socket) == [["STATUS=starting"]]


def test_watchdog_is_fed_from_the_loop(loop, manager_socket):
    """At once, and again at half of its interval; not where it is for another process."""
    made(manager_socket, WATCHDOG_USEC="20000", WATCHDOG_PID=str(os.getpid())).use(
        loop, lambda: True
    )
    messages = []
    run_until(loop, lambda: messages.extend(heard(manager_socket)) or len(messages) >= 3)
    assert messages[:3] == [["WATCHDOG=1"]] * 3
    made(manager_socket, WATCHDOG_USEC="20000", WATCHDOG_PID="1")
    made(manager_socket, WATCHDOG_USEC="soon")


def test_watchdog_starves_without_progress(loop, manager_socket):
    """Time alone is no reason to feed it; progress after a while is."""
    answers = [True, False, False, True]
    manager = made(manager_socket, WATCHDOG_USEC="20000", WATCHDOG_PID=str(os.getpid()))
    manager.use(loop, lambda: bool(answers) and answers.pop())
    run_until(loop, lambda: not answers)
    assert heard(manager_socket) == [["WATCHDOG=1"]] * 2


def test_the_line_says_who_is_missing_and_why(loop, monkeypatch):
    """Also when only the reason changes; once all are there it looks no more."""
    monkeypatch.setattr("ringd.daemon.statusline.EVERY", 0.001)
    awaited, lines = {"b": "refused"}, []
    line = StatusLine(loop, lambda: awaited, lines.append)
    line.show("forming")
    assert lines == ["forming; waits for b: refused"]
    awaited["b"] = "no answer"
    run_until(loop, lambda: len(lines) == 2)
    assert lines[1] == "forming; waits for b: no answer"
    awaited.clear()
    line.show("ready: generation 3")
    assert lines[2:] == ["ready: generation 3"]
    assert loop._earliest() is None


def test_nobody_listens(loop):
    """Without a service manager every word is in vain, and harmless."""
    manager = ServiceManager({})
    manager.use(loop, lambda: True)
    manager.tell("READY=1")
    assert loop._earliest() is None
