"""Deadlines that pass: what all members agree on then.

A passed deadline is settled by a poll that goes full circle: each rank holds back its completion
and says whether it had completed. If nobody had, nobody will, and the verdict ends the op
everywhere; otherwise the op is about to complete everywhere, and does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ringd.errors import DeadlineExceeded
from ringd.groups.caller import Caller
from ringd.groups.calls import Calls
from ringd.groups.ledger import Ledger
from ringd.groups.op import Op, Phase
from ringd.groups.session import Session
from ringd.groups.words import late, waiting_for
from ringd.wire.link.control import Poll, Verdict


@dataclass(slots=True, eq=False)
class Polls:
    """Asks the others about an op whose deadline has passed, and answers them.

    Invariant: once this rank has said that it had not completed an op, the op completes here only
    by the verdict, or after a break of the ring, which takes the poll with it.
    """

    _session: Session
    _caller: Caller
    _ledger: Ledger
    _calls: Calls
    _asked: int = 0
    """How many polls were ours."""
    early: dict[tuple[int, int], tuple[Poll, float]] = field(default_factory=dict)
    """Polls on ops of which the client has yet to say how they ended under a former daemon, and
    when they came; by asker and number."""

    def must_wait_to_ask(self, op: Op) -> bool:
        """Whether others may know that *op* completed, and cannot be asked now.

        They need our offer for that: this daemon's, or a former one's.
        """
        if self._session.live or op.has_result or not self._session.formed:
            return False
        return op.phase is not Phase.OPEN or op.seq < self._caller.expected

    def expire(self, op: Op, why: str, *, patient: bool) -> None:
        """Our client's deadline has passed: ask the others, or end the op here alone.

        *patient*: wait until they can be asked, if they may know that it completed.
        """
        op.overdue = True
        if op.ended or op.own_poll:
            return
        if op.has_result:
            self._calls.keep_input(op)  # only the others' need for the input held it back
        elif self._session.live and self._session.view.size > 1:
            self._ask(op)
        elif not (patient and self.must_wait_to_ask(op)):
            self._calls.end(op, DeadlineExceeded.code, late(self._session, op, why))

    def ask_overdue(self) -> None:
        """Ask about ops whose deadline passed while nobody could be asked.

        Comes before our offers, without which none of them can complete meanwhile.
        """
        for op in list(self._calls.ops.values()):
            if op.overdue and not op.ended and not op.has_result and self._session.view.size > 1:
                self._ask(op)

    def _ask(self, op: Op) -> None:
        view = self._session.view
        self._asked += 1
        op.own_poll = self._asked * view.size + view.rank
        op.polls.add(op.own_poll)
        self._relay(view.rank, op.seq, Poll(op.own_poll, completed=False))

    def polled(self, asker: int, seq: int, poll: Poll, now: float) -> None:
        """A poll came by: answer it, or wait for a client that is about to say the answer."""
        if self._caller.will_resubmit(seq):
            self.early[asker, seq] = poll, now
        elif asker == self._session.view.rank:
            self._decide(seq, poll)
        else:
            self._answer(asker, seq, poll, now)

    def _answer(self, asker: int, seq: int, poll: Poll, now: float) -> None:
        completed = poll.completed or seq < self._ledger.released
        if seq >= self._ledger.released:
            op = self._calls.op(seq, now)
            if op.has_result:
                completed = True
            elif not op.ended and len(op.polls) < op.size:  # one of each rank
                op.polls.add(poll.poll_id)
        self._relay(asker, seq, Poll(poll.poll_id, completed))

    def answer_early(self) -> None:
        """Answer the polls of which the client has said what it knows, or never will."""
        early, self.early = self.early, {}
        for (asker, seq), (poll, now) in early.items():
            self.polled(asker, seq, poll, now)

    def suspend(self) -> None:
        """The ring broke, and took what waits for an answer with it."""
        self.early.clear()

    def _decide(self, seq: int, poll: Poll) -> None:
        op = self._calls.ops.get(seq)
        if op is None or op.own_poll != poll.poll_id:
            return
        code, message = "", ""
        if not poll.completed and not op.has_result:
            needed = self._calls.ranks_that_may_need_input(op)
            code = op.outcome or DeadlineExceeded.code
            why = waiting_for(op, self._session, needed)
            message = op.message or late(self._session, op, why)
        verdict = Verdict(poll.poll_id, code, message)
        self._session.broadcast(seq, verdict)
        self._apply(op, verdict)

    def judged(self, seq: int, verdict: Verdict, now: float) -> None:
        """The verdict of a poll arrived."""
        if seq >= self._ledger.released:
            self._apply(self._calls.op(seq, now), verdict)

    def _apply(self, op: Op, verdict: Verdict) -> None:
        op.polls.discard(verdict.poll_id)
        if verdict.code and not op.ended and not op.has_result:
            self._calls.end(op, verdict.code, verdict.message)
        else:
            self._calls.go_on(op)

    def _relay(self, asker: int, seq: int, poll: Poll) -> None:
        session = self._session
        session.mail.relay(session.view, asker, session.gid, seq, poll)
