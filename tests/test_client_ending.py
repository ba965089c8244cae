"""A program whose main thread has failed ends, though another thread sits in a call."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time

import pytest
from clientkit import fake
from fake_daemon import eventually

BEGIN = """
import sys, threading, time
import numpy as np, ringd
ring = ringd.connect(sys.argv[1], timeout=10)
def work():
    try:
        ring.all_reduce(np.ones(3), timeout=600)
    except ringd.RingError as error:
        print(error)
"""

THREAD = "threading.Thread(target=work).start()\n"
EXECUTOR = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor() as executor:
    executor.submit(work)
    time.sleep(0.2)
    raise ValueError
"""
ASYNCIO = """
import asyncio, os, signal
async def main():
    asyncio.get_running_loop().call_later(0.5, os.kill, os.getpid(), signal.SIGINT)
    await asyncio.to_thread(work)
asyncio.run(main())
"""
READY = """
def work():
    try:
        ring.wait_ready(600)
    except ringd.MainThreadFailed as error:
        try:
            ring.state
        except ringd.RingError:  # it was left, as the error says
            print(error)
"""
HANDLED = """
try:
    raise ValueError
except ValueError:
    pass
"""
HANDLING = """
from concurrent.futures import ThreadPoolExecutor
try:
    raise ValueError
except ValueError:
    with ThreadPoolExecutor() as executor:
        executor.submit(work)
"""
ASYNCIO_HANDLING = """
import asyncio
try:
    raise ValueError
except ValueError:
    asyncio.run(asyncio.to_thread(work))
"""
HEALTHY = {
    "plain": THREAD,
    "handled": THREAD + HANDLED,
    "executor": HANDLING,
    "asyncio": ASYNCIO_HANDLING,
}
FAILURES = {
    "uncaught": (THREAD + "raise ValueError", 1),
    "sys.exit": (THREAD + "sys.exit(3)", 3),
    "executor": (EXECUTOR, 1),
    "asyncio": (ASYNCIO, -2),
    "wait_ready": (READY + THREAD + "raise ValueError", 1),
}


@pytest.mark.usefixtures("interruptible")  # what this ignores, its children ignore
@pytest.mark.parametrize("how", FAILURES)
def test_a_program_that_failed_ends_with_its_own_exit_code(tmp_path, how):
    """The call of the other thread ends within seconds, and the group hears of the end."""
    end, code = FAILURES[how]
    with fake(tmp_path, hold=True, state="forming") as (daemon, ring):
        ring.close()
        eventually(lambda: not daemon.handler.groups)
        done = subprocess.run(
            [sys.executable, "-c", BEGIN + end, daemon.path],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code
        assert "main thread has ended, or is about to" in done.stdout
        eventually(lambda: daemon.handler.gone)


@pytest.mark.parametrize("again", ["", "ring = ringd.connect(sys.argv[1], timeout=10)"])
def test_a_thread_that_takes_any_error_for_the_next_try_does_no_harm(tmp_path, again):
    """It is told the same each time, at the pace of calls that wait, and has left the group."""
    loop = f"""
def work():
    global ring
    while True:
        try:
            ring.all_reduce(np.ones(3), timeout=600)
        except ringd.RingError as error:
            print(type(error).__name__, time.monotonic(), flush=True)
        try:
            {again or "pass"}
        except ringd.RingError as error:
            print(type(error).__name__, time.monotonic(), flush=True)
"""
    with fake(tmp_path, hold=True, state="forming") as (daemon, ring):
        ring.close()
        eventually(lambda: not daemon.handler.groups)
        attaches = len(daemon.handler.attaches)
        program = subprocess.Popen(
            [sys.executable, "-c", BEGIN + loop + THREAD + "raise ValueError", daemon.path],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            told = [program.stdout.readline().split() for _ in range(4)]
            assert [error for error, _ in told] == ["MainThreadFailed"] * 4
            times = [float(at) for _, at in told]
            assert times[3] - times[0] > 2.0
            assert len(daemon.handler.attaches) == attaches + 1
            assert daemon.handler.gone
        finally:
            program.kill()
            program.communicate()


class Worker:
    """A program with a thread in a call, beside a daemon of its own that holds the call."""

    def __init__(self, stack, place, *arguments, text=b""):
        self.daemon, ring = stack.enter_context(fake(place, hold=True))
        ring.close()
        eventually(lambda: not self.daemon.handler.groups)
        self.process = subprocess.Popen(
            [sys.executable, *arguments, self.daemon.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(self.process.kill)
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def complete(self):
        """Complete its call."""
        handler = self.daemon.handler
        self.daemon.run(lambda: handler.complete(handler.submitted[0]))


def test_a_main_thread_that_has_not_failed_leaves_others_to_work(tmp_path):
    """One that returned, one that waits for a call while it handles an exception, and a prompt.

    `python -i script.py` is there to look at what has failed, and its threads go on.
    """
    script = tmp_path / "script.py"
    script.write_text(BEGIN + "raise ValueError")
    lines = b"thread = threading.Thread(target=work)\nthread.start(); thread.join()\n"
    with contextlib.ExitStack() as stack:
        workers = {}
        for how, text in HEALTHY.items():
            (tmp_path / how).mkdir()
            workers[how] = Worker(stack, tmp_path / how, "-c", BEGIN + text)
        (tmp_path / "prompt").mkdir()
        workers["prompt"] = Worker(stack, tmp_path / "prompt", "-i", str(script), text=lines)
        for worker in workers.values():
            eventually(lambda worker=worker: worker.daemon.handler.submitted)
        time.sleep(3.0)  # longer than it takes to find that a main thread has failed
        assert {how: w.process.poll() for how, w in workers.items()} == dict.fromkeys(workers)
        for worker in workers.values():
            worker.complete()
        ends = {
            how: (*w.process.communicate(timeout=60), w.process.returncode)
            for how, w in workers.items()
        }
        assert ends == dict.fromkeys(workers, (b"", None, 0))
