"""This client's place in its group: what the daemon says about it, and what it is told.

Bookkeeping and messages, without waiting; :mod:`ringd.client.connection` calls it under its lock,
and again where an interrupt ended that (see :mod:`ringd.client.pump`): messages are taken in so
that twice is like once, and what is to be sent follows from the state (:meth:`Group.push`).
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from ringd import errors
from ringd.client.channel import Channel, Payload
from ringd.client.pool import Pool
from ringd.client.session import Op, Session, sendable
from ringd.wire.border.messages import (
    VERSION,
    Ack,
    Answer,
    Attach,
    Attached,
    Completed,
    Denied,
    Detach,
    Failed,
    Lost,
    Released,
    Reply,
    RingState,
    pack,
)

_OP_BYTES = 1024
"""What a call costs that waits here, beside its tensor."""


class Group:
    """The current session, the memory for its tensors, and the daemon that it lives with."""

    def __init__(self, name: str, on_loss: str) -> None:
        self.name = name
        self.pool = Pool()
        self.session = Session()
        self.info: Attached | None = None
        """What a daemon said last of itself; None before any has."""
        self.refusal: errors.RingError | None = None
        """Why the first daemon would not have us."""
        self.pending_error: errors.RingError | None = None
        """Why a session ended, until the user has been told."""
        self._ended_session: Session | None = None
        """Which session that was."""
        self.trouble = ""
        """What went wrong last with a daemon, for messages."""
        self.broke = ""
        """Why the ring broke the last time, for messages."""
        self._breaks = 0
        """How often it did, as far as is known."""
        self._on_loss = on_loss
        program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
        self._program = sendable(program)
        self._channel: Channel | None = None
        self._silent = False
        """The daemon has been missed, and not heard since: it is sent nothing more."""
        self._left = False

    @property
    def fails_on_loss(self) -> bool:
        """Whether a loss ends the open calls at once, as the user asked for."""
        return self._on_loss == "fail"

    # --- the daemon comes and goes ----------------------------------------------------

    def install(self, channel: Channel) -> None:
        """A daemon is there: take our place in it, and offer what is unfinished.

        One that knows us already says again how that ended, and what became of our stay.
        """
        if self.session.over and not self.session.open:
            self._join_anew()
        session = self.session
        session.attached_over = None  # so that push begins with that
        session.sent = session.released
        self._channel = channel
        self._silent = False
        for op in list(session.ops.values()):
            self._look_for_seal(op)
        self.push()

    def lose(self, channel: Channel) -> None:
        """The daemon is gone; harmless if that is known."""
        if self._channel is not channel:
            return
        self.trouble = self.trouble or f"{channel.path}: the daemon ended"
        if self.info is not None:
            self._set_state("forming", self.info.generation)
        self._lose_peer(f"this machine's daemon ({channel.path}) went away")
        self._channel = None  # last: all else is done again until that is so

    def report_absence(self) -> None:
        """The daemon has been away for so long that also calls made since then are lost."""
        self._lose_peer(f"this machine's daemon is away ({self.trouble})")

    def report_silence(self, channel: Channel, seconds: float) -> None:
        """The daemon has not answered for so long that it counts as lost; it may be back yet.

        What was sent to it would pile up unread until then, shared memory first of all.
        """
        self._silent = True
        text = f"this machine's daemon ({channel.path}) has not answered for {seconds:g} s"
        self._lose_peer(f"{text} (is it stopped?)")

    def _lose_peer(self, text: str) -> None:
        """Tell a user who wants to know at once; others wait for the daemon's return."""
        if self.fails_on_loss and self.session.open and not self._left and self._leave_inputs():
            self._cut(self.session.released, errors.PeerLost(text))

    def leave(self) -> None:
        """Leave in good order; calls that are open are not ended by that: see :meth:`end`."""
        self._left = True
        if self._channel is not None:
            self._send(self._channel, pack(Detach(self.session.join_id)))

    def end(self, *, failed: bool) -> None:
        """End the calls that are open; they may still be completed for the others.

        *failed*: because the main thread has.
        """
        self._leave_inputs()
        closed = errors.RingError("the ring was closed before the call had ended")
        self.session.cut(0, errors.MainThreadFailed() if failed else closed)

    def abandon(self) -> None:
        """Leave all inputs, as the last thing: without the lock, so the pool's books stay as is."""
        for op in list(self.session.ops.values()):
            if op.hold and not op.ended and (block := op.source_block) is not None:
                with contextlib.suppress(OSError):
                    block.detach()
                op.hold = False

    # --- calls ------------------------------------------------------------------------

    def room(self, length: int) -> Session | None:
        """Return the session if it can take one more call now, with *length* bytes of its own.

        What the daemon has no room for yet waits here.

        Raises:
            RingError: why the last session ended, if the user does not know yet; once.
            ResourceExhausted: too much waits here.
        """
        # A loss is told by the first call that has no place in the session it befell; by now that
        # may have been followed by another one.
        if self.pending_error is not None and (self.session.over or self.session.limit is None):
            error, self.pending_error = self.pending_error, None
            raise error
        if self.session.over:
            if self.session.open:
                return None  # joining anew would cut those short
            self._join_anew()
        session = self.session
        waiting = session.next_seq - session.sent
        if waiting > self._window and waiting * (length + _OP_BYTES) > self.pool.budget:
            raise errors.ResourceExhausted(
                f"{waiting} calls of group {self.name!r} wait for others to end, as ipc.window = "
                f"{self._window} lets no more be open, and would take more memory than "
                f"ipc.segment_budget = {self.pool.budget} bytes; wait for some of them first"
            )
        return session

    @property
    def _window(self) -> int:
        return 1 if self.info is None else self.info.window

    @property
    def waits_for_room(self) -> bool:
        """Whether calls wait here until the daemon, which is there, has room for them."""
        return self._channel is not None and self.session.sent < self.session.next_seq

    def beyond_window(self) -> str:
        """Return how many calls wait here for others to end, within a sentence; empty for none."""
        waiting = self.session.next_seq - self.session.released - self._window
        if waiting <= 0:
            return ""
        return f" ({waiting} of which wait for others, as ipc.window = {self._window})"

    def is_handed_over(self, op: Op) -> bool:
        """Whether a daemon has ever been handed *op*."""
        return op.seq < op.session.handed

    def submit(self, session: Session, op: Op) -> None:
        """Take *op* into *session*; :meth:`push` sends it.

        Raises:
            Exception: it cannot be packed, and is not counted.
        """
        op.session, op.seq, op.breaks = session, session.next_seq, self._breaks
        frame = self._frame(op)
        session.add(op)
        self.pool.note(session.memory)
        self.push(frame)

    def push(self, last: bytes | None = None) -> None:
        """Send what the daemon lacks and has room for.

        *last*: the message of the last op, where it is made already.
        """
        channel, session = self._channel, self.session
        if channel is None or self._silent:
            return
        if session.attached_over is not channel:
            if not self._attach(channel):
                return
            session.attached_over = channel
        made, room = session.next_seq, session.released + self._window
        while session.sent < made:
            seq = session.sent
            if seq >= room:
                # The daemon makes room when it knows which results have arrived here. Each call's
                # message says so; but the next call cannot be sent before there is room.
                self._say_what_arrived(channel)
                return
            op = session.ops.get(seq)
            if op is not None:
                session.handed = max(session.handed, seq + 1)
                frame = last if last is not None and seq == made - 1 else self._frame(op)
                if not (self._pass_memory(channel, op) and self._send(channel, frame)):
                    return
            session.sent = seq + 1

    def _frame(self, op: Op) -> bytes:
        return pack(op.submission(time.monotonic(), self.session.acked), op.payload)

    def _send(self, channel: Channel, frame: bytes) -> bool:
        """Send *frame*; where that cannot be, part with the daemon, and return False."""
        try:
            channel.send(frame)
        except OSError as error:
            self.part(channel, f"it cannot be sent messages: {error}")
            return False
        return True

    def give_up(self, op: Op, error: errors.RingError) -> None:
        """End *op* here, without the daemon's word: with *error* unless its result stands."""
        if not self.is_handed_over(op):  # nobody reads from it, nor ever will
            op.hold = False
            op.session.fail(op, error)
        elif not self.leave_input(op):
            op.give_up = None  # the daemon will answer, or end
        elif self._stands(op):
            op.session.finish(op, None)
        else:
            op.session.fail(op, error, keep=True)

    def leave_input(self, op: Op) -> bool:
        """Leave the daemon what *op* has lent as it is, also when the user writes to it again.

        It may be read from yet, for the others. Returns whether that could be done.
        """
        if op.hold and not op.ended and op.source_block is not None:
            try:
                self.pool.detach(op.source_block)
            except OSError:  # no memory
                return False
            op.hold = False
        return True

    def leave_marked(self) -> bool:
        """As :meth:`leave_input`, for all ops that nobody can wait for any more."""
        left = [self.leave_input(op) for op in list(self.session.ops.values()) if op.left]
        return all(left)

    def _leave_inputs(self) -> bool:
        """As :meth:`leave_input`, for all ops; one for which it fails does not stop the rest."""
        left = [self.leave_input(op) for op in self.session.ops.values()]
        return all(left)

    def _stands(self, op: Op) -> bool:
        """Whether the result of *op* is complete, though no daemon has said so."""
        mark = (op.session.join_id, op.seq)
        return op.target is not None and op.target.sealed_by(op.target_length) == mark

    def told(self, op: Op, error: errors.RingError) -> None:
        """The user has been told that *op* ended with *error*.

        A call that was lost with its session tells of the session's end, too; also before we
        know of that, as the word on the calls comes first.
        """
        op.session.told.add(error.code)
        if self.pending_error is not None and self._ended_session is op.session:
            self.pending_error = (
                None if self.pending_error.code == error.code else self.pending_error
            )

    # --- messages ---------------------------------------------------------------------

    def meet(
        self, channel: Channel, join_id: int, members: tuple[int, ...], places: tuple[int, ...]
    ) -> None:
        """Take in what the daemon said over the lifeline: who our peers are, or that it lives."""
        if self._silent:
            self.install(channel)
        if join_id == self.session.join_id:
            self.session.places, self.session.members = places, members

    def receive(self, reply: Reply, payload: Payload | None) -> None:
        """Take in a message from the daemon."""
        _HANDLERS[type(reply)](self, reply, payload)

    def _completed(self, reply: Completed, payload: Payload | None) -> None:
        session = self.session
        if reply.join_id != session.join_id:
            return
        op = session.ops.get(reply.seq)
        if op is not None and not op.ended:
            inline = None if op.target is not None else op.result_length
            if inline != (None if payload is None else len(payload)):
                text = f"op {op.seq}: the daemon answered with a result of another length"
                self.give_up(op, errors.RingError(text))
            elif reply.keep and not self.leave_input(op):
                op.sealed = True  # it ends when it is released
            else:
                session.finish(op, payload)
        session.settle()
        self._acknowledge(reply)
        self._progress(reply.released)

    def _failed(self, reply: Failed, _payload: Payload | None) -> None:
        session = self.session
        if reply.join_id != session.join_id:
            return
        op = session.ops.get(reply.seq)
        if op is not None and not op.ended:
            if reply.code == errors.ResourceExhausted.code:
                self._pass_memory_again(op)
            session.fail(op, errors.from_code(reply.code, self._with_breaks(op, reply)))
        session.settle()
        self._acknowledge(reply)
        self._progress(reply.released)

    def _with_breaks(self, op: Op, reply: Failed) -> str:
        """Return why *op* failed, and, where that took long, what may have cost the time."""
        breaks, text = self._breaks - op.breaks, reply.message
        if reply.code != errors.DeadlineExceeded.code or breaks <= 0 or self.broke in text:
            return text
        times = "once" if breaks == 1 else f"{breaks} times, at last"
        return f"{text}; since the call the ring broke {times}: {self.broke}"

    def _released(self, reply: Released, _payload: Payload | None) -> None:
        if reply.join_id == self.session.join_id:
            self._progress(reply.released)

    def _lost(self, reply: Lost, _payload: Payload | None) -> None:
        if reply.join_id == self.session.join_id:
            self._cut(reply.floor, errors.from_code(reply.code, reply.message))
            self._progress(0)

    def _attached(self, reply: Attached, _payload: Payload | None) -> None:
        if reply.join_id == self.session.join_id:
            self.session.attached = True
        if self._channel is not None:
            self._channel.attached = True
        self.info = reply
        self.pool.budget = reply.segment_budget
        self.trouble = ""

    def _ring_state(self, reply: RingState, _payload: Payload | None) -> None:
        if reply.reason:
            self.broke = reply.reason
            self._breaks += 1
        self._set_state(reply.state, reply.generation)

    def _denied(self, reply: Denied, _payload: Payload | None) -> None:
        if reply.join_id not in (0, self.session.join_id):
            return
        error = errors.from_code(reply.code, reply.message)
        channel = self._channel
        if channel is not None and not channel.attached and isinstance(error, errors.NotReady):
            self.part(channel, str(error))  # it is on its way out; try the next one
        elif self.info is None:
            self.refusal = error
        else:
            self._leave_inputs()  # it may have taken in some of our calls before
            self._cut(self.session.released, error)
            self._progress(0)

    def _acknowledge(self, reply: Completed | Failed) -> None:
        """Say at once what has arrived, where somebody waits for that."""
        session = self.session
        if reply.ack:
            session.ack_wanted = max(session.ack_wanted, reply.seq + 1)
        if min(session.ack_wanted, session.acked) > session.ack_sent and self._channel is not None:
            self._say_what_arrived(self._channel)

    def _say_what_arrived(self, channel: Channel) -> None:
        session = self.session
        acked = session.acked
        if acked > session.ack_sent and self._send(channel, pack(Ack(session.join_id, acked))):
            session.ack_sent = acked

    def _ignore(self, _reply: Answer, _payload: Payload | None) -> None:
        """An answer to a question that was never asked."""

    # --- one stay after the other -------------------------------------------------------

    def _progress(self, released: int) -> None:
        session = self.session
        session.release(released)
        # A place of our own at once: the others need not wait for our next call to see us. Only
        # where a daemon had us before, or one that will not have us would be asked for ever.
        if session.over and session.attached and not (session.open or self._left):
            self._join_anew()

    def _cut(self, floor: int, error: errors.RingError) -> None:
        session = self.session
        if session.limit is None and error.code not in session.told:  # else the user knows, or will
            self.pending_error, self._ended_session = error, session
        self._retire(floor)
        session.cut(floor, error)

    def _join_anew(self) -> None:
        self._retire(self.session.released)
        for op in self.session.ops.values():
            op.forget_input()
        self.session.ops.clear()
        self.session = Session(after=self.session)
        self.push()  # which begins by taking our place

    def _attach(self, channel: Channel) -> bool:
        session = self.session
        attach = Attach(
            version=VERSION,
            token=channel.token,
            group=self.name,
            join_id=session.join_id,
            next_seq=session.end,
            released=session.released,
            on_loss=self._on_loss,
            pid=os.getpid(),
            program=self._program,
            session=session.members,
            places=session.places,
            former=session.former,
            loss=session.former_loss,
        )
        return self._send(channel, pack(attach))

    def _look_for_seal(self, op: Op) -> None:
        """End *op* if the former daemon finished it, and died before it could say so."""
        if not op.ended and self._stands(op):
            if op.hold:
                op.sealed = True
            else:
                self.session.finish(op, None)

    def tell_dropped(self) -> None:
        """Tell the daemon now which segments are gone: while it maps them, they are not."""
        self.pool.note_dropped_segments()
        channel = self._channel
        if channel is not None and not self._silent:
            self._pass_memory(channel)

    def _pass_memory(self, channel: Channel, op: Op | None = None) -> bool:
        """Tell the daemon which segments are gone, and hand it those that *op* refers to.

        Where that cannot be, part with it, and return False.
        """
        dropped = self.pool.dropped
        try:
            while dropped:  # one that is told twice is harmless
                number, passed_to = dropped[0]
                if passed_to is channel:
                    channel.drop_segment(number)
                del dropped[0]
            for block in () if op is None else (op.source_block, op.target):
                if block is not None and block.segment.is_to_be_passed(channel):
                    channel.pass_segment(block.segment)
        except OSError as error:
            self.part(channel, f"its lifeline broke: {error}")
            return False
        return True

    def _pass_memory_again(self, op: Op) -> None:
        """The daemon may have had no room for the memory of *op*; it may have some next time.

        Or it was another member that lacked something: then to be passed again is harmless.
        """
        for block in (op.source_block, op.target):
            if block is not None:
                block.segment.refused = True

    def _retire(self, floor: int) -> None:
        """Ops from *floor* on are about to be forgotten.

        Nobody is going to tell us when they are released. Until then the daemon, also one that we
        have parted with, may write to their memory, or serve others from it.
        """
        for op in self.session.ops.values():
            if op.seq >= floor:
                for block in (op.source_block, op.target, *op.kept):
                    if block is not None:
                        self.pool.retire(block)

    def part(self, channel: Channel, trouble: str) -> None:
        """Hang up on a daemon that cannot be worked with; the keeper finds the next one."""
        self.trouble = f"{channel.path}: {trouble}"
        channel.hang_up()

    def _set_state(self, state: str, generation: int) -> None:
        info = self.info
        if info is not None and (info.state, info.generation) != (state, generation):
            self.info = msgspec.structs.replace(info, state=state, generation=generation)


_HANDLERS: dict[type[Reply], Callable[..., None]] = {
    Attached: Group._attached,  # noqa: SLF001 - the class's own table, below
    Completed: Group._completed,  # noqa: SLF001
    Failed: Group._failed,  # noqa: SLF001
    Released: Group._released,  # noqa: SLF001
    Lost: Group._lost,  # noqa: SLF001
    RingState: Group._ring_state,  # noqa: SLF001
    Denied: Group._denied,  # noqa: SLF001
    Answer: Group._ignore,  # noqa: SLF001
}
