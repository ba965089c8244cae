"""What the tests of the client share: daemons that can be killed, and rings of fake ones."""

import contextlib
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from fake_daemon import FakeDaemon

import ringd
from ringd.border.limits import Limits

FAKE = Path(__file__).with_name("fake_daemon.py")
INLINE_LIMIT = 1024  # bytes; small, so that small arrays go through shared memory too
SMALL = np.arange(10.0)
LARGE = np.arange(50_000.0)
BOTH = pytest.mark.parametrize("x", [SMALL, LARGE], ids=["inline", "segment"])


class Daemons:
    """Daemon processes on one socket, one after the other."""

    def __init__(self, path):
        self.path = str(path)
        self.processes = []

    def start(self, *options):
        """Start one and wait until it listens."""
        process = subprocess.Popen(
            [sys.executable, str(FAKE), self.path, *options], stdout=subprocess.PIPE, text=True
        )
        self.processes.append(process)
        assert process.stdout.readline() == "listening\n"
        return process

    def kill(self):
        """Kill the last one."""
        self.processes[-1].kill()
        self.processes[-1].wait()

    def end(self):
        """Leave none behind."""
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdout.close()


@contextlib.contextmanager
def fake(tmp_path, *, on_loss="wait", **options):
    """A daemon in a thread, and a ring of it."""
    options.setdefault("limits", Limits(inline_limit=INLINE_LIMIT))
    with (
        FakeDaemon(tmp_path / "s", **options) as daemon,
        ringd.connect(daemon.path, timeout=60, on_loss=on_loss) as ring,
    ):
        yield daemon, ring


def tell(daemon, make):
    """Send what *make* returns for the client's join id."""

    def send():
        ((client, join_id),) = daemon.handler.joins.items()
        client.send(make(join_id))

    daemon.run(send)


def session_of(ring):
    """Return the ring's current session."""
    return ring._stay.group.session


def pool_of(ring):
    """Return the ring's pool."""
    return ring._connection.pool


def take_in(ring):
    """Have *ring* act on what has come, as a call would; by itself it looks once a minute."""
    pump = ring._connection.pump
    pump.run(pump.settle)


def main_sleeps(pump):
    """Whether the main thread sleeps on the sockets, and not another one; or is about to."""
    return pump.sleeper == threading.main_thread().ident and not pump._inside


def unavailable(*arguments):
    """Return what connect says where there is no daemon, once it has looked: machines are busy."""
    for timeout in (0.1, 1.0, 60.0):
        with pytest.raises(ringd.DaemonUnavailable) as missing:
            ringd.connect(*arguments, timeout=timeout)
        text = str(missing.value)
        if "no answer yet" not in text:
            break
    return text
