"""What do sealed links cost? The same calls with each setting of ``ring.protect``.

    python benchmarks/sealing.py [--sizes 4B,1MiB,64MiB] [--rounds 15] [--markdown FILE]
    sudo python benchmarks/sealing.py --wire 1gbit --members 2 --sizes 16MiB

A ring for each setting runs all the time; they take turns, call batch by call batch, in one run. A
ratio is the median over the rounds of *off*'s time by that of the other in the same round, so 1
means that nothing is lost; that of *cpu* is of the least processor times, daemons' and programs',
as what else the machine does only adds to them. On loopback daemons and programs share the
processors, and what a seal costs is not hidden behind a wire; ``--wire`` puts one between two of
them (:mod:`wire`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import daemons
from kinds import human, size_of
from systems import Place
from teams import Batch, Team, all_ready, start
from wire import wire

SETTINGS = ("off", "integrity", "encrypt")
SIZES = "4B,16KiB,256KiB,1MiB,4MiB,16MiB,64MiB"
MODES = {"ringd": "ordinary arrays", "ringd-empty": "`ring.empty`"}
_ENOUGH = 64 << 20  # bytes of a batch, if that makes more than two calls
_MOST_CALLS = 200
_WARM_UP = 5

HEAD = (
    (
        "| n | size | arrays | off (us) | integrity (us) | encrypt (us) | integrity: speed left "
        "| encrypt: speed left | integrity: cpu | encrypt: cpu |"
    ),
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)


@contextlib.contextmanager
def teams_of(size: int, rate: str, directory: Path) -> Iterator[dict[str, Team]]:
    """Start a ring for each setting, with its programs, and end them afterwards."""
    with contextlib.ExitStack() as stack:
        hosts = stack.enter_context(wire(rate)) if rate else ()
        teams = {}
        for protect in SETTINGS:
            own = directory / protect
            own.mkdir()
            running = stack.enter_context(daemons.running(size, own, protect=protect, hosts=hosts))
            places = [Place(str(path)) for path in running.sockets]
            servers = [process.pid for process in running.processes]
            teams[protect] = Team("ringd", start("ringd", places), servers)
        yield stack.enter_context(all_ready(teams))


def row(teams: dict[str, Team], size: int, nbytes: int, mode: str, rounds: int) -> str:
    """Measure one size in one mode, in turn; return its line of the table."""
    calls = max(2, min(_MOST_CALLS, _ENOUGH // nbytes))
    seconds, cpu, wrong = defaultdict(list), defaultdict(list), 0
    for number in range(rounds + 1):  # of which the first is for warming up
        turn = number % len(SETTINGS)
        for protect in (*SETTINGS[turn:], *SETTINGS[:turn]):
            batch = Batch(mode, nbytes, calls, min(calls, _WARM_UP), number * calls)
            outcome = teams[protect].measure(batch)
            wrong += outcome.wrong
            if number:
                seconds[protect].append(outcome.seconds / calls)
                cpu[protect].append(outcome.cpu / calls)
    if wrong:
        raise SystemExit(f"{wrong} elements of results were wrong: {size} x {human(nbytes)}")
    cells = [str(size), human(nbytes), MODES[mode]]
    cells += [f"{statistics.median(seconds[protect]) * 1e6:.0f}" for protect in SETTINGS]
    for protect in SETTINGS[1:]:
        pairs = zip(seconds["off"], seconds[protect], strict=True)
        cells.append(f"{statistics.median(off / other for off, other in pairs):.3f}")
    cells += [f"{min(cpu['off']) / min(cpu[protect]):.3f}" for protect in SETTINGS[1:]]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--members", type=int, nargs="+", default=(2, 4))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--wire", default="", help="the speed of one between two hosts: 1gbit")
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    how = parser.parse_args()
    lines = [*HEAD]
    print(*lines, sep="\n")
    for size in how.members:
        with (
            tempfile.TemporaryDirectory(prefix="ringd-") as directory,
            teams_of(size, how.wire, Path(directory)) as teams,
        ):
            for nbytes in map(size_of, how.sizes.split(",")):
                for mode in how.modes:
                    lines.append(row(teams, size, nbytes, mode, how.rounds))
                    print(lines[-1], flush=True)
    if how.markdown:
        how.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{os.cpu_count()} processors; written to {how.markdown}")


if __name__ == "__main__":
    main()
