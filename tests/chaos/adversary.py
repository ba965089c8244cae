"""The adversary: does one set of faults after the other, and waits each time for the groups.

A set begins with one to eight faults at nearly the same time, and is over when all groups have
completed a call after the last of them. What is done to whom derives from the seed alone.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from random import Random

from chaos.faults import Kind
from chaos.stage import Stage

PATIENCE = 120.0
"""Seconds without a completed call, with all faults healed, that are a hang."""

LONGEST = 120.0
"""Seconds that a set of faults may take; more, and something does not end that was ended."""

SUSPICIOUS = 8.0
"""Seconds without one after which the daemons are asked for all they know."""

SEVERAL = "several at once"

BRISK = 1 << 20
"""Bytes: groups whose calls are all smaller take next to no time for them, so that what a fault
adds shows."""


class Hang(Exception):
    """A group makes no progress."""


class Adversary:
    """Does faults to *stage*; *tell* prints how it goes."""

    def __init__(self, stage: Stage, seed: int, tell: Callable[[str], None]) -> None:
        self._stage = stage
        self._seed = seed
        self._tell = tell
        self.counts: Counter[str] = Counter()
        """Faults, by kind."""
        self.added: dict[str, list[float]] = defaultdict(list)
        """By kind of a fault that came alone: seconds to the next complete call of each group."""
        self.recovered: dict[str, list[float]] = defaultdict(list)
        """The same from its end: a daemon's restart, say, and not its kill up to 0.5 s before."""
        styles = stage.ledger.styles
        self._brisk = [group for group in stage.groups if styles[group].largest <= BRISK]

    def act(self, number: int, kinds: Sequence[Kind]) -> None:
        """Do set *number* of faults; returns when all groups have gone on.

        Raises:
            Hang: they have not.
        """
        rng = Random(f"{self._seed}/set {number}")
        ledger = self._stage.ledger
        count = 1 if rng.random() < 0.4 else rng.randint(2, 8)
        chosen = rng.choices(kinds, [kind.weight for kind in kinds], k=count)
        start = time.monotonic()
        stories: list[tuple[float, int, Iterator[float]]] = []
        for i, kind in enumerate(chosen):
            self.counts[kind.name] += 1
            own = Random(f"{self._seed}/set {number}/{i}")
            begins = start + (rng.uniform(0, 0.6) if i else 0.0)
            heapq.heappush(stories, (begins, i, kind.story(self._stage, own)))
        ledger.alone = count == 1
        ledger.calm = count == 1 and not chosen[0].ends_daemons
        if count == 1:
            ledger.watch(start, self.added[chosen[0].name], self._brisk)
        self._play(stories)
        self._stage.heal()
        healed = time.monotonic()
        ledger.watch(healed, self.recovered[SEVERAL if count > 1 else chosen[0].name], self._brisk)
        self.await_progress(healed)
        known = len(ledger.violations)
        now = time.monotonic()
        self._stage.programs.catch_up()
        ledger.settle(now)
        if len(ledger.violations) > known:  # before the flight recorders have forgotten it
            self._stage.record(f"set-{number}")
        names = ", ".join(kind.name for kind in chosen)
        took = time.monotonic() - start
        self._tell(f"set {number}: {names}: went on after {took:.2f} s")
        self.rest(rng.uniform(0, 0.15))

    def rest(self, seconds: float) -> None:
        """Let the programs be for a while."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._stage.programs.pump(0.01)

    def _play(self, stories: list[tuple[float, int, Iterator[float]]]) -> None:
        begun = time.monotonic()
        while stories:
            due, i, story = heapq.heappop(stories)
            if due > begun + LONGEST:
                self._hang(f"after {LONGEST:g} s: {story}")
            while (left := due - time.monotonic()) > 0:
                self._stage.programs.pump(min(left, 0.05))
            pause = next(story, None)
            if pause is not None:
                heapq.heappush(stories, (time.monotonic() + pause, i, story))

    def await_progress(self, since: float, patience: float = PATIENCE) -> None:
        """Wait until all groups have completed a call after *since*.

        Raises:
            Hang: they have not within *patience* seconds.
        """
        ledger = self._stage.ledger
        recorded = False
        while (stuck := ledger.stuck(since)) and not ledger.failed:
            if not recorded and time.monotonic() > since + SUSPICIOUS:
                recorded = True  # before other groups' calls fill the flight recorders
                self._stage.record(stuck[0])
            if time.monotonic() > since + patience:
                self._hang(f"no call of {', '.join(stuck)} for {patience:g} s")
            self._stage.programs.pump(0.02)

    def _hang(self, text: str) -> None:
        self._stage.ledger.violate("hangs", text)
        raise Hang(text)
