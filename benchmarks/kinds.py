"""Compare every kind of call, and several programs on a machine, with what others offer.

    python benchmarks/kinds.py [--tables kinds,messages,...] [--rounds 7] [--markdown FILE]

Everything in a table is measured in one run, in turn, round by round; its ratios are those of the
medians, and more than 1 means that the first one is faster. Sizes are those of the larger one of
input and result, as in nccl-tests. Gloo needs torch; Open MPI ``mpirun`` and mpi4py; and a former
build of ringd is where ``--former`` says (``git worktree add --detach ../former COMMIT``).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import daemons
from launched import start_mpi, start_with
from systems import Place
from teams import Batch, Team, all_ready, start

from ringd.config.units import parse_size

MIB = 1 << 20
NAMES = {
    "ringd": "ringd",
    "ringd-empty": "ring.empty",
    "gloo": "Gloo",
    "mpi": "Open MPI",
    "former": "former",
    "former-empty": "former, ring.empty",
}
"""The modes, as the tables call them."""
TEAMS = {"ringd-empty": "ringd", "former-empty": "former"}
"""Whose mode it is, where that has another name."""
LARGE = "1MiB,4MiB,16MiB,64MiB"
EVERY = "broadcast,all_gather,reduce_scatter,all_to_all,all_reduce"
GLOO = (("ringd", "gloo"), ("ringd-empty", "gloo"))
FORMER = (("ringd", "former"), ("ringd-empty", "former-empty"))
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


def size_of(text: str) -> int:
    """Return the bytes of a size such as ``4B`` or ``1MiB``."""
    return parse_size(re.sub(r"^([0-9]+)B$", r"\1", text))  # the config's units have no "B"


def human(nbytes: int) -> str:
    """Return *nbytes* in the largest unit that leaves a whole number."""
    for unit, name in ((MIB, "MiB"), (1024, "KiB")):
        if nbytes % unit == 0:
            return f"{nbytes // unit} {name}"
    return f"{nbytes} B"


def calls_for(nbytes: int) -> int:
    """Return how many calls of one batch take long enough to be timed."""
    return max(2, min(_MOST_CALLS, _ENOUGH // nbytes))


@contextlib.contextmanager
def teams_of(table: Table, former: Path | None, directory: Path) -> Iterator[dict[str, Team]]:
    """Start what *table* compares, and end it all afterwards."""
    size = table.machines * table.programs
    kinds = {TEAMS.get(mode, mode) for mode in table.modes}
    with contextlib.ExitStack() as stack:
        teams = {}
        for kind in sorted(kinds & {"ringd", "former"}):
            own = directory / kind
            own.mkdir()
            source = former if kind == "former" else None
            running = stack.enter_context(daemons.running(table.machines, own, source))
            places = [
                Place(str(path), local, table.programs)
                for path in running.sockets
                for local in range(table.programs)
            ]
            workers = (
                start("ringd", places)
                if source is None
                else start_with(source, "ringd", places, own)
            )
            teams[kind] = Team("ringd", workers, [process.pid for process in running.processes])
        if "gloo" in kinds:
            teams["gloo"] = Team("gloo", start("gloo", [str(directory / "gloo")] * size))
        if "mpi" in kinds:
            teams["mpi"] = Team("mpi", start_mpi(size, directory))
        yield stack.enter_context(all_ready(teams))


def row(
    table: Table, teams: dict[str, Team], kind: str, nbytes: int, how: argparse.Namespace
) -> list[str]:
    """Measure one row."""
    taken = defaultdict(list)
    wrong, calls, modes = 0, calls_for(nbytes), table.modes
    for number in range(how.rounds + 1):  # of which the first is for warming up
        turn = number % len(modes)
        for mode in (*modes[turn:], *modes[:turn]):
            batch = Batch(mode, nbytes, calls, min(calls, _WARM_UP), number * calls, kind=kind)
            outcome = teams[TEAMS.get(mode, mode)].measure(batch)
            wrong += outcome.wrong
            if number:
                taken[mode].append(getattr(outcome, how.measure) / calls)
    medians = {mode: statistics.median(taken[mode]) for mode in modes}
    cells = [_cell(how.measure, nbytes, median) for median in medians.values()]
    ratios = [f"{medians[other] / medians[mode]:.2f}" for mode, other in table.ratios]
    return [kind, human(nbytes), *cells, *ratios, str(wrong)]


def measured(table: Table, how: argparse.Namespace) -> Iterator[str]:
    """Measure *table*; yield its lines."""
    modes = [NAMES[mode] for mode in table.modes]
    ratios = [f"{NAMES[mode]} : {NAMES[other]}" for mode, other in table.ratios]
    heads = ["call", "size", *modes, *ratios, "wrong"]
    yield _line(heads)
    yield _line(["---", *["---:"] * (len(heads) - 1)])
    with tempfile.TemporaryDirectory(prefix="ringd-bench-") as name:
        directory = Path(name)
        with teams_of(table, how.former, directory) as teams:
            for nbytes in map(size_of, table.sizes.split(",")):
                for kind in table.kinds.split(","):
                    yield _line(row(table, teams, kind, nbytes, how))


def _cell(measure: str, nbytes: int, median: float) -> str:
    if measure == "sleeps":
        return f"{median:.1f}"
    if measure == "seconds" and nbytes >= MIB:
        return f"{nbytes / median / 1e9:.2f} GB/s"
    return f"{median * 1e6:.0f} µs"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


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
    parser.add_argument("--former", type=Path, metavar="DIR", help="a former build's source")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    chosen = parser.parse_args()
    chosen.tables = chosen.tables.split(",")
    if unknown := set(chosen.tables) - set(TABLES):
        parser.error(f"no such table: {', '.join(unknown)}; there are {', '.join(TABLES)}")
    if "former" in chosen.tables and chosen.former is None:
        parser.error("the table `former` needs --former DIR; or name others with --tables")
    return chosen


def main() -> None:
    """Measure and print."""
    chosen = options()
    lines = []
    for name in chosen.tables:
        table = TABLES[name]
        table = replace(table, kinds=chosen.kinds or table.kinds, sizes=chosen.sizes or table.sizes)
        head = f"{table.machines} machines, programs on each: {table.programs}"
        began = time.monotonic()
        for line in itertools.chain([f"\n{name}: {head}\n"], measured(table, chosen)):
            lines.append(line)
            print(line, flush=True)
        print(f"\n({time.monotonic() - began:.0f} s)", flush=True)
    if chosen.markdown is not None:
        chosen.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
