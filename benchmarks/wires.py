"""What a wire gains over links of a given rate, beside what they carry without one.

    sudo python benchmarks/wires.py [--sizes 16MiB,64MiB] [--rate 1gbit] [--rounds 7]

Each member's daemon has a network namespace of its own, of which the way out is shaped (tbf). The
limit is the time of an all-reduce that does nothing but send each of its bytes once, uncompressed:
2(n-1)/n of the tensor over what plain TCP carries over one of the links, measured in the same run.
More than 1 is faster than that. Everything in a table is measured in turn, round by round.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import daemons
from hosts import carried, hosts
from kinds import MIB, human, size_of
from systems import Place
from teams import Batch, Team, all_ready, start

from ringd.collective.codec import WIRES

MODES = [
    f"ringd{wire}{empty}" for empty in ("", "-empty") for wire in ("", *(f"-{w}" for w in WIRES))
]
_WITHIN = {"bfloat16": 1 / 256, "int8": 1 / 125}
"""The error of an encoding, by wire; see docs/compression.md."""


@contextlib.contextmanager
def ring(size: int, rate: str) -> Iterator[tuple[Team, float]]:
    """Give the programs of so many members, and the bytes per second that a link carries."""
    with contextlib.ExitStack() as stack:
        places = stack.enter_context(hosts(size, rate))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ringd-bench-")))
        speed = carried(places[0], places[1], 64 * MIB)
        running = stack.enter_context(daemons.running(size, directory, hosts=places))
        workers = start("ringd", [Place(str(path)) for path in running.sockets])
        team = Team("ringd", workers, [process.pid for process in running.processes])
        yield stack.enter_context(all_ready({"ringd": team}))["ringd"], speed


def row(team: Team, size: int, nbytes: int, speed: float, rounds: int) -> list[str]:
    """Measure one row."""
    taken, wrong = defaultdict(list), 0
    for number in range(rounds + 1):  # of which the first is for warming up
        turn = number % len(MODES)
        for mode in (*MODES[turn:], *MODES[:turn]):
            unit = next((_WITHIN[wire] for wire in WIRES if wire in mode), 0.0)
            within = (1 + unit) ** size - 1
            outcome = team.measure(Batch(mode, nbytes, 1, 1, number, within=within))
            wrong += outcome.wrong
            if number:
                taken[mode].append(outcome.seconds)
    limit = 2 * (size - 1) / size * nbytes / speed
    medians = [statistics.median(taken[mode]) for mode in MODES]
    times = [f"{median * 1e3:.1f} ms ({limit / median:.2f})" for median in medians]
    return [str(size), human(nbytes), f"{limit * 1e3:.1f} ms", *times, str(wrong)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--members", default="2,4", help="default: %(default)s")
    parser.add_argument("--sizes", default="16MiB,64MiB", help="default: %(default)s")
    parser.add_argument("--rate", default="1gbit", help="of a link, as tc has it; %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="the median counts; %(default)s")
    chosen = parser.parse_args()
    heads = ["members", "size", "limit", *MODES, "wrong"]
    for cells in (heads, ["---:"] * len(heads)):
        print(f"| {' | '.join(cells)} |", flush=True)
    for size in map(int, chosen.members.split(",")):
        with ring(size, chosen.rate) as (team, speed):
            for nbytes in map(size_of, chosen.sizes.split(",")):
                cells = row(team, size, nbytes, speed, chosen.rounds)
                print(f"| {' | '.join(cells)} |", flush=True)
            print(f"({size} members: plain TCP carries {speed / 1e6:.1f} MB/s)", flush=True)


if __name__ == "__main__":
    main()
