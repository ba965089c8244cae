"""The program's end of its call socket: whatever comes between two calls, no byte is lost."""

import contextlib
import os
import signal
import socket
import threading
import time

import numpy as np
import pytest
from alarms import no_alarm_left  # noqa: F401
from clientkit import fake
from fake_daemon import eventually

import ringd
from ringd.border.server import Limits
from ringd.client.callsocket import CallSocket
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
    with pytest.raises(ConnectionError):
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
    assert calls.full
    stream = bytearray()
    expected = b"".join(map(framed, messages))
    while len(stream) < len(expected):
        stream += theirs.recv(1 << 16)
        calls.flush()
    assert bytes(stream) == expected
    assert not calls.full


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
        calls.flush()
        return not calls.full

    struck = persist(flush)
    reader.join(30)
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
    writer.join(30)
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
        assert ring._connection.pump.channel.calls.full
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
        thread.join(10)
