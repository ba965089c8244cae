"""What is due when: deadlines, warnings, news that can wait, and clients that stay away."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from ringd.errors import GroupLost
from ringd.groups.actions import Action, Deny, Warn
from ringd.groups.op import Op
from ringd.groups.reasons import Reasons
from ringd.groups.roll import Roll, stay_of
from ringd.groups.seat import Seat

NEVER = math.inf

_HEAP_SLACK = 64

ASK_WITHIN = 1.5
"""Seconds to wait, from a deadline or a later break on, for others that may know that the call
completed, and cannot be asked: the ring is broken, or a restarted daemon waits for its client. Most
breaks are shorter. The client library waits longer before it decides alone."""

_STOOD_STILL = 0.25
"""Seconds by which a tick must be late for this daemon to have been stopped, or short of a
processor. Nobody can have been asked meanwhile, nor come back."""

LAZY = 0.02
"""Seconds until news on finished ops is sent by itself when no offer has carried it."""


@dataclass(slots=True, eq=False)
class OpTimers:
    """Open ops, each to be looked at when its time has come.

    Invariant: there are at most twice as many entries as there were open ops when it was last
    cleared of those that had ended, and some.
    """

    _roll: Roll
    _heap: list[tuple[float, int, int, int]] = field(default_factory=list)
    """By time, and then in the order in which they were added: the seat's join id, and the op's
    number. Neither is kept itself: a seat has all that its client has, and an op its call, which
    may say the shapes of many tensors."""
    _added: Iterator[int] = field(default_factory=count)
    _limit: int = _HEAP_SLACK
    next: float = NEVER
    """When the first one is due."""

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, when: float, seat: Seat, op: Op) -> None:
        """Look at *op* at *when*; now and then, forget those that ended long before."""
        heapq.heappush(self._heap, (when, next(self._added), seat.join_id, op.seq))
        if len(self._heap) > self._limit:
            is_open = self._roll.open_op
            self._heap = [entry for entry in self._heap if is_open(*entry[2:])]
            heapq.heapify(self._heap)
            self._limit = _HEAP_SLACK + 2 * len(self._heap)
            self._look()
        elif when < self.next:
            self.next = when

    def due(self, now: float) -> list[tuple[Seat, Op]]:
        """Take out those whose time has come."""
        due = []
        while self.next <= now:
            _, _, join_id, seq = heapq.heappop(self._heap)
            if (found := self._roll.open_op(join_id, seq)) is not None:
                due.append(found)
            self._look()
        return due

    def _look(self) -> None:
        self.next = self._heap[0][0] if self._heap else NEVER


@dataclass(slots=True, eq=False)
class Timing:
    """Does what is due.

    Invariant: time in which this daemon stood still counts against nobody.
    """

    _roll: Roll
    _reasons: Reasons
    deadlines: OpTimers
    """Of ops that wait for long, and of those whose deadline is before the next look at all."""
    _out: list[Action]
    _stall_warning: float
    reattach: float
    """Seconds for which a client may take to come back and hand its calls over again."""
    lost_after: float
    """Seconds in which a break is noticed."""
    broke_at: float = -math.inf
    """When the ring last broke."""
    _went_on_at: float = -math.inf
    """When this daemon had last stood still."""
    lazy_due: float = NEVER
    """When news that can wait is sent by itself."""
    next_look: float = NEVER
    """When all open ops are looked at, as the first of them has waited for long; what becomes of
    the others, which are many, is nobody's concern before that."""
    _looked: float = -math.inf
    """When that was done last."""
    returning: dict[int, float] = field(default_factory=dict)
    """Joins that have yet to submit again what a former daemon had, and when they are given up."""

    def watch(self, seat: Seat, op: Op, now: float) -> None:
        """Watch an op that the client of *seat* has handed over *now*.

        Only needed where no look at the open ops is due, or that comes after the op's deadline.
        """
        if self.next_look == NEVER:
            self.next_look = now + self._stall_warning
        assert op.submission is not None  # noqa: S101 - as said
        deadline = op.submission.deadline
        if deadline is not None and deadline < self.next_look:
            self.deadlines.add(deadline, seat, op)

    def stalled(self, op: Op, now: float) -> bool:
        """Whether a call of a client here waits for so long that this is logged."""
        return op.submission is not None and now - op.since >= self._stall_warning

    def attached(self, seat: Seat, now: float) -> None:
        """Give a client that comes back its time to submit again."""
        if seat.caller.returning:
            self.returning[seat.join_id] = now + self.reattach

    def expect_news(self, now: float) -> None:
        """Something has happened: what can wait is sent soon, unless an offer carries it."""
        news = self._roll.mail.news
        while news and self.lazy_due == NEVER and self._roll.up:
            first = next(iter(news))
            if first.has_news:
                self.lazy_due = now + LAZY
            else:
                del news[first]

    @property
    def next(self) -> float:
        """When :meth:`tick` wants to be called next; :data:`NEVER` for not at all."""
        absent = (one.due for one in self._roll.absences.absent.values())
        clients = min((*absent, *self.returning.values()), default=NEVER)
        return min(self.deadlines.next, self.next_look, self.lazy_due, clients)

    def tick(self, now: float) -> None:
        """Time has passed."""
        due = self.next
        if now - due > _STOOD_STILL:
            self._go_on(now, min(now - due, self.reattach))
        if now >= self.lazy_due:
            self._send_news()
        for seat, op in self.deadlines.due(now):
            self._expire(seat, op, now)
        if now >= self.next_look:
            self._look_at_all(now)
        in_time = f"within {self.reattach:g} s (ops.reattach) after its daemon restarted"
        if self._roll.absences.absent:
            self._roll.give_up_absent(now, f"did not come back {in_time}")
        if self.returning:
            self._give_up_silent(now, f"did not hand its calls over again {in_time}")

    def _go_on(self, now: float, seconds: float) -> None:
        """We stood still: those that must answer or come back in time have as long from now on."""
        self._went_on_at = now
        self._roll.absences.postpone(now + seconds)
        for join_id, due in self.returning.items():
            self.returning[join_id] = max(due, now + seconds)

    def _send_news(self) -> None:
        self.lazy_due = NEVER
        news = self._roll.mail.news
        for one in list(news) if self._roll.up else ():
            del news[one]
            one.flush()

    def _expire(self, seat: Seat, op: Op, now: float) -> None:
        patience = self._patience(op)
        seat.polls.expire(op, self._reasons.waiting_for(seat, op), patient=now < patience)
        if not op.ended and not op.own_poll:  # the others are asked as soon as they can be
            self.deadlines.add(patience, seat, op)

    def _patience(self, op: Op) -> float:
        """Return until when to wait for others that may know that *op* completed.

        Invariant: it ends, whatever breaks, before the client decides alone; unless this daemon
        stands still.
        """
        assert op.submission is not None  # noqa: S101 - what has a deadline was submitted
        deadline = op.submission.deadline
        assert deadline is not None  # noqa: S101 - what is due has one
        # One break after the other must not make the client decide alone.
        since = min(max(deadline, self.broke_at), deadline + self.lost_after)
        return max(since, self._went_on_at) + ASK_WITHIN

    def _look_at_all(self, now: float) -> None:
        """Log which of the open ops wait for long, each once, and watch its deadline from now on.

        Of the others, watch those whose deadline is before the next look.
        """
        planned, before, self._looked = self.next_look, self._looked, now
        warning = self._stall_warning
        open_ops = [
            (seat, op)
            for seat in self._roll.seats.values()
            for op in seat.calls.open()
            if op.since + warning > before  # all that is done for the others was done before
        ]
        fresh = (op.since for _, op in open_ops if op.since + warning > now)
        self.next_look = min(fresh, default=NEVER) + warning
        for seat, op in open_ops:
            if op.ended:  # with one before it
                continue
            assert op.submission is not None  # noqa: S101 - what the client has open
            deadline, for_long = op.submission.deadline, op.since + warning <= now
            until = NEVER if for_long else self.next_look
            if deadline is not None and planned <= deadline < until:  # sooner: it is watched
                if now >= deadline:
                    self._expire(seat, op, now)
                else:
                    self.deadlines.add(deadline, seat, op)
            if for_long and not op.ended:
                missing = self._reasons.waiting_for(seat, op)
                call = op.submission.call
                self._out.append(Warn(seat.group, op.seq, call, now - op.since, missing))

    def _give_up_silent(self, now: float, reason: str) -> None:
        """Do without clients that came back and do not say how their calls had ended."""
        for join_id, due in list(self.returning.items()):
            seat = self._roll.seats.get(join_id)
            if seat is None or not seat.caller.returning:
                del self.returning[join_id]
            elif now >= due:
                stay = stay_of(seat)  # the other end hears of that, and of no channel alone
                text = self._roll.says(reason, stay)
                # It has yet to leave us what it had lent, which no TellLost asks for.
                self._out.append(Deny(stay.caller.client, stay.join_id, GroupLost.code, text))
                self._roll.give_up(stay, text)
