"""After a fork: the child is told, and neither keeps the parent's place nor harms it."""

import os
import subprocess
import sys

import numpy as np
from clientkit import LARGE, fake
from fake_daemon import FakeDaemon, eventually


def test_forked_child_is_told_and_harms_nobody(tmp_path):
    """After a fork the child gets a clear error and its own ring; the parent goes on."""
    with fake(tmp_path) as (daemon, ring):
        work = ring.all_reduce_async(LARGE)
        code = (
            "import os, sys\n"
            "import numpy as np\n"
            "import ringd\n"
            "ring = ringd.connect(sys.argv[1], 'f', timeout=10)\n"
            "x = np.ones(50000)\n"
            "assert ring.all_reduce(x)[0] == 2\n"
            "work = ring.all_reduce_async(x)\n"
            "pid = os.fork()\n"
            "if pid == 0:\n"
            "    calls = [lambda: ring.all_reduce(x), ring.barrier, work.wait, lambda: ring.rank]\n"
            "    told = 0\n"
            "    for call in calls:\n"
            "        try:\n"
            "            call()\n"
            "        except ringd.RingError as error:\n"
            "            told += 'connect again after fork' in str(error)\n"
            "    ring.close()\n"
            "    with ringd.connect(sys.argv[1], 'child', timeout=10) as own:\n"
            "        good = own.all_reduce(x)[0] == 2\n"
            "    del ring, work\n"
            "    os._exit(0 if told == 4 and good else 1)\n"
            "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0\n"
            "assert work.wait()[0] == 2\n"
            "assert all(ring.all_reduce(x)[0] == 2 for _ in range(20))\n"
            "ring.close()\n"
            "print('good')\n"
        )
        run = subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", "-c", code, daemon.path],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (run.stdout, run.returncode) == ("good\n", 0), run.stderr
        np.testing.assert_array_equal(work.wait(30), 2 * LARGE)
        assert daemon.handler.gone == []


def test_a_fork_of_which_python_does_not_know_makes_no_calls(tmp_path):
    """Such as a library's own: the child would else make calls in the parent's name."""
    with FakeDaemon(tmp_path / "s") as daemon:
        code = (
            "import ctypes, os, sys\n"
            "import numpy as np\n"
            "import ringd\n"
            "ring = ringd.connect(sys.argv[1], 'f', timeout=10)\n"
            "x = np.ones(3)\n"
            "assert ring.all_reduce(x)[0] == 2\n"
            "work = ring.all_reduce_async(x)\n"
            "pid = ctypes.PyDLL(None).fork()\n"
            "if pid == 0:\n"
            "    calls = [lambda: ring.all_reduce(x), ring.barrier, work.wait,\n"
            "        lambda: ring.send(x, 1), lambda: ring.all_reduce_coalesced([x, x])]\n"
            "    told = 0\n"
            "    for call in calls:\n"
            "        try:\n"
            "            call()\n"
            "        except ringd.RingError as error:\n"
            "            told += 'connect again after fork' in str(error)\n"
            "    os._exit(0 if told == len(calls) else 1)\n"
            "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0\n"
            "assert work.wait()[0] == 2\n"
            "assert all(ring.all_reduce(x)[0] == 2 for _ in range(20))\n"
            "ring.close()\n"
            "print('good')\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", code, daemon.path],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (run.stdout, run.returncode) == ("good\n", 0), run.stderr


def test_parent_death_is_seen_although_a_child_lives(tmp_path):
    """A child of a fork does not keep its dead parent's place in the group."""
    with FakeDaemon(tmp_path / "s") as daemon:
        code = (
            "import os, sys, time, ringd\n"
            "ring = ringd.connect(sys.argv[1], 'f', timeout=10)\n"
            "pid = os.fork()\n"
            "if pid == 0:\n"
            "    sys.stdin.read()\n"
            "    os._exit(0)\n"
            "print(pid, flush=True)\n"
            "time.sleep(60)\n"
        )
        parent = subprocess.Popen(
            [sys.executable, "-c", code, daemon.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            child = int(parent.stdout.readline())
            os.kill(child, 0)
            parent.kill()
            eventually(lambda: daemon.handler.gone)
            os.kill(child, 0)
        finally:
            parent.kill()
            parent.stdin.close()  # ends the child
            parent.wait()
            parent.stdout.close()
