"""The groups of one daemon: events come in here and go to the seat that they are for.

Pure: events come in as method calls with the time passed in, and each returns the list of
actions that follow. The daemon carries them out and owns all memory, sockets and clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from ringd.collective.call import Call
from ringd.collective.view import View
from ringd.errors import GroupLost, PeerLost, Refused
from ringd.groups.absences import Absences
from ringd.groups.actions import Action, Deny, Dropped, Free, Relay
from ringd.groups.op import Op, Submission
from ringd.groups.reasons import Reasons
from ringd.groups.roll import Roll
from ringd.groups.seat import Join, Seat
from ringd.groups.session import MAX_JOIN_ID
from ringd.groups.timing import OpTimers, Timing
from ringd.wire.link.control import Computed, Done, GroupMessage, Joined, Left, Offer, Poll, Verdict


class Engine:
    """All groups, as the member whose *view* it is sees them.

    Invariant: every event ends with its actions handed out, seats that are finished dropped, and
    the clock set for what can wait.

    Args:
        window: Ops that a client may have unreleased.
        missing_members: As :class:`~ringd.groups.reasons.Reasons` takes it, like *slow_disks*.
        refusal: Says why a call of another member cannot be run here, which ends it; empty if it
            can.
        ends_together: Whether no member's part in a large call is through long before the others'.
        about_holder: Says who a group's client here is, and what to do, to another one that
            wants its place.
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
        refusal: Callable[[Call], str] = lambda _call: "",
        ends_together: Callable[[Call], bool] = lambda _call: True,
        about_holder: Callable[[Hashable, Hashable], str] = lambda *_: "close it first",
    ) -> None:
        self._view = view
        self._window = window
        self.refusal = refusal
        self._ends_together = ends_together
        self._about_holder = about_holder
        self._out: list[Action] = []
        self.roll = roll = Roll(view, Absences(view, reattach), self._out)
        self._reasons = reasons = Reasons(roll, missing_members, slow_disks)
        timers = OpTimers(roll), OpTimers(roll)
        self.timing = Timing(roll, reasons, *timers, self._out, stall_warning, reattach, lost_after)

    # --- the clients' side ------------------------------------------------------------

    def attach(self, client: Hashable, join: Join, now: float) -> list[Action]:
        """A client joins, anew or (with the same join id) after this daemon restarted."""
        group, join_id = join.group, join.join_id
        if not 0 < join_id <= MAX_JOIN_ID or join.released < 0:
            start = f"id {join_id} and op {join.released} to start"
            text = f"a join of group {group!r} cannot have {start}"
            return self._deny(client, join_id, Refused.code, text)
        holder = self.roll.local(group)
        if holder is not None and holder.caller.client not in (None, client):
            about = self._about_holder(holder.caller.client, client)
            text = f"group {group!r} has a client on {self._view.name!r} already: {about}"
            return self._deny(client, join_id, Refused.code, text)
        if holder is not None and holder.caller.client == client and holder.join_id == join_id:
            holder.tell_again()
        elif text := self.roll.used_up(join_id, group):
            return self._deny(client, join_id, GroupLost.code, text)
        else:
            seat = Seat(
                client,
                join,
                self._view,
                self._out,
                refusal=self.refusal,
                ends_together=self._ends_together,
            )
            self.roll.admit(seat, join.session)
            self.timing.attached(seat, now)
        return self._finish(now)

    def submit(
        self, client: Hashable, join_id: int, submission: Submission, now: float
    ) -> list[Action]:
        """A client hands over its next op, or one again: then it is told again how that ended."""
        seat = self.roll.seats.get(join_id)
        objection = "attach to the group first"
        if seat is not None and seat.caller.client == client and seat.left is None:
            seat.ledger.ack(submission.acked)
            objection = seat.submissions.objection(submission, self._window)
        if seat is None or objection:
            self._out.append(Free(submission))
            return self._deny(client, join_id, Refused.code, objection)
        if not seat.submissions.repeated(submission):
            if self._reasons.broken and not self.roll.up and not submission.outcome:
                self._fail(seat)
            op = seat.submissions.take(submission, now)
            if not op.ended:
                self.timing.submitted(seat, op, now)
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
        one = None if join_id is None else self.roll.seats.get(join_id)
        for seat in list(self.roll.seats.values()):
            former = one is not None and seat.left is not None and seat.group == one.group
            if seat.caller.client == client and (join_id in (None, seat.join_id) or former):
                self.roll.leave(seat, self.roll.says(reason))
                seat.abandon()
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
            if seat.calls.client_waits:
                self._fail(seat)
        return self._finish(now)

    def received(  # noqa: PLR0917 - called for every message, and keywords cost time
        self,
        origin: int,
        gid: int,
        seq: int,
        message: GroupMessage,
        payload: bytes | memoryview,
        now: float,
    ) -> list[Action]:
        """A message of rank *origin* came round."""
        if isinstance(message, Joined):
            self.roll.joined(origin, message, now)
            return self._finish(now)
        if isinstance(message, Left):
            self.roll.peer_left(origin, gid, message)
            return self._finish(now)
        seat = self.roll.by_gid.get(gid)
        if seat is None:
            self._out.append(Dropped("of a session unknown here"))
            if isinstance(message, Poll) and origin != self._view.rank:
                self._out.append(Relay(origin, gid, seq, message))
        elif isinstance(message, Offer):
            seat.offers.offered(origin, seq, message, payload, now)
        elif isinstance(message, Done):
            seat.calls.peer_done(origin, message.floor)
            if message.finished is not None:
                seat.calls.peer_read_input(origin, message.finished)
        elif isinstance(message, Computed):
            seat.calls.peer_computed(origin, seq)
        elif isinstance(message, Poll):
            seat.polls.polled(origin, seq, message, now)
        else:
            assert isinstance(message, Verdict)  # noqa: S101 - tells mypy that nothing else is left
            seat.polls.judged(seq, message, now)
        return self._finish(now)

    def finished(self, gid: int, seq: int, now: float) -> list[Action]:
        """The computation that a Run asked for is through."""
        self.roll.by_gid[gid].calls.finished(seq)
        return self._finish(now)

    # --- time -------------------------------------------------------------------------

    @property
    def next_deadline(self) -> float | None:
        """When :meth:`tick` wants to be called next; None for not at all."""
        return self.timing.next

    def tick(self, now: float) -> list[Action]:
        """Time has passed: deadlines, stall warnings, lazy news, clients that stayed away."""
        self.timing.tick(now)
        return self._finish(now)

    def waiting_for(self, seat: Seat, op: Op) -> str:
        """Return in words for whom *op* waits."""
        return self._reasons.waiting_for(seat, op)

    def awaited(self, client: Hashable, join_id: int) -> str:
        """Return in words for whom the session of a client's stay waits; empty once it is live."""
        seat = self.roll.seats.get(join_id)
        known = seat is not None and seat.caller.client == client
        return self._reasons.forming(seat) if seat is not None and known else ""

    # --- housekeeping -----------------------------------------------------------------

    def _fail(self, seat: Seat) -> None:
        """End the open calls of a client that asked to be told of any loss."""
        if seat.on_loss == "fail":
            seat.calls.cut_open(PeerLost.code, f"the ring broke: {self._reasons.broken}")

    def _deny(self, client: Hashable, join_id: int, code: str, text: str) -> list[Action]:
        self._out.append(Deny(client, join_id, code, text))
        return self._take()

    def _finish(self, now: float) -> list[Action]:
        self.roll.drop_finished()
        self.timing.expect_news(now)
        return self._take()

    def _take(self) -> list[Action]:
        out = list(self._out)
        self._out.clear()
        return out
