"""The program's end of its call socket: whatever comes between two calls, no byte is lost."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from alarms import no_alarm_left  # noqa: F401
from clientkit import fake, tell
from fake_daemon import eventually

import ringd
from ringd.border.limits import Limits
from ringd.client import pump as pump_module
from ringd.client.callsocket import CallSocket
from ringd.wire.border import messages as border
from ringd.wire.border.stream import LENGTH


def framed(message):
    """Return the bytes of a message on the socket."""
    return LENGTH.pack(len(message)) + message


@pytest.fixture
def pair():
    """Give the program's end, and a plain socket at the other one."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    with theirs, contextlib.closing(CallSocket(ours)) as calls:
        yield calls, theirs


def take(calls):
    """Return the messages that have come."""
    found = []
    while (message := calls.receive()) is not None:
        assert calls.receive() == message  # the same one until it is taken
        found.append(message)
        calls.taken()
    return found


@pytest.mark.parametrize("piece", [1, 2, 5, 9, 10_000])
def test_messages_come_in_any_pieces(pair, piece):
    """Cut anywhere, or several at once."""
    calls, theirs = pair
    messages = [bytes([n]) * size for n, size in enumerate((1, 3, 300, 2, 5000))]
    stream = b"".join(map(framed, messages))
    found = []
    for start in range(0, len(stream), piece):
        theirs.sendall(stream[start : start + piece])
        found += take(calls)
    assert found == messages


def test_the_end_is_told_behind_the_last_message(pair):
    """Not before."""
    calls, theirs = pair
    theirs.sendall(framed(b"last") + framed(b"cut")[:-1])
    theirs.close()
    assert take_one(calls) == b"last"
    assert calls.receive() is None
    with pytest.raises(ConnectionError):
        calls.receive()


def test_an_empty_message_is_an_error(pair):
    """It is never complete: what comes behind it would be kept without an end."""
    calls, theirs = pair
    theirs.sendall(framed(b"good") + LENGTH.pack(0) + bytes(1000))
    assert take_one(calls) == b"good"
    with pytest.raises(OSError, match="empty message"):
        calls.receive()


def take_one(calls):
    """Take the next message."""
    message = calls.receive()
    calls.taken()
    return message


def test_what_does_not_fit_waits_in_order(pair):
    """Nothing blocks; a flush goes on where the socket was full."""
    calls, theirs = pair
    messages = [bytes([n]) * 100_000 for n in range(20)]
    for message in messages:
        calls.send((message[:10], message[10:]))
    assert calls.unsent
    stream = bytearray()
    expected = b"".join(map(framed, messages))
    while len(stream) < len(expected):
        stream += theirs.recv(1 << 16)
        calls.send()
    assert bytes(stream) == expected
    assert not calls.unsent


def persist(step, every=0.0002):
    """Do *step* until it returns True, interrupted *every* so many seconds; return how often."""
    struck, armed = 0, []

    def strike(*_):
        if armed:
            armed.clear()
            raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, every, every)
    done = False
    while not done:
        try:
            armed.append(True)
            done = step()
            armed.clear()
        except KeyboardInterrupt:
            struck += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    return struck


def test_interrupts_send_no_byte_twice(pair):
    """Wherever they come: what waits is sent once, and in order."""
    calls, theirs = pair
    messages = [bytes([n % 251]) * (1 + n * 37 % 3000) for n in range(3000)]
    for message in messages:
        calls.send((message,))
    expected = b"".join(map(framed, messages))
    stream = bytearray()

    def read():
        while len(stream) < len(expected):
            stream.extend(theirs.recv(2000))

    reader = threading.Thread(target=read)
    reader.start()

    def flush():
        calls.send()
        return not calls.unsent

    struck = persist(flush)
    reader.join(120)
    assert bytes(stream) == expected
    assert struck > 20


def test_interrupts_lose_no_byte_that_has_come(pair):
    """A message may be seen twice, if it was not known to be taken; none is skipped or cut."""
    calls, theirs = pair
    messages = [n.to_bytes(4, "little") * (1 + n * 7 % 200) for n in range(20_000)]
    writer = threading.Thread(target=theirs.sendall, args=(b"".join(map(framed, messages)),))
    writer.start()
    seen = {}

    def receive():
        if (message := calls.receive()) is not None:
            seen[message[:4]] = message
            calls.taken()
        return len(seen) == len(messages)

    struck = persist(receive)
    writer.join(120)
    assert list(seen.values()) == messages
    assert struck > 20


@pytest.mark.parametrize("computes", [False, True], ids=["waiting", "computing"])
def test_calls_that_the_daemon_does_not_read_yet_wait_here(tmp_path, computes):
    """More than the socket holds: they go on when it reads, also while the program computes."""
    x = np.ones(15_000, np.float32)
    with fake(tmp_path, limits=Limits(inline_limit=65536)) as (daemon, ring):
        ring.barrier()
        go_on = threading.Event()
        daemon.loop.call_threadsafe(lambda: go_on.wait(30))
        works = [ring.all_reduce_async(x) for _ in range(100)]
        assert ring._connection.pump.channel.calls.unsent
        go_on.set()
        if computes:
            eventually(lambda: len(daemon.handler.submitted) == 101)
        for work in works:
            np.testing.assert_array_equal(work.wait(30), 2 * x)


