"""Launch MLX programs a minute apart, in every order: under ``ringd-cli run --mlx``, and plain.

    python benchmarks/launch_skew.py [--sizes 2,3,4] [--skew 60] [--markdown FILE]

All orders of a size wait at the same time, each as a job of its own over the same ring; then all
of them once more with hostfiles of MLX's own and no ringd. A program is launched so many seconds
after the one before it has come to ``mx.distributed.init``. Once all are there, each makes sums,
and checks every element of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path

from instrument import daemons
from instrument.builds import Build
from instrument.counters import cpu_time
from instrument.markdown import table
from instrument.processes import end, end_on_sigterm
from instrument.sites import loopback

from ringd.host.ports import free_ports

PROGRAM = """
    import os, sys, time
    import mlx.core as mx

    print("waits", os.getpid(), time.monotonic(), flush=True)
    try:
        group = mx.distributed.init(strict=True, backend="ring")
    except Exception as error:
        print("gave up", time.monotonic(), flush=True)
        sys.exit(str(error))
    rank, size = group.rank(), group.size()
    wrong = 0
    for number in range(3):
        total = mx.distributed.all_sum(mx.arange(10_000, dtype=mx.float32) + (rank + number))
        expected = mx.arange(10_000, dtype=mx.float32) * size + (
            size * number + size * (size - 1) // 2
        )
        wrong += mx.sum(total != expected).item()
    print("done", wrong, time.monotonic(), flush=True)
"""
PATIENCE = 300.0
"""Seconds from the last one's coming, after which they are taken to wait without end."""
_LOOK = 0.1  # seconds
_over = threading.Event()  # this run is: what was started is to be ended

Order = tuple[int, ...]
Start = Callable[[int], subprocess.Popen[str]]


@dataclass(slots=True)
class Member:
    """One rank's program."""

    process: subprocess.Popen[str]
    """What was started: it, or ``ringd-cli run``."""
    pid: int
    """The program's own."""
    came: float
    """When it came to ``init``, on the clock that all processes share."""
    used: float = field(init=False)
    """Processor seconds until then, of the program and of what was started."""

    def __post_init__(self) -> None:
        self.used = self._used_so_far()

    def _used_so_far(self) -> float:
        return sum(cpu_time(pid) for pid in {self.pid, self.process.pid})

    def share(self) -> float:
        """Return the share of a processor that it has taken since it came."""
        return (self._used_so_far() - self.used) / (time.monotonic() - self.came)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one order."""

    order: Order
    failed: str
    """Why they did not come together; empty if they did."""
    wrong: int = 0
    """Elements of all results of all ranks."""
    after: float = 0.0
    """Seconds from the last one's coming to the last one's last result."""
    share: float = 0.0
    """The largest share of a processor that one took while it waited for the last one."""


def launch(order: Order, skew: float, start: Start) -> Outcome:
    """Start the ranks in this *order*, and see what comes of it."""
    members: dict[int, Member] = {}
    shares: list[float] = []
    try:
        for place, rank in enumerate(order):
            if place and (failed := _wait(members, skew)):
                return Outcome(order, failed)
            if place == len(order) - 1:
                shares = [member.share() for member in members.values()]
            process = start(rank)
            word, pid, came = _line(process).split()
            assert word == "waits", word  # noqa: S101
            members[rank] = Member(process, int(pid), float(came))
        if failed := _wait(members, PATIENCE):
            return Outcome(order, failed)
        if any(member.process.poll() is None for member in members.values()):
            return Outcome(order, f"they waited {PATIENCE:g} s longer")
        said = [_line(member.process).split() for member in members.values()]
        wrong, ended = sum(int(words[1]) for words in said), max(float(words[2]) for words in said)
        after = ended - max(member.came for member in members.values())
        return Outcome(order, "", wrong, after, max(shares))
    finally:
        for member in members.values():
            end(member.process, 5.0)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None  # noqa: S101
    return process.stdout.readline()


def _wait(members: dict[int, Member], seconds: float) -> str:
    """Wait so long, or until all have ended well; return why one has failed, if one has."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        codes = {rank: member.process.poll() for rank, member in members.items()}
        for rank, code in codes.items():
            if code:
                words = _line(members[rank].process).split() or ["died", str(time.monotonic())]
                after = float(words[-1]) - members[rank].came
                return f"rank {rank} {' '.join(words[:-1])} after {after:.0f} s"
        if all(code == 0 for code in codes.values()):
            break
        if _over.wait(_LOOK):
            return "it was broken off"
    return ""


