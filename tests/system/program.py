"""A program of an ordinary user: calls, and checks every value.

Usage: program.py NAME STEPS ELEMENTS [HOLD]. It prints a line for each step, and its
error if it ends so. With HOLD it makes no call behind the first one, and stays.
"""

from __future__ import annotations

import sys
import time

import numpy as np

import ringd

WEIGHTS = {"alpha": 1, "beta": 2, "gamma": 3}

name, steps, elements = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
try:
    with ringd.connect(group=name, timeout=60) as ring:
        for step in range(steps):
            # Not by its rank, which is known only when all are there.
            mine = np.arange(elements, dtype=np.int64) * WEIGHTS[ring.node] + step
            total = ring.all_reduce(mine, timeout=300)
            expected = (
                np.arange(elements, dtype=np.int64) * sum(WEIGHTS.values()) + step * ring.size
            )
            wrong = int(np.count_nonzero(total != expected))
            sys.stdout.write(f"step {step}: {wrong} wrong of {total.size}, {ring.size} ranks\n")
            sys.stdout.flush()
            if sys.argv[4:]:
                time.sleep(3600)
except ringd.RingError as error:
    sys.stdout.write(f"{type(error).__name__}: {error}\n")
    sys.exit(1)
