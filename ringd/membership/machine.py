"""How one member forms the ring with the others, holds it, and notices that it broke.

Pure: events come in with the time at which they happen, actions go out.
Rule 1 is the business of :mod:`~ringd.membership.flooding`; the others are followed here.

The rules
---------
1. Every member floods its own link state both ways. What a neighbour told it, it passes on to
   the other one, and what that told of itself back to it; a neighbour that comes up is told
   everything. Links are FIFO, so whatever a member knew when it sent a token, the receiver knows
   too when that token arrives: a token never overtakes news.
2. Rank 0 starts a *round* as soon as its table shows all links up. ``Propose`` goes round to
   the right and collects incarnations and the highest generation that anyone has seen. A
   member passes it on only if *its* table shows all links up as well.
3. Back at rank 0, the new generation is one more than all of these. Rank 0 persists it before
   anyone hears of it, which makes it unique, then sends ``Commit`` round. A member passes a
   commit on at once and then persists, so that all disks work at the same time. No disk is
   too slow: a round lasts as long as rank 0's write does.
4. A member is READY when it has persisted the generation; rank 0 when the commit has come
   back as well, so that it never believes in a ring that others do not know of, and goes on
   trying while any of them may have missed it.
5. News of any change of links (own or others', see ``LinkState.epoch``), or another round,
   ends everything before it: a proposal, a commit not yet persisted, a ring. So a commit is
   taken only by members whose tables have not moved since they passed on its proposal, and
   these tables were all the same.
6. A member that meets more of itself in the news than it has said has lost its state file, or
   somebody has told what is not so. It takes a higher incarnation, persisted first; while that
   cannot be, it says so under the old one, and is fit for no ring. If rank 0 has lost its file, it
   also leaves a gap in the generations, for those that it may have forgotten.
7. Two machines may bear one name. The member is the one that its left neighbour has dialed, at
   the address of that name. A link from another one is refused by the right neighbour, or
   dropped, as long as news tells it which one that is (:meth:`Machine.rival`).
8. A member that its operator drains says so, with a new epoch, which ends the ring on all members
   (rule 5), and is fit for none. Its links stay, so that a resume needs no more than a round.

Nothing waits for a timer while all is well. The timers below are for rank 0 when a round
does not come back although no news says why, and for a full disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ringd.membership.actions import (
    Action,
    Broken,
    Changed,
    DropLinks,
    MemberView,
    Persist,
    Ready,
    Send,
    Side,
)
from ringd.membership.flooding import Flooding
from ringd.membership.linkstate import is_newer
from ringd.membership.objections import objection
from ringd.membership.states import TRANSITIONS, Event, State
from ringd.membership.storage import StableStorage
from ringd.wire.link.bounds import counted_on
from ringd.wire.link.control import Commit, LinkState, MembershipMessage, News, Propose

__all__ = [
    "Action",
    "Broken",
    "Changed",
    "DropLinks",
    "Event",
    "Machine",
    "MemberView",
    "Persist",
    "Ready",
    "Send",
    "Side",
    "State",
]

PATIENCE = 1.0
"""Seconds that rank 0 gives its first round; doubled with each that does not come back."""
MAX_PATIENCE = 30.0
GAP = 1000
"""Generations left out by a rank 0 that has lost its state file."""


@dataclass(slots=True)
class _Round:
    """Rank 0's attempt to form a ring."""

    attempt: int
    started: float
    deadline: float
    commit: Commit | None = None
    """Set once the proposal has come back."""
    sent: bool = False
    """The commit's generation is on disk and the commit is under way."""

    @property
    def writing(self) -> bool:
        """Whether it waits for the own disk, and for nobody else."""
        return self.commit is not None and not self.sent


