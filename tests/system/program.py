"""A program of an ordinary user: calls, and checks every value.

It prints a line for each step, and its error if it ends so.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

import ringd

WEIGHTS = {"alpha": 1, "beta": 2, "gamma": 3}

parser = argparse.ArgumentParser()
parser.add_argument("name")
parser.add_argument("steps", type=int)
parser.add_argument("elements", type=int)
parser.add_argument("--timeout", type=float, default=300, help="of each call, in seconds")
parser.add_argument("--hold", action="store_true", help="make one call, and stay")
options = parser.parse_args()
elements = options.elements
try:
    with ringd.connect(group=options.name, timeout=60) as ring:
        for step in range(options.steps):
            # Not by its rank, which is known only when all are there.
            mine = np.arange(elements, dtype=np.int64) * WEIGHTS[ring.node] + step
            total = ring.all_reduce(mine, timeout=options.timeout)
            weight = sum(WEIGHTS[node] for node in ring.nodes)
            expected = np.arange(elements, dtype=np.int64) * weight + step * ring.size
            wrong = int(np.count_nonzero(total != expected))
            sys.stdout.write(f"step {step}: {wrong} wrong of {total.size}, {ring.size} ranks\n")
            sys.stdout.flush()
            if options.hold:
                time.sleep(3600)
except ringd.RingError as error:
    sys.stdout.write(f"{type(error).__name__}: {error}\n")
    sys.exit(1)
