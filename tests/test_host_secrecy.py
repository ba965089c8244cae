"""Nobody but root reads the memory of a daemon that holds a key."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import ctypes, resource
from ringd.host.secrecy import keep_memory_private
keep_memory_private()
print(resource.getrlimit(resource.RLIMIT_CORE)[0])
if __import__("sys").platform == "linux":
    print(ctypes.CDLL(None).prctl(3))  # PR_GET_DUMPABLE
"""


def test_no_core_is_written_and_no_debugger_attaches() -> None:
    """In a process of its own, as there is no way back."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == (["0", "0"] if sys.platform == "linux" else ["0"])
