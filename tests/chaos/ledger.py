"""What the programs said, compared: that all of a group got the same, and who got nothing.

Finds what must not be: wrong values, results that differ between ranks, errors that nobody has
caused, calls that ended well on one rank and with an error on another without an excuse.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chaos.breaks import Breaks
from chaos.calls import Style
from chaos.claims import Claim, Death, Judge
from chaos.layout import Layout
from chaos.lives import Life, Lives
from chaos.splits import Outcome, Split, excuses
from chaos.which import AGREEING, MESSAGE, PART, Which

GO_ON = frozenset(
    {
        "split outcomes",
        "GroupLost late",
        "GroupLost names a survivor",
        "PeerLost late",
        "disturbed by a namesake",
        "sockets not made anew",
        "slow disk breaks the ring",
    }
)
"""Violations that fail the run and do not end it: what follows is still worth to know."""

DROPPED = "dropped"
"""The outcome of a call that its program does not learn: an interrupt took its handle, or it was a
message and its receiver was not waited for."""


@dataclass
class Group:
    """One group: what is known of the calls that not all ranks are known to have ended."""

    name: str
    layout: Layout
    floor: int = 0
    """All calls below are settled."""
    begun: dict[Which, dict[Life, float]] = field(default_factory=lambda: defaultdict(dict))
    """By call: the programs that made it, and when."""
    dues: dict[Which, dict[Life, float]] = field(default_factory=lambda: defaultdict(dict))
    """By call: when its deadline passes, by the program that set one."""
    ended: dict[Which, dict[int, Outcome]] = field(default_factory=lambda: defaultdict(dict))
    """By call and rank."""
    stays: dict[Life, tuple[float, float]] = field(default_factory=dict)
    """By program: when its stay in the group began, and when it went on with calls in it."""
    former: dict[Life, float] = field(default_factory=dict)
    """By program: when the stay before began, of which some calls may yet be heard."""
    resumed: dict[int, tuple[int, float]] = field(default_factory=dict)
    """By rank: where it went on last, and when, as long as not all have."""
    deaths: list[Death] = field(default_factory=list)
    partings: dict[int, dict[Life, float]] = field(default_factory=lambda: defaultdict(dict))
    """By call in the place of which the ring was split: who has closed its part, and when."""
    last: float = 0.0
    """When a call was last over on all ranks."""
    finished: set[int] = field(default_factory=set)


class Ledger:
    """All groups. Violations are kept as lines of text."""

    def __init__(
        self,
        styles: Mapping[str, Style],
        names: Sequence[str],
        logs: Sequence[Path],
        detection: float,
    ) -> None:
        self.styles = styles
        self.groups = {
            name: Group(name, style.layout(len(names))) for name, style in styles.items()
        }
        self.names = names
        self.violations: list[str] = []
        self.failed = False
        """Whether anything happened that ends the run."""
        self.counts: Counter[str] = Counter()
        """Of calls, by rank: "ok", "lost" and so on; of violations, by kind."""
        self.calls: Counter[str] = Counter()
        """Complete ones of the whole group, by group."""
        self.messages: Counter[str] = Counter()
        """Received ones, by group."""
        self.splits: Counter[str] = Counter()
        """Parts that were made, by group."""
        self.parts: Counter[str] = Counter()
        """Complete calls of these, by group."""
        self.nbytes = 0
        self.lives = Lives()
        self.breaks = Breaks(logs, self.lives, detection)
        self.judge = Judge(names, self.lives, self.breaks, detection, self.violate)
        self.judge.deaths = {name: group.deaths for name, group in self.groups.items()}
        self.excuses: Counter[str] = Counter()
        """Calls with unlike outcomes that are allowed, by reason."""
        self.struck: Counter[str] = Counter()
        """Interrupts that left the library, by where that was."""
        self.bursts: dict[str, int] = dict.fromkeys(styles, 0)
        """By group, how often a program has begun one."""
        self.fillings: Counter[str] = Counter()
        """By group, how often a program has made calls of which much is on its way."""
        self.excused: list[str] = []
        """The same, one line for each, with the events that excuse it."""
        self.calm = False
        """Whether the adversary does one fault right now, which ends no daemon."""
        self.alone = False
        """Whether the adversary does one fault right now."""
        self._claims: list[Claim] = []
        self._splits: list[Split] = []
        self._watched: list[tuple[float, str, list[float]]] = []

    @property
    def good(self) -> bool:
        """Whether nothing happened that must not."""
        return not self.violations

    def violate(self, kind: str, text: str) -> None:
        """Note what must not be."""
        self.counts[kind] += 1
        self.violations.append(f"{kind}: {text}")
        self.failed = self.failed or kind not in GO_ON

    def watch(self, moment: float, into: list[float], groups: Sequence[str]) -> None:
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
            for which in sorted(group.ended):
                self._settle(group, which)
            group.begun.clear()
            group.dues.clear()
            group.partings.clear()
            group.floor = 0  # the next programs begin anew
        self.settle()

    def settle(self, until: float = math.inf) -> None:
        """Find the causes of all errors up to that moment, up to which all programs were heard."""
        self.breaks.read()
        for moment, pid, name in self.breaks.take_stays():
            for life in self.groups[name].stays if name in self.groups else ():
                if life.pid == pid:
                    life.parted.append(moment)
        claims = [claim for claim in self._claims if claim.moment <= until]
        self._claims = [claim for claim in self._claims if claim.moment > until]
        for claim in claims:
            self.judge.judge(claim)
        splits, self._splits = self._splits, []
        for split in splits:
            found = excuses(split, self.lives, self.breaks)
            if found is None:
                self.violate("split outcomes", str(split))
                continue
            for reason, events in found:
                self.excuses[reason] += 1
                self.excused.append(f"{split}: {reason}: {events}")

    # --- what happens to daemons and programs -----------------------------------------

    def daemon_ended(self, rank: int, moment: float) -> None:
        """The adversary is about to end a daemon."""
        self.lives.daemon_ended(rank, moment)
        self.breaks.ended(rank, moment)

    def started(self, group: str, life: Life) -> None:
        """A program was started."""
        self.groups[group].stays[life] = (life.started, math.inf)

    def killed(self, group: str, life: Life, moment: float) -> None:
        """The adversary is about to end a program."""
        place = self.groups[group]
        life.ended = moment
        place.deaths.append(Death(life, moment))
        place.resumed.pop(life.rank, None)

    def died(self, group: str, life: Life, code: int, log: Path) -> None:
        """A program ended by itself, with an error."""
        words = log.read_text().strip().splitlines()[-1:] if log.exists() else []
        where = f"the program of {group} on {self.names[life.place]}"
        self.violate("calls lost", f"{where}: {code}, {words}")

    # --- what programs say ------------------------------------------------------------

    def line(self, group: str, life: Life, line: str) -> None:
        """A program said something."""
        place = self.groups[group]
        what, which, moment, *rest = line.split(" ", 3)
        text = rest[0] if rest else ""
        if what in _SAID:
            _SAID[what](self, place, life, Which.read(which), float(moment), text)
        else:
            self._error(what, place, life, Which.read(which), float(moment), text)

    def _began(self, group: Group, life: Life, which: Which, moment: float, text: str) -> None:
        if which.number >= group.floor:
            group.begun[which][life] = moment
            if float(text):
                group.dues[which][life] = moment + float(text)

    def _took(self, group: Group, life: Life, which: Which, moment: float, text: str) -> None:
        del moment
        if which.number >= group.floor:
            group.begun[which][life] = float(text)

    def _ok(self, group: Group, life: Life, which: Which, moment: float, text: str) -> None:
        digest, nbytes = text.split()
        self.counts["ok"] += 1
        self.nbytes += int(nbytes)
        if which.kind == MESSAGE and which.ranks[1] == life.rank:
            self.messages[group.name] += 1
        self._ended(group, life, which, Outcome("ok", moment, digest))

    def _ended(self, group: Group, life: Life, which: Which, outcome: Outcome) -> None:
        if which.number < group.floor:  # of a program that is dead by now
            return
        ended = group.ended[which]
        ended[life.rank] = outcome
        if len(ended) < (len(which.ranks) or group.layout.size):
            return
        # Where a program has lost its handle on the call, the others know how it ended.
        complete = all(how.kind == "ok" for how in ended.values())
        latest = max(how.moment for how in ended.values())
        self._settle(group, which)
        if complete and which.kind == PART:
            self.parts[group.name] += 1
        elif complete and not which.kind:
            self._completed(group, latest)

    def _completed(self, group: Group, moment: float) -> None:
        group.last = max(group.last, moment)
        self.calls[group.name] += 1
        for watched in [w for w in self._watched if w[1] == group.name and group.last > w[0]]:
            watched[2].append(group.last - watched[0])
            self._watched.remove(watched)

    def _settle(self, group: Group, which: Which) -> None:
        """All that will be heard of the call has been."""
        ended = group.ended.pop(which, {})
        begun = group.begun.pop(which, {})
        dues = group.dues.pop(which, {})
        ended = {rank: how for rank, how in ended.items() if how.kind != DROPPED}
        kinds = {how.kind for how in ended.values()}
        name = f"call {which} of {group.name}"
        if len({how.digest for how in ended.values() if how.kind == "ok"}) > 1:
            self.violate("wrong values", f"{name} differs: {ended}")
        if len(kinds) > 1 and "ok" in kinds:
            fails = self.styles[group.name].on_loss == "fail"
            self._splits.append(
                Split(
                    name,
                    fails,
                    dues,
                    begun,
                    ended,
                    group.layout.places,
                    self._parted(group, which, begun),
                    self._company(group, begun) if which.kind == MESSAGE else (),
                )
            )

    @staticmethod
    def _company(group: Group, begun: Collection[Life]) -> list[Life]:
        """Return the other programs that there were lately."""
        lately = {*group.stays, *group.former, *(death.life for death in group.deaths)}
        return [life for life in lately if life not in begun]

    @staticmethod
    def _parted(group: Group, which: Which, begun: Collection[Life]) -> dict[Life, Sequence[float]]:
        """Return when stays ended of those who made a call: in the part, where it is one's.

        There a stay ends with the first one to close its ring, long before that is told.
        """
        if not which.in_part:
            return {life: life.parted for life in begun}
        partings = sorted(group.partings.get(which.number, {}).values())
        return dict.fromkeys(begun, partings)

    def _split(self, group: Group, life: Life, which: Which, moment: float, text: str) -> None:
        del moment, text
        self.splits[group.name] += which.ranks[0] == life.rank

    def _parting(self, group: Group, life: Life, which: Which, moment: float, text: str) -> None:
        del text
        group.partings[which.number][life] = moment

    def _refused(self, group: Group, life: Life, which: Which, moment: float, text: str) -> None:
        self.counts["refused"] += 1
        if not (self.styles[group.name].deadlines or which.in_part):
            where = f"call {which} of {group.name} on {self.names[life.place]}"
            self.violate("calls lost", f"{where}: refused at {moment:.3f}: {text}")

    def _dropped(self, group: Group, life: Life, which: Which, moment: float, text: str) -> None:
        del text
        self.counts[DROPPED] += 1
        self._ended(group, life, which, Outcome(DROPPED, moment))

    def _struck(self, group: Group, life: Life, which: Which, moment: float, text: str) -> None:
        del group, life, which, moment
        self.struck[text] += 1

    def _touched(self, group: Group, life: Life, which: Which, moment: float, text: str) -> None:
        del group, life, which, moment, text
        self.counts["touched"] += 1

    def _burst(self, group: Group, life: Life, which: Which, moment: float, text: str) -> None:
        del life, which, moment, text
        self.bursts[group.name] += 1

    def _filled(self, group: Group, life: Life, which: Which, moment: float, text: str) -> None:
        del life, which, moment, text
        self.fillings[group.name] += 1

    def _here(self, group: Group, life: Life, which: Which, moment: float, text: str) -> None:
        del group, which, moment, text
        life.here = True

    def _error(  # noqa: PLR0917 - as the others, and the word itself
        self, kind: str, group: Group, life: Life, which: Which, moment: float, text: str
    ) -> None:
        """An error that has to have a cause."""
        since, noise, words = text.split(" ", 2)
        self.counts[kind] += 1
        style = self.styles[group.name]
        begun, resumed = group.stays[life]
        stay = begun
        if noise == "landed" or resumed == math.inf:  # a call may have been made in the one before
            stay = group.former.get(life, begun)
        self._claims.append(
            Claim(
                group=group.name,
                life=life,
                which=which,
                kind=kind,
                moment=moment,
                since=float(since),
                opened=min(
                    (programs[life] for programs in group.begun.values() if life in programs),
                    default=float(since),
                ),
                stay=stay,
                resumed=resumed,
                noise=noise,
                fails=style.on_loss == "fail",
                limits=style.deadlines > 0,
                dues={} if which == AGREEING else group.dues[which],
                partings=group.partings[which.number] if which.in_part else {},
                calm=self.calm,
                alone=self.alone,
                text=words,
            )
        )
        if kind in {"lost", "peer"} and noise != "landed" and not which.in_part:
            group.stays[life], group.former[life] = (moment, math.inf), begun
            life.parted.append(moment)
        if which != AGREEING and kind != "unreceived":
            self._ended(group, life, which, Outcome(kind, moment))

    def _resumed(self, group: Group, life: Life, which: Which, moment: float, text: str) -> None:
        del text
        group.stays[life] = (group.stays[life][0], moment)
        group.resumed[life.rank] = (which.number, moment)
        if len(group.resumed) < group.layout.size:
            return
        numbers = {there for there, _ in group.resumed.values()}
        if len(numbers) > 1:
            return  # of different sessions; whoever is behind will go on with the others
        for other in sorted(which for which in group.ended if which.number < max(numbers)):
            self._settle(group, other)
        group.floor = max(numbers)
        self._forget_former_stays(group)
        for number in [number for number in group.partings if number < group.floor]:
            del group.partings[number]
        latest = max(when for _, when in group.resumed.values())
        for death in group.deaths:
            if death.life.ended < latest:
                death.healed = min(death.healed, latest)
                group.stays.pop(death.life, None)
                group.former.pop(death.life, None)
        group.resumed.clear()

    @staticmethod
    def _forget_former_stays(group: Group) -> None:
        """Calls that were made in them, by programs that may be dead, are made anew."""
        for other, programs in list(group.begun.items()):
            for program, began in list(programs.items()):
                # Without a stay: it is dead, its place was taken, and this line of its came late.
                if program not in group.stays or began < group.stays[program][1]:
                    del programs[program]
                    group.dues[other].pop(program, None)
            if not programs:
                del group.begun[other]
                group.dues.pop(other, None)
        for ended in group.ended.values():
            for rank in [r for r, how in ended.items() if how.moment < group.resumed[r][1]]:
                del ended[rank]

    def _leaving(self, group: Group, life: Life, which: Which, moment: float, text: str) -> None:
        del which, text
        for death in group.deaths:
            if death.life is life:
                death.moment = moment

    def _wrong(self, group: Group, life: Life, which: Which, moment: float, text: str) -> None:
        del moment
        where = f"call {which} of {group.name} on {self.names[life.place]}"
        self.violate("wrong values", f"{where}: {text}")

    def _unknown(self, group: Group, life: Life, which: Which, moment: float, text: str) -> None:
        del moment
        where = f"call {which} of {group.name} on {self.names[life.place]}"
        self.violate("calls lost", f"{where}: {text}")

    def _done(self, group: Group, life: Life, which: Which, moment: float, text: str) -> None:
        del which, moment, text
        group.finished.add(life.rank)


_SAID = {
    "began": Ledger._began,
    "ok": Ledger._ok,
    "resumed": Ledger._resumed,
    "wrong": Ledger._wrong,
    "error": Ledger._unknown,
    "leaving": Ledger._leaving,
    "done": Ledger._done,
    "dropped": Ledger._dropped,
    "handed": Ledger._dropped,
    "took": Ledger._took,
    "split": Ledger._split,
    "parted": Ledger._parting,
    "refused": Ledger._refused,
    "struck": Ledger._struck,
    "touched": Ledger._touched,
    "burst": Ledger._burst,
    "filled": Ledger._filled,
    "here": Ledger._here,
}
