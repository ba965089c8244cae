"""The programs of the chaos run, as processes: started, killed, and listened to."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

from cluster import PATIENCE, Cluster, wait_until

from chaos.calls import Role
from chaos.ledger import Ledger
from chaos.lives import Life


class Program:
    """One process, and what it has said so far."""

    def __init__(self, cluster: Cluster, role: Role, stop: Path) -> None:
        self.group, self.rank = group, rank = role.group, role.rank
        place = role.layout.places[rank]
        self._rest = b""
        command = [sys.executable, "-m", "chaos.workload", "--socket", cluster.sockets[place]]
        command += ["--group", group, "--rank", str(rank), "--members", str(role.members)]
        command += ["--seed", str(role.seed), "--stop", str(stop)]
        # The programs run the ringd and the chaos that this process runs.
        environ = cluster.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.log = cluster.directory / f"{group}.{rank}.err"
        with self.log.open("ab") as log:
            started = time.monotonic()
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env=environ
            )
        self.life = Life(rank, place, self.process.pid, started)
        assert self.process.stdout is not None
        self.fd = self.process.stdout.fileno()
        os.set_blocking(self.fd, False)

    def lines(self) -> tuple[list[str], bool]:
        """Return what it said since the last time, and whether it can say more."""
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return [], True
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode() for line in lines], bool(data)


class Programs:
    """All programs: one for each group and rank."""

    def __init__(self, cluster: Cluster, ledger: Ledger, seed: int) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._seed = seed
        self._selector = selectors.DefaultSelector()
        self._stop = cluster.directory / "stop"
        self._said = (cluster.directory / "said.txt").open("a")
        self._running: dict[tuple[str, int], Program] = {}
        self._leaving: dict[tuple[str, int], Program] = {}

    def start(self, group: str, rank: int) -> None:
        """Start the program of *group* on *rank*, unless it runs.

        As a supervisor does, once its predecessor has ended: that may take a while after a
        SIGKILL, with much memory to give back, and until then its place is rightly taken.
        """
        if (group, rank) in self._running:
            return
        former = self._leaving.pop((group, rank), None)
        if former is not None:
            former.process.wait(PATIENCE)
        role = Role(self._seed, group, len(self._cluster.nodes), rank)
        program = Program(self._cluster, role, self._stop)
        self._running[group, rank] = program
        self._ledger.started(group, program.life)
        self._selector.register(program.fd, selectors.EVENT_READ, program)

    def start_all(self) -> None:
        """Start all of them."""
        self._stop.unlink(missing_ok=True)
        self.start_missing()

    def start_missing(self) -> None:
        """Start those that do not run."""
        for group in self._ledger.groups.values():
            for rank in range(group.layout.size):
                self.start(group.name, rank)

    def kill(self, group: str, rank: int, signum: int = signal.SIGKILL) -> None:
        """End one by a signal."""
        program = self._running.pop((group, rank), None)
        if program is not None:
            self._ledger.killed(group, program.life, time.monotonic())
            program.process.send_signal(signum)
            self._leaving[group, rank] = program

    def signal(self, group: str, rank: int, signum: int) -> None:
        """Send one a signal that it handles, if it is there and does so by now."""
        program = self._running.get((group, rank))
        if program is not None and program.life.here and program.process.poll() is None:
            program.process.send_signal(signum)

    def signal_leaving(self, group: str, rank: int, signum: int) -> None:
        """Send the one that was ended there last a signal, while it still cleans up."""
        program = self._leaving.get((group, rank))
        if program is not None and program.life.here and program.process.poll() is None:
            program.process.send_signal(signum)

    def ask_for(self, what: str, group: str, *, wanted: bool) -> None:
        """Have the programs of *group* do that when they vote next, or not: "burst" or "fill"."""
        place = self._stop.with_name(f"{what}.{group}")
        place.touch() if wanted else place.unlink(missing_ok=True)

    def gone(self, group: str, rank: int) -> bool:
        """Whether the program that was ended there last has ended."""
        program = self._leaving.get((group, rank))
        return program is None or program.process.poll() is not None

    def catch_up(self) -> None:
        """Take in all that they have said by now: some of it stands in pipes for a while."""
        behind = set(self._selector.get_map())
        while behind:
            behind &= self.pump(0.0)

    def pump(self, timeout: float) -> set[int]:
        """Take in what the programs say, for at most *timeout* seconds; return whose pipes."""
        ready = self._selector.select(timeout)
        for key, _events in ready:
            program = key.data
            lines, more = program.lines()
            for line in lines:
                self._said.write(f"{program.group}.{program.rank} {program.life.pid} {line}\n")
                self._ledger.line(program.group, program.life, line)
            if not more:
                program.life.gone = time.monotonic()
                self._selector.unregister(program.fd)
                self._ended(program)
        return {key.fd for key, _events in ready}

    def _ended(self, program: Program) -> None:
        code = program.process.wait()
        assert program.process.stdout is not None
        program.process.stdout.close()
        place = (program.group, program.rank)
        if self._running.get(place) is program:
            del self._running[place]
            if code and not self._ledger.failed:
                self._ledger.died(program.group, program.life, code, program.log)

    def finish(self, patience: float) -> None:
        """Have all of them agree to stop, and wait until they have."""
        self._stop.touch()

        def ended() -> bool:
            self.pump(0.05)
            return not self._selector.get_map() or self._ledger.failed

        wait_until(ended, f"the end of the programs {sorted(self._running)}", patience)
        self._ledger.close()

    def stacks(self) -> None:
        """Have all of them write into their logs where they are."""
        for program in self._running.values():
            program.process.send_signal(signal.SIGUSR1)

    def close(self) -> None:
        """Kill what still runs."""
        for program in list(self._running.values()):
            program.process.kill()
            program.process.wait()
        self._running.clear()
        self._selector.close()
        self._said.close()
