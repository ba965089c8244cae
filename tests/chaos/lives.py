"""Who lived when: every process of a program and of a daemon, with the instants of its ends.

All moments are on the monotonic clock. An *end* has two: when it was begun, which is taken
before the signal is sent, and when the process was seen to be gone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

BACK = 0.3
"""Seconds after its daemon has come up in which a program may be on its way back to it: it tries
every 0.1 s, and then has to hand its calls over again."""

JUST = 0.1
"""Seconds that a program may need to tell what it has found out."""

PROGRAM_FIRST = "a program ended, then its daemon, which held its input"
STAY_FIRST = "a program was told of a loss, which ended its stay, then its daemon ended"
DAEMON_FIRST = "a daemon ended, then its program, before it was back at the next one"


@dataclass(eq=False)
class Life:
    """One process: a daemon, or the program of a *rank* of a group."""

    rank: int
    place: int
    """The member that it is on."""
    pid: int
    started: float
    ended: float = math.inf
    """When its end was begun."""
    gone: float = math.inf
    """When it was seen to be gone."""
    up: float = math.inf
    """Of a daemon: when it began to serve, by its own word."""
    here: bool = False
    """Of a program: whether it bears signals by now."""
    parted: list[float] = field(default_factory=list)
    """Of a program: when its daemon ended a stay of it in its group, and when the program was told,
    which may be long after; it then joins anew."""

    def __str__(self) -> str:
        """Return what the evidence says of it."""
        ended = f"ended {self.ended:.3f} to {self.gone:.3f}"
        return f"rank {self.rank} on member {self.place}, pid {self.pid}, {ended}"

    @property
    def ending(self) -> bool:
        """Whether its end was begun."""
        return self.ended < math.inf


@dataclass
class Lives:
    """The daemons' processes; those of programs are kept by whoever hears of their calls."""

    daemons: dict[int, list[Life]] = field(default_factory=lambda: defaultdict(list))
    """By rank, in order."""
    pauses: dict[int, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    """By rank, when its daemon was stopped, and when it ran again."""

    def daemon_started(self, rank: int, pid: int, moment: float) -> None:
        """A daemon's process was started."""
        self.daemons[rank].append(Life(rank, rank, pid, moment))

    def daemon_ended(self, rank: int, moment: float) -> None:
        """The end of *rank*'s daemon is about to begin, if it runs."""
        for life in self.daemons[rank][-1:]:
            life.ended = min(life.ended, moment)

    def daemon_gone(self, rank: int, moment: float) -> None:
        """*rank*'s daemon was seen to be gone."""
        for life in self.daemons[rank][-1:]:
            life.gone = min(life.gone, moment)
        self.daemon_resumed(rank, moment)

    def daemon_up(self, rank: int, moment: float) -> None:
        """A daemon of *rank* began to serve at *moment*."""
        for life in reversed(self.daemons[rank]):
            if life.started <= moment:
                life.up = min(life.up, moment)
                return

    def away(self) -> Iterator[tuple[float, float]]:
        """Return from when until when a daemon, or programs that it had, were not there."""
        for lives in self.daemons.values():
            for i, life in enumerate(lives):
                if life.ending:
                    up = min((later.up for later in lives[i + 1 :]), default=math.inf)
                    yield life.ended, up + BACK

    def daemon_paused(self, rank: int, moment: float) -> None:
        """*rank*'s daemon is about to be stopped."""
        pauses = self.pauses[rank]
        if not pauses or pauses[-1][1] < math.inf:
            pauses.append((moment, math.inf))

    def daemon_resumed(self, rank: int, moment: float) -> None:
        """*rank*'s daemon runs again, if it was stopped."""
        pauses = self.pauses[rank]
        if pauses and pauses[-1][1] == math.inf:
            pauses[-1] = (pauses[-1][0], moment)

    def ended(self, rank: int, since: float, until: float) -> Life | None:
        """Return a daemon of *rank* whose end was begun in that time, if there is one."""
        return next((life for life in self.daemons[rank] if since <= life.ended <= until), None)

    def pause(self, rank: int, moment: float) -> float | None:
        """Return since when *rank*'s daemon was stopped at *moment*, or until just before."""
        for since, until in self.pauses[rank]:
            if since <= moment <= until + JUST:
                return since
        return None

    def machine_lost(
        self, begun: Mapping[Life, float], stays: Mapping[Life, Sequence[float]], until: float
    ) -> tuple[str, Life, Life] | None:
        """Return the pair of ends by which an input was lost that only one machine had.

        Args:
            begun: the programs that made the call, and when each did.
            stays: when each one's stays in the group, or in the part, ended.
            until: when the first member was told that the call is lost.

        Returns:
            The reason, the program and the daemon, both of one machine: the program had made
            the call and ended, and so did the daemon that held its input then; or the program's
            stay in which it had made the call was over, and then this daemon ended; or, if the
            daemon ended first, the program ended before it can have handed its input to the next
            one. All of this was begun before *until*. None if there is no such pair.
        """
        for program, began in begun.items():
            ends = [moment for moment in stays.get(program, ()) if moment >= began]
            parted = min(ends, default=math.inf)
            if min(parted, program.ended) > until:
                continue
            daemons = self.daemons[program.place]
            for i, daemon in enumerate(daemons):
                if daemon.ended > until or daemon.gone < began:
                    continue
                if daemon.started <= program.ended <= min(until, daemon.gone):
                    return PROGRAM_FIRST, program, daemon
                if daemon.started <= parted <= min(until, daemon.gone):
                    return STAY_FIRST, program, daemon
                back = min((later.up for later in daemons[i + 1 :]), default=math.inf) + BACK
                if daemon.gone < program.ended <= min(until, back):
                    return DAEMON_FIRST, program, daemon
        return None
