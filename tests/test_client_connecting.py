"""Connecting: where the daemon is looked for, when it comes late, what is said when it does not."""

import errno
import gc
import re
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
import zmq
from clientkit import SMALL, fake, unavailable
from fake_daemon import FakeDaemon, eventually, mapped, open_fds

import ringd
from ringd.client import channel as channel_module
from ringd.client.pump import Pump
from ringd.wire.border import lifeline


def test_ring_knows_its_place(ring):
    """Rank, size, node, generation and state are the daemon's word."""
    assert (ring.rank, ring.size, ring.node, ring.generation, ring.state) == (
        0,
        3,
        "fake",
        7,
        "ready",
    )
    assert repr(ring) == "<ringd.Ring group 'default', rank 0 of 3 (fake), ready, generation 7>"
    ring.wait_ready(timeout=1)


def test_socket_comes_from_the_environment(daemon, monkeypatch):
    """RINGD_SOCKET names the socket when no argument does."""
    monkeypatch.setenv("RINGD_SOCKET", daemon.path)
    with ringd.connect(group="env", timeout=10) as ring:
        assert ring.size == 3


def test_usual_places_are_searched(place, monkeypatch):
    """Without a name the user's own daemon is found; without a daemon all places are listed."""
    monkeypatch.delenv("RINGD_SOCKET", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    monkeypatch.setenv("HOME", str(place))
    from ringd.host.paths import socket_candidates  # noqa: PLC0415

    own, *_, system = socket_candidates()
    monkeypatch.setattr("ringd.client.ring.socket_candidates", lambda: (own, place / "none"))
    text = unavailable()
    assert all(str(path) in text for path in (own, place / "none"))
    assert system != own
    with FakeDaemon(own), ringd.connect(timeout=10) as ring:
        assert ring.size == 2


def test_no_daemon_says_what_was_tried(tmp_path):
    """Without a daemon connect fails after its timeout, naming path, reason and remedy."""
    text = unavailable(tmp_path / "s")
    assert re.match(r"no daemon within [0-9.]+ s \(", text)
    for part in (str(tmp_path / "s"), "No such file", "ringd --config", "RINGD_SOCKET"):
        assert part in text
    assert "shorter" in unavailable(tmp_path / ("x" * 120))


def test_daemon_that_comes_later_is_waited_for(daemons):
    """A client may be started before its daemon."""
    rings = []
    thread = threading.Thread(target=lambda: rings.append(ringd.connect(daemons.path, timeout=20)))
    thread.start()
    daemons.start()
    thread.join(120)
    np.testing.assert_array_equal(rings[0].all_reduce(SMALL), 2 * SMALL)
    rings[0].close()


def test_socket_that_never_answers_is_no_daemon(tmp_path):
    """Something that listens there and says nothing does not hold connect for ever."""
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as life:
        silent.bind(str(tmp_path / "s"))
        life.bind(str(tmp_path / "s") + lifeline.SUFFIX)
        silent.listen()
        life.listen()
        with pytest.raises(ringd.DaemonUnavailable):
            ringd.connect(tmp_path / "s", timeout=0.1)


def test_second_client_of_a_group_is_refused(daemon, ring):
    """One program per group and machine; the first one goes on."""
    with pytest.raises(ringd.Refused, match="'default' has a client on 'fake' already: it is this"):
        ringd.connect(daemon.path, timeout=10)
    assert ring.all_reduce(1.0) == 3.0


@pytest.mark.usefixtures("apart", "ring")
def test_second_client_of_a_group_is_refused_by_the_daemon(daemon):
    """Where it has a connection of its own, as another program has."""
    with pytest.raises(ringd.Refused, match="has a client already"):
        ringd.connect(daemon.path, timeout=10)


def test_zmq_out_of_descriptors_is_tried_again(tmp_path, monkeypatch):
    """What ZeroMQ raises ends an attempt to connect, not the attempts; nothing is left open."""
    real, calls = channel_module._open_dealer, []

    def scarce(path):
        calls.append(path)
        if len(calls) <= 2:
            raise zmq.ZMQError(errno.EMFILE)
        return real(path)

    monkeypatch.setattr(channel_module, "_open_dealer", scarce)
    with fake(tmp_path) as (daemon, ring):
        np.testing.assert_array_equal(ring.all_reduce(SMALL), 2 * SMALL)
        assert len(calls) == 3
        eventually(lambda: len(daemon.server._roster._by_token) == 1)


NEARLY_FULL = """
import os, resource, sys, zmq, ringd.client.ring
room = len(os.listdir("/dev/fd")) - 1 + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (room, room))
try:
    ringd.connect(sys.argv[1], timeout=600)
except ringd.ResourceExhausted as error:
    print(room, error)
"""


@pytest.mark.parametrize("left", [1, 3, 5, 8, 11])
def test_a_program_that_has_no_open_files_left_hears_so(daemon, left):
    """Soon, with its limit; ZeroMQ, which would end the program, is not asked for what fails."""
    done = subprocess.run(
        [sys.executable, "-c", NEARLY_FULL, daemon.path, str(left)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    room = done.stdout.split()[0]
    assert f"may have {room} of them (RLIMIT_NOFILE)" in done.stdout
    assert "ulimit -n" in done.stdout


def test_interrupted_connect_leaves_no_ghost(tmp_path, monkeypatch):
    """Ctrl-C in connect ends it: nobody attaches later in its name."""
    threads = threading.active_count()
    with monkeypatch.context() as patch:

        def interrupted(*_, **__):
            raise KeyboardInterrupt

        patch.setattr(Pump, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ringd.connect(tmp_path / "s", timeout=10)
    assert threading.active_count() == threads
    with fake(tmp_path) as (daemon, _):
        assert len(daemon.handler.attaches) == 1


def test_descriptors_and_threads_are_flat(daemon):
    """A hundred rings later everything that they opened is closed."""

    def use(i):
        with ringd.connect(daemon.path, f"flat{i}", timeout=10) as ring:
            return ring.all_reduce(np.ones(50_000))[0]

    def count():
        return open_fds(), threading.active_count(), mapped()

    use(0)
    gc.collect()
    before = count()
    assert [use(i) for i in range(100)] == [3.0] * 100
    gc.collect()
    eventually(lambda: all(now <= then for now, then in zip(count(), before, strict=True)))
