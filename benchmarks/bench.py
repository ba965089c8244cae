"""How fast is all-reduce through the daemons, beside Gloo and beside what the machine carries?

For rings of 2 and 4 daemons on loopback and f32 sums from 4 B to 256 MiB: nccl-tests' columns
(busbw is algbw times 2(n-1)/n, ``#wrong`` counts elements of all results of all members), and
calls per second with 1,000 small calls in flight::

    python benchmarks/bench.py
    python benchmarks/bench.py --quick --size 2 --systems ringd,gloo

All systems are measured in one run, in turn, round by round, with the same calls and warm-up,
each by its own processes, which sleep while others have their turn. The time of a batch is that
of its slowest member; the median over the rounds counts. Exit code 1 if a result was wrong, or
if ringd is slower than it must be.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import daemons
import report
from roofline import connected_pairs
from systems import FLOAT32, MODES, Place
from teams import Batch, Failure, Team, all_ready, start

from ringd.config.units import parse_size

RESULTS = Path(__file__).parents[1] / "docs" / "benchmarks" / "loopback.json"
SIZES = "4B,1KiB,16KiB,64KiB,256KiB,1MiB,4MiB,16MiB,64MiB,256MiB"
QUICK_SIZES = "4B,16KiB,256KiB,1MiB,16MiB"
ROUNDS = 7
QUICK_ROUNDS = 5

_BATCH_BYTES = 32 << 20  # reduced in a batch, if that makes more than one call
_MOST_CALLS = 100
_WARM_UP = 10  # calls before each batch at most, and no more than the batch has
_FLIGHT_BYTES = 4096
_FLIGHT_CALLS = 1000


def batches(nbytes: int, modes: list[str], rounds: int) -> Iterator[tuple[int, Batch]]:
    """Yield (round, batch) in the order of measuring; round 0 is for warming up."""
    calls = min(_MOST_CALLS, max(1, _BATCH_BYTES // nbytes))
    for number in range(rounds + 1):
        for mode in modes:
            yield number, Batch(mode, nbytes, calls, min(calls, _WARM_UP), number * calls)


def flights(modes: list[str], rounds: int) -> Iterator[tuple[int, Batch]]:
    """Yield the same for many calls in flight, for those systems that can have them."""
    for number in range(rounds + 1):
        for mode in modes:
            if mode in ("ringd", "gloo"):
                salt = number * _FLIGHT_CALLS
                yield (
                    number,
                    Batch(mode, _FLIGHT_BYTES, _FLIGHT_CALLS, _WARM_UP, salt, in_flight=True),
                )


def measure(n: int, teams: dict[str, Team], plan: Iterator[tuple[int, Batch]]) -> list[report.Row]:
    """Run the batches of one size; return one row per system."""
    rows: dict[str, report.Row] = {}
    for number, batch in plan:
        row = rows.setdefault(
            batch.mode,
            report.Row(n, batch.nbytes, batch.mode, batch.calls, in_flight=batch.in_flight),
        )
        outcome = teams[MODES[batch.mode]].measure(batch)
        row.wrong += outcome.wrong
        if number:
            row.seconds.append(outcome.seconds / batch.calls)
            row.cpu.append(outcome.cpu / batch.calls / n)
    return list(rows.values())


@contextlib.contextmanager
def systems(n: int, modes: list[str], directory: Path) -> Iterator[dict[str, Team]]:
    """Start what *modes* need for a ring of *n*, and end it all afterwards."""
    kinds = {MODES[mode] for mode in modes}
    with contextlib.ExitStack() as stack:
        teams = {}
        running = None
        if "ringd" in kinds:
            running = stack.enter_context(daemons.running(n, directory))
            teams["ringd"] = Team(
                "ringd",
                start("ringd", [Place(str(path)) for path in running.sockets]),
                [process.pid for process in running.processes],
            )
        if "gloo" in kinds:
            teams["gloo"] = Team("gloo", start("gloo", [str(directory / "gloo")] * n))
        if "roofline" in kinds:
            pairs = connected_pairs(n)
            links = [(pairs[rank - 1][1], pairs[rank][0]) for rank in range(n)]
            teams["roofline"] = Team("roofline", start("roofline", links))
            for link in (link for pair in pairs for link in pair):
                link.close()
        try:
            yield stack.enter_context(all_ready(teams))
        except Failure as failure:
            if running is not None:
                failure.args = (f"{failure}\n{running.complaints()}",)
            raise


def run(options: argparse.Namespace) -> report.Report:
    """Measure what *options* ask for, printing rows as they come."""
    result = report.Report(options.rounds)
    for n in options.size:
        with (
            tempfile.TemporaryDirectory(prefix="ringd-bench-") as directory,
            systems(n, options.systems, Path(directory)) as teams,
        ):
            print(f"\n# all-reduce sum f32, n = {n}, loopback, {options.rounds} rounds")
            print(report.HEADER)
            for nbytes in options.sizes:
                new = measure(n, teams, batches(nbytes, options.systems, options.rounds))
                result.rows.extend(new)
                for row in new:
                    print(result.line(row), flush=True)
            new = measure(n, teams, flights(options.systems, options.rounds))
            result.rows.extend(new)
            for row in new:
                print(result.flight_line(row), flush=True)
    return result


def options() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", default="2,4", help="daemons per ring; default %(default)s")
    parser.add_argument("--sizes", help=f"of the tensor; default {SIZES}")
    parser.add_argument(
        "--rounds", type=int, help=f"the median counts; at least 5, default {ROUNDS}"
    )
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    parser.add_argument("--systems", default=",".join(MODES), help="default: %(default)s")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write results there, and as FILE with .md; default, for a full run: docs/benchmarks",
    )
    chosen = parser.parse_args()
    full = chosen.systems == parser.get_default("systems") and not (chosen.sizes or chosen.quick)
    chosen.json = chosen.json or (RESULTS if full else None)
    chosen.rounds = chosen.rounds or (QUICK_ROUNDS if chosen.quick else ROUNDS)
    try:
        chosen.size = [int(text) for text in chosen.size.split(",")]
        chosen.sizes = [
            # "4B" is plain bytes, which the config's units have no suffix for.
            parse_size(re.sub(r"^([0-9]+)B$", r"\1", text))
            for text in (chosen.sizes or (QUICK_SIZES if chosen.quick else SIZES)).split(",")
        ]
    except ValueError as error:
        parser.error(str(error))
    chosen.systems = chosen.systems.split(",")
    if unknown := set(chosen.systems) - set(MODES):
        parser.error(f"no such system: {', '.join(unknown)}; there are {', '.join(MODES)}")
    if min(chosen.size) < 2:  # noqa: PLR2004 - a ring of one has nothing to send
        parser.error("a ring has at least 2 daemons here")
    if chosen.rounds < QUICK_ROUNDS:
        parser.error("fewer than 5 rounds make no median")
    if any(nbytes % FLOAT32.itemsize or not nbytes for nbytes in chosen.sizes):
        parser.error("tensor sizes are multiples of 4 B")
    if "gloo" in chosen.systems and importlib.util.find_spec("torch") is None:
        parser.error("Gloo needs torch: `make bench` installs it, or leave gloo out of --systems")
    return chosen


def main() -> None:
    """Measure, print, write, judge."""
    chosen = options()
    try:
        result = run(chosen)
    except Failure as failure:
        sys.exit(str(failure))
    lines, good = result.checks()
    print("", *lines, sep="\n")
    if chosen.json is not None:
        result.write(chosen.json)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