class Machine:
    """The membership of one member.

    Every event method takes ``now``, in seconds on any clock that does not go backwards, and
    returns the actions to carry out, in order.

    Args:
        rank: Own position in the roster.
        size: Number of members.
        incarnation: Own start count, already persisted by the caller.
        generation: The highest generation in the state file; 0 without one.
        names: Member names for the texts; ranks are used without them.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        incarnation: int,
        generation: int,
        *,
        names: Sequence[str] = (),
    ) -> None:
        if not 0 <= rank < size:
            raise ValueError(f"rank {rank} is not in a ring of {size}")
        self.rank = rank
        self.size = size
        self._names = tuple(names) or tuple(f"rank {r}" for r in range(size))
        self._flooding = Flooding(rank, self._names, generation, incarnation)
        self._table = self._flooding.table
        self._storage = StableStorage(generation, incarnation)
        self._state = State.FORMING
        self._out: list[Action] = []

        self._seen = generation
        self._attempts = 0
        self._patience = PATIENCE
        self._round: _Round | None = None
        self._proposal: Propose | None = None
        self._commit: Commit | None = None
        self.in_use: int | None = None
        """The generation of the ring that is in use here, between Ready and Broken; None without
        one."""
        self._believed: LinkState | None = None
        """What others said last of this member that it has not said."""

    # --- what can be asked ------------------------------------------------------------

    @property
    def state(self) -> State:
        """What this member is doing."""
        return self._state

    @property
    def generation(self) -> int:
        """The highest generation persisted here; that of :attr:`in_use`, if there is one."""
        return self._storage.stored.generation

    @property
    def incarnation(self) -> int:
        """This member's incarnation; rises when others believe what it has not said."""
        return self._flooding.own.incarnation

    @property
    def in_ring(self) -> bool:
        """Whether a ring is in use here."""
        return self.in_use is not None

    @property
    def entering(self) -> int | None:
        """The generation that is being persisted here while others may use it already."""
        return None if self._commit is None else self._commit.generation

    @property
    def next_deadline(self) -> float | None:
        """When :meth:`tick` is to be called; None while there is nothing to wait for."""
        deadlines = [] if self._round is None or self._round.writing else [self._round.deadline]
        if self._storage.retry is not None:
            deadlines.append(self._storage.retry)
        return min(deadlines, default=None)

    def missing(self) -> dict[int, str]:
        """Return, by rank, why the members that keep the ring from forming do so."""
        return self._table.missing()

    def members(self, now: float) -> list[MemberView]:
        """Return what is known of each member, in rank order; *now* as for events."""
        return self._flooding.members(now)

    def rival(self, instance: int) -> str:
        """Return why the left link cannot be one to *instance*; empty if it can.

        That is when its left neighbour is linked to another process of the same name. Whether that
        one still lives is not known from that: its link may hang.
        """
        dialer = self._table[(self.rank - 2) % self.size]
        if dialer is None or 0 in (instance, dialer.right_instance):
            return ""
        if dialer.right_instance == instance or not self._table.current(dialer.rank, self.rank):
            return ""
        return (
            f"{self._names[dialer.rank]!r} is still linked to another process under the name "
            f"{self._flooding.neighbour('left')!r}, at {dialer.address}: try again, or give one "
            "of the two a name of its own"
        )

    # --- events -----------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        """Begin; a ring of one forms at once."""
        return self._done(now)

    def link_up(
        self, side: Side, peer_incarnation: int, address: str, now: float, *, instance: int = 0
    ) -> list[Action]:
        """Take note of an authenticated link; it replaces one that was thought to be up.

        *instance* tells the peer's process from others under its name; 0 if that is not known.
        """
        self._out += self._flooding.link_up(side, address, instance, now)
        self._interrupt(
            Event.LINK_UP,
            f"{self._flooding.neighbour(side)} (incarnation {peer_incarnation}), {side}",
        )
        self._keep_out(now)
        return self._done(now)

    def link_down(self, side: Side, reason: str, now: float) -> list[Action]:
        """Take note of a lost link; nothing happens if it was known to be down."""
        if self._flooding.up(side):
            self._out += self._flooding.links_down((side,), reason, now)
            self._interrupt(Event.LINK_LOST, f"to {self._flooding.neighbour(side)}: {reason}")
        return self._done(now)

    def dial_failed(self, address: str, reason: str, now: float) -> list[Action]:
        """Take note that the right neighbour cannot be reached at *address*."""
        self._out += self._flooding.dial_failed(address, reason, now)
        return self._done(now)

    def received(self, side: Side, message: MembershipMessage, now: float) -> list[Action]:
        """Take a neighbour's message; one that no neighbour could send costs it the link."""
        if not self._flooding.up(side):
            return []
        reason = objection(self.rank, self.size, side, message, self._storage.wanted)
        if reason:
            self._drop((side,), f"protocol error: {reason}", now)
            self._interrupt(Event.LINK_LOST, f"to {self._flooding.neighbour(side)}: {reason}")
        elif isinstance(message, News):
            self._take_news(side, message, now)
        elif isinstance(message, Propose):
            self._take_propose(message)
        else:
            self._take_commit(message, now)
        return self._done(now)

    def persisted(self, generation: int, now: float) -> list[Action]:
        """Take note that the outstanding :class:`Persist`, of *generation*, is on disk."""
        self._storage.persisted(generation)
        incarnation = self._storage.stored.incarnation
        self._out += self._flooding.persisted(generation, incarnation, now)
        if self._commit is not None and self._commit.generation == generation:
            self._enter(generation)
        current = self._round
        if current is not None and current.commit and current.commit.generation == generation:
            current.sent = True
            current.started = now  # the disk's slowness is not the network's
            current.deadline = now + self._patience
            if self.size == 1:
                self._take_commit(current.commit, now)
            else:
                self._out.append(Send("right", current.commit))
        return self._done(now)

    def persist_failed(self, reason: str, now: float) -> list[Action]:
        """Take note that the outstanding :class:`Persist` failed; it is tried again later."""
        self._storage.failed(now)
        self._out += self._flooding.disk_failed(reason, now, self._believed)
        self._interrupt(Event.DISK, reason)
        return self._done(now)

    def persist_slow(self, reason: str, now: float) -> list[Action]:
        """Take note that the outstanding :class:`Persist` takes long; it goes on."""
        self._out += self._flooding.disk_slow(reason, now)
        return self._done(now)

    def rejoin(self, now: float, why: Event = Event.REJOIN) -> list[Action]:
        """Drop both links, and with them the ring, and forget what went wrong."""
        self._patience = PATIENCE
        if self.size > 1:
            self._drop(("left", "right"), why.value, now)
        self._interrupt(why)
        return self._done(now)

    def drain(self, now: float) -> list[Action]:
        """Take no part in a new ring; the one in use goes on until a link is lost."""
        if self._state is not State.DRAINING:
            self._proposal = self._commit = self._round = None
            self._out += self._flooding.drain(now)
            self._move(Event.DRAIN)
        return self._done(now)

    def leave(self, now: float) -> list[Action]:
        """Leave the ring, and take part in none until :meth:`resume`; the links stay."""
        self._out += self._flooding.leave(now)
        self._interrupt(Event.LEAVE)
        return self._done(now)

    def resume(self, now: float) -> list[Action]:
        """Take part again; nothing happens if that was never ended."""
        if self._state is State.DRAINING:
            self._out += self._flooding.resume(now)
            self._interrupt(Event.RESUME)
        return self._done(now)

    def tick(self, now: float) -> list[Action]:
        """Let time pass; to be called at :attr:`next_deadline`, harmless at other times."""
        self._storage.tick(now)
        current = self._round
        if current is not None and not current.writing and now >= current.deadline:
            self._round = None
            self._patience = min(MAX_PATIENCE, 2 * self._patience)
        return self._done(now)

    # --- messages ---------------------------------------------------------------------

    def _take_news(self, side: Side, news: News, now: float) -> None:
        own = self._flooding.own
        for state in news.states:
            self._hear_of(state.generation)
            if state.rank == self.rank and is_newer(state, own):
                self._raise_incarnation(state)
        sends, moved = self._flooding.received(side, news.states, now)
        self._out += sends
        if moved is not None:
            otherwise = "drained, or shutting down" if moved.draining else "linked anew"
            self._interrupt(Event.NEWS, f"{self._names[moved.rank]}: {moved.error or otherwise}")
        self._keep_out(now)

    def _hear_of(self, generation: int) -> None:
        """Count on from *generation*, which another member names, unless it must be a lie."""
        if counted_on(generation, self._storage.wanted.generation):
            self._seen = max(self._seen, generation)

    def _take_propose(self, propose: Propose) -> None:
        self._hear_of(propose.generation)
        if self.rank == 0:
            current = self._round
            if (
                current is not None
                and current.commit is None
                and current.attempt == propose.attempt
                and self._able()
                and propose.incarnations == self._table.incarnations()
            ):
                self._decide(current, propose)
            return
        self._interrupt(Event.ROUND)
        if self._able() and propose.incarnations == self._table.incarnations()[: self.rank]:
            self._proposal = Propose(
                attempt=propose.attempt,
                generation=self._seen,
                incarnations=(*propose.incarnations, self.incarnation),
            )
            self._out.append(Send("right", self._proposal))

    def _take_commit(self, commit: Commit, now: float) -> None:
        if self.rank == 0:
            current = self._round
            if current is not None and current.sent and current.commit == commit:
                # Four times what it took: a slow network needs no lesson twice.
                self._patience = min(MAX_PATIENCE, max(PATIENCE, 4 * (now - current.started)))
                self._round = None
                self._enter(commit.generation)
            return
        proposal = self._proposal
        if (
            proposal is not None
            and proposal.attempt == commit.attempt
            and self._able()
            and commit.incarnations == self._table.incarnations()
            and commit.generation > self._storage.wanted.generation
        ):
            self._proposal = None
            self._commit = commit
            self._seen = max(self._seen, commit.generation)
            self._out.append(Send("right", commit))
            self._storage.want(generation=commit.generation)

    # --- rounds of rank 0 -------------------------------------------------------------

    def _begin_round(self, now: float) -> None:
        self._attempts += 1
        self._round = _Round(self._attempts, now, now + self._patience)
        propose = Propose(self._attempts, self._seen, (self.incarnation,))
        if self.size == 1:
            self._decide(self._round, propose)
        else:
            self._out.append(Send("right", propose))

    def _decide(self, current: _Round, propose: Propose) -> None:
        # Rank 0 wrote down every generation that it sent. Others know a higher one? Then its
        # file was lost, or an old one restored, and there may be more that nobody remembers.
        self._seen += 1 if self._seen <= self._storage.wanted.generation else GAP
        current.commit = Commit(propose.attempt, self._seen, propose.incarnations)
        self._storage.want(generation=self._seen)

    # --- the pieces of all of these ----------------------------------------------------

    def _able(self) -> bool:
        """Whether, as far as this member knows, a ring can form."""
        return (
            self._table.all_up()
            and self._state is State.FORMING
            and self._storage.wanted.incarnation == self.incarnation
        )

    def _enter(self, generation: int) -> None:
        self._commit = None
        self.in_use = generation
        self._move(Event.FORMED, f"generation {generation}")
        self._out.append(Ready(generation))

    def _interrupt(self, event: Event, detail: str = "") -> None:
        """End whatever rests on how things were before *event*."""
        self._proposal = self._commit = self._round = None
        if self.in_ring:
            self.in_use = None
            self._out.append(Broken(_reason(event, detail)))
        self._move(event, detail)

    def _move(self, event: Event, detail: str = "") -> None:
        old, self._state = self._state, TRANSITIONS[self._state, event]
        if self._state is not old:
            self._out.append(Changed(old, self._state, _reason(event, detail)))

    def _raise_incarnation(self, believed: LinkState) -> None:
        """Take a higher incarnation than what is *believed* of this member and not so."""
        self._believed = believed
        if self._storage.wanted.incarnation <= believed.incarnation:
            self._storage.want(incarnation=believed.incarnation + 1)
            self._interrupt(Event.MISTAKEN)

    def _keep_out(self, now: float) -> None:
        """Drop a left link to somebody who only bears the neighbour's name."""
        reason = self.rival(self._flooding.instance("left"))
        if reason:
            self._drop(("left",), reason, now)
            self._interrupt(Event.LINK_LOST, f"to {self._flooding.neighbour('left')}: {reason}")

    def _drop(self, sides: tuple[Side, ...], reason: str, now: float) -> None:
        self._out += self._flooding.links_down(sides, reason, now)
        self._out.append(DropLinks(reason, sides))

    def _done(self, now: float) -> list[Action]:
        """Do what the event made possible, and hand out the actions."""
        if self.rank == 0 and self._round is None and self._able():
            self._begin_round(now)
        self._out += self._storage.due()
        out, self._out = self._out, []
        return out


def _reason(event: Event, detail: str) -> str:
    return f"{event.value}: {detail}" if detail else event.value
