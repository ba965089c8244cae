"""A ring is closed or forgotten, or its program ends: at once, and the daemon knows how."""

import gc
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
from clientkit import INLINE_LIMIT, SMALL, fake
from fake_daemon import FakeDaemon, eventually

import ringd
from ringd.border.limits import Limits
from ringd.client import stay as stay_module
from ringd.wire.border import messages as border


def test_closed_ring_says_so(daemon):
    """After close every call fails in words; closing again is harmless; open calls end."""
    daemon.handler.hold = True
    ring = ringd.connect(daemon.path, "c", timeout=10)
    work = ring.all_reduce_async(1.0)
    waiter = []

    def wait():
        with pytest.raises(ringd.RingError, match="closed before"):
            work.wait(30)
        waiter.append(1)

    thread = threading.Thread(target=wait)
    thread.start()
    detached = daemon.handler.detached
    ring.close()
    thread.join(120)
    ring.close()
    with pytest.raises(ringd.RingError, match="closed before"):
        work.wait(30)
    assert len(waiter) == 1
    for call in (
        lambda: ring.all_reduce(1.0),
        ring.barrier,
        ring.wait_ready,
        lambda: ring.rank,
        lambda: ring.empty(100_000),
    ):
        with pytest.raises(ringd.RingError, match="closed"):
            call()
    assert (daemon.handler.detached, daemon.handler.gone) == (detached + 1, [])


def test_close_ends_no_call_before_the_daemon_has_let_go_of_its_input(tmp_path, monkeypatch):
    """Who waits for a call may write to what it had lent as soon as that ends."""
    monkeypatch.setattr(stay_module, "_DETACH_TIMEOUT", 30)
    ended, found = threading.Event(), []
    with FakeDaemon(tmp_path / "s", hold=True, limits=Limits(inline_limit=INLINE_LIMIT)) as daemon:
        ring = ringd.connect(daemon.path, timeout=10, on_loss="fail")
        x = ring.empty(50_000)
        x[:] = 1

        def wait():
            with pytest.raises(ringd.RingError, match="closed before"):
                ring.all_reduce(x)
            ended.set()

        thread = threading.Thread(target=wait)
        thread.start()
        eventually(lambda: daemon.handler.submitted)
        daemon.handler.on_leave = lambda _client: found.append(ended.wait(0.2))
        ring.close()
        thread.join(120)
        assert (found, ended.is_set()) == ([False], True)
        assert (daemon.handler.detached, daemon.handler.gone) == (1, [])


def test_one_that_closes_does_not_join_anew(tmp_path):
    """Also if another client leaves just then: its daemon has forgotten it by now."""
    with fake(tmp_path) as (daemon, ring):
        ring.all_reduce(SMALL)

        def lose(client):
            client.alive = True  # the word is on its way already
            client.send(border.Lost(daemon.handler.joins[client], 1, "group_lost", "b left"))
            client.alive = False

        daemon.handler.on_leave = lose
        ring.close()
        assert daemon.run(lambda: daemon.server.counters.denied_messages) == 0
        assert len(daemon.handler.attaches) == 1


def test_forgotten_ring_is_noticed_by_the_daemon(tmp_path):
    """A ring that nobody keeps is collected, and its place is free again."""
    with FakeDaemon(tmp_path / "s") as daemon:
        ring = ringd.connect(daemon.path, timeout=10)
        ring.all_reduce(1.0)
        gone = weakref.ref(ring)
        del ring
        gc.collect()
        assert gone() is None
        with ringd.connect(daemon.path, timeout=10) as again:
            assert again.all_reduce(1.0) == 2.0


def test_work_keeps_its_ring(tmp_path):
    """A handle is enough to get the result."""
    with FakeDaemon(tmp_path / "s") as daemon:
        work = ringd.connect(daemon.path, timeout=10).all_reduce_async(np.ones(100_000))
        gc.collect()
        assert work.wait()[0] == 2.0


def test_program_that_just_ends_does_not_hang(tmp_path):
    """A script that forgets close, with calls open, exits at once and cleanly."""
    with FakeDaemon(tmp_path / "s", hold=True) as daemon:
        code = (
            "import sys, ringd, numpy as np\n"
            "ring = ringd.connect(sys.argv[1], timeout=10)\n"
            "work = ring.all_reduce_async(np.ones(100000))\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", code, daemon.path],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
        eventually(lambda: daemon.handler.gone)


@pytest.mark.parametrize("end", ["forgotten", "exits", "raises", "killed"])
def test_the_daemon_is_told_whether_the_program_lives_on(tmp_path, end):
    """One that runs code yet, if only at its exit, may write to what it had lent; no dead one."""
    parted = []
    with FakeDaemon(tmp_path / "s") as daemon:
        daemon.handler.on_leave = lambda client: parted.append(client.parted)
        if end == "forgotten":
            ring = ringd.connect(daemon.path, timeout=10)
            del ring
            gc.collect()
        else:
            body = {
                "exits": "sys.exit(3)",
                "raises": "raise ValueError",
                "killed": "os.kill(os.getpid(), 9)",
            }[end]
            text = f"import os, sys, ringd; ring = ringd.connect({daemon.path!r}); {body}"
            command = [sys.executable, "-c", text]
            subprocess.run(command, check=False, stderr=subprocess.DEVNULL, timeout=30)
        eventually(lambda: parted)
        assert parted == [end != "killed"]


def test_a_program_that_ends_lets_go_before_it_is_taken_apart(tmp_path):
    """The others need not wait for what it still does at its end."""
    with FakeDaemon(tmp_path / "s") as daemon:
        text = f"""
import atexit, sys, ringd
atexit.register(sys.stdin.read)
ring = ringd.connect({daemon.path!r})
"""
        program = subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE)
        eventually(lambda: daemon.handler.gone)
        assert program.poll() is None
        program.communicate()
