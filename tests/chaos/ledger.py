"""What the programs said, compared: that all of a group got the same, and who got nothing.

Finds what must not be: wrong values, results that differ between ranks, calls that ended with
an error that nobody has caused, calls that ended well on one rank and with an error on another.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

RETURN = 2.0
"""Seconds after a daemon's start in which its programs have surely come back to it."""


@dataclass
class Death:
    """A program that was ended."""

    rank: int
    moment: float
    healed: float = math.inf
    """When all of its group went on."""


@dataclass
class Group:
    """One group: what is known of the calls that not all ranks are known to have ended."""

    name: str
    floor: int = 0
    """All calls below are settled."""
    ended: dict[int, dict[int, tuple[str, float]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    """By call and rank: the digest, or "lost"; and when."""
    resumed: dict[int, tuple[int, float]] = field(default_factory=dict)
    """By rank: where it went on last, and when, as long as not all have."""
    deaths: list[Death] = field(default_factory=list)
    last: float = 0.0
    """When a call was last over on all ranks."""
    finished: set[int] = field(default_factory=set)


class Ledger:
    """All groups. Violations are kept as lines of text."""

    def __init__(self, groups: Iterable[str], names: list[str]) -> None:
        self.groups = {name: Group(name) for name in groups}
        self.names = names
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        """Of calls: "ok" by rank, "complete" on all ranks, "lost" and so on."""
        self.calls: Counter[str] = Counter()
        """Complete ones, by group."""
        self.nbytes = 0
        self.notices: list[float] = []
        """Seconds from a program's death to the end of the others' calls."""
        self.absences: dict[int, list[tuple[float, float]]] = defaultdict(list)
        """By rank, when its daemon was away from its programs: since, until."""
        self.excused: list[str] = []
        """Split outcomes that the loss of a whole machine explains."""
        self.misnamed: list[str] = []
        """What GroupLost said where it named no member whose program had died."""
        self.alone = False
        """Whether the adversary does one fault at a time right now."""
        self.calm_notices: list[float] = []
        """As ``notices``, where nothing but that program's death was going on."""
        self._watched: list[tuple[float, str, list[float]]] = []

    @property
    def failed(self) -> bool:
        """Whether anything happened that must not."""
        return bool(self.violations)

    def violate(self, kind: str, text: str) -> None:
        """Note what must not be."""
        self.counts[kind] += 1
        self.violations.append(f"{kind}: {text}")

    def watch(self, moment: float, into: list[float], groups: Iterable[str]) -> None:
        """Add to *into*, for each of *groups*, the seconds from *moment* to its next full call."""
        self._watched += [(moment, group, into) for group in groups]

    def progressed(self, moment: float) -> bool:
        """Whether each group has completed a call since *moment*."""
        return all(group.last > moment for group in self.groups.values())

    def stuck(self, moment: float) -> list[str]:
        """Return the groups that have not."""
        return [group.name for group in self.groups.values() if group.last <= moment]

    def close(self) -> None:
        """All programs have agreed to stop: nothing more will be heard."""
        for group in self.groups.values():
            for number in sorted(group.ended):
                self._settle(group, number)

    # --- what happens -----------------------------------------------------------------

    def killed(self, group: str, rank: int, moment: float) -> None:
        """The adversary ended a program."""
        place = self.groups[group]
        place.deaths.append(Death(rank, moment))
        place.resumed.pop(rank, None)

    def daemon_ended(self, rank: int, moment: float) -> None:
        """The adversary ended a daemon."""
        self.absences[rank].append((moment, math.inf))

    def daemon_started(self, rank: int, moment: float) -> None:
        """The adversary started it again."""
        self.absences[rank] = [
            (since, min(until, moment + RETURN)) for since, until in self.absences[rank]
        ]

    def died(self, group: str, rank: int, code: int, log: Path) -> None:
        """A program ended by itself, with an error."""
        words = log.read_text().strip().splitlines()[-1:] if log.exists() else []
        self.violate("calls lost", f"the program of {group} on {self.names[rank]}: {code}, {words}")

    def line(self, group: str, rank: int, line: str) -> None:
        """A program said something."""
        place = self.groups[group]
        what, number, moment, *rest = line.split(" ", 3)
        text = rest[0] if rest else ""
        _SAID[what](self, place, rank, int(number), float(moment), text)

    def _ok(self, group: Group, rank: int, number: int, moment: float, text: str) -> None:
        digest, nbytes = text.split()
        self.counts["ok"] += 1
        self.nbytes += int(nbytes)
        if number < group.floor:  # of a program that is dead by now
            return
        ended = group.ended[number]
        ended[rank] = (digest, moment)
        if len(ended) < len(self.names) or any(how == "lost" for how, _ in ended.values()):
            return
        self._settle(group, number)
        group.last = max(group.last, *(when for _, when in ended.values()))
        self.calls[group.name] += 1
        for watched in [w for w in self._watched if w[1] == group.name and group.last > w[0]]:
            watched[2].append(group.last - watched[0])
            self._watched.remove(watched)

    def _settle(self, group: Group, number: int) -> None:
        """All that will be heard of call *number* has been."""
        ended = group.ended.pop(number, {})
        outcomes = {outcome for outcome, _ in ended.values()}
        good = outcomes - {"lost"}
        if len(good) > 1:
            self.violate("wrong values", f"call {number} of {group.name} differs: {ended}")
        if good and "lost" in outcomes:
            lost = [when for outcome, when in ended.values() if outcome == "lost"]
            if self._machine_lost(group, max(lost)):
                self.excused.append(f"call {number} of {group.name}: {ended}")
            else:
                self.violate("split outcomes", f"call {number} of {group.name}: {ended}")

    def _machine_lost(self, group: Group, moment: float) -> bool:
        """Whether a program that died before *moment* had no daemon then to speak for it.

        What it had handed over may have gone with the daemon, and so split a call's outcome.
        """
        return any(
            since <= moment and until >= death.moment
            for death in group.deaths
            if death.moment <= moment <= death.healed
            for since, until in self.absences[death.rank]
        )

    def _lost(self, group: Group, rank: int, number: int, moment: float, text: str) -> None:
        self.counts["GroupLost"] += 1
        if number >= group.floor:
            group.ended[number].setdefault(rank, ("lost", moment))
        dead = [death for death in group.deaths if death.moment <= moment <= death.healed]
        if not dead:
            what = f"call {number} of {group.name} on {self.names[rank]}"
            self.violate("calls lost", f"{what}, though no program had died: {text}")
            return
        named = any(repr(self.names[death.rank]) in text for death in dead)
        if not named:
            self.misnamed.append(f"{group.name} on {self.names[rank]} at {moment:.2f}: {text}")
        notice = moment - max(death.moment for death in dead)
        self.notices.append(notice)
        if self.alone:
            self.calm_notices.append(notice)

    def _resumed(self, group: Group, rank: int, number: int, moment: float, text: str) -> None:
        del text
        group.resumed[rank] = (number, moment)
        if len(group.resumed) < len(self.names):
            return
        numbers = {there for there, _ in group.resumed.values()}
        if len(numbers) > 1:
            return  # of different sessions; whoever is behind will go on with the others
        for other in sorted(number for number in group.ended if number < max(numbers)):
            self._settle(group, other)
        group.floor = max(numbers)
        latest = max(when for _, when in group.resumed.values())
        for death in group.deaths:
            if death.moment < latest:
                death.healed = min(death.healed, latest)
        group.resumed.clear()

    def _wrong(self, group: Group, rank: int, number: int, moment: float, text: str) -> None:
        del moment
        self.violate("wrong values", f"call {number} of {group.name} on {self.names[rank]}: {text}")

    def _error(self, group: Group, rank: int, number: int, moment: float, text: str) -> None:
        del moment
        self.violate("calls lost", f"call {number} of {group.name} on {self.names[rank]}: {text}")

    def _done(self, group: Group, rank: int, number: int, moment: float, text: str) -> None:
        del number, moment, text
        group.finished.add(rank)


_SAID = {
    "ok": Ledger._ok,
    "lost": Ledger._lost,
    "resumed": Ledger._resumed,
    "wrong": Ledger._wrong,
    "error": Ledger._error,
    "done": Ledger._done,
}
