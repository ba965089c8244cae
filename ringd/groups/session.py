"""One local client's stay in a group, and the ops that it shares with its peers.

A *session* is agreed on when every member of the ring has a client in the group: it is the
tuple of their join ids, and its number (``gid``) is a hash of that, so all members name it
alike without asking anybody. Ops are numbered from 0 within it.

How an op ends, and why all ranks agree:

* Every member broadcasts its *offer*. Whoever holds all ``n`` offers decides by itself, and as
  all see the same offers all decide the same: run, or :class:`~ringd.errors.Mismatch`.
* A member goes *live* once every other one has said that it is in the session too, and offers
  nothing before. So a session that not all agree on can be forgotten without a trace.
* A passed deadline is settled by a poll that goes full circle: each rank holds back its
  completion and says whether it had completed. If nobody had, nobody will, and the verdict ends
  the op everywhere; otherwise the op is about to complete everywhere, and does.
* After the ring broke, everyone offers again what is not *released*, with the outcome it has.
  Inputs are intact until then, and the order of the sum is fixed by rank, so a rerun gives
  those that missed the end the same bits.
* An op is released when every member's *done* floor has passed it. A member raises its floor
  only over outcomes that its client is sure to have: sealed in memory that the client owns,
  or acknowledged by it.
"""

from __future__ import annotations

from collections.abc import Hashable
from hashlib import blake2b

from ringd.errors import DeadlineExceeded, Mismatch
from ringd.groups.actions import (
    Action,
    Broadcast,
    Free,
    Relay,
    Report,
    Run,
    Seal,
    Stop,
    TellLost,
    TellReleased,
)
from ringd.groups.ledger import Ledger
from ringd.groups.op import OK, Move, Op, Phase, Submission
from ringd.groups.words import differences, late, missing
from ringd.wire.control import Done, Left, Offer, Poll, Verdict


