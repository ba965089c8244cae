"""The calls of one stay in a group: what is open, what must be kept, what is over.

Bookkeeping only; the lock around it is that of the connection, and the messages are the group's.
Whatever changes here may be interrupted (:mod:`ringd.client.pump`) and then be done again: what an
op is stands in the op, and the counts follow from that.
"""

from __future__ import annotations

import secrets
from typing import Any, Protocol

import msgspec

from ringd import errors
from ringd.client.channel import Payload
from ringd.client.pool import Block
from ringd.collective.call import MAX_TEXT, Call
from ringd.collective.eager import LONGEST
from ringd.collective.kinds import KINDS
from ringd.wire.border.messages import MAX_LOSS, Ref, Submit

OK = "ok"
SHORT_WINDOW = 8 << 20
"""Bytes of the inputs of open ops that may travel with their offers, and of the shapes of tensors
that do: members keep them until the op can run, and offer them anew at once when the ring has
formed again. With the default settings as much as a window full of the longest that are eager in
every ring."""
_LEAST_TIMEOUT = 1e-3  # seconds; 0 would mean: none
_UNDIVIDED = frozenset(name for name, kind in KINDS.items() if kind.undivided)


def sendable(text: str) -> str:
    """Return *text* with marks for what is no text: a file's name can be of any bytes."""
    return text.encode(errors="replace").decode()


class Filler(Protocol):
    """Knows what an op is to be that was counted before that was known."""

    @property
    def first(self) -> Op:
        """The op that tells of that."""

    @property
    def in_vain(self) -> bool:
        """Whether the op need not be made any more, if it is the last one."""

    def complete(self, op: Op) -> bool:
        """Make *op* what it is to be, or end it; False as long as that cannot be done."""


_LATER: Any = None
"""In the place of what is there once an op is submitted."""


# A Struct, as it is made for every call: in C, and without a function.
class Op(msgspec.Struct, eq=False):
    """One call, kept until it is known to be finished on all members."""

    call: Call
    length: int
    """Bytes of the input."""
    result_length: int | None
    """Bytes of the result; None where this rank is given none."""
    payload: Payload | None = None
    """The input, when it travels inside the message."""
    source: Ref | None = None
    """Where the input stands in shared memory."""
    source_block: Block | None = None
    """Keeps *source* from being reused."""
    target: Block | None = None
    """Where the result comes to stand; None when it travels inside the message."""
    hold: bool = False
    """Whether the input is the user's own array."""
    left: bool = False
    """Whether nobody can wait for it any more: the user may write to that array."""
    kept: tuple[Block | None, ...] = ()
    """Memory that the daemon may be at work in until the op is released."""
    asked: float | None = None
    """The timeout that the program gave, in seconds; None if it gave none."""
    timeout: float | None = None
    """The deadline on the monotonic clock, 0 for none, None for the daemon's default."""
    give_up: float | None = None
    """When the client decides by itself that the deadline has passed."""
    breaks: int = 0
    """How often the ring had broken when it was submitted."""
    filler: Filler | None = None
    """Completes it, if it is not complete: it cannot be handed over before."""
    session: Session = _LATER
    seq: int = -1
    memory_made: int = 0
    """Bytes of shared memory that the ops of its session up to this one had."""
    length_made: int = 0
    """Bytes of their inputs, wherever these stood."""
    short_made: int = 0
    """Bytes of those, and of shapes, that may travel with their offers."""
    ended: bool = False
    """Last of what an outcome sets, as it is looked at without the lock."""
    over: bool = False
    """Waiting is over: it has ended, or the ring was forgotten, by which it is about to end."""
    error: errors.RingError | None = None
    reply: Payload | None = None
    """The result, when it came inside the message."""
    sealed: bool = False
    """The result is there, but others may still need the input (*hold*)."""

    @property
    def outcome(self) -> str:
        """What the daemon is told of this op when it has to be told again."""
        if self.error is not None:
            return self.error.code
        if self.ended and self.hold:
            return errors.RingError.code  # whoever still lacks the result cannot have it from us
        return OK if self.ended or self.sealed else ""

    @property
    def handed_over(self) -> bool:
        """Whether a daemon has ever been handed it."""
        return self.seq < self.session.handed

    @property
    def stands(self) -> bool:
        """Whether its result is complete, though no daemon may have said so."""
        mark = (self.session.join_id, self.seq)
        return self.target is not None and self.target.sealed_by(self.target_length) == mark

    @property
    def gives_up(self) -> float | None:
        """When the client decides that its deadline has passed; None for never.

        For one that no daemon has been handed, nobody else does, and nobody can have completed it.
        One that waits for another to tell what it is has the time of that.
        """
        if self.filler is not None:
            return self.filler.first.gives_up
        return self.give_up if self.seq < self.session.handed else self.timeout or None

    def pass_memory_again(self) -> None:
        """The daemon may have had no room for its memory; it may have some next time.

        Or it was another member that lacked something: then to be passed again is harmless.
        """
        for block in (self.source_block, self.target):
            if block is not None:
                block.segment.refused = True

    def submission(self, now: float, acked: int) -> Submit:
        """Return the message that hands this op over, for the first time or again."""
        timeout = self.timeout
        if timeout:
            timeout = max(timeout - now, _LEAST_TIMEOUT)
        outcome = message = ""
        if self.ended or self.sealed or self.error is not None:
            outcome, message = self.outcome, sendable(self._explanation()[:MAX_TEXT])
        # What ended has its result in the user's hands, where nobody may write any more.
        wants_target = self.target is not None and not outcome
        return Submit(
            join_id=self.session.join_id,
            seq=self.seq,
            call=self.call,
            timeout=timeout,
            source=self.source,
            target=self.target.ref(self.target_length) if self.target and wants_target else None,
            acked=acked,
            hold=self.hold,
            outcome=outcome,
            message=message,
            asked=self.asked,
        )

    def _explanation(self) -> str:
        if self.error is None and self.ended and self.hold:
            return (
                "a member that had the result has had its own memory back since: this one cannot "
                "be computed again"
            )
        return "" if self.error is None else str(self.error)

    def become(self, made: Op) -> None:
        """It turns out to be the call *made*, with its tensors."""
        self.call, self.length, self.result_length = made.call, made.length, made.result_length
        self.payload, self.source, self.source_block = made.payload, made.source, made.source_block
        self.target = made.target

    def result_bytes(self) -> bytes | memoryview:
        """Return the bytes of the result, where they stand."""
        if self.target is not None:
            return self.target.bytes(self.target_length).data
        return b"" if self.reply is None else self.reply

    def finish(self, reply: Payload | None) -> None:
        """The call succeeded."""
        self.reply = reply
        self.ended = self.over = True

    def fail(self, error: errors.RingError, *, keep: bool = False) -> None:
        """The call ended with *error*; nobody needs its input any more.

        *keep*: the daemon may not know that, and use its memory until the op is released.
        """
        kept = (self.source_block, self.target) if keep else ()
        self.error = error
        self.target = None
        self.forget_input()
        self.kept = kept
        self.ended = self.over = True

    @property
    def target_length(self) -> int:
        """Bytes of the target, which has room for a seal also where there is no result."""
        return self.result_length or 0

    def forget_input(self) -> None:
        """Let go of the memory that only the daemon needs."""
        self.payload = self.source = self.source_block = None
        self.kept = ()


