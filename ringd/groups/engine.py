"""The groups of one daemon: joins, sessions, and the routing of events to them.

Pure: events come in as method calls with the time passed in, and each returns the list of
actions that follow. The daemon carries them out and owns all memory, sockets and clocks.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from ringd.collective.call import Call
from ringd.errors import GroupLost, PeerLost, Refused
from ringd.groups.actions import Accept, Action, Deny, Dropped, Free, Relay, Warn
from ringd.groups.op import Op, Submission
from ringd.groups.roll import Roll
from ringd.groups.session import MAX_JOIN_ID, Before, Session
from ringd.wire.link.control import Done, GroupMessage, Joined, Left, Offer, Poll, Verdict

_HEAP_SLACK = 64

ASK_WITHIN = 1.5
"""Seconds to wait, from a deadline or a later break on, for others that may know that the call
completed, and cannot be asked: the ring is broken, or a restarted daemon waits for its client. Most
breaks are shorter. The client library waits longer before it decides alone."""

_LOOK_AGAIN = 0.05

_STOOD_STILL = 0.25
"""Seconds by which a tick must be late for this daemon to have been stopped, or short of a
processor. Nobody can have been asked meanwhile, nor come back."""

LAZY = 0.02
"""Seconds until news on finished ops is sent by itself when no offer has carried it."""


@dataclass(slots=True)
class Engine(Roll):
    """All groups, as the member whose *view* it is sees them."""

    stall_warning: float = 10.0
    window: int = 256
    lost_after: float = 3.0
    """Seconds in which a break is noticed."""

    broken: str = ""
    """Why the ring is down, once it was up."""
    _broke_at: float = -math.inf
    _went_on_at: float = -math.inf
    """When this daemon had last stood still."""
    missing_members: Callable[[], str] = str
    """Says who is out of reach and since when, while the ring is down."""
    slow_disks: Callable[[], str] = str
    """Says which members still write the new generation down, and take part only then."""
    refusal: Callable[[Call], str] = lambda _call: ""
    """Says why a call of another member cannot be run here, which ends it; empty if it can."""
    about_holder: Callable[[Hashable, Hashable], str] = lambda _holder, _newcomer: "close it first"
    """Says who a group's client here is, and what to do, to another one that wants its place."""
    _deadlines: list[tuple[float, int, int]] = field(default_factory=list)
    _stalls: list[tuple[float, int, int]] = field(default_factory=list)
    _returning: dict[int, float] = field(default_factory=dict)
    """Joins that have yet to submit again what a former daemon had, and when they are given up."""
    _lazy_due: float | None = None
    _polls: int = 0

    # --- the clients' side ------------------------------------------------------------

    def attach(
        self,
        client: Hashable,
        *,
        group: str,
        join_id: int,
        released: int,
        on_loss: str,
        now: float,
        session: tuple[int, ...] = (),
        expected: int = 0,
        before: Before = Before(),  # noqa: B008 - a value
    ) -> list[Action]:
        """A client joins *group*, anew or (with the same join id) after this daemon restarted.

        *session* is what it was told of its peers by a former daemon
        (:class:`~ringd.groups.actions.TellSession`); empty if nothing. Ops from *released* up to
        *expected* are those that it is going to submit again. *before* is where it was before it
        joined anew.
        """
        if not 0 < join_id <= MAX_JOIN_ID or released < 0:
            text = f"a join of group {group!r} cannot have id {join_id} and op {released} to start"
            return self._deny(client, join_id, Refused.code, text)
        place = self.groups.get(group)
        holder = place.local if place else None
        if holder is not None and holder.client is not None and holder.client != client:
            text = (
                f"group {group!r} has a client on {self.view.name!r} already: "
                f"{self.about_holder(holder.client, client)}"
            )
            return self._deny(client, join_id, Refused.code, text)
        if holder is not None and holder.client == client and holder.join_id == join_id:
            self._out.append(Accept(client, join_id))
            holder.tell_again()
            return self._flush(now)
        if join_id in self.joins or join_id in self._leavers:
            text = f"join id {join_id} of group {group!r} is used up; join anew"
            if (left := self._last_words(join_id)) is not None:
                text = left.message
            return self._deny(client, join_id, GroupLost.code, text)
        stay = Session(
            group=group,
            join_id=join_id,
            client=client,
            on_loss=on_loss,
            released=released,
            expected=expected,
            before=before,
            view=self.view,
            out=self._out,
            refusal=self.refusal,
        )
        self._make_way(stay, holder)
        place = self._group(group)
        self.joins[join_id] = stay
        if stay.returning:
            self._returning[join_id] = now + self.reattach
        place.local = stay
        place.present[self.view.rank] = Joined(group, join_id, session)
        self._out.append(Accept(client, join_id))
        if self.up:
            self._introduce(stay)  # as unformed yet, which those who count on it answer
        if stay.may_be(session):
            stay.pledged = True
            self._form(stay, session)
        else:
            self._try_form(place)
        return self._flush(now)

    def submit(
        self,
        client: Hashable,
        join_id: int,
        submission: Submission,
        *,
        acked: int,
        outcome: str,
        message: str,
        now: float,
    ) -> list[Action]:
        """A client hands over its next op, or one again: then it is told again how that ended."""
        session = self.joins.get(join_id)
        if session is None or session.client != client or session.left is not None:
            return self._turn_down(client, join_id, submission, "attach to the group first")
        session.ack(acked)
        seq = submission.seq
        objection = self._objection(session, submission, outcome)
        if objection:
            return self._turn_down(client, join_id, submission, objection)
        if seq < session.next_seq:
            self._out += (Dropped("submitted twice"), Free(submission))
            if not outcome:  # it has not heard of any
                session.report_again(seq)
            return self._flush(now)
        if session.on_loss == "fail" and self.broken and not self.up and not outcome:
            self._fail(session)
        session.submit(submission, outcome, message, now)
        op = session.ops.get(seq)
        if op is not None and not op.ended:
            if submission.deadline is not None:
                heapq.heappush(self._deadlines, (submission.deadline, join_id, seq))
            heapq.heappush(self._stalls, (now + self.stall_warning, join_id, seq))
            self._thin_out()
        return self._flush(now)

    def ack(self, client: Hashable, join_id: int, acked: int, now: float) -> list[Action]:
        """The client has every outcome below *acked*."""
        session = self.joins.get(join_id)
        if session is not None and session.client == client:
            session.ack(acked)
        return self._flush(now)

    def _turn_down(
        self, client: Hashable, join_id: int, submission: Submission, text: str
    ) -> list[Action]:
        self._out.append(Free(submission))
        return self._deny(client, join_id, Refused.code, text)

    def _objection(self, session: Session, submission: Submission, outcome: str) -> str:
        """Return what is wrong with *submission*; empty when it is the next op or a known one."""
        seq = submission.seq
        name = f"op {seq} of group {session.group!r}"
        op = session.ops.get(seq)
        known = op.submission if op is not None else None
        if known is not None and known.call != submission.call:
            return f"{name} was submitted as {known.call} and now as {submission.call}"
        if known is not None and not outcome and known.payload not in (None, submission.payload):
            return f"{name} was submitted with other bytes before"
        if seq > session.next_seq:
            return f"{name} skips op {session.next_seq}"
        if seq - session.floor >= self.window:
            return (
                f"group {session.group!r} has {self.window} open ops already; "
                "wait for some, or raise ipc.window"
            )
        if submission.hold and not submission.sealed and not outcome:
            return f"{name} lends its input, but has no sealed target"
        return ""

    def detach(self, client: Hashable, reason: str, now: float) -> list[Action]:
        """A client left its group in good order, or is gone; *reason* completes a sentence."""
        for session in list(self.joins.values()):
            if session.client == client:
                self._leave(session, self._says(reason))
                session.abandon()
        return self._flush(now)

    # --- the ring's side --------------------------------------------------------------

    def ring_up(self, now: float) -> list[Action]:
        """A new generation: introduce our clients again, those that are winding up first."""
        self.up = True
        for session in sorted(self.joins.values(), key=lambda session: session.left is None):
            self._introduce(session)
            if session.formed and session.live:  # alone in the ring
                session.go_live()
        for group in list(self.groups.values()):
            self._try_form(group)
        return self._flush(now)

    def ring_down(self, reason: str, now: float) -> list[Action]:
        """The ring broke: all ops go back to where they can be run again."""
        self.up = False
        self.broken, self._broke_at = reason, now
        for group in list(self.groups.values()):
            group.present = [None] * self.view.size
            if group.local is not None:
                joined = Joined(group.name, group.local.join_id, group.local.join_ids)
                group.present[self.view.rank] = joined
            self._tidy(group)
        for session in list(self.joins.values()):
            for op in session.suspend():
                heapq.heappush(self._deadlines, (now, session.join_id, op.seq))
            if session.on_loss == "fail" and session.waits:
                self._fail(session)
        return self._flush(now)

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
            self._joined(origin, message, now)
            return self._flush(now)
        if isinstance(message, Left):
            self._left(origin, gid, message)
            return self._flush(now)
        session = self.by_gid.get(gid)
        if session is None:
            self._out.append(Dropped("of a session unknown here"))
            if isinstance(message, Poll) and origin != self.view.rank:
                self._out.append(Relay(origin, gid, seq, message))
        elif isinstance(message, Offer):
            session.offered(origin, seq, message, payload, now)
        elif isinstance(message, Done):
            session.peer_done(origin, message.floor)
            if message.finished is not None:
                session.peer_finished(origin, message.finished)
        elif isinstance(message, Poll):
            session.polled(origin, seq, message, now)
        else:
            assert isinstance(message, Verdict)  # noqa: S101 - tells mypy that nothing else is left
            session.judged(seq, message, now)
        return self._flush(now)

    def finished(self, gid: int, seq: int, now: float) -> list[Action]:
        """The computation that a Run asked for is through."""
        session = self.by_gid[gid]
        session.finished(seq)
        return self._flush(now)

    # --- time -------------------------------------------------------------------------

    @property
    def next_deadline(self) -> float | None:
        """When :meth:`tick` wants to be called next; None for not at all."""
        times = [heap[0][0] for heap in (self._deadlines, self._stalls) if heap]
        times += [absent.due for absent in self.absent.values()]
        times += self._returning.values()
        if self._lazy_due is not None:
            times.append(self._lazy_due)
        return min(times, default=None)

    def tick(self, now: float) -> list[Action]:
        """Time has passed: deadlines, stall warnings, lazy news, clients that stayed away."""
        due = self.next_deadline
        if due is not None and now - due > _STOOD_STILL:
            self._go_on(now)
        if self._lazy_due is not None and now >= self._lazy_due:
            self._lazy_due = None
            for session in list(self.joins.values()) if self.up else ():
                session.flush()
        for op, session in self._due(self._deadlines, now):
            if self._must_wait_to_ask(session, op, now):
                again = now + _LOOK_AGAIN
                heapq.heappush(self._deadlines, (again, session.join_id, op.seq))
                continue
            self._polls += 1
            poll_id = self._polls * self.view.size + self.view.rank
            session.expire(op, poll_id, self.waiting_for(session, op))
        for op, session in self._due(self._stalls, now):
            if op.submission is not None:
                missing = self.waiting_for(session, op)
                age = now - op.since
                self._out.append(Warn(session.group, op.seq, op.submission.call, age, missing))
        for join_id, absent in list(self.absent.items()):
            if now >= absent.due:
                why = self._says(f"did not come back {self._in_time}")
                self._give_up(join_id, absent, why)
        self._look_after(now)
        return self._flush(now)

    def _go_on(self, now: float) -> None:
        """We stood still: whoever must answer or come back in time has that time anew."""
        self._went_on_at = now
        for absent in self.absent.values():
            absent.due = now + self.reattach
        for join_id in self._returning:
            self._returning[join_id] = now + self.reattach

    def _must_wait_to_ask(self, session: Session, op: Op, now: float) -> bool:
        """Whether others may know that *op* completed, and cannot be asked right now."""
        if session.live or op.has_result or not session.may_have_completed(op):
            return False
        assert op.submission is not None  # noqa: S101 - what has a deadline was submitted
        deadline = op.submission.deadline
        assert deadline is not None  # noqa: S101 - what is due has one
        # One break after the other must not make the client decide alone.
        since = min(max(deadline, self._broke_at), deadline + self.lost_after)
        return now < max(since, self._went_on_at) + ASK_WITHIN

    @property
    def _in_time(self) -> str:
        return f"within {self.reattach:g} s (ops.reattach) after its daemon restarted"

    def _look_after(self, now: float) -> None:
        """Do without clients that came back and do not say how their calls had ended."""
        for join_id, due in list(self._returning.items()):
            session = self.joins.get(join_id)
            if session is None or not session.returning:
                del self._returning[join_id]
            elif now >= due:
                text = self._says(f"did not hand its calls over again {self._in_time}")
                # It has yet to leave us what it had lent, which no TellLost asks for.
                self._out.append(Deny(session.client, join_id, GroupLost.code, text))
                self._leave(session, text)
                session.abandon()

    def _due(self, heap: list[tuple[float, int, int]], now: float) -> list[tuple[Op, Session]]:
        due = []
        while heap and heap[0][0] <= now:
            _, join_id, seq = heapq.heappop(heap)
            session = self.joins.get(join_id)
            op = session.ops.get(seq) if session else None
            if session is not None and op is not None and not op.ended:
                due.append((op, session))
        return due

    def _thin_out(self) -> None:
        """Forget deadlines of ops that ended long before them, now and then."""
        allowed = _HEAP_SLACK + 2 * sum(len(session.ops) for session in self.joins.values())
        for heap in (self._deadlines, self._stalls):
            if len(heap) > allowed:
                heap[:] = [entry for entry in heap if self._open(*entry[1:])]
                heapq.heapify(heap)

    def _open(self, join_id: int, seq: int) -> bool:
        session = self.joins.get(join_id)
        op = session.ops.get(seq) if session is not None else None
        return op is not None and not op.ended

    def waiting_for(self, session: Session, op: Op) -> str:
        """Return in words for whom *op* waits."""
        if not self.up:
            why = self.missing_members() or self.slow_disks() or self.broken
            return f"the ring is not up{': ' + why if why else ''}"
        # Messages go round through all members: one that keeps them hides those beyond it too.
        if not session.live and (slow := self.slow_disks()):
            return slow
        if not session.formed:
            present = self._group(session.group).present
            absent = [
                name
                for name, joined in zip(self.view.names, present, strict=True)
                if (joined is None or joined.session) and name != self.view.name
            ]
            return "no client in the group on: " + ", ".join(absent)
        return session.waiting_for(op)

    # --- housekeeping -----------------------------------------------------------------

    def _fail(self, session: Session) -> None:
        session.fail_all(PeerLost.code, f"the ring broke: {self.broken}")

    def _deny(self, client: Hashable, join_id: int, code: str, text: str) -> list[Action]:
        self._out.append(Deny(client, join_id, code, text))
        return self._take()

    def _flush(self, now: float) -> list[Action]:
        self._bury()
        if (
            self.up
            and self._lazy_due is None
            and any(session.lazy for session in self.joins.values())
        ):
            self._lazy_due = now + LAZY
        return self._take()

    def _take(self) -> list[Action]:
        out = list(self._out)
        self._out.clear()
        return out
