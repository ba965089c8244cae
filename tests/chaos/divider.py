"""Splits a program's ring, makes some calls in the part, and closes it; again and again."""

from __future__ import annotations

import ringd
from chaos import interrupts
from chaos.caller import ENDS, Caller
from chaos.calls import Call, Role
from chaos.courier import Courier
from chaos.division import Division, calls
from chaos.layout import Layout
from chaos.messages import Errand
from chaos.pulse import Pulse
from chaos.speech import say
from chaos.which import PART, Which


class Divider:
    """The parts of one program, which has *caller* and *role*."""

    def __init__(self, caller: Caller, role: Role, pulse: Pulse) -> None:
        self._caller = caller
        self._role = role
        self._pulse = pulse

    def run(self, split: Division) -> None:
        """Take part in *split*; an error of the part's is no end of the stay in the whole."""
        role, which = self._role, Which(split.number)
        say("began", which, 0)
        with self._caller.waiting(which), interrupts.shielded():  # a part lacks whom one takes out
            ring = self._caller.ring.split(split.colors[role.rank], split.keys[role.rank])
        say("ok", which, 0, 0)
        ranks = split.part(role.rank)
        if (ring is None) != (not ranks):
            say("wrong", which, f"rank {role.rank} of {split} was given {ring}")
        if ring is not None:
            self._stay(ring, split.number, ranks)

    def _stay(self, ring: ringd.Ring, number: int, ranks: tuple[int, ...]) -> None:
        role, part = self._role, Which(number, PART, ranks)
        say("split", part)
        caller = Caller(ring, ranks.index(role.rank), role.key, self._pulse)
        try:
            self._look_around(ring, part)
            for call in calls(role.key, role.style, number, ranks, role.layout):
                if isinstance(call, Call):
                    caller.begin(call, waits=role.style.window == 1)
                else:
                    Courier(caller, role).run(Errand(call, anyone=False, asked=False))
            caller.finish_all()
        except (*ENDS, ringd.DeadlineExceeded):  # somebody has not joined the part, and never will
            caller.land()
        finally:
            say("parted", part)
            caller.close(part)

    def _look_around(self, ring: ringd.Ring, part: Which) -> None:
        """See that the part is as it must be, which is known from the beginning."""
        role, ranks = self._role, part.ranks
        layout = Layout(tuple(role.layout.places[rank] for rank in ranks))
        rank = ranks.index(role.rank)
        found = (ring.rank, ring.size, ring.nodes, ring.local_rank, ring.local_size)
        names = tuple(f"n{place}" for place in layout.places)
        if found != (rank, layout.size, names, *layout.local(rank)):
            say("wrong", part, f"rank {role.rank} saw {found}")
