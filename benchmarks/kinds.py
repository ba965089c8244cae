"""Compare every kind of call, and several programs on a machine, with what others offer.

    python benchmarks/kinds.py [--tables kinds,messages,...] [--rounds 7] [--markdown FILE]

Everything in a table is measured in one run, in turn, round by round; its ratios are those of the
medians, and more than 1 means that the first one is faster. Sizes are those of the larger one of
input and result, as in nccl-tests. Gloo needs torch; Open MPI ``mpirun`` and mpi4py; and a former
build of ringd is where ``--former`` says: a source (``git worktree add --detach ../former FORMER``)
or a Python for which it is installed (``make bench`` makes .venv-before/bin/python).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from instrument import samples
from instrument.batch import Batch, Failure
from instrument.builds import Build, build_at
from instrument.line_up import LineUp
from instrument.markdown import line
from instrument.plan import in_turn
from instrument.processes import end_on_sigterm
from instrument.sites import loopback
from instrument.sizes import human, sizes_of
from instrument.starts import line_up, start_gloo, start_mpi, start_ring

MIB = 1 << 20
NAMES = {
    "ringd": "ringd",
    "ringd-empty": "ring.empty",
    "gloo": "Gloo",
    "mpi": "Open MPI",
    "before": "former",
    "before-empty": "former, ring.empty",
}
"""The modes, as the tables call them."""
TEAMS = {"ringd-empty": "ringd", "before-empty": "before"}
"""Whose mode it is, where that has another name."""
LARGE = "1MiB,4MiB,16MiB,64MiB"
EVERY = "broadcast,all_gather,reduce_scatter,all_to_all,all_reduce"
GLOO = (("ringd", "gloo"), ("ringd-empty", "gloo"))
FORMER = (("ringd", "before"), ("ringd-empty", "before-empty"))
_ENOUGH = 32 * MIB  # of a batch, if that makes more than two calls
_MOST_CALLS = 300
_WARM_UP = 10  # calls before each batch at most


@dataclass(frozen=True, slots=True)
class Table:
    """What is compared on some machines, each with its daemon and its programs."""

    machines: int
    programs: int
    """On each machine."""
    kinds: str
    sizes: str
    ratios: tuple[tuple[str, str], ...]

    @property
    def modes(self) -> list[str]:
        """All that are measured."""
        compared = {mode for pair in self.ratios for mode in pair}
        return [mode for mode in NAMES if mode in compared]


TABLES: dict[str, Table] = {
    "kinds2": Table(2, 1, EVERY, LARGE, GLOO),
    "kinds4": Table(4, 1, EVERY, LARGE, GLOO),
    "machine": Table(1, 4, "all_reduce", "1MiB,16MiB,64MiB", (*GLOO, ("ringd-empty", "mpi"))),
    "machines": Table(2, 2, "all_reduce", LARGE, GLOO),
    "messages": Table(2, 1, "ping_pong", "8KiB", (("ringd", "gloo"),)),
    "former": Table(2, 1, "all_reduce", "4B,4KiB,64KiB,1MiB,16MiB", FORMER),
}


def calls_for(nbytes: int) -> int:
    """Return how many calls of one batch take long enough to be timed."""
    return max(2, min(_MOST_CALLS, _ENOUGH // nbytes))


@contextlib.contextmanager
def teams_of(table: Table, how: argparse.Namespace) -> Iterator[LineUp]:
    """Start what *table* compares, and end it all afterwards."""
    kinds = {TEAMS.get(mode, mode) for mode in table.modes}
    with line_up(loopback(table.machines), []) as made:
        for name in sorted(kinds):
            if name == "gloo":
                made.add(name, start_gloo(made, table.programs))
            elif name == "mpi":
                made.add(name, start_mpi(made, "self,vader", table.programs))
            elif name == "ringd":
                made.add(name, start_ring(made, name, Build(), table.programs, how.protect))
            else:
                made.add(name, start_ring(made, name, how.former, table.programs))
        made.wait_ready(list(made.teams))
        yield made


def row(table: Table, made: LineUp, kind: str, nbytes: int, how: argparse.Namespace) -> list[str]:
    """Measure one row."""
    taken = defaultdict(list)
    wrong, calls = 0, calls_for(nbytes)
    for number, mode in in_turn(table.modes, how.rounds):
        batch = Batch(mode, nbytes, calls, min(calls, _WARM_UP), number * calls, kind=kind)
        outcome = made.teams[TEAMS.get(mode, mode)].measure(batch)
        wrong += outcome.wrong
        if number:
            taken[mode].append(getattr(outcome, how.measure) / calls)
    cells = [_cell(how.measure, nbytes, samples.median(taken[mode])) for mode in table.modes]
    ratios = [f"{samples.ratio(taken[mode], taken[other]):.2f}" for mode, other in table.ratios]
    return [kind, human(nbytes), *cells, *ratios, str(wrong)]


def measured(table: Table, how: argparse.Namespace) -> Iterator[str]:
    """Measure *table*; yield its lines."""
    modes = [NAMES[mode] for mode in table.modes]
    ratios = [f"{NAMES[mode]} : {NAMES[other]}" for mode, other in table.ratios]
    heads = ["call", "size", *modes, *ratios, "wrong"]
    yield line(heads)
    yield line(["---", *["---:"] * (len(heads) - 1)])
    with teams_of(table, how) as made:
        for nbytes in sizes_of(table.sizes):
            for kind in table.kinds.split(","):
                yield line(row(table, made, kind, nbytes, how))


def _cell(measure: str, nbytes: int, median: float) -> str:
    if measure == "sleeps":
        return f"{median:.1f}"
    if measure == "seconds" and nbytes >= MIB:
        return f"{nbytes / median / 1e9:.2f} GB/s"
    return f"{median * 1e6:.0f} µs"


def options() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tables", default=",".join(TABLES), help="default: %(default)s")
    parser.add_argument("--kinds", help="those of the tables that are named, in place of all")
    parser.add_argument("--sizes", help="in place of each table's own")
    parser.add_argument("--rounds", type=int, default=7, help="the median counts; %(default)s")
    parser.add_argument(
        "--measure",
        choices=("seconds", "cpu", "sleeps"),
        default="seconds",
        help="of a call; or the CPU time of all processes, which others that use the machine "
        "disturb less; or how often a thread of these goes to sleep, to be woken",
    )
    parser.add_argument(
        "--former", type=Path, metavar="BUILD", help="a former build: its source, or its Python"
    )
    parser.add_argument("--protect", help="ring.protect of ringd's members; default: its own")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    chosen = parser.parse_args()
    chosen.tables = chosen.tables.split(",")
    if unknown := set(chosen.tables) - set(TABLES):
        parser.error(f"no such table: {', '.join(unknown)}; there are {', '.join(TABLES)}")
    if "former" in chosen.tables and chosen.former is None:
        parser.error("the table `former` needs --former BUILD; or name others with --tables")
    try:
        chosen.former = chosen.former and build_at(chosen.former)
    except Failure as failure:
        parser.error(str(failure))
    return chosen


def main() -> None:
    """Measure and print."""
    end_on_sigterm()
    chosen = options()
    lines = []
    for name in chosen.tables:
        table = TABLES[name]
        table = replace(table, kinds=chosen.kinds or table.kinds, sizes=chosen.sizes or table.sizes)
        head = f"{table.machines} machines, programs on each: {table.programs}"
        began = time.monotonic()
        try:
            for said in itertools.chain([f"\n{name}: {head}\n"], measured(table, chosen)):
                lines.append(said)
                print(said, flush=True)
        except Failure as failure:
            sys.exit(str(failure))
        print(f"\n({time.monotonic() - began:.0f} s)", flush=True)
    if chosen.markdown is not None:
        chosen.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