class Session:
    """One stay in a group, known by its join id."""

    def __init__(self, after: Session | None = None) -> None:  # noqa: PLR0915 - one line each
        self.join_id = secrets.randbits(63) + 1
        self.asked = False
        """Whether a daemon has ever been asked for it."""
        self.former = 0
        """The join id of the last stay before this one that a daemon was asked for; 0 for none."""
        self.former_loss = ""
        """Who had left that one first, if that was how it ended: others may not know yet."""
        if after is not None and not after.asked:
            self.former, self.former_loss = after.former, after.former_loss
        elif after is not None:
            self.former = after.join_id
            if isinstance(after.loss, errors.GroupLost):
                self.former_loss = str(after.loss)[:MAX_LOSS]
        self.members: tuple[int, ...] = ()
        """The join ids, by rank, of those who are in it; empty until a daemon says so."""
        self.places: tuple[int, ...] = ()
        """The members on which they are; empty: each on the member of its number."""
        self.next_seq = 0
        self.handed = 0
        """All ops below have been handed to a daemon, this one or a former one."""
        self.sent = 0
        """All ops below that need it have been handed to the daemon that is there now."""
        self.attached_over: object = None
        """The channel over which our place in the group has been asked for; None for none."""
        self.taken_in_over: object = None
        """The one over which the daemon can be told of our calls: it has given us that, or will
        before it reads them."""
        self.released = 0
        """All ops below are finished on all members."""
        self.acked = 0
        """All ops below have their outcome here."""
        self.memory_made = 0
        """Bytes of shared memory that all ops so far had."""
        self.memory_acked = 0
        """Likewise those below :attr:`acked`."""
        self.length_made = 0
        """Bytes of all inputs so far."""
        self.length_acked = 0
        """Likewise."""
        self.short_made = 0
        """Bytes of all inputs so far that may travel with their offers."""
        self.short_released = 0
        """Likewise of the ops below :attr:`released`."""
        self.ack_wanted = 0
        """Somebody waits to hear of ops below that they have their outcome here."""
        self.ack_sent = 0
        """What :attr:`acked` was when that was answered last."""
        self.ops: dict[int, Op] = {}
        """What is not released, by number."""
        self.incomplete: dict[int, Op] = {}
        """Of these, those that have a :attr:`Op.filler`."""
        self.limit: int | None = None
        """Calls from this number on end with :attr:`loss`; None while the session is whole."""
        self.loss: errors.RingError | None = None
        self.told: set[str] = set()
        """Codes of the errors that the user has had from its calls."""
        self.answered_over: object = None
        """The channel over which a daemon has last said that it has given us our place; of an end,
        which nobody says of one, over which that was last to be opened."""

    @property
    def attached(self) -> bool:
        """Whether a daemon has ever accepted it."""
        return self.answered_over is not None

    @property
    def unfinished(self) -> int:
        """Bytes of the inputs of these ops."""
        return self.length_made - self.length_acked

    @property
    def end(self) -> int:
        """The number below which daemons have been handed all calls that are not lost."""
        return self.handed if self.limit is None else min(self.handed, self.limit)

    @property
    def open(self) -> bool:
        """Whether an op has no outcome yet."""
        return any(not op.ended for op in self.ops.values())

    @property
    def over(self) -> bool:
        """Whether the next call has no place in this session."""
        return self.limit is not None and self.next_seq >= self.limit

    def add(self, op: Op, then: Op | None = None) -> int:
        """Count *op*, which has the next number, and *then* the one that belongs to it.

        Returns the bytes of shared memory of the ops from the first that has no outcome yet on.
        """
        last = op if then is None else then
        source = 0 if op.source is None else op.length
        target = 0 if op.target is None else op.target_length
        op.memory_made = last.memory_made = self.memory_made + source + target
        op.length_made = last.length_made = self.length_made + op.length
        whole = op.call.kind in _UNDIVIDED  # others are eager up to the limit alone
        short = op.length if whole and op.length <= LONGEST else 0
        short += len(op.call.tensors)
        op.short_made = last.short_made = self.short_made + short
        if then is not None:
            self.incomplete[then.seq] = then
        # Stores that nothing can come between: it is made, or it is not.
        self.ops[op.seq] = op
        self.ops[last.seq] = last
        self.next_seq = last.seq + 1
        self.memory_made, self.length_made = op.memory_made, op.length_made
        self.short_made = op.short_made
        return self.memory_made - self.memory_acked

    def has_room_for(self, seq: int, op: Op | None, window: int) -> bool:
        """Whether the daemon may be handed *op*, of number *seq*, now: it bounds what is open.

        By the number of ops, and so that others keep no more than :data:`SHORT_WINDOW` for each of
        this rank's peers, also by the bytes of inputs that may travel with their offers.
        """
        short = 0 if op is None else op.short_made - self.short_released
        return seq < self.released + window and short <= SHORT_WINDOW

    def complete(self) -> None:
        """Complete what can be completed by now, in order."""
        for seq, op in list(self.incomplete.items()):
            filler, known = op.filler, self.ops.get(seq) is op
            if known and filler is not None:
                if not filler.complete(op):
                    return
                if filler.in_vain and self.next_seq == seq + 1:
                    self.next_seq = seq
                    self.ops.pop(seq, None)
            op.filler = None
            self.settle()  # it may have ended
            self.incomplete.pop(seq, None)

    def finish(self, op: Op, reply: Payload | None) -> None:
        """*op* succeeded."""
        op.finish(reply)
        self.settle()

    def fail(self, op: Op, error: errors.RingError, *, keep: bool = False) -> None:
        """*op* ended with *error*; *keep* as in :meth:`Op.fail`."""
        op.fail(error, keep=keep)
        self.settle()

    def release(self, floor: int) -> None:
        """All ops below *floor* are finished on all members."""
        while self.released < min(floor, self.next_seq):
            op = self.ops.get(self.released)
            if op is not None:
                if op.sealed and not op.ended:
                    self.finish(op, None)
                if not op.ended:
                    break
                op.payload = None
                if op.source_block is not None or op.kept:
                    op.forget_input()
                self.short_released = op.short_made
                self.ops.pop(op.seq, None)
            self.released += 1

    def cut(self, floor: int, error: errors.RingError) -> None:
        """Ops from *floor* on end with *error*, those to come included."""
        self.limit = floor if self.limit is None else min(floor, self.limit)
        self.loss = error
        for op in list(self.ops.values()):
            if op.seq >= floor:
                if not op.ended:
                    op.fail(error)
                self.settle()
                self.ops.pop(op.seq, None)

    def settle(self) -> None:
        """Find what :attr:`acked` has become; once more is harmless."""
        while (op := self.ops.get(self.acked)) is not None and op.ended:
            self.acked += 1
            self.memory_acked, self.length_acked = op.memory_made, op.length_made
