"""What the examples of inference share, and what is not about the use of a ring.

Their options, their times, their verdict; and ``--local``: all of it on one machine, with a ring
of several daemons on loopback, some ranks beside each daemon, and ``--chaos``, which kills daemons.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import ringd
from ringd.host.ports import free_ports

LATE = 2.0
"""Seconds by which the last rank is late, with ``--local``."""


# --- one rank ---------------------------------------------------------------------------------


def options(about: str, *, group: str, per_machine: int) -> argparse.ArgumentParser:
    """Return a parser with the options that all examples have."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--socket", help="the daemon's socket; default: the usual places")
    parser.add_argument("--group", default=group, help="the group's name")
    parser.add_argument("--local-rank", type=int, default=0, help="which program of this machine")
    parser.add_argument("--local-size", type=int, default=1, help="programs on this machine")
    parser.add_argument("--sentences", type=int, default=320)
    parser.add_argument("--rounds", type=int, help="default: 1, with --chaos 3")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for a daemon")
    parser.add_argument("--report", type=Path, help="write the figures to this file, as JSON")
    here = parser.add_argument_group("all on this machine")
    here.add_argument("--local", type=int, metavar="N", help="start N daemons, and ranks")
    here.add_argument("--per-machine", type=int, default=per_machine, help="ranks for each daemon")
    here.add_argument("--chaos", action="store_true", help="kill daemons under them")
    here.add_argument("--seed", type=int, default=0, help="of the chaos")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the arguments, if they go together."""
    args = parser.parse_args()
    args.rounds = args.rounds or (3 if args.chaos else 1)
    if args.chaos and not (args.local and args.rounds > 1):
        parser.error("--chaos goes with --local, and with at least 2 rounds")
    return args


class Round:
    """The times of one round, in which all sentences are computed once.

    Args:
        number: from 1 on.
        ring: may form anew meanwhile; times in which it does are *delayed*.
        what: takes that time, such as "calls".
    """

    def __init__(self, number: int, ring: ringd.Ring, what: str) -> None:
        self._number = number
        self._ring = ring
        self._what = what
        self._start = self._lap = time.perf_counter()
        self._generation = ring.generation
        self._seconds: list[float] = []
        self._delayed: list[float] = []

    def begin(self) -> None:
        """One of them begins; or else it begins as the one before ends."""
        self._lap = time.perf_counter()

    def end(self) -> None:
        """One of them has ended."""
        begun, self._lap = self._lap, time.perf_counter()
        self._seconds.append(self._lap - begun)
        if self._ring.generation != self._generation:
            self._generation = self._ring.generation
            self._delayed.append(self._lap - begun)

    def figures(self, sentences: int) -> dict[str, Any]:
        """Print and return how it went with so many sentences."""
        seconds = time.perf_counter() - self._start
        p50, p95, slowest = (float(np.percentile(self._seconds, p)) for p in (50, 95, 100))
        delayed = f"; {len(self._delayed)} of them delayed" if self._delayed else ""
        print(
            f"round {self._number}: {seconds:5.2f} s, {sentences / seconds:4.0f} sentences/s; "
            f"{len(self._seconds)} {self._what}, p50 {p50 * 1e3:.1f} ms, p95 {p95 * 1e3:.1f} ms, "
            f"slowest {slowest * 1e3:.0f} ms{delayed}",
            flush=True,
        )
        figures = {"seconds": seconds, "sentences": sentences, "p50": p50, "p95": p95}
        return figures | {"what": self._what, "count": len(self._seconds), "delayed": self._delayed}


def exit_code_of(rank: Callable[[], int]) -> int:
    """Return what *rank*, the program of one rank, returns; in one line, why it cannot be one."""
    try:
        return rank()
    except (ringd.DaemonUnavailable, ringd.Refused) as error:
        print(error, file=sys.stderr)
        return 1


def verdict(checks: dict[str, bool]) -> int:
    """Print what was found; return the exit code, 0 only if all is right."""
    for text, good in checks.items():
        print(f"{'yes' if good else 'NO'}: {text}")
    return 0 if all(checks.values()) else 1


# --- all ranks on this machine ----------------------------------------------------------------


class Daemon:
    """One member of a ring on loopback, started as a service manager would."""

    def __init__(self, config: Path, name: str) -> None:
        self.name = name
        self.socket = config.with_name(f"{name}.sock")
        self._log = config.with_name(f"{name}.log")
        self._command = [sys.executable, "-m", "ringd.daemon.main", "--config", str(config)]
        self._command += ["--node", name, "--socket", str(self.socket)]
        self._command += ["--state-dir", str(config.with_name(f"{name}.state"))]
        self.start()

    def start(self) -> None:
        """Start it; returns at once."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stderr=log)

    def kill(self) -> None:
        """End it as kill -9 does."""
        self._process.kill()
        self._process.wait()


