"""A program whose main thread has failed ends, though another thread sits in a call."""

from __future__ import annotations

import subprocess
import sys

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
HANDLED = """
try:
    raise ValueError
except ValueError:
    pass
"""
FAILURES = {
    "uncaught": (THREAD + "raise ValueError", 1),
    "sys.exit": (THREAD + "sys.exit(3)", 3),
    "executor": (EXECUTOR, 1),
    "asyncio": (ASYNCIO, -2),
}


@pytest.mark.parametrize("how", FAILURES)
def test_a_program_that_failed_ends_with_its_own_exit_code(tmp_path, how):
    """The call of the other thread ends within seconds, and the group hears of the end."""
    end, code = FAILURES[how]
    with fake(tmp_path, hold=True) as (daemon, ring):
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
        assert "main thread has failed" in done.stdout
        eventually(lambda: daemon.handler.gone)


@pytest.mark.parametrize(
    "end",
    ["", "try:\n    raise ValueError\nexcept ValueError:\n    pass"],
    ids=["plain", "handled"],
)
def test_a_main_thread_that_returns_leaves_others_to_work(tmp_path, end):
    """A thread that goes on working when the main thread has returned is not disturbed."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        ring.close()
        eventually(lambda: not daemon.handler.groups)
        program = subprocess.Popen(
            [sys.executable, "-c", BEGIN + THREAD + end, daemon.path], stdout=subprocess.PIPE
        )
        eventually(lambda: daemon.handler.submitted)
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(3.0)
        daemon.run(lambda: daemon.handler.complete(daemon.handler.submitted[0]))
        assert program.communicate(timeout=10) == (b"", None)
        assert program.returncode == 0
