"""Several programs on one machine, which reduce in shared memory, beside the memory's bandwidth."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

import numpy as np
from instrument import samples
from instrument.builds import Build
from instrument.line_up import LineUp
from instrument.plan import Panel, panel
from instrument.progress import Progress
from instrument.results import Results
from instrument.runner import run
from instrument.sites import loopback
from instrument.starts import line_up, missing, start_gloo, start_mpi, start_ring

WHAT = "four programs on one machine"
PROGRAMS = 4
SIZES = (1 << 20, 16 << 20, 64 << 20)
BANDWIDTH = "memory bandwidth, bytes per second read and written"
_MODES = ("ringd", "ringd-empty", "gloo", "mpi")
_COPIED = 64 << 20  # bytes of an array, of which each thread copies one to another
_COPIES = 5


def panels(sizes: Sequence[int] = SIZES) -> list[Panel]:
    """Return a panel for each size."""
    return [panel(WHAT, _MODES, nbytes) for nbytes in sizes]


def measure(results: Results, rounds: int, progress: Progress) -> None:
    """Run it; the site is one machine, so its series have n = 1."""
    with line_up(loopback(1), []) as made:
        _start(made)
        rates = []
        for each in panels():
            rates.append(memory_bandwidth())
            run([made], each, rounds, results, progress)
    results.set_figure(BANDWIDTH, 1, samples.median(rates))


def share_of_bandwidth(results: Results, nbytes: int) -> float | None:
    """Return the share of the memory's bandwidth that a call uses; None if not measured.

    Counted are the bytes that no way can do without: every input is read, every result written.
    """
    seconds = results.median(WHAT, 1, nbytes, "ringd-empty")
    bandwidth = results.figure(BANDWIDTH, 1)
    return 2 * PROGRAMS * nbytes / seconds / bandwidth if seconds and bandwidth else None


def memory_bandwidth() -> float:
    """Return how many bytes per second all cores together read and write as they copy."""
    count = os.cpu_count() or 1
    pairs = [[np.zeros(_COPIED, np.uint8), np.ones(_COPIED, np.uint8)] for _ in range(count)]
    began = threading.Barrier(count + 1)

    def copy(target: np.ndarray, source: np.ndarray) -> None:
        began.wait()
        for _ in range(_COPIES):
            np.copyto(target, source)

    threads = [threading.Thread(target=copy, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    began.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return 2 * count * _COPIES * _COPIED / (time.perf_counter() - start)


def _start(made: LineUp) -> None:
    made.add("ringd", start_ring(made, "ringd", Build(), PROGRAMS))
    if not missing("gloo", made.site, None):
        made.add("gloo", start_gloo(made, PROGRAMS))
    if not missing("mpi", made.site, None):
        made.add("mpi", start_mpi(made, "self,vader", PROGRAMS))
    made.wait_ready(list(made.teams))
