"""The ops of one seat: how each of them ends.

A client that lends its own memory as the input is told its result only when every other member is
sure not to need that again.
"""

from __future__ import annotations

from dataclasses import dataclass

from ringd.errors import Mismatch
from ringd.groups.actions import Action, Free, Seal
from ringd.groups.caller import Caller
from ringd.groups.ledger import Ledger
from ringd.groups.op import OK, Move, Op, Phase
from ringd.groups.session import Session
from ringd.wire.link.control import Computed


@dataclass(slots=True, eq=False)
class Calls:
    """Ends each op, once, and tells the client.

    Invariant: ops from the limit on have failed, but for those whose result stands here; a
    submission that failed is freed as it fails, any other one with its release.
    """

    _session: Session
    _caller: Caller
    ops: dict[int, Op]
    """By number, those that are not released."""
    _ledger: Ledger
    _out: list[Action]
    limit: int | None = None
    """Ops from here on cannot complete: somebody left."""
    loss: tuple[str, str] = ("", "")
    """The code and the text of the error with which these end."""

    @property
    def over(self) -> bool:
        """Whether nothing can happen any more."""
        return self.limit is not None and self._ledger.released >= self.limit

    @property
    def client_waits(self) -> bool:
        """Whether the client has an open call."""
        return self._caller.client is not None and bool(self.open())

    def open(self) -> list[Op]:
        """Return the ops that the client waits for."""
        return [op for op in self.ops.values() if op.submission is not None and not op.ended]

    def op(self, seq: int, now: float) -> Op:
        """Return op *seq*, which is not released; this may be the first word of it."""
        op = self.ops.get(seq)
        if op is None:
            op = self.ops[seq] = Op(seq, self._session.view.size, now)
            if self.limit is not None and self._lost(seq):
                self.end(op, *self.loss)
        return op

    def _lost(self, seq: int) -> bool:
        return self.limit is not None and seq >= self.limit

    # --- news -------------------------------------------------------------------------

    def finished(self, seq: int) -> None:
        """Our computation of op *seq* is through."""
        op = self.ops[seq]
        if op.phase is Phase.RUNNING and not (op.polls or op.waits_for_all):
            self._succeed(op)
            return
        op.move(Move.FINISH)
        if op.waits_for_all:
            op.computed_by.add(self._session.view.rank)
            self._session.broadcast(seq, Computed())
        self.go_on(op)

    def peer_computed(self, rank: int, seq: int) -> None:
        """A member's part in op *seq* is through."""
        op = self.ops.get(seq)
        if op is not None:
            op.computed_by.add(rank)
            self.go_on(op)

    def peer_done(self, rank: int, floor: int) -> None:
        """A member has outcomes for all ops below *floor*."""
        done = self._ledger.done
        before = done[rank]
        if floor <= before:
            return
        done[rank] = floor
        # As a rule it is one op of hundreds; but a floor may be anything.
        one_by_one = floor - before < len(self.ops)
        for seq in range(before, floor) if one_by_one else list(self.ops):
            op = self.ops.get(seq) if before <= seq < floor else None
            if op is not None and op.phase is Phase.HELD:  # perhaps for that member
                self.go_on(op)
        if min(done) > self._ledger.released:
            self._ledger.release()

    def peer_read_input(self, rank: int, seq: int) -> None:
        """A member needs no input of op *seq* again, for which somebody waits."""
        op = self.ops.get(seq)
        if op is not None:
            op.input_read_by.add(rank)
            self.go_on(op)

    def settle(self) -> None:
        """The client is not waited for any more: do what waited for it."""
        self._ledger.advance()
        for op in list(self.ops.values()):
            self.go_on(op)
            self._ledger.announce(op)

    # --- how an op ends ---------------------------------------------------------------

    def go_on(self, op: Op) -> None:
        """Take *op* as far as the polls, and the other members' parts and needs, allow."""
        if op.polls:
            return
        if op.phase is Phase.FINISHED:
            if not (op.waits_for_all and op.computing):
                self._succeed(op)
        elif op.phase is Phase.HELD:
            if not self._input_is_needed(op):
                self._end_well(op)
            elif self._lost(op.seq):  # which the others may not know yet, and run it once more
                self.keep_input(op)

    def _succeed(self, op: Op) -> None:
        submission = op.submission
        assert submission is not None  # noqa: S101 - what ran here was submitted here
        if submission.sealed:
            self._out.append(Seal(self._caller.join_id, submission))
        if submission.hold:
            op.move(Move.HOLD)
        else:
            self._end_well(op)
        if op.prompt:
            self._ledger.announce(op)
        if op.phase is Phase.HELD:
            if op.overdue:
                self.keep_input(op)
            else:
                self.go_on(op)

    def _input_is_needed(self, op: Op) -> bool:
        # A client that is gone overwrites nothing.
        return self._caller.client is not None and bool(self.ranks_that_may_need_input(op))

    def ranks_that_may_need_input(self, op: Op) -> list[int]:
        """Return the ranks that may need our input of *op* to run it again.

        Invariant: a rank that is left out is sure to have the outcome, whatever happens to its
        daemon: its floor says so of all ops below, and what it says to lenders of one.
        """
        done, own = self._ledger.done, self._session.view.rank
        return [
            rank
            for rank, floor in enumerate(done)
            if rank != own and floor <= op.seq and rank not in op.input_read_by
        ]

    def keep_input(self, op: Op) -> None:
        """End an op whose result stands here, though others may need the input: we keep that."""
        assert op.submission is not None  # noqa: S101 - what was lent was submitted
        op.submission.hold = False
        self._end_well(op, Move.KEEP)

    def _end_well(self, op: Op, move: Move = Move.END) -> None:
        op.end(OK, move=move)
        self._caller.tell_outcome(op, self._ledger.released, keep=move is Move.KEEP)
        if self._caller.has(op):
            self._ledger.advance()

    def end(self, op: Op, code: str, message: str) -> None:
        """End *op* with an error."""
        self._ledger.stop(op)
        op.end(code, message)
        self.tell_failure(op)
        self._ledger.advance()

    def tell_failure(self, op: Op) -> None:
        """Tell the client how *op* failed, and free what it handed over: it is not offered."""
        self._caller.tell_outcome(op, self._ledger.released)
        if op.submission is not None:
            self._out.append(Free(op.submission))

    # --- losses -----------------------------------------------------------------------

    def cut(self, limit: int, code: str, message: str) -> None:
        """End ops from *limit* on with this error, as somebody has no part in them.

        Invariant: the limit only falls, and what fell first decides on the error. A call whose
        result stands here completes all the same.
        """
        if self._lost(limit):
            return
        self.limit, self.loss = limit, (code, message)
        lost = [op for op in self.ops.values() if op.seq >= limit and not op.ended]
        for op in lost:
            self.go_on(op)
        # A client that heard of its calls' ends first would make its next call in this session.
        self._caller.tell_lost(limit, code, message)
        for op in lost:
            if op.phase is not Phase.HELD and not op.ended:
                self.end(op, code, message)

    def leave(self, submitted: int, code: str, message: str) -> None:
        """The client takes part no more: ops below *submitted* complete for the others.

        What it had lent to them it leaves us as it is.
        """
        for op in self.open():
            if op.seq < submitted and op.submission is not None:
                op.submission.hold = False
        self.cut(submitted, code, message)
        self.settle()

    def cut_open(self, code: str, message: str) -> None:
        """End all open ops, and the stay with them."""
        first = min((op.seq for op in self.open()), default=self._caller.next_seq)
        self.cut(first, code, message)

    def suspend(self) -> list[Op]:
        """The ring broke, which overtakes any poll that is on its way.

        Returns:
            The ops whose deadline has passed, about which the others must be asked again.
        """
        late = [op for op in self.ops.values() if op.overdue and not op.ended]
        self._ledger.announce_anew()
        for op in list(self.ops.values()):
            self._reset(op)
            self.go_on(op)  # the poll that held it back is gone
        return late

    def meet_peers(self) -> None:
        """The ranks are others than before, and none has said anything yet."""
        for op in self.ops.values():
            op.meet(self._session.view.size)
        self._ledger.forget_peers()

    def refuse_open(self, why: str) -> None:
        """End all open ops, as the group cannot form; what is called next is of another stay.

        Its numbers begin anew then, as do those of a program that comes in the place of the one
        that was wrong.
        """
        if self.open():
            self.cut_open(Mismatch.code, why)

    def forget_peers(self) -> None:
        """The members never agreed on the session: keep only what the client called."""
        for op in list(self.ops.values()):
            self._reset(op)
            if op.submission is None:
                del self.ops[op.seq]
        self.meet_peers()

    def _reset(self, op: Op) -> None:
        self._ledger.stop(op)
        op.reset()

    def drop(self) -> None:
        """Free what is left: the seat is given up."""
        for op in self.ops.values():
            self._ledger.forget(op)
        self.ops.clear()
