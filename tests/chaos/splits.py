"""Calls that ended well on one member and with an error on another: which of them may be.

Exactly those of docs/guarantees.md: where a program, or its stay, and the daemon that held its
input both ended, where nobody could be asked for long after a deadline, and where a program asked
to be told of losses. Each is excused by recorded events of that very call, or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chaos.breaks import Breaks
from chaos.lives import DAEMON_FIRST, JUST, PROGRAM_FIRST, STAY_FIRST, Life, Lives
from ringd.groups.timing import ASK_WITHIN

UNASKED = f"nobody could be asked for {ASK_WITHIN:g} s from a deadline, or a later break, on"
LOSS_TOLD = 'on_loss="fail": the ring broke, or a daemon stopped, while the call was open'

ALONE = "a message: the daemon of one end ended, and another program's machine was lost meanwhile"

REASONS = (PROGRAM_FIRST, STAY_FIRST, DAEMON_FIRST, ALONE, UNASKED, LOSS_TOLD)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended on a member.

    Attributes:
        kind: "ok", or the workload's word for the error.
        moment: when the program knew.
        digest: of the result.
    """

    kind: str
    moment: float
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Split:
    """A call with unlike outcomes.

    Attributes:
        name: the call and its group.
        fails: whether the group's programs asked for ``on_loss="fail"``.
        dues: when its deadline passes, by the program that set one.
        begun: the programs that made the call, and when each did.
        outcomes: by rank.
        places: by rank, its member.
        parted: when stays ended of the programs that made the call.
        company: of a message, all other programs that the group had in its time.
    """

    name: str
    fails: bool
    dues: Mapping[Life, float]
    begun: Mapping[Life, float]
    outcomes: Mapping[int, Outcome]
    places: Sequence[int]
    parted: Mapping[Life, Sequence[float]]
    company: Sequence[Life] = ()

    def __str__(self) -> str:
        """Return what is known of it."""
        began = {life.rank: round(moment, 3) for life, moment in self.begun.items()}
        ended = {rank: (how.kind, round(how.moment, 3)) for rank, how in self.outcomes.items()}
        dues = {life.rank: round(moment, 3) for life, moment in self.dues.items()}
        return f"{self.name}, due {dues}, began {began}, ended {ended}"


def excuses(split: Split, lives: Lives, breaks: Breaks) -> list[tuple[str, str]] | None:
    """Return why each kind of error is allowed beside a result, with the events that show it.

    None if one of them is not allowed.
    """
    found = []
    for kind in sorted({how.kind for how in split.outcomes.values()} - {"ok"}):
        moments = [how.moment for how in split.outcomes.values() if how.kind == kind]
        reason = _EXCUSES[kind](split, moments, lives, breaks)
        if reason is None:
            return None
        found.append(reason)
    return found


def _lost(
    split: Split, moments: list[float], lives: Lives, breaks: Breaks
) -> tuple[str, str] | None:
    lost = _machine_lost(split, moments, lives)
    return lost or (_told(split, moments, lives, breaks) if split.fails else None)


def _machine_lost(split: Split, moments: list[float], lives: Lives) -> tuple[str, str] | None:
    pair = lives.machine_lost(split.begun, split.parted, min(moments))
    if pair is None:
        return _left_alone(split, lives)
    reason, program, daemon = pair
    return reason, f"program {program}; daemon {daemon}"


def _left_alone(split: Split, lives: Lives) -> tuple[str, str] | None:
    """A daemon that had an end of a message ended, and the group never formed again after that.

    As another program's machine was lost: so the next daemon could ask nobody how it had ended.
    """
    began = min(split.begun.values(), default=math.inf)
    for rank, how in split.outcomes.items():
        daemon = None if how.kind == "ok" else lives.ended(split.places[rank], began, how.moment)
        if daemon is not None:
            lately = [life for life in split.company if life.ended >= began - JUST]
            company = dict.fromkeys(lately, began)
            pair = lives.machine_lost(company, {}, how.moment)
            if pair is not None:
                return ALONE, f"daemon {daemon}; program {pair[1]}; daemon {pair[2]}"
    return None


def _told(
    split: Split, moments: list[float], lives: Lives, breaks: Breaks
) -> tuple[str, str] | None:
    """Whoever asked to be told loses also calls that others have completed by then."""
    if not split.fails:
        return None
    broken = breaks.during(min(split.begun.values(), default=min(moments)), min(moments))
    if broken is not None:
        return LOSS_TOLD, f"broken {broken[0]:.3f} to {broken[1]:.3f}"
    for rank, how in split.outcomes.items():  # before the others have noticed it
        paused = None if how.kind != "peer" else lives.pause(split.places[rank], how.moment)
        if paused is not None:
            return LOSS_TOLD, f"daemon of rank {rank} stopped at {paused:.3f}"
    return None


def _late(
    split: Split, moments: list[float], lives: Lives, breaks: Breaks
) -> tuple[str, str] | None:
    """A member decided alone, as no other could be asked all the time that it waited for that.

    The other members' errors may have been taken over from that one. Or the input was gone, and the
    deadline passed before the loss of the group was known.
    """
    for life, due in split.dues.items():
        how = split.outcomes.get(life.rank)
        if how is None or how.kind != "late":
            continue
        latest = how.moment - ASK_WITHIN
        # It may be told later: a program that waits for another call looks at this one after it.
        begins = latest, due, *breaks.begins(due, latest)
        waits = [(since, since + ASK_WITHIN) for since in begins]
        # A break that takes a slow poll with it, long after the deadline, gives no more time.
        least = due + breaks.detection + ASK_WITHIN
        waits += [(begin, least) for begin in breaks.begins(due + breaks.detection, least)]
        for since, until in waits:
            sound = due <= since and until <= how.moment
            times = breaks.unasked(since, until) if sound else None
            if times is not None:
                listed = ", ".join(f"{begin:.3f} to {end:.3f}" for begin, end in times)
                return UNASKED, f"rank {life.rank}, due {due:.3f}, not to be asked {listed}"
    return _machine_lost(split, moments, lives)


_EXCUSES = {"lost": _lost, "peer": _told, "late": _late}
