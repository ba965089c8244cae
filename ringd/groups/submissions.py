"""The calls that the client of one seat hands over."""

from __future__ import annotations

from dataclasses import dataclass

from ringd.collective.call import MAX_TEXT
from ringd.errors import DeadlineExceeded
from ringd.groups.actions import Action, Dropped, Free
from ringd.groups.caller import Caller
from ringd.groups.calls import Calls
from ringd.groups.ledger import Ledger
from ringd.groups.offers import Offers
from ringd.groups.op import OK, Move, Op, Submission, Told
from ringd.groups.polls import Polls
from ringd.groups.session import Session
from ringd.groups.words import shorten


@dataclass(slots=True, eq=False)
class Submissions:
    """Takes the client's calls, and offers them to the others.

    Invariant: ops are taken in the order of their numbers, each once; a number that comes again
    changes nothing, and must come with the same call.
    """

    _session: Session
    _caller: Caller
    _ledger: Ledger
    _calls: Calls
    _offers: Offers
    _polls: Polls
    _out: list[Action]

    def fault(self, submission: Submission, window: int) -> str:
        """Return what is wrong with *submission*; empty when it is the next op or a known one.

        In words that go on where the title of the call has been named.
        """
        seq = submission.seq
        op = self._calls.ops.get(seq)
        known = op.submission if op is not None else None
        if known is not None:
            if known.call != submission.call:
                return f"was submitted as {known.call} and now as {submission.call}"
            if not submission.outcome and known.payload not in (None, submission.payload):
                return "was submitted with other bytes before"
        if seq > self._caller.next_seq:
            return f"skips op {self._caller.next_seq}"
        if seq - self._ledger.released >= window:
            return f"has {window} open ops before it; wait for some, or raise ipc.window"
        if submission.hold and not submission.sealed and not submission.outcome:
            return "lends its input, but has no sealed target"
        return ""

    def take_again(self, submission: Submission) -> None:
        """Tell the client again how a call ended that was taken before, if it has."""
        self._out += (Dropped("submitted twice"), Free(submission))
        op = self._calls.ops.get(submission.seq)
        if op is not None and not submission.outcome:  # it has not heard of any
            self._caller.tell_outcome(op, self._ledger.released, again=True)

    def take(self, submission: Submission, now: float) -> Op:
        """Take the client's next op, or one again that it offered to a former daemon.

        It may have ended already, by a verdict or a loss, before we had a part in it.
        """
        self._caller.next_seq = submission.seq + 1
        op = self._calls.ops.get(submission.seq) or self._calls.op(submission.seq, now)
        op.submission = submission
        if op.outcome == DeadlineExceeded.code and op.seq >= self._caller.expected:
            # The others were told some time ago, and this call was made just now.
            late = f"{op.message}; made here {now - op.since:.1f} s after the first one"
            op.message = shorten(late, MAX_TEXT)
        op.since = now
        if submission.outcome or op.ended:
            self._take_outcome(op, submission)
        if self._session.live:
            self._offers.offer(op)
        if self._polls.early:
            self._polls.answer_early()
        return op

    def _take_outcome(self, op: Op, submission: Submission) -> None:
        """Note how *op* ended under a former daemon, or here before we had a part in it.

        A client that lent the input says "ok" of a result that it was not told of: it looked at
        the seal, and is told when nobody needs the input any more.
        """
        outcome = submission.outcome
        sealed = outcome == OK and submission.hold
        if outcome and not sealed:
            op.told = Told.KNEW
        if sealed and not op.ended:
            op.move(Move.HOLD)
        elif outcome and not op.ended:
            op.end(outcome, submission.message)
        if op.failed:
            self._calls.tell_failure(op)
        if op.ended:
            self._ledger.advance()
        self._calls.go_on(op)