def session_number(group: str, join_ids: tuple[int, ...]) -> int:
    """Return the u64 under which all members know the session of these clients."""
    digest = blake2b(group.encode(), digest_size=8)
    for join_id in join_ids:
        digest.update(join_id.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little")


class Session:
    """See the module's docstring. Every method appends what is to be done to *out*."""

    def __init__(
        self,
        *,
        group: str,
        join_id: int,
        client: Hashable,
        on_loss: str,
        released: int,
        touched: bool,
        expected: int,
        rank: int,
        names: tuple[str, ...],
        out: list[Action],
    ) -> None:
        self.group = group
        self.join_id = join_id
        self.client: Hashable | None = client
        self.on_loss = on_loss
        self.rank = rank
        self.names = names
        self.size = len(names)
        self.ops: dict[int, Op] = {}
        self.next_seq = released
        """The number of the client's next op."""
        self.ledger = Ledger(rank, len(names), released)
        self.expected = expected
        """The gid under which the client has seen an outcome; it can be in no other session."""
        self.touched = touched
        """An op of the client may have been offered: its peers are for good."""
        self.limit: int | None = None
        """Ops from here on cannot complete: somebody left."""
        self.loss = ("", "")
        self.told_lost = False
        self.left: Left | None = None
        """What was broadcast when the client left, if it did."""
        self.out = out
        self.gid = 0
        self.join_ids: tuple[int, ...] = ()
        self.confirmed: set[int] = set()
        self.counts: list[int] = []
        """By rank, how many ops it is known to have offered."""
        self.unform()

    # --- forming ----------------------------------------------------------------------

    @property
    def floor(self) -> int:
        """Every op below is released."""
        return self.ledger.released

    @property
    def number(self) -> int:
        """The gid, also before the members are known again; 0 for none."""
        return self.gid or self.expected

    @property
    def formed(self) -> bool:
        """Whether the members of the session are known."""
        return self.gid != 0

    @property
    def live(self) -> bool:
        """Whether all members have confirmed the session in this generation."""
        return len(self.confirmed) == self.size

    @property
    def waits(self) -> bool:
        """Whether the client has an open call."""
        return self.client is not None and any(
            op.submission is not None and not op.ended for op in self.ops.values()
        )

    @property
    def over(self) -> bool:
        """Whether nothing can happen in it any more."""
        return self.limit is not None and self.floor >= self.limit

    def unform(self) -> None:
        """Forget the peers: they never agreed on this session; the client's ops wait on."""
        for op in list(self.ops.values()):
            self._reset(op)
            if op.submission is None:
                del self.ops[op.seq]
        self.gid = 0
        self.join_ids = ()
        self.confirmed = set()
        self.ledger.forget_peers()
        self.counts = [0] * self.size

    def form(self, join_ids: tuple[int, ...]) -> None:
        """Take *join_ids* as the session's members."""
        self.gid = session_number(self.group, join_ids)
        self.join_ids = join_ids
        self.confirmed = {self.rank}
        self._advance()

    def confirm(self, rank: int) -> None:
        """*rank* is in the session in this generation too; offer all when it is the last one."""
        if rank in self.confirmed:
            return
        self.confirmed.add(rank)
        if self.live:
            self.go_live()

    def go_live(self) -> None:
        """Offer everything that is not released, with the outcome it has here."""
        self._advance()
        self._announce_done()
        for seq in sorted(self.ops):
            op = self.ops.get(seq)
            if op is not None and op.submission is not None:
                self._offer(op, op.submission)

    def suspend(self, reason: str) -> None:
        """The ring broke, which overtakes any poll that is on its way."""
        self.confirmed = {self.rank} if self.formed else set()
        self.ledger.announced = 0
        for op in self.ops.values():
            self._reset(op)
            if op.poll_id and not op.ended:
                self._end(op, DeadlineExceeded.code, self._late(op, f"the ring broke: {reason}"))
            self._complete(op)  # the poll that held it back is gone

    def _reset(self, op: Op) -> None:
        if op.active:
            self.out.append(Stop(self.gid, op.seq))
        op.reset()

    # --- the client's side ------------------------------------------------------------

    def submit(self, submission: Submission, outcome: str, message: str, now: float) -> None:
        """Take the client's next op, or one again that it offered to a former daemon."""
        seq = submission.seq
        self.next_seq = seq + 1
        op = self._op(seq, now)
        op.submission = submission
        op.since = now
        op.known = outcome != "" and not (outcome == OK and submission.hold)
        op.reported = op.known
        if op.ended:  # by a verdict or a loss, before we had a part in it
            self._report(op)
            self._free_failed(op)
        elif outcome == OK and submission.hold:
            op.move(Move.HOLD)
        elif outcome:
            op.move(Move.END)
            op.outcome, op.message = outcome, message
            self._free_failed(op)
        elif self.limit is not None and seq >= self.limit:
            self._end(op, *self.loss)
        self._advance()
        self._complete(op)
        if self.live:
            self._offer(op, submission)

    def ack(self, acked: int) -> None:
        """The client has every outcome below *acked*."""
        before = self.ledger.acked
        if acked > before:
            self.ledger.acked = acked
            self._advance()
            for seq in range(before, acked):
                if (op := self.ops.get(seq)) is not None:
                    self._announce(op)

    def leave(self, code: str, message: str) -> Left:
        """The client takes part no more; what it handed over is still completed for others."""
        submitted = self.next_seq if self.formed else 0
        if self.limit is not None:
            submitted = min(submitted, self.limit)
        self.left = Left(self.group, self.join_id, submitted, code, message)
        self.cut(self.left.submitted, code, message)
        self._settle()
        return self.left

    def abandon(self) -> None:
        """The client is not there any more to hear how its calls end."""
        self.client = None
        self._settle()

    def _settle(self) -> None:
        self._advance()
        for op in list(self.ops.values()):
            self._complete(op)
            self._announce(op)

    def cut(self, limit: int, code: str, message: str) -> None:
        """Ops from *limit* on end with this error, as somebody has no part in them."""
        if self.limit is not None and limit >= self.limit:
            return
        self.limit = limit
        self.loss = (code, message)
        for op in list(self.ops.values()):
            if op.seq >= limit and not op.ended:
                if op.phase is Phase.HELD:
                    self._complete(op)
                else:
                    self._end(op, code, message)
        if self.left is None:
            self.out.append(TellLost(self.client, self.join_id, limit, code, message))
            self.told_lost = True

    def fail_all(self, code: str, message: str) -> None:
        """The client asked to be told of any loss at once: all of its open ops end."""
        open_ops = [op for op in self.ops.values() if op.submission is not None and not op.ended]
        limit = min((op.seq for op in open_ops), default=self.next_seq)
        for op in open_ops:
            self._end(op, code, message)
        self.cut(limit, code, message)

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
        op.payloads[rank] = payload
        self._consider(op)

    def peer_done(self, rank: int, floor: int) -> None:
        """A member has outcomes for all ops below *floor*."""
        before = self.ledger.done[rank]
        if self.ledger.heard(rank, floor):
            for seq in range(max(before, self.floor), floor):
                if (op := self.ops.get(seq)) is not None:
                    self._complete(op)
            self._release()

    def peer_finished(self, rank: int, seq: int) -> None:
        """A member needs no input of op *seq* again, for which somebody waits."""
        op = self.ops.get(seq)
        if op is not None:
            op.finished_by.add(rank)
            self._complete(op)

    def finished(self, seq: int) -> None:
        """Our computation of op *seq* is through."""
        op = self.ops[seq]
        op.move(Move.FINISH)
        if op.phase is Phase.FINISHED and not op.holds:
            self._succeed(op)
        elif op.phase is Phase.HELD and op.poll_id:
            self._end_late(op)
        else:
            self._complete(op)

    # --- deadlines --------------------------------------------------------------------

    def expire(self, op: Op, poll_id: int, waiting_for: str) -> None:
        """The deadline of our client's op has passed: ask the others, or end it here alone."""
        if op.ended or op.poll_id:
            return
        op.poll_id = poll_id
        if op.phase is Phase.LENDING:
            return  # the others compute with us right now; it ends when they have their result
        if op.phase is not Phase.HELD and self.live and self.size > 1:
            op.holds.add(poll_id)
            self.out.append(Relay(self.rank, self.gid, op.seq, Poll(poll_id, completed=False)))
        else:
            self._end(op, DeadlineExceeded.code, self._late(op, waiting_for))

    def polled(self, origin: int, seq: int, poll: Poll, now: float) -> None:
        """Somebody's deadline has passed; hold back our completion and say whether we had it."""
        if origin == self.rank:
            self._decide(seq, poll)
            return
        completed = poll.completed or seq < self.floor
        if seq >= self.floor:
            op = self._op(seq, now)
            if op.outcome == OK:
                completed = True
            elif not op.ended:
                op.holds.add(poll.poll_id)
        self.out.append(Relay(origin, self.gid, seq, Poll(poll.poll_id, completed)))

    def _decide(self, seq: int, poll: Poll) -> None:
        op = self.ops.get(seq)
        if op is None or op.poll_id != poll.poll_id:
            return
        code, message = "", ""
        if not poll.completed and op.outcome != OK:
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
        op.holds.discard(poll_id)
        if op.ended:
            return
        if code:
            self._end(op, code, message)
        elif op.phase is Phase.FINISHED and not op.holds:
            self._succeed(op)
        else:
            self._complete(op)

    def _end_late(self, op: Op) -> None:
        self._end(op, DeadlineExceeded.code, self._late(op, self.waiting_for(op)))

    def _late(self, op: Op, why: str) -> str:
        return late(self.group, op, self.names[self.rank], why)

    def waiting_for(self, op: Op) -> str:
        """Return in words for whom *op* waits, once the session is formed."""
        if not self.live:
            absent = [self.names[r] for r in range(self.size) if r not in self.confirmed]
            return "not back in the ring: " + ", ".join(absent)
        return missing(op, self.names, self.ledger.done)

    # --- the life of an op ------------------------------------------------------------

    def _op(self, seq: int, now: float) -> Op:
        op = self.ops.get(seq)
        if op is None:
            op = self.ops[seq] = Op(seq, self.size, now)
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
        self.touched = True
        self.ledger.announced = self.ledger.own
        data = payload if eager and payload is not None else b""
        self.out.append(Broadcast(self.gid, op.seq, offer, data))
        self.counts[self.rank] = max(self.counts[self.rank], op.seq + 1)
        op.offers[self.rank] = offer
        op.payloads[self.rank] = data
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
        if op.outcome not in ("", OK) or not op.complete:
            return
        self._announce(op)
        offers = [offer for offer in op.offers if offer is not None]
        if any(offer.call != submission.call for offer in offers):
            if not op.has_result:
                text = differences(self.group, op.seq, offers, self.names)
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
            self.out.append(Seal(self.join_id, self.gid, submission))
        if submission.hold:
            op.move(Move.HOLD)
            self._announce(op)
            self._complete(op)
        else:
            self._end_well(op)
            self._announce(op)

    def _complete(self, op: Op) -> None:
        """Tell a client that holds its input, once nobody can need that any more."""
        if op.phase is not Phase.HELD or op.holds:
            return
        beyond = self.limit is not None and op.seq >= self.limit  # nobody can run it again
        if self.client is None or beyond or all(map(op.finished_by.__contains__, self._needy(op))):
            self._end_well(op)

    def _needy(self, op: Op) -> list[int]:
        done = self.ledger.done
        return [r for r in range(self.size) if r != self.rank and done[r] <= op.seq]

    def _announce(self, op: Op) -> None:
        """Tell those who hold their input that we need it no more, once that is certain."""
        if op.announced or not self.live or not op.prompt:
            return
        held = op.phase in (Phase.HELD, Phase.LENDING)  # and sealed: see Submission.hold
        if held or self.ledger.settled(op, acks=self.left is None):
            op.announced = True
            self._announce_done(op.seq)

    def _end_well(self, op: Op) -> None:
        op.move(Move.END)
        op.outcome = OK
        self._report(op)
        self._advance()

    def _end(self, op: Op, code: str, message: str) -> None:
        """End the op with an error."""
        if op.active:
            self.out.append(Stop(self.gid, op.seq))
        op.move(Move.END)
        op.outcome, op.message = code, message
        self._report(op)
        self._free_failed(op)

    def _free_failed(self, op: Op) -> None:
        """Nobody needs the input of a call that failed here: we will never offer it again."""
        if op.submission is not None and op.outcome != OK:
            self.out.append(Free(op.submission))

    def _report(self, op: Op) -> None:
        if op.submission is None or op.reported:
            return
        op.reported = True
        if self.client is not None:
            self.ledger.told = self.floor
            self.out.append(
                Report(
                    client=self.client,
                    join_id=self.join_id,
                    session=self.number,
                    submission=op.submission,
                    code=op.outcome,
                    message=op.message,
                    released=self.floor,
                )
            )

    # --- what is done, and what is released --------------------------------------------

    def _advance(self) -> None:
        if self.ledger.advance(self.ops, acks=self.left is None):
            self._release()

    def _announce_done(self, finished: int | None = None) -> None:
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

    @property
    def lazy(self) -> bool:
        """Whether there is news on what is done or released that nothing has carried yet."""
        return (self.formed and self.ledger.unannounced) or self._unheard_release()

    def _unheard_release(self) -> bool:
        return self.client is not None and self.ledger.untold

    def flush(self) -> None:
        """Send what :attr:`lazy` speaks of, while the ring is up."""
        if self.formed and self.ledger.unannounced:
            self._announce_done()
        if self.client is not None and self.ledger.untold:
            self.ledger.told = self.floor
            self.out.append(TellReleased(self.client, self.join_id, self.floor))

    def drop(self) -> None:
        """The session is over and gone: free what it still holds."""
        for op in self.ops.values():
            if op.active:
                self.out.append(Stop(self.gid, op.seq))
            if op.submission is not None and op.outcome in ("", OK):
                self.out.append(Free(op.submission))
        self.ops.clear()
