"""The groups of one daemon: events come in here and go to the seat that they are for.

Pure: events come in as method calls with the time passed in, and each returns the list of
actions that follow. The daemon carries them out and owns all memory, sockets and clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from ringd.collective.view import View
from ringd.errors import GroupLost, PeerLost, Refused, ResourceExhausted
from ringd.groups.absences import Absences
from ringd.groups.actions import Action, Deny, Dropped, Free, Relay, Run, Stop
from ringd.groups.channels import Channel, Opening
from ringd.groups.mail import Letter, Mail
from ringd.groups.offers import ANY_CALL, Rules
from ringd.groups.op import Op, Submission
from ringd.groups.reasons import Reasons
from ringd.groups.roll import Roll, stay_of
from ringd.groups.seat import Join, Seat
from ringd.groups.session import MAX_JOIN_ID, Session
from ringd.groups.timing import NEVER, OpTimers, Timing
from ringd.wire.link.control import (
    Closed,
    Computed,
    Done,
    GroupMessage,
    Joined,
    Left,
    Offer,
    Opened,
    Poll,
    Verdict,
)


class Engine:
    """All groups, as one member of the ring sees them.

    Invariant: every event ends with its actions handed out, seats that are finished dropped, and
    the clock set for what can wait; what runs by them does not end by them.

    Args:
        view: All members of the ring, and which of them this one is.
        window: Ops that a client may have unreleased.
        missing_members: As :class:`~ringd.groups.reasons.Reasons` takes it, like *slow_disks*.
        rules: What this daemon knows of calls.
        about_holder: Says who a group's client here is, and what to do, to another one that
            wants its place.
        sooner: Called when :attr:`next_deadline` turns out to be sooner than it was.
    """

    def __init__(
        self,
        *,
        view: View,
        stall_warning: float = 10.0,
        reattach: float = 10.0,
        window: int = 256,
        lost_after: float = 3.0,
        missing_members: Callable[[], str] = str,
        slow_disks: Callable[[], str] = str,
        rules: Rules = ANY_CALL,
        about_holder: Callable[[Hashable, Hashable], str] = lambda *_: "close it first",
        sooner: Callable[[], None] = lambda: None,
    ) -> None:
        self._window = window
        self._rules = rules
        self._about_holder = about_holder
        self._sooner = sooner
        self._due = NEVER
        self._out: list[Action] = []
        self.next_deadline: float | None = None
        """When :meth:`tick` wants to be called next; None for not at all."""
        self._mail = mail = Mail(view, self._out)
        self.roll = roll = Roll(mail, Absences(view, reattach))
        self._reasons = reasons = Reasons(roll, missing_members, slow_disks)
        self.timing = Timing(
            roll, reasons, OpTimers(roll), self._out, stall_warning, reattach, lost_after
        )

    # --- the clients' side ------------------------------------------------------------

    def attach(self, client: Hashable, join: Join, now: float) -> list[Action]:
        """A client joins, anew or (with the same join id) after this daemon restarted."""
        group, join_id, part = join.group, join.join_id, join.part
        if not 0 < join_id <= MAX_JOIN_ID or join.released < 0:
            start = f"id {join_id} and op {join.released} to start"
            text = f"a join of group {group!r} cannot have {start}"
            return self._deny(client, join_id, Refused.code, text, now)
        holder = self.roll.local(group, part.local_rank)
        if holder is not None and holder.caller.client not in (None, client):
            about = self._about_holder(holder.caller.client, client)
            which = f" with local rank {part.local_rank}" if part.local_size > 1 else ""
            name = self._mail.ring.name
            text = f"group {group!r} has a client{which} on {name!r} already: {about}"
            return self._deny(client, join_id, Refused.code, text, now)
        if text := self.roll.objection(group, part):
            return self._deny(client, join_id, Refused.code, text, now)
        if holder is not None and holder.caller.client == client and holder.join_id == join_id:
            holder.tell_again()
        elif text := self.roll.used_up(join_id, group):
            return self._deny(client, join_id, GroupLost.code, text, now)
        else:
            session = Session(group, join_id, part, self._mail)
            if holder is None and self.roll.full(self._mail.ring.rank, session.joined):
                text = f"the programs on {self._mail.ring.name!r} are in as many groups as can be"
                return self._deny(client, join_id, ResourceExhausted.code, text, now)
            seat = Seat(client, join, session, self._rules)
            self.roll.admit(seat, join.session)
            self.timing.attached(seat, now)
        return self._finish(now)

    def open(self, client: Hashable, opening: Opening, now: float) -> list[Action]:
        """A client opens its end of a channel, anew or after this daemon restarted."""
        seat, known = (self.roll.seats.get(i) for i in (opening.join_id, opening.channel_id))
        if seat is None:
            text = self.roll.used_up(opening.join_id, "") or "its stay in the group is over"
            return self._deny(client, opening.channel_id, GroupLost.code, text, now)
        mine = seat.caller.client == client and not isinstance(seat, Channel)
        if not (mine and seat.pledged):
            text = "there are no channels before a group has formed"
            return self._deny(client, opening.channel_id, Refused.code, text, now)
        if isinstance(known, Channel) and known.parent is seat:
            known.watched = opening.watch
            known.tell_again()
            self._fail_if_broken(known)
            return self._finish(now)
        if seat.calls.limit is not None:  # also where it has left
            return self._deny(client, opening.channel_id, *seat.calls.loss, now)
        former = seat.channels.get(opening.key)
        if former is not None and former.calls.limit is not None:
            # Its other end has left, of which the stay itself may hear later: the way is longer.
            return self._deny(client, opening.channel_id, *former.calls.loss, now)
        text = opening.objection(seat.session.view)
        if not text and (known is not None or former is not None):
            text = f"channel {tuple(opening.key)} is open already, or its number in use"
        if text:
            return self._deny(client, opening.channel_id, Refused.code, text, now)
        channel = Channel(client, opening, seat, self._rules)
        self.roll.open(channel)
        self.timing.attached(channel, now)
        self._fail_if_broken(channel)
        return self._finish(now)

    def submit(
        self, client: Hashable, join_id: int, submission: Submission, now: float
    ) -> list[Action]:
        """A client hands over its next op, or one again: then it is told again how that ended."""
        seat = self.roll.seats.get(join_id)
        objection = "attach to the group first"
        if seat is not None and seat.caller.client == client and seat.left is None:
            if submission.acked > seat.caller.acked:
                seat.ledger.ack(submission.acked)
            objection = seat.submissions.fault(submission, self._window)
            if objection:
                objection = f"{seat.session.title(submission.seq)} {objection}"
        if seat is None or objection:
            self._out.append(Free(submission))
            return self._deny(client, join_id, Refused.code, objection, now)
        if submission.seq < seat.caller.next_seq:
            seat.submissions.take_again(submission)
        else:
            if self._reasons.broken and not self.roll.up and not submission.outcome:
                self._fail(stay_of(seat))
            op = seat.submissions.take(submission, now)
            if not seat.session.formed:
                self.roll.look_for_conflict(seat)
            timing, deadline = self.timing, submission.deadline
            look = timing.next_look
            sooner = deadline is not None and deadline < look
            if (sooner or look == NEVER) and not op.ended:
                timing.watch(seat, op, now)
        return self._finish(now)

    def ack(self, client: Hashable, join_id: int, acked: int, now: float) -> list[Action]:
        """The client has every outcome below *acked*."""
        seat = self.roll.seats.get(join_id)
        if seat is not None and seat.caller.client == client:
            seat.ledger.ack(acked)
        return self._finish(now)

    def detach(
        self, client: Hashable, reason: str, now: float, join_id: int | None = None
    ) -> list[Action]:
        """A client left one group in good order, or is gone from all; *reason* ends a sentence."""
        if join_id is None:
            concerned = list(self.roll.seats.values())
        else:
            one = self.roll.seats.get(join_id)
            concerned = [] if one is None else self.roll.of_group(one.group)
        for seat in concerned:
            if isinstance(seat, Channel):  # ends with the stay in which it was opened
                continue
            of_that = join_id in (None, seat.join_id) or seat.left is not None
            if seat.caller.client == client and of_that:
                self.roll.give_up(seat, self.roll.says(reason, seat))
        return self._finish(now)

    # --- the ring's side --------------------------------------------------------------

    def ring_up(self, now: float) -> list[Action]:
        """A new generation: everybody is introduced again."""
        self.roll.ring_up()
        return self._finish(now)

    def ring_down(self, reason: str, now: float) -> list[Action]:
        """The ring broke: all ops go back to where they can be run again."""
        self._reasons.broken = reason
        self.roll.ring_down()
        self.timing.broke_at = now
        for seat in list(self.roll.seats.values()):
            for op in seat.suspend():
                self.timing.deadlines.add(now, seat, op)
            if seat.client_waits:
                self._fail(stay_of(seat))
        return self._finish(now)

    def received(  # noqa: PLR0917 - called for every message, and keywords cost time
        self,
        origin: int,
        rank: int,
        gid: int,
        seq: int,
        message: GroupMessage,
        payload: bytes | memoryview,
        now: float,
    ) -> Sequence[Action]:
        """A message came round.

        Args:
            origin: The member from which it comes; of a poll, that of the asker.
            rank: The sender's, or asker's, in the session *gid*.
            gid: The session; 0 for a client that is in none.
            seq: Of the op.
            message: What is said.
            payload: An offer's.
            now: The time.
        """
        if isinstance(message, Joined):
            self.roll.joined(origin, message, now)
        elif isinstance(message, Left):
            self.roll.peer_left(origin, gid, message)
        elif (seats := self.roll.by_gid.get(gid)) is None and isinstance(message, Opened):
            self.roll.opened(origin, rank, gid, message, now)
        elif seats is None:
            self._pass_on(origin, rank, gid, seq, message)
        elif isinstance(message, Poll):  # those beside it get it one after the other
            self._tell(seats[min(seats)], rank, seq, message, b"", now)
        else:
            for seat in seats.values() if len(seats) == 1 else list(seats.values()):
                self._tell(seat, rank, seq, message, payload, now)
            mail = self._mail
            news = mail.news and self.timing.lazy_due == NEVER
            if not (self._out or news or mail.beside or self.roll.winding_up):
                return ()  # it was an offer, and the last one has yet to come
        return self._finish(now)

    def _pass_on(self, origin: int, rank: int, gid: int, seq: int, message: GroupMessage) -> None:
        """A message is of a session of which nobody here knows: that of other members, perhaps."""
        if isinstance(message, Poll) and origin != self._mail.ring.rank:
            self._out.append(Relay(origin, gid, seq, message, rank))
        else:
            self._out.append(Dropped("of a session unknown here"))

    def _tell(  # noqa: PLR0917 - as received
        self,
        seat: Seat,
        rank: int,
        seq: int,
        message: GroupMessage,
        payload: bytes | memoryview,
        now: float,
    ) -> None:
        """Have *seat* hear what another rank of its session says, if that can be.

        Others may be ahead by their window, as they need our op's end to go on, of the op that our
        client has next once it has handed over again what it had to. Nobody is beyond that: all
        members have the same window, and nobody's op is released before we are done with it.
        """
        view, caller = seat.session.view, seat.caller
        if rank >= view.size or (rank == view.rank and not isinstance(message, Poll)):
            self._out.append(Dropped("of a rank that is none of the others in its session"))
        elif seq >= self._window + max(caller.next_seq, caller.expected):
            self._out.append(Dropped("of a call beyond the window"))
        elif isinstance(message, Offer):
            seat.offers.offered(rank, seq, message, payload, now)
            if isinstance(seat, Channel):
                seat.tell_arrived()
        else:
            self._hear(seat, rank, seq, message, now)

    def _hear(self, seat: Seat, rank: int, seq: int, message: GroupMessage, now: float) -> None:
        """Have *seat* hear of what is not an offer."""
        if isinstance(message, Done):
            seat.calls.peer_done(rank, message.floor)
            if message.finished is not None:
                seat.calls.peer_read_input(rank, message.finished)
        elif isinstance(message, Computed):
            seat.calls.peer_computed(rank, seq)
        elif isinstance(message, Poll):
            seat.polls.polled(rank, seq, message, now)
        elif isinstance(message, Verdict):
            seat.polls.judged(seq, message, now)
        elif isinstance(message, (Opened, Closed)) and isinstance(seat, Channel):
            seat.hear(rank, message)

    def _deliver(self, letter: Letter, now: float) -> None:
        """Hand what a seat here says to those beside it."""
        message = letter.message
        if isinstance(message, Joined):
            self.roll.joined(self._mail.ring.rank, message, now)
            return
        if isinstance(message, Left):
            self.roll.peer_left(self._mail.ring.rank, letter.gid, message)
            return
        seats = self.roll.by_gid.get(letter.gid, {})
        if isinstance(message, Opened) and len(seats) == 1:  # the one that says so
            self.roll.opened(self._mail.ring.rank, letter.rank, letter.gid, message, now)
        else:
            for rank, seat in list(seats.items()):
                if (rank != letter.rank) if letter.to is None else (rank == letter.to):
                    self._tell(seat, letter.rank, letter.seq, message, letter.payload, now)

    def finished(self, gid: int, rank: int, seq: int, now: float) -> list[Action]:
        """The computation that a Run asked for is through."""
        self.roll.by_gid[gid][rank].calls.finished(seq)
        return self._finish(now)

    # --- time -------------------------------------------------------------------------

    def tick(self, now: float) -> list[Action]:
        """Time has passed: deadlines, stall warnings, lazy news, clients that stayed away."""
        self.timing.tick(now)
        return self._finish(now)

    def waiting_for(self, seat: Seat, op: Op) -> str:
        """Return in words for whom *op* waits."""
        return self._reasons.waiting_for(seat, op)

    def awaited(self, client: Hashable, join_id: int) -> tuple[str, bool]:
        """Return for whom the session of a client's stay waits, and whether in vain.

        In words, empty once it is live; in vain, if its programs disagree on who they are.
        """
        seat = self.roll.seats.get(join_id)
        if seat is None or seat.caller.client != client:
            return "", False
        if conflict := self.roll.conflict(seat):
            return conflict, True
        return self._reasons.forming(seat), False

    # --- housekeeping -----------------------------------------------------------------

    def _fail_if_broken(self, channel: Channel) -> None:
        """A client that begins to wait for a message while the ring is broken is told at once."""
        if self._reasons.broken and not self.roll.up and channel.client_waits:
            self._fail(channel.parent)

    def _fail(self, seat: Seat) -> None:
        """End the open calls of a client that asked to be told of any loss.

        Not those of a stay that is over, of which the others know which ones they can count on.
        """
        if seat.on_loss == "fail" and seat.left is None:
            for stay in (seat, *seat.channels.values()):
                stay.calls.cut_open(PeerLost.code, f"the ring broke: {self._reasons.broken}")
            self.roll.answer_knocks(seat)

    def _deny(
        self, client: Hashable, join_id: int, code: str, text: str, now: float
    ) -> list[Action]:
        self._out.append(Deny(client, join_id, code, text))
        return self._finish(now)

    def _finish(self, now: float) -> list[Action]:
        mail = self._mail
        beside = mail.beside
        while beside or self.roll.winding_up:
            while beside:
                self._deliver(beside.popleft(), now)
            self.roll.drop_finished()
            if not beside:
                break
        timing = self.timing
        if mail.news and timing.lazy_due == NEVER:
            timing.expect_news(now)
        # As Timing.next, which also looks at what is rare.
        due = min(timing.deadlines.next, timing.next_look, timing.lazy_due)
        if timing.returning or self.roll.absences.absent:
            due = timing.next
        if due != self._due:
            self._set_due(due)
        out = _without_what_is_stopped(self._out) if mail.stops else self._out[:]
        self._out.clear()
        mail.stops = False
        return out

    def _set_due(self, due: float) -> None:
        before, self._due = self._due, due
        self.next_deadline = None if due == NEVER else due
        if due < before:
            self._sooner()


def _without_what_is_stopped(todo: list[Action]) -> list[Action]:
    """Return *todo* without the ops that are to run and, further on, to stop.

    A small one would be through at once, though it has ended. It is so where the ranks that ask
    and answer about a deadline are all here, and offer the call in the same event.
    """
    started: dict[tuple[int, int, int], int] = {}
    void: set[int] = set()
    for at, action in enumerate(todo):
        if isinstance(action, Run):
            started[action.gid, action.view.rank, action.seq] = at
        elif isinstance(action, Stop):
            begun = started.pop((action.gid, action.rank, action.seq), None)
            if begun is not None:
                void |= {begun, at}
    return [action for at, action in enumerate(todo) if at not in void]
