"""The ops of one session at one rank: offers, results, deadlines, and what is released.

How an op ends, and why all ranks agree:

* Every member broadcasts its *offer*. Whoever holds all ``n`` offers decides by itself, and as
  all see the same offers all decide the same: run, or :class:`~ringd.errors.Mismatch`.
* A passed deadline is settled by a poll that goes full circle: each rank holds back its
  completion and says whether it had completed. If nobody had, nobody will, and the verdict ends
  the op everywhere; otherwise the op is about to complete everywhere, and does.
* A member that cannot run what another one offers says so at once, whatever its own client is
  about to do: without its offer nobody can complete the op.
* After the ring broke, everyone offers again what is not *released*, with the outcome it has.
  Inputs are intact until then, and the order of the sum is fixed by rank, so a rerun gives
  those that missed the end the same bits.
* An op is released when every member's *done* floor has passed it. A member raises its floor
  only over outcomes that its client is sure to have: sealed in memory that the client owns,
  or acknowledged by it.
* A client that lends its own memory as the input is told only when every other member is sure
  not to need it again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from ringd.collective.call import Call
from ringd.collective.view import View
from ringd.errors import DeadlineExceeded, Mismatch, Refused
from ringd.groups.actions import Action, Broadcast, Free, Relay, Report, Run, Seal, Stop
from ringd.groups.ledger import Ledger
from ringd.groups.op import OK, Move, Op, Phase, Submission, Told
from ringd.groups.words import differences, late, missing
from ringd.wire.link.control import Done, Left, Offer, Poll, Verdict


class Calls:
    """See the module's docstring. Every method appends what is to be done to *out*."""

    def __init__(
        self,
        *,
        group: str,
        join_id: int,
        client: Hashable,
        released: int,
        view: View,
        out: list[Action],
        refusal: Callable[[Call], str] = lambda _call: "",
    ) -> None:
        self.group = group
        self.join_id = join_id
        self.client: Hashable | None = client
        """Who is told how the calls end; None once it is gone."""
        self.view = view
        self.out = out
        self._refusal = refusal
        """Says why a call cannot be run here; empty if it can."""
        self.ops: dict[int, Op] = {}
        self.ledger = Ledger(view.rank, view.size, released)
        self.limit: int | None = None
        """Ops from here on cannot complete: somebody left."""
        self.loss = ("", "")
        self.left: Left | None = None
        """What was broadcast when the client left, if it did."""
        self.gid = 0
        self.confirmed: set[int] = set()
        """Ranks known to be in the session, in this generation."""
        self.counts = [0] * self.view.size
        """By rank, how many ops it is known to have offered."""

    @property
    def floor(self) -> int:
        """Every op below is released."""
        return self.ledger.released

    @property
    def live(self) -> bool:
        """Whether all members have confirmed the session in this generation."""
        return len(self.confirmed) == self.view.size

    # --- the peers' side --------------------------------------------------------------

    def offered(
        self, rank: int, seq: int, offer: Offer, payload: bytes | memoryview, now: float
    ) -> None:
        """A member's part in op *seq* arrived."""
        self.counts[rank] = max(self.counts[rank], seq + 1)
        self.peer_done(rank, offer.done)
        if seq < self.floor:
            return
        op = self._op(seq, now)
        op.offers[rank] = offer
        if not op.ended:
            op.payloads[rank] = payload
        self._object(op, offer)
        self._consider(op)

    def _object(self, op: Op, offer: Offer) -> None:
        """End an op that could not be run here if our client took part in it, too."""
        # What it has handed over was judged then, and what a former daemon had will be.
        if op.submission is not None or offer.outcome or self.awaited(op.seq):
            return
        text = self._refusal(offer.call)
        if text:
            self.out.append(Broadcast(self.gid, op.seq, Verdict(0, Refused.code, text)))
            self._apply(op, 0, Refused.code, text)

    def awaited(self, seq: int) -> bool:  # noqa: ARG002 - a Session knows
        """Whether the client is about to hand op *seq* over again, having come back."""
        return False

    def peer_done(self, rank: int, floor: int) -> None:
        """A member has outcomes for all ops below *floor*."""
        before = self.ledger.done[rank]
        if self.ledger.heard(rank, floor):
            for op in list(self.ops.values()):
                if before <= op.seq < floor:
                    self._complete(op)
            self._release()

    def peer_finished(self, rank: int, seq: int) -> None:
        """A member needs no input of op *seq* again, for which somebody waits."""
        op = self.ops.get(seq)
        if op is not None:
            op.input_read_by.add(rank)
            self._complete(op)

    def finished(self, seq: int) -> None:
        """Our computation of op *seq* is through."""
        op = self.ops[seq]
        op.move(Move.FINISH)
        if op.phase is Phase.FINISHED and not op.polls:
            self._succeed(op)
        else:
            self._complete(op)

    # --- deadlines --------------------------------------------------------------------

    def expire(self, op: Op, poll_id: int, waiting_for: str) -> None:
        """The deadline of our client's op has passed: ask the others, or end it here alone."""
        if op.ended or op.own_poll:
            return
        op.own_poll = poll_id
        if op.has_result:
            self._keep(op)  # only the others' need for the input held it back
        elif self.live and self.view.size > 1:
            op.polls.add(poll_id)
            self.out.append(Relay(self.view.rank, self.gid, op.seq, Poll(poll_id, completed=False)))
        else:
            self._end(op, DeadlineExceeded.code, self._late(op, waiting_for))

    def polled(self, origin: int, seq: int, poll: Poll, now: float) -> None:
        """Somebody's deadline has passed; hold back our completion and say whether we had it."""
        if origin == self.view.rank:
            self._decide(seq, poll)
            return
        completed = poll.completed or seq < self.floor
        if seq >= self.floor:
            op = self._op(seq, now)
            if op.has_result:
                completed = True
            elif not op.ended:
                op.polls.add(poll.poll_id)
        self.out.append(Relay(origin, self.gid, seq, Poll(poll.poll_id, completed)))

    def _decide(self, seq: int, poll: Poll) -> None:
        op = self.ops.get(seq)
        if op is None or op.own_poll != poll.poll_id:
            return
        code, message = "", ""
        if not poll.completed and not op.has_result:
            code = op.outcome or DeadlineExceeded.code
            message = op.message or self._late(op, self.waiting_for(op))
        self.out.append(Broadcast(self.gid, seq, Verdict(poll.poll_id, code, message)))
        self._apply(op, poll.poll_id, code, message)

    def judged(self, seq: int, verdict: Verdict, now: float) -> None:
        """The verdict of a poll arrived."""
        if seq >= self.floor:
            op = self._op(seq, now)
            self._apply(op, verdict.poll_id, verdict.code, verdict.message)

    def _apply(self, op: Op, poll_id: int, code: str, message: str) -> None:
        op.polls.discard(poll_id)
        if op.ended:
            return
        if code and not op.has_result:
            self._end(op, code, message)
        elif op.phase is Phase.FINISHED and not op.polls:
            self._succeed(op)
        else:
            self._complete(op)

    def _late(self, op: Op, why: str) -> str:
        return late(self.group, op, self.view.name, why)

    def waiting_for(self, op: Op) -> str:
        """Return in words for whom *op* waits, once the session is formed."""
        if not self.live:
            absent = [self.view.names[r] for r in range(self.view.size) if r not in self.confirmed]
            return "no client back in the group on: " + ", ".join(absent)
        return missing(op, self.view.names, self._needy(op))

    # --- the life of an op ------------------------------------------------------------

    def _op(self, seq: int, now: float) -> Op:
        op = self.ops.get(seq)
        if op is None:
            op = self.ops[seq] = Op(seq, self.view.size, now)
            if self.limit is not None and seq >= self.limit:
                self._end(op, *self.loss)
        return op

    def _offer(self, op: Op, submission: Submission) -> None:
        payload = submission.payload
        outcome = OK if op.has_result else op.outcome
        eager = payload is not None and outcome in ("", OK)
        offer = Offer(
            call=submission.call,
            done=self.ledger.own,
            eager=eager,
            prompt=submission.hold,
            outcome=outcome,
            message=op.message,
        )
        if op.phase is Phase.OPEN:
            op.move(Move.OFFER)
        self.ledger.announced = self.ledger.own
        data = payload if eager and payload is not None else b""
        self.out.append(Broadcast(self.gid, op.seq, offer, data))
        self.counts[self.view.rank] = max(self.counts[self.view.rank], op.seq + 1)
        op.offers[self.view.rank] = offer
        if not op.ended:
            op.payloads[self.view.rank] = data
        self._consider(op)

    def _consider(self, op: Op) -> None:
        """Decide, as every member will, whether the op can run now or has ended."""
        submission = op.submission
        if op.active or op.phase is Phase.FINISHED or submission is None:
            return
        if not op.ended and not op.has_result:
            for offer in op.offers:
                if offer is not None and offer.outcome not in ("", OK):
                    self._end(op, offer.outcome, offer.message)
                    return
        if not op.complete:
            return
        self._announce(op)
        if op.failed:
            return
        offers = [offer for offer in op.offers if offer is not None]
        if any(offer.call != submission.call for offer in offers):
            if not op.has_result:
                text = differences(self.group, op.seq, offers, self.view.names)
                self._end(op, Mismatch.code, text)
        elif {offer.outcome for offer in offers} in ({""}, {"", OK}):
            self._start(op, submission, eager=all(offer.eager for offer in offers))

    def _start(self, op: Op, submission: Submission, *, eager: bool) -> None:
        serve = op.has_result
        if serve and eager:
            return  # the payloads are round already; whoever needs the result computes it
        op.move(Move.START)
        payloads = tuple(op.payloads) if eager else None
        self.out.append(Run(self.gid, op.seq, submission.call, submission, payloads, serve))

    def _succeed(self, op: Op) -> None:
        submission = op.submission
        assert submission is not None  # noqa: S101 - what ran here was submitted here
        if submission.sealed:
            self.out.append(Seal(self.join_id, submission))
        if submission.hold:
            op.move(Move.HOLD)
            self._announce(op)
            if op.own_poll:
                self._keep(op)  # the client has waited long enough
            else:
                self._complete(op)
        else:
            self._end_well(op)
            self._announce(op)

    def _complete(self, op: Op) -> None:
        """Tell a client that holds its input, once nobody can need that any more."""
        if op.phase is not Phase.HELD or op.polls:
            return
        beyond = self.limit is not None and op.seq >= self.limit  # nobody can run it again
        if self.client is None or beyond or not self._needy(op):
            self._end_well(op)

    def _needy(self, op: Op) -> list[int]:
        """Return the ranks that may still need our input of *op*."""
        done = self.ledger.done
        return [
            rank
            for rank in range(self.view.size)
            if rank != self.view.rank and done[rank] <= op.seq and rank not in op.input_read_by
        ]

    def _announce(self, op: Op) -> None:
        """Tell those who hold their input that we need it no more, once that is certain."""
        if op.said_input_read or not self.live or not op.prompt:
            return
        held = op.phase in (Phase.HELD, Phase.LENDING)  # and sealed: see Submission.hold
        if held or self.ledger.settled(op, acks=self.left is None):
            op.said_input_read = True
            self.announce_done(op.seq)

    def _end_well(self, op: Op, move: Move = Move.END) -> None:
        op.end(OK, move=move)
        self._report(op, keep=move is Move.KEEP)
        self._advance()

    def _keep(self, op: Op) -> None:
        """End an op whose result stands here, though others may need the input: we keep that."""
        assert op.submission is not None  # noqa: S101 - what was lent was submitted
        op.submission.hold = False
        self._end_well(op, Move.KEEP)

    def _end(self, op: Op, code: str, message: str) -> None:
        """End the op with an error."""
        if op.active:
            self.out.append(Stop(self.gid, op.seq))
        op.end(code, message)
        self._report(op)
        self._free_failed(op)
        self._advance()

    def _free_failed(self, op: Op) -> None:
        """Nobody needs the input of a call that failed here: we will never offer it again."""
        if op.submission is not None and op.outcome != OK:
            self.out.append(Free(op.submission))

    def _report(self, op: Op, *, keep: bool = False, again: bool = False) -> None:
        if op.submission is None or (op.told is not Told.NO) is not again:
            return
        if op.told is Told.NO:
            op.told = Told.YES
        if self.client is not None:
            self.ledger.told = self.floor
            self.out.append(
                Report(
                    client=self.client,
                    join_id=self.join_id,
                    submission=op.submission,
                    code=op.outcome,
                    message=op.message,
                    released=self.floor,
                    ack=op.outcome != OK or (op.prompt and not op.submission.sealed),
                    keep=keep,
                    again=again,
                )
            )

    def _reset(self, op: Op) -> None:
        if op.active:
            self.out.append(Stop(self.gid, op.seq))
        op.reset()

    # --- what is done, and what is released --------------------------------------------

    def _advance(self) -> None:
        if self.ledger.advance(self.ops, acks=self.left is None):
            self._release()

    def announce_done(self, finished: int | None = None) -> None:
        """Tell the others our done floor, and that we are finished with op *finished*."""
        self.ledger.announced = self.ledger.own
        done = Done(self.ledger.own, finished)
        self.out.append(Broadcast(self.gid, finished or 0, done))

    def _release(self) -> None:
        ledger = self.ledger
        while ledger.released < ledger.releasable:
            op = self.ops.pop(ledger.released, None)
            ledger.released += 1
            if op is None:
                continue
            if op.active:  # serving those that have it by now
                self.out.append(Stop(self.gid, op.seq))
            if op.submission is not None and op.outcome == OK:
                self.out.append(Free(op.submission))
