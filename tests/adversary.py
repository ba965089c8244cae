"""Faults for a :class:`simulation.Simulation`, at random from a seed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from simulation import FSYNC, Simulation
from virtual_network import HOP


class Adversary:
    """Breaks things at random for a while, then lets everybody recover.

    Args:
        simulation: What to break.
        pace: Mean seconds between two faults.
        forgetful: Whether crashes may take state files with them.
    """

    def __init__(self, simulation: Simulation, pace: float, *, forgetful: bool = True) -> None:
        self.simulation = simulation
        self.pace = pace
        self.forgetful = forgetful
        self.faults: dict[str, int] = {}
        self._stopped = False
        self._kinds: list[tuple[str, Callable[[int], Any]]] = [
            ("cut", self._cut),
            ("crash", self._crash),
            ("crash of many", self._crash_many),
            ("pause", self._pause),
            ("partition", self._partition),
            ("slow disk", self._slow_disk),
            ("full disk", self._full_disk),
            ("rejoin", simulation.rejoin),
            ("flap", self._flap),
        ]

    def run(self, seconds: float) -> None:
        """Break things for *seconds*, then mend everything."""
        simulation = self.simulation
        self._next()
        simulation.run(seconds)
        self._stopped = True
        simulation.blocked.clear()
        for rank, disk in enumerate(simulation.disks):
            disk.full = False
            disk.fsync = FSYNC
            simulation.start(rank)

    def _next(self) -> None:
        if self._stopped:
            return
        random = self.simulation.random
        name, fault = random.choice(self._kinds)
        self.faults[name] = self.faults.get(name, 0) + 1
        fault(random.randrange(self.simulation.size))
        self.simulation.at(random.expovariate(1 / self.pace), self._next)

    def _brief(self) -> float:
        """Return a time that is often of the order of a hop, sometimes of seconds."""
        random = self.simulation.random
        return float(
            random.choice((HOP, 10 * HOP, 10 * HOP, 0.02, 0.1, 1.0)) * random.uniform(0.1, 3.0)
        )

    def _cut(self, rank: int) -> None:
        random = self.simulation.random
        self.simulation.cut(rank, silent=random.random() < 0.2, lossy=random.random() < 0.5)

    def _flap(self, rank: int) -> None:
        for _ in range(3):
            self.simulation.at(self._brief(), lambda: self._cut(rank))

    def _crash(self, rank: int) -> None:
        random = self.simulation.random
        self.simulation.crash(
            rank,
            lose_state=self.forgetful and random.random() < 0.2,
            silent=random.random() < 0.2,
        )
        self.simulation.at(self._brief(), lambda: self.simulation.start(rank))

    def _crash_many(self, rank: int) -> None:
        size = self.simulation.size
        for step in range(self.simulation.random.randint(2, max(2, size // 2))):
            self._crash((rank + step) % size)

    def _pause(self, rank: int) -> None:
        random = self.simulation.random
        self.simulation.pause(rank, 3 * self._brief(), jump=random.random() < 0.3)

    def _partition(self, rank: int) -> None:
        other = self.simulation.random.randrange(self.simulation.size)
        for link in (rank, other):
            self.simulation.block(link)
            self.simulation.at(2 * self._brief(), partial(self.simulation.unblock, link))

    def _slow_disk(self, rank: int) -> None:
        disk = self.simulation.disks[rank]
        disk.fsync = self._brief()
        self.simulation.at(self._brief(), lambda: setattr(disk, "fsync", FSYNC))

    def _full_disk(self, rank: int) -> None:
        disk = self.simulation.disks[rank]
        disk.full = True
        self.simulation.at(self._brief(), lambda: setattr(disk, "full", False))