def test_a_child_holds_no_end_of_it(tmp_path):
    """A daemon sees that a program has ended, though its child lives on."""
    with fake(tmp_path) as (daemon, ring):
        ring.barrier()
        calls = ring._connection.pump.channel.calls
        if (child := os.fork()) == 0:
            os._exit(0 if calls.fileno() == -1 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert ring.all_reduce(1.0) == 2.0
        assert daemon.handler.gone == []


def test_a_daemon_that_passes_no_call_socket_is_named(tmp_path):
    """It is an older one; to wait for its successor is of use."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}.life")
        listener.listen()

        def serve():
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(os.urandom(16))
                    time.sleep(0.05)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ringd.DaemonUnavailable, match="passes no call socket: restart it"):
            ringd.connect(path, timeout=0.5)
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as last:
            last.connect(f"{path}.life")
        thread.join(120)


def test_a_thread_that_sleeps_already_sees_that_there_is_something_to_send(tmp_path, monkeypatch):
    """It went to sleep when there was nothing; no message comes that would wake it."""
    monkeypatch.setattr(pump_module, "_LOOK_FOR_END", 60.0)
    x = np.ones(15_000, np.float32)
    with fake(tmp_path, hold=True, limits=Limits(inline_limit=65536)) as (daemon, ring):
        channel, pump = ring._connection.pump.channel, ring._connection.pump
        first, sleeps, asleep = ring.all_reduce_async(1.0), [], []
        poll, poller = channel.poll, channel._poller

        def counted(timeout):
            sleeps.append(timeout)
            return poll(timeout)

        def sleep(timeout):  # of one that has found nothing to send
            asleep.append(len(sleeps))
            return poller.poll(timeout)

        channel.poll, channel._poller = counted, SimpleNamespace(poll=sleep)
        sleeper = threading.Thread(target=first.wait, args=(60,))
        sleeper.start()
        stopped, go_on = threading.Event(), threading.Event()
        daemon.loop.call_threadsafe(lambda: (stopped.set(), go_on.wait(30)))
        assert stopped.wait(30)
        eventually(lambda: pump.sleeper == sleeper.ident and asleep)
        before = asleep[-1]
        works = [ring.all_reduce_async(x) for _ in range(60)]
        assert channel.calls.unsent
        eventually(lambda: len(sleeps) > before)  # it, or the keeper, which is woken too
        go_on.set()
        eventually(lambda: len(daemon.handler.submitted) == 61)
        daemon.run(lambda: [daemon.handler.complete(c) for c in list(daemon.handler.submitted)])
        for work in works:
            work.wait(30)
        sleeper.join(120)


def test_a_channel_that_is_closed_with_something_unsent_has_ended(tmp_path):
    """A daemon may die while a program waits for room."""
    x = np.ones(15_000, np.float32)
    with fake(tmp_path, limits=Limits(inline_limit=65536)) as (daemon, ring):
        ring.barrier()
        go_on = threading.Event()
        daemon.loop.call_threadsafe(lambda: go_on.wait(30))
        works = [ring.all_reduce_async(x) for _ in range(20)]
        channel = ring._connection.pump.channel
        assert channel.calls.unsent
        channel.hang_up()
        eventually(lambda: channel.calls.fileno() == -1)
        assert channel.poll(0)
        go_on.set()
        for work in works:
            np.testing.assert_array_equal(work.wait(30), 2 * x)


def test_a_message_is_copied_once_where_it_goes_in_pieces(pair):
    """What is left of it is a view."""
    calls, theirs = pair
    message = bytes(8_000_000)
    calls.send((message,))
    wholes = set()
    taken = 0
    while calls.unsent:
        wholes.add(id(calls.unsent[0][0][0].obj))
        taken += len(theirs.recv(1 << 20))
        calls.send()
    assert len(wholes) == 1
    assert taken <= len(message) + LENGTH.size


PIPE = """
import signal, socket, sys
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
from ringd.client import pump as pump_module
from ringd.client.callsocket import CallSocket
ours, theirs = socket.socketpair()
calls = CallSocket(ours)
theirs.close()
try:
    calls.send((b"x",))
except ConnectionError:
    print("told")
"""


def test_a_daemon_that_is_gone_is_an_error_and_no_signal():
    """Also in a program that has SIGPIPE end it, as tools for pipes have."""
    done = subprocess.run(
        [sys.executable, "-c", PIPE], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "told\n")


def test_a_group_that_is_to_come_again_does_so_while_the_program_computes(tmp_path):
    """The keeper sleeps on the sockets then, and wakes in time to ask again; not all the time."""
    with fake(tmp_path) as (daemon, ring):
        ring.barrier()
        keeper, looks = ring._connection.keeper, []
        is_done = keeper._is_done
        keeper._is_done = lambda: looks.append(1) or is_done()
        handler, asked = daemon.handler, len(daemon.handler.attaches)
        handler.deny_attach = ("not_ready", "later")
        tell(daemon, lambda join_id: border.Lost(join_id, 1, "group_lost", "b left"))
        eventually(lambda: len(handler.attaches) >= asked + 3)
        handler.deny_attach = None
        count = len(looks)
        eventually(lambda: ring._stay.group.taken_in)
        assert count < 40 * (len(handler.attaches) - asked)
        with pytest.raises(ringd.GroupLost):
            ring.barrier()
        ring.barrier()
