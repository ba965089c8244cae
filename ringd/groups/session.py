"""One local client's stay in a group, and the ops that it shares with its peers.

A *session* is agreed on when every member of the ring has a client in the group: it is the
tuple of their join ids, and its number (``gid``) is a hash of that, so all members name it
alike without asking anybody. Ops are numbered from 0 within it.

How an op ends, and why all ranks agree:

* Every member broadcasts its *offer*. Whoever holds all ``n`` offers decides by itself, and as
  all see the same offers all decide the same: run, or :class:`~ringd.errors.Mismatch`.
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
from ringd.groups.op import OK, Move, Op, Phase, Submission
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
        self.acked = released
        self.floor = released
        """Everything below is released."""
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
        self.done: list[int] = []
        self.counts: list[int] = []
        """By rank, how many ops it is known to have offered."""
        self.announced_done = 0
        self.told_released = released
        self.unform()

    # --- forming ----------------------------------------------------------------------

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
        self.done = [0] * self.size
        self.counts = [0] * self.size
        self.announced_done = 0

    def form(self, join_ids: tuple[int, ...]) -> None:
        """Take *join_ids* as the session's members."""
        self.gid = session_number(self.group, join_ids)
        self.join_ids = join_ids
        self.confirmed = {self.rank}
        self.done[self.rank] = self._own_done()

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
        for op in self.ops.values():
            self._reset(op)
            if op.poll_id and not op.ended:
                self._end(op, DeadlineExceeded.code, self._late(op, f"the ring broke: {reason}"))

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
        if op.ended:  # by a verdict, before we had a part in it
            self._report(op)
        elif outcome:
            op.move(Move.END)
            op.outcome, op.message = outcome, message
            op.reported = outcome != OK or not submission.hold
        elif self.limit is not None and seq >= self.limit:
            self._end(op, *self.loss)
        self._advance()
        if self.live:
            self._offer(op, submission)

    def ack(self, acked: int) -> None:
        """The client has every outcome below *acked*."""
        if acked > self.acked:
            self.acked = acked
            self._advance()

    def leave(self, code: str, message: str) -> Left:
        """The client takes part no more; what it handed over is still completed for others."""
        submitted = self.next_seq if self.formed else 0
        if self.limit is not None:
            submitted = min(submitted, self.limit)
        self.left = Left(self.group, self.join_id, submitted, code, message)
        self.client = None
        self.cut(self.left.submitted, code, message)
        self._advance()
        return self.left

    def cut(self, limit: int, code: str, message: str) -> None:
        """Ops from *limit* on end with this error, as somebody has no part in them."""
        if self.limit is not None and limit >= self.limit:
            return
        self.limit = limit
        self.loss = (code, message)
        for op in list(self.ops.values()):
            if op.seq >= limit and not op.ended:
                self._end(op, code, message)
        if self.client is not None:
            self.out.append(TellLost(self.client, self.join_id, limit, code, message))
            self.told_lost = True

    def fail_all(self, code: str, message: str) -> None:
        """The client asked to be told of any loss at once: all of its open ops end."""
        self.cut(0, code, message)

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
        if offer.outcome == OK:
            op.finished_by.add(rank)
        self._consider(op)

    def peer_done(self, rank: int, floor: int) -> None:
        """A member has outcomes for all ops below *floor*."""
        if floor > self.done[rank]:
            self.done[rank] = floor
            self._release()

    def peer_finished(self, rank: int, seq: int) -> None:
        """A member has its result of op *seq*, for which somebody waits."""
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

    # --- deadlines --------------------------------------------------------------------

    def expire(self, op: Op, poll_id: int, waiting_for: str) -> None:
        """The deadline of our client's op has passed: ask the others, or end it here alone."""
        if op.ended or op.poll_id:
            return
        op.poll_id = poll_id
        if self.live and self.size > 1:
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

    def _late(self, op: Op, why: str) -> str:
        timeout = op.submission.timeout if op.submission else None
        seconds = "" if timeout is None else f" of {timeout:g} s"
        node = self.names[self.rank]
        return f"{self.describe(op)}: the deadline{seconds} passed on {node!r}; {why}"

    def waiting_for(self, op: Op) -> str:
        """Return in words for whom *op* waits, once the session is formed."""
        if not self.live:
            absent = [self.names[r] for r in range(self.size) if r not in self.confirmed]
            return "not back in the ring: " + ", ".join(absent)
        missing = [self.names[rank] for rank in op.missing()]
        if missing:
            return "not submitted by: " + ", ".join(missing)
        return "all members had submitted and the data was on its way"

    def describe(self, op: Op) -> str:
        """Return the op's name for messages."""
        what = str(op.submission.call) if op.submission else "a call"
        return f"{what} (op {op.seq} of group {self.group!r})"

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
        eager = payload is not None and op.outcome in ("", OK)
        offer = Offer(
            call=submission.call,
            done=self.done[self.rank],
            eager=eager,
            prompt=submission.hold,
            outcome=op.outcome,
            message=op.message,
        )
        self.announced_done = self.done[self.rank]
        data = payload if eager and payload is not None else b""
        self.out.append(Broadcast(self.gid, op.seq, offer, data))
        self.counts[self.rank] = max(self.counts[self.rank], op.seq + 1)
        op.offers[self.rank] = offer
        op.payloads[self.rank] = data
        if op.outcome == OK:
            op.finished_by.add(self.rank)
        self._consider(op)

    def _consider(self, op: Op) -> None:
        """Decide, as every member will, whether the op can run now or has ended."""
        if op.active or op.phase is Phase.FINISHED:
            return
        if not op.ended:
            for offer in op.offers:
                if offer is not None and offer.outcome not in ("", OK):
                    self._end(op, offer.outcome, offer.message)
                    return
        submission = op.submission
        if submission is None or op.outcome not in ("", OK) or not op.complete:
            return
        offers = [offer for offer in op.offers if offer is not None]
        if all(offer.outcome == OK for offer in offers):
            self._complete(op)
        elif any(offer.call != submission.call for offer in offers):
            self._end(op, Mismatch.code, self._differences(op, offers))
        elif all(offer.outcome in ("", OK) for offer in offers):
            self._start(op, submission, eager=all(offer.eager for offer in offers))

    def _start(self, op: Op, submission: Submission, *, eager: bool) -> None:
        serve = op.outcome == OK
        if serve and eager:
            return  # the payloads are round already; whoever needs the result computes it
        op.move(Move.START)
        payloads = tuple(op.payloads) if eager else None
        self.out.append(Run(self.gid, op.seq, submission.call, submission, payloads, serve))

    def _succeed(self, op: Op) -> None:
        op.move(Move.END)
        op.outcome = OK
        op.finished_by.add(self.rank)
        submission = op.submission
        if submission is not None and submission.sealed:
            self.out.append(Seal(self.join_id, submission))
        if op.prompt:
            self._advance()
            self._announce_done(op.seq)
        self._complete(op)
        self._advance()

    def _complete(self, op: Op) -> None:
        """Report success, unless the client waits until nobody needs its input any more."""
        if op.outcome != OK or op.reported or op.submission is None:
            return
        if not op.submission.hold or len(op.finished_by) == self.size:
            self._report(op)

    def _end(self, op: Op, code: str, message: str) -> None:
        """End the op with an error."""
        if op.active:
            self.out.append(Stop(self.gid, op.seq))
        op.move(Move.END)
        op.outcome, op.message = code, message
        self._report(op)

    def _report(self, op: Op) -> None:
        submission = op.submission
        if submission is None or op.reported:
            return
        op.reported = True
        if self.client is not None:
            self.told_released = self.floor
            self.out.append(
                Report(self.client, self.join_id, submission, op.outcome, op.message, self.floor)
            )
        if op.outcome != OK:
            self.out.append(Free(submission))

    def _differences(self, op: Op, offers: list[Offer]) -> str:
        by_call: dict[str, list[str]] = {}
        for rank, offer in enumerate(offers):
            by_call.setdefault(str(offer.call), []).append(self.names[rank])
        sent = "; ".join(f"{', '.join(names)}: {call}" for call, names in by_call.items())
        return f"op {op.seq} of group {self.group!r}: the members sent different calls: {sent}"

    # --- what is done, and what is released --------------------------------------------

    def _own_done(self) -> int:
        done = max(self.done[self.rank], self.floor)
        while (op := self.ops.get(done)) is not None and self._settled(op):
            done += 1
        return done

    def _settled(self, op: Op) -> bool:
        """Whether the client is sure to have the outcome, whatever happens to this daemon."""
        if not op.ended or op.submission is None:
            return False
        if self.client is None or op.seq < self.acked:
            return True
        return op.outcome == OK and op.submission.sealed

    def _advance(self) -> None:
        done = self._own_done()
        if done > self.done[self.rank]:
            self.done[self.rank] = done
            self._release()

    def _announce_done(self, finished: int | None = None) -> None:
        self.announced_done = self.done[self.rank]
        self.out.append(Broadcast(self.gid, finished or 0, Done(self.announced_done, finished)))

    def _release(self) -> None:
        floor = min(self.done)
        while self.floor < floor:
            op = self.ops.pop(self.floor, None)
            self.floor += 1
            if op is None:
                continue
            if op.phase is Phase.SERVING:
                self.out.append(Stop(self.gid, op.seq))
            if op.submission is not None:
                if not op.reported:
                    self._report(op)
                if op.outcome == OK:
                    self.out.append(Free(op.submission))

    @property
    def lazy(self) -> bool:
        """Whether there is news on what is done or released that nothing has carried yet."""
        return self.live and (self.done[self.rank] > self.announced_done or self._unheard_release())

    def _unheard_release(self) -> bool:
        return self.client is not None and self.floor > self.told_released

    def flush(self) -> None:
        """Send what :attr:`lazy` speaks of."""
        if self.live and self.done[self.rank] > self.announced_done:
            self._announce_done()
        if self._unheard_release():
            self.told_released = self.floor
            self.out.append(TellReleased(self.client, self.join_id, self.floor))

    def drop(self) -> None:
        """The session is over and gone: free what it still holds."""
        for op in self.ops.values():
            if op.active:
                self.out.append(Stop(self.gid, op.seq))
            if op.submission is not None and op.outcome in ("", OK):
                self.out.append(Free(op.submission))
        self.ops.clear()
