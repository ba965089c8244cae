"""One local client's stay in a group: with whom it calls, from when on, and until when.

A *session* is agreed on when every member of the ring has a client in the group: it is the
tuple of their join ids, and its number (``gid``) is a hash of that, so all members name it
alike without asking anybody. Ops are numbered from 0 within it (:mod:`ringd.groups.calls`).

A member goes *live* once every other one has said that it is in the session too, and offers
nothing before. So a session that not all agree on can be forgotten without a trace; one that
went live is for good, and the client is told of it first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from hashlib import blake2b
from typing import NamedTuple

from ringd.collective.call import MAX_TEXT, Call
from ringd.collective.view import View
from ringd.errors import DeadlineExceeded, GroupLost, PeerLost
from ringd.groups.actions import Action, Free, Stop, TellLost, TellReleased, TellSession
from ringd.groups.calls import Calls
from ringd.groups.op import OK, Move, Op, Phase, Submission, Told
from ringd.groups.words import shorten
from ringd.wire.link.control import Left, Poll

MAX_JOIN_ID = 2**64 - 1

_REMEMBERED_SESSIONS = 64
"""News is late by a trip round the ring, not by that many joins of other members."""


class Before(NamedTuple):
    """Where a client comes from that joins."""

    join_id: int = 0
    """Of its stay before this one; 0 for none."""
    loss: str = ""
    """Why that was lost, if it was: who left that session first, in words."""


def session_number(group: str, join_ids: tuple[int, ...]) -> int:
    """Return the u64 under which all members know the session of these clients."""
    digest = blake2b(group.encode(), digest_size=8)
    for join_id in join_ids:
        digest.update(join_id.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little")


def well_formed(join_ids: tuple[int, ...], size: int) -> bool:
    """Whether these can be the join ids of a session of *size* members."""
    return len(join_ids) == size and all(0 < join_id <= MAX_JOIN_ID for join_id in join_ids)


class Session(Calls):
    """See the module's docstring. Every method appends what is to be done to *out*."""

    def __init__(
        self,
        *,
        group: str,
        join_id: int,
        client: Hashable,
        on_loss: str,
        released: int,
        expected: int = 0,
        before: Before = Before(),  # noqa: B008 - a value
        view: View,
        out: list[Action],
        refusal: Callable[[Call], str] = lambda _call: "",
    ) -> None:
        super().__init__(
            group=group,
            join_id=join_id,
            client=client,
            released=released,
            view=view,
            out=out,
            refusal=refusal,
        )
        self.on_loss = on_loss
        self.before = before
        self.next_seq = released
        """The number of the client's next op."""
        self.expected = expected
        """Ops below were handed to a former daemon and are about to be handed over again."""
        self.early: list[tuple[int, int, Poll, float]] = []
        """Polls on such ops, which may have completed: (origin, number, poll, when it came)."""
        self.join_ids: tuple[int, ...] = ()
        self.pledged = False
        """The client knows its peers, as something may have been offered to them."""
        self.given_up: deque[tuple[int, ...]] = deque(maxlen=_REMEMBERED_SESSIONS)
        """Sessions that a member left before they went live; late news of them may come yet."""

    # --- forming ----------------------------------------------------------------------

    @property
    def formed(self) -> bool:
        """Whether the members of the session are known."""
        return self.gid != 0

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

    def may_be(self, join_ids: tuple[int, ...]) -> bool:
        """Whether these can be our peers: we are among them, and none is known to have left."""
        return (
            well_formed(join_ids, self.view.size)
            and join_ids[self.view.rank] == self.join_id
            and join_ids not in self.given_up
        )

    def unform(self) -> None:
        """Forget the peers: they never agreed on this session; the client's ops wait on."""
        self.given_up.append(self.join_ids)
        for op in list(self.ops.values()):
            self._reset(op)
            if op.submission is None:
                del self.ops[op.seq]
        self.gid = 0
        self.join_ids = ()
        self.confirmed = set()
        self.ledger.forget_peers()
        self.counts = [0] * self.view.size

    def form(self, join_ids: tuple[int, ...]) -> None:
        """Take *join_ids* as the session's members."""
        self.gid = session_number(self.group, join_ids)
        self.join_ids = join_ids
        self.confirmed = {self.view.rank}
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
        if not self.pledged:
            self.pledged = True
            if self.client is not None:
                self.out.append(TellSession(self.client, self.join_id, self.join_ids))
        self._advance()
        self.announce_done()
        for seq in sorted(self.ops):
            op = self.ops.get(seq)
            if op is not None and op.submission is not None:
                self._offer(op, op.submission)

    def suspend(self) -> list[Op]:
        """The ring broke, which overtakes any poll that is on its way.

        Returns:
            The ops whose deadline has passed, about which the others must be asked again.
        """
        late = [op for op in self.ops.values() if op.own_poll and not op.ended]
        self.confirmed = {self.view.rank} if self.formed else set()
        self.early.clear()
        self.ledger.announced = 0
        for op in list(self.ops.values()):
            self._reset(op)
            self._complete(op)  # the poll that held it back is gone
        return late

    # --- the client's side ------------------------------------------------------------

    @property
    def returning(self) -> bool:
        """Whether the client has yet to say how some calls ended under a former daemon."""
        return self.left is None and self.next_seq < self.expected

    def may_have_completed(self, op: Op) -> bool:
        """Whether other members may have completed *op*: they need our offer for that."""
        return self.formed and (op.phase is not Phase.OPEN or op.seq < self.expected)

    def awaited(self, seq: int) -> bool:
        """As in :class:`Calls`."""
        return self.returning and self.next_seq <= seq < self.expected

    def polled(self, origin: int, seq: int, poll: Poll, now: float) -> None:
        """As in :class:`Calls`; the answer waits for a client that is about to say it."""
        if self.awaited(seq):
            self.early.append((origin, seq, poll, now))
        else:
            super().polled(origin, seq, poll, now)

    def answer_early(self) -> None:
        """Answer the polls of which the client has said what it knows, or never will."""
        early, self.early = self.early, []
        for origin, seq, poll, now in early:
            self.polled(origin, seq, poll, now)

    def submit(self, submission: Submission, outcome: str, message: str, now: float) -> None:
        """Take the client's next op, or one again that it offered to a former daemon."""
        seq = submission.seq
        self.next_seq = seq + 1
        op = self._op(seq, now)
        op.submission = submission
        if op.outcome == DeadlineExceeded.code and seq >= self.expected:
            # The others were told some time ago, and this call was made just now.
            late = f"{op.message}; made here {now - op.since:.1f} s after the first one"
            op.message = shorten(late, MAX_TEXT)
        op.since = now
        held = outcome == OK and submission.hold
        if outcome and not held:
            op.told = Told.KNEW
        if op.ended:  # by a verdict or a loss, before we had a part in it
            self._report(op)
            self._free_failed(op)
        elif held:
            op.move(Move.HOLD)
        elif outcome:
            op.end(outcome, message)
            self._free_failed(op)
        elif self.limit is not None and seq >= self.limit:
            self._end(op, *self.loss)
        self._advance()
        self._complete(op)
        if self.live:
            self._offer(op, submission)
        if self.early:
            self.answer_early()

    def tell_again(self) -> None:
        """Tell the client what became of its stay; an interrupt may have lost what it was told."""
        if self.pledged:
            self.out.append(TellSession(self.client, self.join_id, self.join_ids))
        if self.limit is not None:
            self.out.append(TellLost(self.client, self.join_id, self.limit, *self.loss))
        self.ledger.told = self.floor
        self.out.append(TellReleased(self.client, self.join_id, self.floor))

    def report_again(self, seq: int) -> None:
        """Tell the client how op *seq* ended, if it has, for the same reason."""
        op = self.ops.get(seq)
        if op is not None and op.told is not Told.NO:
            self._report(op, again=True)

    def ack(self, acked: int) -> None:
        """The client has every outcome below *acked*."""
        before = self.ledger.acked
        acked = min(acked, self.next_seq)
        if acked > before:
            self.ledger.acked = acked
            self._advance()
            for seq in range(before, acked):
                if (op := self.ops.get(seq)) is not None:
                    self._announce(op)

    def leave(self, message: str) -> Left:
        """The client takes part no more; what it handed over is still completed for others.

        It leaves us what it had lent as it is.
        """
        submitted = self.next_seq if self.formed else 0
        code = GroupLost.code
        if self.limit is not None:
            if self.next_seq >= self.limit:
                code, message = self._cause(message)
            submitted = min(submitted, self.limit)
        self.left = Left(self.group, self.join_id, submitted, code, message)
        for op in self.ops.values():
            if not op.ended and op.seq < submitted and op.submission is not None:
                op.submission.hold = False
        self.cut(self.left.submitted, self.left.code, message)
        self._settle()
        return self.left

    def _cause(self, message: str) -> tuple[str, str]:
        """Return what others shall hear of one that goes because its session is over.

        That is who left first, in the same words for all: some may hear of the survivors'
        leaving only, as when the ring broke in between.
        """
        code, loss = self.loss
        if code in (GroupLost.code, PeerLost.code):
            return code, loss
        return GroupLost.code, f"{message}: {loss}"

    def peer_left(self, name: str, submitted: int, code: str, message: str) -> None:
        """The client on *name* takes part no more from op *submitted* on."""
        if code == PeerLost.code and self.on_loss != "fail":
            code = GroupLost.code
            message = f'the client on {name!r} waits for nobody (on_loss="fail"): {message}'
        self.cut(submitted, code, message)

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
        cut_off = [op for op in self.ops.values() if op.seq >= limit and not op.ended]
        for op in cut_off:
            if op.phase is Phase.HELD:
                self._complete(op)
        # Before the calls' ends: a client that learned of those first would make its next call
        # in this session, and lose that as well.
        if self.left is None:
            self.out.append(TellLost(self.client, self.join_id, limit, code, message))
        for op in cut_off:
            if op.phase is not Phase.HELD and not op.ended:
                self._end(op, code, message)

    def fail_all(self, code: str, message: str) -> None:
        """The client asked to be told of any loss at once: all of its open ops end."""
        open_ops = [op for op in self.ops.values() if op.submission is not None and not op.ended]
        self.cut(min((op.seq for op in open_ops), default=self.next_seq), code, message)

    # --- news that can wait -----------------------------------------------------------

    @property
    def lazy(self) -> bool:
        """Whether there is news on what is done or released that nothing has carried yet."""
        return (self.formed and self.ledger.unannounced) or self._unheard_release()

    def _unheard_release(self) -> bool:
        return self.client is not None and self.ledger.untold

    def flush(self) -> None:
        """Send what :attr:`lazy` speaks of, while the ring is up."""
        if self.formed and self.ledger.unannounced:
            self.announce_done()
        if self.client is not None and self.ledger.untold:
            self.ledger.told = self.floor
            self.out.append(TellReleased(self.client, self.join_id, self.floor))

    def drop(self) -> None:
        """The session is over and gone: free what it still holds."""
        for op in self.ops.values():
            if op.active:
                self.out.append(Stop(self.gid, op.seq))
            if op.submission is not None and not op.failed:
                self.out.append(Free(op.submission))
        self.ops.clear()
