"""One tensor of more than 2 GiB over two daemons on loopback, every element checked.

Needs about 11 GiB of memory::

    python benchmarks/huge_tensor.py
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import ringd

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.cluster import Cluster
from tests.ringkit import begin, connected

COUNT = (2 << 30) + 12_345
PIECE = 64 << 20
PERIOD = 251
"""Of the values; a prime, so that no boundary of chunks or segments meets it twice alike."""


def pattern(start: int, count: int) -> np.ndarray:
    """Return what each rank puts in at *start*, from 0 to 100."""
    period = (np.arange(PERIOD) % 101).astype(np.uint8)
    return np.resize(np.roll(period, -(start % PERIOD)), count)


def reduce(ring: ringd.Ring) -> tuple[float, int]:
    """Return the seconds of the call, and how many elements were wrong."""
    x = ring.empty(COUNT, np.uint8)
    for start in range(0, COUNT, PIECE):
        piece = x[start : start + PIECE]
        piece[:] = pattern(start, len(piece))
    ring.barrier()
    began = time.perf_counter()
    result = ring.all_reduce(x)
    seconds = time.perf_counter() - began
    wrong = 0
    for start in range(0, COUNT, PIECE):
        piece = result[start : start + PIECE]
        wrong += int(np.count_nonzero(piece != 2 * pattern(start, len(piece))))
    return seconds, wrong


def main() -> int:
    """Run it; return the exit code."""
    settings = '[ipc]\nsegment_budget = "16GiB"\n'
    with (
        tempfile.TemporaryDirectory() as directory,
        Cluster(Path(directory), 2, settings=settings) as cluster,
    ):
        cluster.start().wait_ready()
        with connected(cluster) as rings:
            found = [call.result(timeout=600) for call in begin(rings, reduce)]
    for rank, (seconds, wrong) in enumerate(found):
        rate = COUNT / seconds / 1e9
        print(f"rank {rank}: {COUNT} bytes in {seconds:.1f} s ({rate:.2f} GB/s), #wrong {wrong}")
    return int(any(wrong for _, wrong in found))


if __name__ == "__main__":
    sys.exit(main())
