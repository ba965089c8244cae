"""What the system counts of a process: processor time, context switches, system calls, memory."""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

LINUX = sys.platform == "linux"
_SYSTEM_CALLS = "raw_syscalls:sys_enter"
_ATTACHING = 0.15  # seconds that perf has to attach


def cpu_time(pid: int) -> float:
    """Return the processor seconds of the process *pid*, to the nanosecond; NaN without Linux."""
    if not LINUX:
        return math.nan
    # What clock_getcpuclockid(3) returns: a process's clock, of its scheduled time.
    return time.clock_gettime((~pid << 3) | 2)


def sleeps(pid: int) -> float:
    """Return how often the threads of *pid* went to sleep by themselves; NaN without Linux."""
    if not LINUX:
        return math.nan
    return sum(
        _number(status.read_text(), "voluntary_ctxt_switches")
        for status in Path(f"/proc/{pid}/task").glob("*/status")
    )


def own_memory(pid: int) -> int:
    """Return the bytes in memory of *pid* that no file and no shared memory stands behind."""
    return 1024 * _number(Path(f"/proc/{pid}/status").read_text(), "RssAnon")


def _number(status: str, name: str) -> int:
    """Return what stands behind *name* in a status file of /proc."""
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(f"no {name} in the status")


@contextlib.contextmanager
def highest_memory(pids: Sequence[int], every: float = 0.002) -> Iterator[list[int]]:
    """Give a list which has, in the end, the highest :func:`own_memory` of each process.

    Looked at every so many seconds, so a shorter peak can be missed.
    """
    highest = [own_memory(pid) for pid in pids]
    over = threading.Event()

    def look() -> None:
        while not over.wait(every):
            for place, pid in enumerate(pids):
                highest[place] = max(highest[place], own_memory(pid))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield highest
    finally:
        over.set()
        looking.join()


def can_count_system_calls() -> bool:
    """Whether perf is there and may count those of other processes."""
    if shutil.which("perf") is None:
        return False
    command = ["perf", "stat", "-x,", "-e", _SYSTEM_CALLS, "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode == 0 and _count(done.stderr) is not None


@contextlib.contextmanager
def system_calls(pids: Sequence[int]) -> Iterator[list[int]]:
    """Give a list which has, in the end, the number of system calls of these processes.

    Counted by the kernel, in all their threads, with perf; so the processes go on at almost full
    speed, and spin and sleep as they do otherwise.

    Raises:
        RuntimeError: perf has not counted.
    """
    which = ",".join(map(str, pids))
    command = ["perf", "stat", "-x,", "-e", _SYSTEM_CALLS, "-p", which]
    counted: list[int] = []
    perf = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(_ATTACHING)
        yield counted
    finally:
        perf.send_signal(signal.SIGINT)
        _, said = perf.communicate()
    count = _count(said)
    if count is None:
        raise RuntimeError(f"perf has not counted: {said}")
    counted.append(count)


def _count(said: str) -> int | None:
    """Return the number in what ``perf stat -x,`` has printed."""
    for line in said.splitlines():
        value, _, rest = line.partition(",")
        if _SYSTEM_CALLS in rest and value.isdigit():
            return int(value)
    return None