class LocalRing:
    """A directory with a ring's config and logs, the processes, and who says what when."""

    def __init__(self, args: argparse.Namespace, directory: Path, stack: ExitStack) -> None:
        self.size = args.local * args.per_machine
        self.daemons: list[Daemon] = []
        self._args = args
        self._directory = directory
        self._stack = stack
        self._start = time.monotonic()
        self._ranks: list[subprocess.Popen[str]] = []
        self._kills = 0
        self._unable = ""
        self._calm = threading.Event()
        self._follower = threading.Thread(target=self._follow)
        self._start_daemons()
        # On the way out: first the ranks end, then the follower and its chaos, then the daemons.
        stack.callback(lambda: self._follower.ident and self._follower.join())

    def say(self, who: str, text: str) -> None:
        """Print one line."""
        print(f"{time.monotonic() - self._start:6.2f} s  {who:<7} {text}", flush=True)

    def _start_daemons(self) -> None:
        config = self._directory / "ringd.toml"
        text = '[ring]\nname = "example"\ninsecure = true  # on loopback only\n'
        for i, port in enumerate(free_ports(self._args.local)):
            text += f'[[ring.members]]\nname = "n{i}"\naddresses = ["127.0.0.1:{port}"]\n'
        config.write_text(text)
        for i in range(self._args.local):
            self.daemons.append(Daemon(config, f"n{i}"))
            self._stack.callback(self.daemons[-1].kill)
        self.say("all", f"daemons started: {', '.join(one.name for one in self.daemons)}")

    def start_rank(self, script: str, rank: int, passed_on: tuple[str, ...]) -> None:
        """Start the program of one rank, with some of our options; if it fails, so do all."""
        machine, local_rank = divmod(rank, self._args.per_machine)
        command = [sys.executable, script, "--socket", str(self.daemons[machine].socket)]
        command += ["--local-rank", str(local_rank), "--local-size", str(self._args.per_machine)]
        for name in ("sentences", "rounds", "patience", *passed_on):
            if (value := getattr(self._args, name)) is not None:
                command += [f"--{name.replace('_', '-')}", str(value)]
        command += ["--report", str(self._directory / f"rank{rank}.json")]
        threads = str(max(1, (os.cpu_count() or 1) // self.size))
        environ = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "VECLIB_MAXIMUM_THREADS": threads}
        log = self._stack.enter_context((self._directory / f"rank{rank}.log").open("w"))
        process = subprocess.Popen(
            command, env=environ, stdout=log if rank else subprocess.PIPE, stderr=log, text=True
        )
        self._ranks.append(process)
        self._stack.callback(process.kill)
        if rank == 0:
            self._follower.start()
        threading.Thread(target=self._watch, args=(process,), daemon=True).start()
        self.say("all", f"program of rank {rank} started, beside {self.daemons[machine].name}")

    def _watch(self, process: subprocess.Popen[str]) -> None:
        if process.wait() != 0:
            for rank in self._ranks:
                rank.terminate()

    def _follow(self) -> None:
        """Print what rank 0 says, until it ends; trouble comes after its first round."""
        adversary = threading.Thread(target=self._disturb)
        try:
            for line in self._ranks[0].stdout or ():
                self.say("rank 0", line.rstrip("\n"))
                if line.startswith(f"round {self._args.rounds}:"):
                    self._calm.set()
                elif line.startswith("round 1:") and self._args.chaos:
                    adversary.start()
        finally:
            self._calm.set()
            if adversary.ident:
                adversary.join()

    def _disturb(self) -> None:
        try:
            self._kill_daemons()
        except ringd.RingError as error:
            self._unable = str(error)

    def _kill_daemons(self) -> None:
        rng = random.Random(self._args.seed)  # noqa: S311 - to be the same again
        while True:
            daemon = rng.choice(self.daemons)
            daemon.kill()
            start = time.monotonic()
            daemon.start()
            self._kills += 1
            self.say("chaos", f"{daemon.name}'s daemon killed (kill -9) and started again")
            # As a program that waits for its daemon, and for the others.
            with ringd.connect(daemon.socket, "chaos", self._args.patience) as ring:
                ring.wait_ready(self._args.patience)
            seconds = time.monotonic() - start
            self.say("chaos", f"the ring is whole again, after {seconds:.2f} s")
            if self._calm.wait(rng.uniform(1.0, 2.0)):
                return

    def judge(self) -> bool:
        """Print how it ended, and what the kills cost; whether all is right."""
        codes = [rank.wait() for rank in self._ranks]
        self._follower.join()
        self.say("all", f"exit codes of the ranks: {', '.join(map(str, codes))}")
        if self._unable:
            self.say("chaos", f"the ring did not come back: {self._unable}")
        if any(codes) or self._unable:
            return False
        figures = json.loads((self._directory / "rank0.json").read_text())
        calm, *rounds = figures["rounds"]
        if self._kills:
            delayed = [seconds for one in rounds for seconds in one["delayed"]]
            count = sum(one["count"] for one in rounds)
            lost = sum(delayed) - len(delayed) * calm["p50"]
            self.say(
                "chaos",
                f"{self._kills} kills delayed {len(delayed)} of {count} {calm['what']}, by "
                f"{lost:.2f} s in all, {lost / self._kills:.2f} s per kill; none failed",
            )
        if self._args.report:
            self._args.report.write_text(json.dumps({**figures, "kills": self._kills}))
        return True


def be_all_ranks(args: argparse.Namespace, script: str, passed_on: tuple[str, ...]) -> int:
    """Start daemons and ranks here, and disturb them if asked to; 0 if the results are right.

    Args:
        args: as of :func:`parse`.
        script: the example's file.
        passed_on: which of its own options each rank is given.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends what was started, too
    directory = Path(tempfile.mkdtemp(prefix="ringd-"))
    with ExitStack() as stack:
        ring = LocalRing(args, directory, stack)
        for rank in range(ring.size):
            if rank and rank == ring.size - 1:
                time.sleep(LATE)
            ring.start_rank(script, rank, passed_on)
        good = ring.judge()
    if good:
        shutil.rmtree(directory)
        return 0
    for path in sorted(directory.glob("*.log")):
        print("".join(f"{path.stem}: {line}\n" for line in path.read_text().splitlines()[-5:]))
    print(f"NOT right; config and logs are in {directory}")
    return 1