def in_every_order(
    size: int, skew: float, stagger: float, start_of: Callable[[Order], Start]
) -> list[Outcome]:
    """Launch all orders of *size* ranks, each begun so many seconds after the one before it."""
    orders = list(permutations(range(size)))

    def one(number: int, order: Order) -> Outcome:
        _over.wait(number * stagger)
        return launch(order, skew, start_of(order))

    with ThreadPoolExecutor(len(orders)) as pool:
        try:
            return list(pool.map(one, range(len(orders)), orders))
        except BaseException:
            _over.set()
            raise


def over_the_ring(size: int, skew: float, stagger: float) -> tuple[list[Outcome], float]:
    """Launch them under ``run --mlx``; return the outcomes, and a daemon's share of a processor."""
    with (
        tempfile.TemporaryDirectory(prefix="ringd-bench-") as directory,
        daemons.running(loopback(size), Path(directory), Build()) as ring,
    ):
        ring.wait_ready()

        def start_of(order: Order) -> Start:
            job = "".join(map(str, order))

            def start(rank: int) -> subprocess.Popen[str]:
                command = [sys.executable, "-m", "ringd.cli.main", "run", "--mlx", "--name", job]
                command += ["--socket", str(ring.sockets[rank]), "--"]
                return _popen([*command, *_program()])

            return start

        used, began = sum(map(cpu_time, ring.pids)), time.monotonic()
        outcomes = in_every_order(size, skew, stagger, start_of)
        share = (sum(map(cpu_time, ring.pids)) - used) / (time.monotonic() - began) / size
        return outcomes, share


def plain(size: int, skew: float, stagger: float) -> list[Outcome]:
    """Launch them with hostfiles, as MLX's own documentation has it."""
    with tempfile.TemporaryDirectory(prefix="ringd-bench-") as directory:

        def start_of(order: Order) -> Start:
            hostfile = Path(directory, "".join(map(str, order)))
            hostfile.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(size)]))

            def start(rank: int) -> subprocess.Popen[str]:
                return _popen(_program(), MLX_RANK=str(rank), MLX_HOSTFILE=str(hostfile))

            return start

        return in_every_order(size, skew, stagger, start_of)


def _program() -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(PROGRAM)]


def _popen(command: Sequence[str], **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def report(size: int, chosen: argparse.Namespace) -> Iterator[str]:
    """Yield what is found of *size* ranks."""
    outcomes, of_daemon = over_the_ring(size, chosen.skew, chosen.stagger)
    others = plain(size, chosen.skew, chosen.stagger)
    rows = []
    for outcome, other in zip(outcomes, others, strict=True):
        launched = ", ".join(map(str, outcome.order))
        alone = f"no: {other.failed}" if other.failed else f"yes, {other.wrong} wrong"
        if outcome.failed:
            rows.append([launched, f"no: {outcome.failed}", "", "", "", alone])
            continue
        figures = f"{outcome.wrong}", f"{outcome.after:.1f} s", f"{100 * outcome.share:.2f} %"
        rows.append([launched, "yes", *figures, alone])
    head = ["ranks, as launched", "came together", "wrong values", "after the last one came"]
    head += ["processor, waiting", "plain MLX came together"]
    yield f"n = {size}\n"
    yield table(head, rows)
    yield f"A daemon took {100 * of_daemon:.2f} % of a processor meanwhile, for all orders.\n"


def main() -> None:
    """Launch, wait, and print."""
    end_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--sizes", default="2,3,4", help="ranks; default: %(default)s")
    parser.add_argument("--skew", type=float, default=60.0, help="seconds; default: %(default)s")
    parser.add_argument(
        "--stagger",
        type=float,
        default=2.0,
        help="seconds from the beginning of one order to that of the next; default: %(default)s",
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    chosen = parser.parse_args()
    lines = []
    for size in map(int, chosen.sizes.split(",")):
        for said in report(size, chosen):
            lines.append(said)
            print(said, flush=True)
    if chosen.markdown is not None:
        chosen.markdown.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
