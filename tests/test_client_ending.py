"""A program whose main thread has failed ends, though another thread sits in a call."""

from __future__ import annotations

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
            timeout=30,
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
            print(type(error).__name__, flush=True)
        try:
            {again or "pass"}
        except ringd.RingError as error:
            print(type(error).__name__, flush=True)
"""
    with fake(tmp_path, hold=True, state="forming") as (daemon, ring):
        ring.close()
        eventually(lambda: not daemon.handler.groups)
        attaches = len(daemon.handler.attaches)
        program = subprocess.Popen(
            [sys.executable, "-c", BEGIN + loop + THREAD + "raise ValueError", daemon.path],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            times = []
            for _ in range(4):
                assert program.stdout.readline() == b"MainThreadFailed\n"
                times.append(time.monotonic())
            assert times[3] - times[0] > 2.0
            assert len(daemon.handler.attaches) == attaches + 1
            assert daemon.handler.gone
        finally:
            program.kill()
            program.communicate()


@pytest.mark.parametrize("how", HEALTHY)
def test_a_main_thread_that_returns_leaves_others_to_work(tmp_path, how):
    """Nor is a call disturbed for which the main thread waits while it handles an exception."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        ring.close()
        eventually(lambda: not daemon.handler.groups)
        program = subprocess.Popen(
            [sys.executable, "-c", BEGIN + HEALTHY[how], daemon.path], stdout=subprocess.PIPE
        )
        eventually(lambda: daemon.handler.submitted)
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(3.0)
        daemon.run(lambda: daemon.handler.complete(daemon.handler.submitted[0]))
        assert program.communicate(timeout=10) == (b"", None)
        assert program.returncode == 0


def test_threads_of_a_live_prompt_go_on_after_the_script_has_failed(tmp_path):
    """`python -i script.py` is there to look at what has failed."""
    script = tmp_path / "script.py"
    script.write_text(BEGIN + "raise ValueError")
    with fake(tmp_path, hold=True) as (daemon, ring):
        ring.close()
        eventually(lambda: not daemon.handler.groups)
        prompt = subprocess.Popen(
            [sys.executable, "-i", str(script), daemon.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        lines = "thread = threading.Thread(target=work)\nthread.start(); thread.join()\n"
        prompt.stdin.write(lines.encode())
        prompt.stdin.flush()
        eventually(lambda: daemon.handler.submitted)
        with pytest.raises(subprocess.TimeoutExpired):
            prompt.wait(3.0)
        daemon.run(lambda: daemon.handler.complete(daemon.handler.submitted[0]))
        assert prompt.communicate(timeout=10) == (b"", None)
