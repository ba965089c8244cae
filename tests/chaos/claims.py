"""Errors that a program was told, and whether there was a cause: a death, or a broken ring.

Judged a little later than they come in, when all that was written down of the causes is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from chaos.breaks import Breaks
from chaos.lives import Life, Lives
from chaos.notices import Notice, Notices
from chaos.pulse import lateness
from chaos.which import MESSAGE, Which
from ringd.client.stay import GRACE

AT_ONCE = 0.1
"""Seconds in which a call that is not made at all is refused."""
MARGIN = 0.5
"""Seconds that PeerLost may take besides the detection of the loss."""

SLOW = 0.5
"""Seconds that a program may take besides, on a busy machine, to end a call by itself."""

LONG = 15.0
"""Seconds; no program is longer in a part, and waits for others there."""

UNANSWERED = "has not answered"
"""What PeerLost says of the program's own daemon when that is stopped."""


@dataclass
class Death:
    """A program that was ended."""

    life: Life
    moment: float
    """When that began: before the signal was sent, or when the program began to close its ring."""
    healed: float = math.inf
    """When all of its group went on."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a program said of an error.

    Attributes:
        group, life, which: the call, and who made it.
        kind: the workload's word for the error.
        moment: when it was told.
        since: when it began to wait.
        opened: when it made the oldest call that may have been under way.
        stay: when its stay in the group began.
        resumed: when it went on with calls in this stay; infinite if it has not.
        noise: what its pulse told.
        fails: whether the group asked for ``on_loss="fail"``.
        limits: whether calls of the group have deadlines.
        dues: when its deadline passes, by the program that set one; complete only in a while.
        partings: of the part in which it was made: who has closed it, and when.
        calm: whether one fault alone was going on that ends no daemon.
        alone: whether one fault alone was going on.
        text: the error's.
    """

    group: str
    life: Life
    which: Which
    kind: str
    moment: float
    since: float
    opened: float
    stay: float
    resumed: float
    noise: str
    fails: bool
    limits: bool
    dues: Mapping[Life, float]
    partings: Mapping[Life, float]
    calm: bool
    alone: bool
    text: str

    def __str__(self) -> str:
        """Return what is known of it."""
        return (
            f"call {self.which} of {self.group} on rank {self.life.rank}, waiting since "
            f"{self.since:.3f}, told at {self.moment:.3f}: {self.text}"
        )

    def later_than(self, moment: float) -> tuple[float, float]:
        """Return the seconds from *moment*, if the wait had begun by then, and their noise."""
        start = max(moment, self.since)
        return self.moment - start, lateness(self.noise, start, self.moment)


@dataclass
class Judge:
    """Finds the causes; *violate* takes what has none, or has come too late."""

    names: Sequence[str]
    lives: Lives
    breaks: Breaks
    detection: float
    """Seconds in which the loss of a member is noticed."""
    violate: Callable[[str, str], None]
    deaths: dict[str, list[Death]] = field(default_factory=dict)
    """By group."""
    group_lost: Notices = field(default_factory=Notices)
    peer_lost: Notices = field(default_factory=Notices)
    overdue: Notices = field(default_factory=Notices)

    def judge(self, claim: Claim) -> None:
        """Find the cause of *claim*."""
        {
            "lost": self._lost,
            "peer": self._peer,
            "late": self._late,
            "unreceived": self._unreceived,
        }[claim.kind](claim)

    def _dead(self, claim: Claim) -> list[Death]:
        """Return those whose end may be what *claim* tells of."""
        dead = [
            death
            for death in self.deaths.get(claim.group, [])
            if death.life.ended <= claim.moment <= death.healed
        ]
        parted = claim.partings.items()
        return dead + [Death(life, moment) for life, moment in parted if moment <= claim.moment]

    def _lost(self, claim: Claim) -> None:
        broken = self.breaks.during(claim.stay, claim.moment) if claim.fails else None
        if broken is not None:
            return  # another member of the group was told of a loss, and has left it
        dead = self._dead(claim)
        if not dead:
            self.violate("calls lost", f"though no program had died: {claim}")
            return
        named = [death for death in dead if repr(self.names[death.life.place]) in claim.text]
        if not named:
            self.violate("GroupLost names a survivor", str(claim))
        if claim.noise == "landed" or claim.fails or claim.which.in_part:
            return
        # Whoever is in the group with others is told of the first of them that died since then.
        during = [death.moment for death in dead if death.moment > claim.resumed]
        first = min(during) if during else max(death.moment for death in named or dead)
        cause = next(death for death in dead if death.moment == first)
        seconds, noise = claim.later_than(first)
        killed = cause.moment == cause.life.ended and math.isfinite(cause.life.gone)
        buried = cause.life.gone - first if killed else math.nan
        notice = Notice(seconds, noise, buried, claim.since <= first, claim.calm, str(claim))
        self.group_lost.all.append(notice)
        if notice.late:
            self.violate("GroupLost late", str(notice))

    def _peer(self, claim: Claim) -> None:
        if UNANSWERED in claim.text:
            lost = self.lives.pause(claim.life.place, claim.moment)
            if lost is None:  # then the others must have missed it as well, in an overloaded moment
                silent = self.breaks.during(claim.moment - MARGIN, claim.moment + MARGIN)
                lost = None if silent is None else min(silent[0], claim.moment)
        else:
            # A wait may begin just before the members agree that the ring is back, and last until
            # it breaks again: then it is that break of which it was to be told.
            during = self.breaks.during
            broken = during(claim.since, claim.moment) or during(claim.opened, claim.moment)
            if broken is None and claim.moment - claim.since <= AT_ONCE:
                # It came while the program had no call open, and is told by the next one.
                broken = during(claim.stay, claim.moment)
            lost = None if broken is None else broken[0]
        if not claim.fails or lost is None:
            self.violate("calls lost", f"PeerLost, though nobody was lost: {claim}")
            return
        if claim.noise == "landed":
            return
        seconds, noise = claim.later_than(lost)
        waited = claim.since <= lost
        notice = Notice(seconds, noise, math.nan, waited, claim.alone, str(claim))
        self.peer_lost.all.append(notice)
        if claim.alone and seconds > self.detection + MARGIN:
            self.violate("PeerLost late", str(notice))

    def _late(self, claim: Claim) -> None:
        due = min(claim.dues.values(), default=math.inf)
        if claim.which.kind == MESSAGE:  # of the sender's nobody knows where it does not wait
            due = claim.dues.get(claim.life, due)
        if due == math.inf:
            self.violate("calls lost", f"a deadline that was not set has passed: {claim}")
        elif claim.which.in_part and not self._disturbed(claim):
            self.violate("calls lost", f"though the part had everybody: {claim}")
        elif claim.moment < due:
            self.violate("calls lost", f"before the deadline {due:.3f}: {claim}")
        elif claim.noise != "landed":
            seconds, noise = claim.later_than(due)
            notice = Notice(seconds, noise, math.nan, True, claim.calm, str(claim))
            self.overdue.all.append(notice)
            if seconds > self.detection + GRACE + SLOW:
                self.violate("deadlines ignored", str(notice))

    def _unreceived(self, claim: Claim) -> None:
        """Closing a ring told of messages: those of a lost part, or that had a deadline there."""
        if not (self._disturbed(claim) if claim.which.in_part else claim.limits):
            self.violate("calls lost", str(claim))

    def _disturbed(self, claim: Claim) -> bool:
        """Whether something may have kept a program from its part, or made it leave that early."""
        others = [death for death in self._dead(claim) if death.life is not claim.life]
        return bool(others or self.breaks.during(claim.since - LONG, claim.moment))
