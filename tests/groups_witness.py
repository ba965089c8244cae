"""What happened in a simulation of groups, and whether that keeps what is promised."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from groups_model_calls import Violation, Work
from groups_model_channel import End
from groups_model_client import Client
from groups_model_node import Node

from ringd.groups import actions
from ringd.groups.channels import Channel
from ringd.groups.op import OK

if TYPE_CHECKING:
    from groups_simulation import Sim


class Witness:
    """Sees what the members do, and raises a :class:`Violation` where a promise is broken."""

    def __init__(self, sim: Sim) -> None:
        self._sim = sim
        self.crashed: set[int] = set()
        """Ranks whose daemon died at least once."""
        self.sessions: dict[int, tuple[int, ...]] = {}
        """All that were formed anywhere, by gid."""
        self.agreed: set[tuple[int, ...]] = set()
        """Those that some client was told of."""
        self.owners: dict[int, Client | End] = {}
        self.works: dict[tuple[int, int], Work] = {}
        self.dead: set[int] = set()
        """Join ids of clients that died, or left of their own accord."""
        self.unkind: set[str] = set()
        """Groups in which somebody asked for errors on any loss."""
        self.applied: dict[tuple[int, int], dict[tuple[int, ...], list[Client | End]]] = {}
        """For each input, the sessions in which it was summed, and who saw that."""
        self.parted: set[tuple[int, int]] = set()
        """By rank and gid, sessions that are not live there."""
        self.parted_last: dict[int, float] = {}
        """By gid, when a member last went live in that session."""
        self.late_alone: set[tuple[int, int]] = set()
        """Calls, by join id and number, that ended late while not everybody could be asked."""
        self.outcomes: Counter[str] = Counter()

    def note_live(self, node: Node) -> None:
        """Remember which sessions exist, and where they are not live."""
        if node.engine is not None:
            seats = [s for here in node.engine.roll.by_gid.values() for s in here.values()]
            for seat in seats:
                gid = seat.session.gid
                if not isinstance(seat, Channel):
                    self.sessions.setdefault(gid, seat.session.peers.join_ids)
                place = (seat.session.view.rank, gid)
                if not seat.session.live:
                    self.parted.add(place)
                elif place in self.parted:
                    self.parted.remove(place)
                    self.parted_last[gid] = self._sim.now

    def note_late(self, node: Node, report: actions.Report) -> None:
        """Remember whether a deadline that has passed was decided on without the others."""
        deadline = report.submission.deadline
        if report.code != "deadline_exceeded" or deadline is None or deadline > self._sim.now:
            return
        assert node.engine is not None
        gid = node.engine.roll.seats[report.join_id].session.gid
        whole = (
            gid != 0
            and self._sim.generation != 0
            and all(other.generation == self._sim.generation for other in self._sim.nodes)
            and not any(other == gid for _, other in self.parted)
        )
        if not whole or self.parted_last.get(gid, 0.0) >= deadline:
            self.late_alone.add((report.join_id, report.submission.seq))

    def check_value(self, work: Work) -> None:
        """A result is the sum of what the members of its session handed over, once."""
        self.outcomes[OK] += 1
        join_ids = work.client.sessions.get(work.join_id, ())
        if work.join_id not in join_ids:
            raise Violation(f"{work} completed in no session that its client knows")
        parts = [self.works.get((join_id, work.seq)) for join_id in join_ids]
        if any(part is None for part in parts):
            raise Violation(f"{work} completed without all inputs")
        expected = sum(part.token for part in parts if part is not None)
        if work.value != expected:
            raise Violation(f"{work} is wrong: {work.value} is not {expected}")
        for join_id in join_ids:
            seen = self.applied.setdefault((join_id, work.seq), {})
            seen.setdefault(join_ids, []).append(work.client)
            if sum(any(client.alive for client in who) for who in seen.values()) > 1:
                raise Violation(f"op {work.seq} of join {join_id} was applied twice")

    def mates(self, work: Work) -> set[int]:
        """Return the join ids of those on whom a call counts."""
        stay = work.join_id
        mates = set(work.client.sessions.get(stay, ()))
        if isinstance(work.client, End):
            stay = work.client.parent
        mates |= {j for ids in self.sessions.values() if stay in ids for j in ids}
        return mates & set(self.owners)

    def check_error(self, work: Work) -> None:
        """An error has a reason that the promises allow."""
        self.outcomes[work.outcome] += 1
        mates = self.mates(work)
        if work.outcome == "group_lost":
            gone = {j for j in mates if j in self.dead or not self.owners[j].alive}
            lost = {self.owners[join_id].rank for join_id in gone}
            named = {int(rank) for rank in re.findall(r"'m(\d+)'", work.message)}
            allowed = bool(named) and named <= lost
        elif work.outcome == "peer_lost":
            allowed = work.client.group in self.unkind
        elif work.outcome == "deadline_exceeded":
            calls = [self.works.get((j, work.seq)) for j in mates | {work.join_id}]
            allowed = any(
                c is not None
                and c.spec.timeout is not None
                and self._sim.now >= c.born + c.spec.timeout
                for c in calls
            )
        elif work.outcome == "mismatch":
            calls = [self.works.get((j, work.seq)) for j in mates]
            allowed = len({c.spec.call for c in calls if c is not None}) > 1
        else:
            allowed = False
        if not allowed:
            raise Violation(f"{work} failed without reason: {work.outcome}: {work.message}")

    def check_agreement(self) -> None:
        """Who lives sees one outcome everywhere, but for what the promises except.

        That is: a daemon died after its client had left, or a deadline passed while the ring
        was down or the session not live.
        """
        for join_ids in self.agreed:
            if not set(join_ids) <= set(self.owners):
                continue  # one end was never opened
            self.check_blame(join_ids)
            gone = [join_id for join_id in join_ids if self.owners[join_id].has_left(join_id)]
            lost = {self.owners[j].rank for j in join_ids if j in self.dead or j in gone}
            if lost & self.crashed or self.owners[join_ids[0]].group in self.unkind:
                continue
            for seq in range(len(self.owners[join_ids[0]].specs)):
                works = [self.works.get((join_id, seq)) for join_id in join_ids]
                ends = {w.outcome for w in works if w and w.outcome and w.counts_on(join_ids)}
                alone = any((join_id, seq) in self.late_alone for join_id in join_ids)
                excused = alone and "deadline_exceeded" in ends
                if len(ends) > 1 and OK in ends and not excused:
                    raise Violation(f"op {seq} of {join_ids} ended in two ways: {ends}")

    def check_blame(self, join_ids: tuple[int, ...]) -> None:
        """Where one client ended a session, and its daemon lived, all read the same of it."""
        gone = [j for j in join_ids if j in self.dead or not self.owners[j].alive]
        if len(gone) == 1 and self.owners[gone[0]].rank not in self.crashed:
            works = [self.owners[j].works_of(j) for j in join_ids]
            ends = [work for of_one in works for work in of_one.values()]
            texts = {work.message for work in ends if work.outcome == "group_lost"}
            if len(texts) > 1:
                raise Violation(f"the loss of {join_ids} reads differently: {texts}")
