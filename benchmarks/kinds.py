"""Measure the collectives beside Gloo's, round by round in one run; print ratios of medians.

    python benchmarks/kinds.py [--size 2,4] [--sizes 1MiB,...] [--rounds 7] [--markdown FILE]

Sizes are those of the larger one of input and result, as in nccl-tests.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

from bench import systems
from systems import MODES
from teams import Batch

from ringd.config.units import parse_size

KINDS = ("broadcast", "all_gather", "reduce_scatter", "all_to_all", "all_reduce")
COMPARED = ("ringd", "ringd-empty", "gloo")
MIB = 1 << 20
_WARM_UP = 1


def calls_for(nbytes: int) -> int:
    """Return how many calls of one batch take long enough to be timed."""
    return max(2, min(20, 32 * MIB // nbytes))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="2,4")
    parser.add_argument("--sizes", default="1MiB,4MiB,16MiB,64MiB")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--markdown", type=Path)
    chosen = parser.parse_args()
    lines = [
        (
            "| n | call | size | ringd, GB/s | ring.empty, GB/s | Gloo, GB/s | ringd : Gloo "
            "| ring.empty : Gloo | wrong |"
        ),
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    print(*lines, sep="\n", flush=True)
    for n in map(int, chosen.size.split(",")):
        with (
            tempfile.TemporaryDirectory(prefix="ringd-bench-") as directory,
            systems(n, list(COMPARED), Path(directory)) as teams,
        ):
            for nbytes in map(parse_size, chosen.sizes.split(",")):
                for kind in chosen.kinds.split(","):
                    seconds = defaultdict(list)
                    wrong, calls = 0, calls_for(nbytes)
                    for number in range(chosen.rounds + 1):
                        turn = number % len(COMPARED)
                        for mode in (*COMPARED[turn:], *COMPARED[:turn]):
                            batch = Batch(mode, nbytes, calls, _WARM_UP, number * calls, kind=kind)
                            outcome = teams[MODES[mode]].measure(batch)
                            wrong += outcome.wrong
                            if number:
                                seconds[mode].append(outcome.seconds / calls)
                    medians = [statistics.median(seconds[mode]) for mode in COMPARED]
                    rates = [f"{nbytes / median / 1e9:.2f}" for median in medians]
                    ratios = [f"{medians[2] / median:.2f}" for median in medians[:2]]
                    cells = [n, kind, f"{nbytes // MIB} MiB", *rates, *ratios, wrong]
                    lines.append("| " + " | ".join(map(str, cells)) + " |")
                    print(lines[-1], flush=True)
    if chosen.markdown is not None:
        chosen.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
