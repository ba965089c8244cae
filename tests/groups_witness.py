"""What happened in a simulation of groups, and whether that keeps what is promised."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

import groups_oracle as oracle
from groups_model_calls import Violation, Work
from groups_model_channel import End
from groups_model_client import Client
from groups_model_node import Node

from ringd.groups import actions
from ringd.groups.channels import Channel
from ringd.groups.op import OK
from ringd.groups.seat import Seat
from ringd.groups.timing import ASK_WITHIN

if TYPE_CHECKING:
    from groups_simulation import Sim


MOST_OPS = 256
"""As many calls a program may have unreleased: the engine's window."""


MOST_LATE = 3.0 + ASK_WITHIN + 1.0
"""Seconds from a deadline on until the client decides alone."""


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
        self.kinds: Counter[str] = Counter()
        """Of calls that completed."""
        self.bits: dict[tuple[tuple[int, ...], int], bytes] = {}
        """Of results that all ranks are given, by session and number."""
        self.floors: dict[int, int] = {}
        """By join id, below which number its client has all outcomes, as its daemon says."""

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
        """A result is made of what the members of its session handed over, once."""
        self.outcomes[OK] += 1
        self.kinds[work.call.kind] += 1
        join_ids = work.client.sessions.get(work.join_id, ())
        if work.join_id not in join_ids:
            raise Violation(f"{work} completed in no session that its client knows")
        found = [self.works.get((join_id, work.seq)) for join_id in join_ids]
        parts = [part for part in found if part is not None]
        if len(parts) < len(join_ids):
            raise Violation(f"{work} completed without all inputs")
        calls, given = [part.call for part in parts], [part.given for part in parts]
        if not oracle.fit(calls):
            raise Violation(f"{work} completed though the calls differ: {calls}")
        rank = join_ids.index(work.join_id)
        assert work.value is not None
        if not oracle.right(calls, given, rank, work.value):
            raise Violation(f"{work} is wrong: {work.value!r} of {given}")
        if oracle.alike(work.call):
            bits = self.bits.setdefault((join_ids, work.seq), work.value)
            if bits != work.value:
                raise Violation(f"{work} has other bits than on another rank")
        for join_id in join_ids:
            seen = self.applied.setdefault((join_id, work.seq), {})
            seen.setdefault(join_ids, []).append(work.client)
            if sum(any(client.alive for client in who) for who in seen.values()) > 1:
                raise Violation(f"op {work.seq} of join {join_id} was applied twice")

    def check_time(self, work: Work) -> None:
        """A call with a deadline has ended by then, or as soon after as is promised.

        Where its own daemon was away, or where a link is slow and an all_reduce takes place or a
        call runs again after a break, the client decides alone, which is not here.
        """
        timeout = work.spec.timeout
        again = self._sim.generations != work.generations
        slow = self._sim.stalls and (again or work.call.kind in oracle.ALL_REDUCES)
        if timeout is None or slow or work.client.member in self.crashed:
            return
        late = self._sim.now - work.born - timeout
        if late > MOST_LATE and not self._is_unkind(work.client):
            raise Violation(f"{work} ended {late:.1f} s after its deadline")

    def check_step(self, node: Node) -> None:
        """What must hold on a member after each event."""
        assert node.engine is not None
        for (gid, _, seq), run in node.running.items():
            if run.payloads is None and (gid, seq) != node.ending:
                here = [(gid, rank, seq) in node.running for rank in run.view.here]
                if not all(here):
                    raise Violation(f"op {seq} runs for some of the ranks on m{node.rank} alone")
        for join_id, seat in node.engine.roll.seats.items():
            if len(seat.calls.ops) > 2 * MOST_OPS:
                raise Violation(f"m{node.rank} keeps {len(seat.calls.ops)} calls of {join_id}")
            self._check_floor(join_id, seat)

    def _check_floor(self, join_id: int, seat: Seat) -> None:
        """Who is said to have an outcome for sure has it, or a seal that says so."""
        known, floor = self.floors.get(join_id, 0), seat.ledger.own
        if floor <= known:
            return
        self.floors[join_id] = floor
        owner = self.owners.get(join_id)
        if owner is None or not owner.alive or owner.has_left(join_id):
            return
        for seq in range(known, floor):
            work = self.works.get((join_id, seq))
            safe = work is not None and (work.outcome or work.sure or work.seal == (join_id, seq))
            if not safe and seat.left is None:
                raise Violation(
                    f"op {seq} of join {join_id} counts as done, and its client lacks it"
                )

    def check_memory(self) -> None:
        """Nobody wrote to the place of a result after the call had ended."""
        for work in self.works.values():
            if work.outcome and work.target is not None and not work.target.spoiled:
                raise Violation(f"{work}: its memory was written to after its end")

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
            gone |= {j for j in mates if self._is_forgotten(j)}
            lost = {self.owners[join_id].member for join_id in gone}
            named = {int(rank) for rank in re.findall(r"'m(\d+)'", work.message)}
            allowed = bool(named) and named <= lost
        elif work.outcome == "peer_lost":
            allowed = self._is_unkind(work.client)
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
            allowed = not self._same([c for c in calls if c is not None])
        elif work.outcome == "refused":
            calls = [self.works.get((j, work.seq)) for j in mates | {work.join_id}]
            members = {self.owners[j].member for j in mates | {work.join_id}}
            allowed = any(
                c is not None
                and (c.spec.unfit or (c.call.dtype == "bfloat16" and members & self._sim.poor))
                for c in calls
            )
        else:
            allowed = False
        if work.spec.gathers == "bytes" and not allowed:
            first = self.works[work.join_id, work.seq - 1]
            allowed = (first.outcome, first.message) == (work.outcome, work.message) or any(
                w is not None and (w.outcome, w.message) == (work.outcome, work.message)
                for w in (self.works.get((j, work.seq - 1)) for j in mates)
            )
        if not allowed:
            raise Violation(f"{work} failed without reason: {work.outcome}: {work.message}")

    def _is_forgotten(self, join_id: int) -> bool:
        """Whether its daemon was restarted, and the client there is two stays further on.

        Then nobody there knows why that one ended, and it is said to be replaced.
        """
        owner = self.owners[join_id]
        further = owner.client if isinstance(owner, End) else owner
        stays = {further.join_id, further.before.join_id}
        stay = owner.parent if isinstance(owner, End) else join_id
        return owner.member in self.crashed and stay not in stays

    def _is_unkind(self, owner: Client | End) -> bool:
        return owner.group.partition("/")[0] in self.unkind

    @staticmethod
    def _same(works: list[Work]) -> bool:
        return len({work.spec.odd for work in works}) <= 1 and oracle.fit([w.call for w in works])

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
            lost = {self.owners[j].member for j in join_ids if j in self.dead or j in gone}
            if lost & self.crashed or self._is_unkind(self.owners[join_ids[0]]):
                continue
            for seq in range(len(self.owners[join_ids[0]].specs)):
                works = [self.works.get((join_id, seq)) for join_id in join_ids]
                texts = {w.message for w in works if w and w.outcome == "mismatch"}
                if len(texts) > 1:
                    raise Violation(f"op {seq} of {join_ids} differs in several ways: {texts}")
                ends = {w.outcome for w in works if w and w.outcome and w.counts_on(join_ids)}
                alone = any((join_id, seq) in self.late_alone for join_id in join_ids)
                excused = alone and "deadline_exceeded" in ends
                if len(ends) > 1 and OK in ends and not excused:
                    raise Violation(f"op {seq} of {join_ids} ended in two ways: {ends}")

    def check_blame(self, join_ids: tuple[int, ...]) -> None:
        """Where one client ended a session, and its daemon lived, all read the same of it."""
        gone = [j for j in join_ids if j in self.dead or not self.owners[j].alive]
        known = not any(map(self._is_forgotten, join_ids))
        if known and len(gone) == 1 and self.owners[gone[0]].member not in self.crashed:
            works = [self.owners[j].works_of(j) for j in join_ids]
            ends = [work for of_one in works for work in of_one.values()]
            texts = {work.message for work in ends if work.outcome == "group_lost"}
            if len(texts) > 1:
                raise Violation(f"the loss of {join_ids} reads differently: {texts}")
