"""One group that a program is in: its place there, its calls, and what the daemon is told of them.

Bookkeeping and messages, without waiting; it is called under the connection's lock, and again where
an interrupt ended that (see :mod:`ringd.client.pump`): messages are taken in so that twice is like
once (:mod:`ringd.client.replies`), and what is to be sent follows from the state
(:meth:`Group.push`).
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from ringd import errors
from ringd.client.callsocket import Part
from ringd.client.channel import Channel
from ringd.client.daemon import Daemon
from ringd.client.session import Op, Session, sendable
from ringd.collective.call import title_of
from ringd.wire.border.messages import (
    VERSION,
    Ack,
    AskAwaited,
    Attach,
    Completed,
    Detach,
    Failed,
    Open,
    parts,
)

_OP_BYTES = 1024
"""What a call costs that waits here, beside its tensor."""

LOSSES = (errors.GroupLost, errors.PeerLost)
"""What ends a session."""

_TRY_AGAIN = 0.02
"""Seconds, until a daemon is asked again that could not take us in at once."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a program asks for when it joins a group."""

    name: str
    on_loss: str = "wait"
    local_rank: int = 0
    local_size: int = 1
    members: tuple[str, ...] = ()
    """Those that take part; empty for all."""
    ordered: bool = False
    """Whether *members* says them by rank, as often as each has programs."""
    root: str = ""
    """The group of which it is a part, or a part of a part; empty for one that is none."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a program is in its group, once its session has formed."""

    rank: int
    machines: tuple[int, ...]
    """The member of the ring on which each rank is."""

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self.machines)

    @classmethod
    def of(cls, session: Session) -> Place:
        """Return our place in *session*, whose members are known, with us among them."""
        members = session.members
        return cls(members.index(session.join_id), session.places or tuple(range(len(members))))


class Group:
    """What is known of this program's stay; one session follows the other, the group remains."""

    def __init__(self, wish: Wish, daemon: Daemon) -> None:
        self.wish = wish
        self.name = wish.name
        self.session = Session()
        self.accepted = False
        """Whether a daemon has ever taken us in."""
        self.refusal: errors.RingError | None = None
        """Why the first daemon would not have us."""
        self.place: Place | None = None
        """Where we are, or were in the last session that formed; None before the first."""
        self.awaited = ""
        """For whom that waits, as the daemon said last."""
        self.conflict = False
        """Whether in vain, as the programs disagree on who takes part."""
        self.pending_error: errors.RingError | None = None
        """Why a session ended, until the user has been told."""
        self.known_lost: tuple[Session, errors.RingError] | None = None
        """A session of which a message has told the user that it is lost, and why."""
        self._ended_session: Session | None = None
        """Which session that was."""
        self.left = False
        """The program leaves it: the daemon was told, or is to be."""
        self.parted = False
        """And the daemon has let go of it, or is gone."""
        self.forgotten = False
        """It is to be left as soon as that can be."""
        self.ended = False
        """Nothing is left to be done for it."""
        self.not_before = 0.0
        """When the daemon may be asked for our place again."""
        self.ends: dict[int, Group] = {}
        """Its ends of channels, by number."""
        self.ends_by_key: dict[tuple[int, int, int], Group] = {}
        """The last one of each: by sender's rank, receiver's rank, tag."""
        self.sending: dict[Group, None] = {}
        """Those that may have messages on their way."""
        self.lost_messages: defaultdict[Session, Counter[tuple[int, int]]] = defaultdict(Counter)
        """How many that nobody waits for were lost with each session of whose loss the user does
        not know yet; by the receiver's rank and the tag."""
        self.arrived = 0
        """Of an end: how many messages have come, of all that were ever sent."""
        self.daemon = daemon
        program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
        self.program = sendable(program)

    @property
    def fails_on_loss(self) -> bool:
        """Whether a loss ends the open calls at once, as the user asked for."""
        return self.wish.on_loss == "fail"

    # --- the daemon comes and goes ----------------------------------------------------

    def install(self) -> None:
        """A daemon is there: take our place in it, and offer what is unfinished.

        One that knows us already says again how that ended, and what became of our stay.
        """
        if self.left:  # of that it knows nothing
            self.parted = True
            return
        if self.session.over and not self.session.open:
            self._renew()
        session = self.session
        session.attached_over = session.taken_in_over = None  # so that push begins with that
        session.sent = session.released
        self.not_before = 0.0
        for op in list(session.ops.values()):
            self._look_for_seal(op)

    def lose_peer(self, text: str) -> None:
        """Tell a user who wants to know at once; others wait for the daemon's return."""
        waits = self.session.open or any(end.awaits_message for end in self.ends.values())
        if self.fails_on_loss and waits and not self.left and self.leave_inputs():
            self.cut(self.session.released, errors.PeerLost(text))

    def postpone(self) -> None:
        """The daemon cannot take us in now: ask it again, soon, and offer all anew then."""
        self.session.attached_over = self.session.taken_in_over = None
        self.session.sent = self.session.released
        self.not_before = time.monotonic() + _TRY_AGAIN
        for end in self.ends.values():  # it has heard of none of them either
            end.postpone()
        self.daemon.wake()

    def leave(self, *, hung_up: bool = False) -> None:
        """Leave it; calls that are open are not ended by that: see :meth:`end`.

        *hung_up*: the program forgot its ring.
        """
        for one in (self, *self.ends.values()):
            one.left = True
        for end in self.ends.values():
            end.parted = True
        message = parts(Detach(self.session.join_id, self.session.acked, hung_up))
        if self.ended or not self._say(message):
            self.parted = True

    def ask_awaited(self) -> None:
        """Ask for whom the session waits; what was said before counts no more."""
        self.conflict = False
        if self.taken_in:
            self.daemon.send(parts(AskAwaited(self.session.join_id)))

    def _say(self, message: tuple[Part, ...]) -> bool:
        """Say something of this stay that must not overtake how it began; also to a silent one."""
        return self.daemon.send(message, anyway=True, apart=not self.taken_in)

    def end(self, error: errors.RingError) -> None:
        """End the calls that are open with *error*; they may still be completed for the others.

        The daemon may be at work in their memory until then.
        """
        for end in list(self.ends.values()):
            end.end(error)
        if self.ended:
            return
        self.leave_inputs()
        self._retire(0)
        self.session.cut(0, error)
        self.ended = True

    def abandon(self) -> None:
        """Leave all inputs, as the last thing: without the lock, so the pool's books stay as is."""
        self.forgotten = True
        for end in list(self.ends.values()):
            end.abandon()
        for op in list(self.session.ops.values()):
            op.over = True
            if op.hold and not op.ended and (block := op.source_block) is not None:
                with contextlib.suppress(OSError):
                    block.detach()
                op.hold = False

    # --- calls ------------------------------------------------------------------------

    def title(self, seq: int) -> str:
        """Return what texts call its op *seq*."""
        return title_of(self.name, seq)

    def raise_loss(self) -> None:
        """Raise why the last session ended, if the user does not know yet; once.

        A loss is told by the first call that has no place in the session that it ended; by now that
        may have been followed by another one.
        """
        if self.pending_error is not None and (self.session.over or self.session.limit is None):
            error, self.pending_error = self.pending_error, None
            if self._ended_session is not None:
                self.told_in(self._ended_session, error)  # also of messages yet to be lost with it
            self.lost_messages.clear()
            raise error

    def room(self, length: int, calls: int = 1) -> Session | None:
        """Return the session if it can take one more call now, with *length* bytes of its own.

        What the daemon has no room for yet waits here. *calls*: how many are to be made together,
        of up to *length* bytes each.

        Raises:
            RingError: as :meth:`raise_loss`.
            ResourceExhausted: too much waits here.
        """
        if self.known_lost is not None:
            self._end_known_lost()
        if self.pending_error is not None:
            self.raise_loss()
        if self.session.limit is not None and self.session.over:
            if self.session.open:
                return None  # joining anew would cut those short
            self.join_anew()
        session, pool, window = self.session, self.daemon.pool, self.daemon.window
        waiting = session.next_seq - session.sent + calls - 1
        if waiting > window and waiting * (length + _OP_BYTES) > pool.budget:
            raise errors.ResourceExhausted(
                f"{waiting} calls of group {self.name!r} wait for others to end, as ipc.window = "
                f"{window} lets no more be open, and would take more memory than "
                f"ipc.segment_budget = {pool.budget} bytes; wait for some of them first"
            )
        return session

    def _end_known_lost(self) -> None:
        """End a session of whose loss a message has told: what follows is of the next one.

        By itself it would go on up to the last call that the lost program has handed over.
        """
        if self.known_lost is not None:
            session, error = self.known_lost
            if session is self.session:
                self.close_session(session.next_seq, error)
            self.known_lost = None

    @property
    def formed(self) -> bool:
        """Whether the session is known to have formed."""
        return bool(self.session.members)

    @property
    def awaits_message(self) -> bool:
        """Whether it is an end at which a message is waited for, of which no call is made yet."""
        return False

    def may_call(self) -> bool:
        """Whether the session is known to have formed; one that is over makes way for the next.

        Raises:
            RingError: as :meth:`raise_loss`.
        """
        self._end_known_lost()
        self.raise_loss()
        if self.session.over:
            if self.session.open:
                return False
            self.join_anew()
        return self.formed

    def beyond_window(self) -> str:
        """Return how many calls wait here for others to end, within a sentence; empty for none."""
        window = self.daemon.window
        waiting = self.session.next_seq - self.session.released - window
        return f" ({waiting} of which wait for others, as ipc.window = {window})" * (waiting > 0)

    def submit(self, session: Session, op: Op, then: Op | None = None) -> bool:
        """Take *op* into *session*, and *then* the one that belongs to it, and :meth:`push` them.

        Raises:
            Exception: it cannot be packed, and is not counted.
        """
        for number, one in enumerate((op,) if then is None else (op, then)):
            one.session, one.seq = session, session.next_seq + number
            one.breaks = self.daemon.breaks
        made = parts(op.submission(time.monotonic(), session.acked), op.payload)
        pool = self.daemon.pool
        pool.retention.note(session.add(op, then), pool.now())
        return self.push(op.seq, made)

    def push(self, made_seq: int = -1, made: tuple[Part, ...] = ()) -> bool:
        """Send what the daemon lacks and has room for; return whether that is all.

        *made*: the message of the op *made_seq*, which is packed already.
        """
        daemon, session = self.daemon, self.session
        if session.incomplete:
            session.complete()
        channel = daemon.ready
        if channel is None or self.left:
            return self.left or self.ended
        if session.taken_in_over is not channel:
            self._ask_in(channel)
            if session.taken_in_over is not channel:
                return False
        end, calls = session.next_seq, channel.calls
        while session.sent < end and not calls.unsent:
            seq = session.sent
            op = session.ops.get(seq)
            if not session.has_room_for(seq, op, daemon.window):
                # The daemon makes room when it knows which results have arrived here. Each call's
                # message says so; but the next call cannot be sent before there is room.
                self._say_what_arrived()
                return False
            if op is not None:
                if op.filler is not None:
                    return False
                session.handed = max(session.handed, seq + 1)
                message = made if seq == made_seq else self._message(op)
                shared = op.target is not None or op.source_block is not None
                to_pass = shared or daemon.pool.dropped
                if (to_pass and not daemon.pass_memory(op)) or not daemon.send(message):
                    return False
            session.sent = seq + 1
        return session.answered_over is channel and not calls.unsent

    @property
    def taken_in(self) -> bool:
        """Whether the daemon can be told of our calls."""
        return self.session.taken_in_over is self.daemon.channel

    def _ask_in(self, channel: Channel) -> None:
        """Ask the daemon for our place, if it has not been asked, and it is time for that.

        One that knows none of our groups is asked over ZeroMQ, which our calls could overtake.
        """
        session, apart = self.session, not channel.attached
        if session.attached_over is channel or time.monotonic() < self.not_before:
            return
        if self.daemon.send(parts(self._request(channel)), apart=apart):
            if not apart:
                session.taken_in_over = channel
            session.attached_over = channel
            self.not_before = 0.0

    def _message(self, op: Op) -> tuple[Part, ...]:
        return parts(op.submission(time.monotonic(), self.session.acked), op.payload)

    def give_up(self, op: Op, error: errors.RingError) -> None:
        """End *op* here, without the daemon's word: with *error* unless its result stands."""
        if not op.handed_over:  # nobody reads from it, nor ever will
            op.hold = False
            op.session.fail(op, error)
        elif not self.leave_input(op):
            op.give_up = None  # the daemon will answer, or end
        elif op.stands:
            op.session.finish(op, None)
        else:
            op.session.fail(op, error, keep=True)

    def told(self, op: Op, error: errors.RingError) -> None:
        """The user has been told that *op* ended with *error*.

        A call that was lost with its session tells of the session's end, too; also before we
        know of that, as the word on the calls comes first.
        """
        self.told_in(op.session, error)

    def told_in(self, session: Session, error: errors.RingError) -> None:
        """As :meth:`told`, of a call that ended with *session*."""
        session.told.add(error.code)
        if isinstance(error, LOSSES):  # the session itself may be over only later
            self.lost_messages.pop(session, None)
        pending = self.pending_error
        if pending is not None and self._ended_session is session and pending.code == error.code:
            self.pending_error = None

    def acknowledge(self, reply: Completed | Failed) -> None:
        """Say at once what has arrived, where somebody waits for that."""
        session = self.session
        if reply.ack:
            session.ack_wanted = max(session.ack_wanted, reply.seq + 1)
        if min(session.ack_wanted, session.acked) > session.ack_sent:
            self._say_what_arrived()

    def _say_what_arrived(self) -> None:
        session = self.session
        acked = session.acked
        if acked > session.ack_sent and self.daemon.send(parts(Ack(session.join_id, acked))):
            session.ack_sent = acked

    # --- inputs that were lent --------------------------------------------------------

    def leave_input(self, op: Op) -> bool:
        """Leave the daemon what *op* has lent as it is, also when the user writes to it again.

        It may be read from yet, for the others. Returns whether that could be done.
        """
        if op.hold and not op.ended and op.source_block is not None:
            try:
                self.daemon.pool.detach(op.source_block)
            except OSError:  # no memory
                return False
            op.hold = False
        return True

    def leave_inputs(self, *, marked: bool = False) -> bool:
        """As :meth:`leave_input`, for all ops; one for which it fails does not stop the rest.

        *marked*: for those alone that nobody can wait for any more.
        """
        left = [
            self.leave_input(op) for op in list(self.session.ops.values()) if op.left or not marked
        ]
        return all(left)

    # --- one session after the other ----------------------------------------------------

    def meet(self, members: tuple[int, ...], places: tuple[int, ...]) -> None:
        """The session has formed: its join ids, by rank, and the members on which they are."""
        session = self.session
        session.places, session.members = places, members
        if session.join_id in members:
            self.place = Place.of(session)

    def progress(self, released: int) -> None:
        """All ops below *released* are finished on all members; join anew if the session is over.

        At once: the others need not wait for our next call to see us. Only where a daemon had us
        before, or one that will not have us would be asked for ever.
        """
        session = self.session
        session.release(released)
        if session.limit is None:
            return
        if session.over and session.attached and not (session.open or self.left):
            self.join_anew()

    def cut(self, floor: int, error: errors.RingError) -> None:
        """The session is over from op *floor* on, for the reason *error*."""
        session = self.session
        if session.limit is None and error.code not in session.told:  # else the user knows, or will
            self.pending_error, self._ended_session = error, session
        self.close_session(floor, error)

    def close_session(self, floor: int, error: errors.RingError) -> None:
        """Ops from *floor* on end with *error*, those to come included."""
        self._retire(floor)
        self.session.cut(floor, error)

    def join_anew(self) -> None:
        """Begin a session in the place of one that is over."""
        self._renew()
        self.push()  # which begins by taking our place

    def _renew(self) -> None:
        self._retire(self.session.released)
        for op in self.session.ops.values():
            op.forget_input()
        self.session.ops.clear()
        loss = self.session.loss
        if loss is not None:
            for end in list(self.ends.values()):
                end.close_session(end.session.next_seq, loss)  # what is under way goes on
                end.progress(0)
        self.session = Session(after=self.session)

    def _request(self, channel: Channel) -> Attach | Open:
        """Return what asks for our place."""
        session, wish = self.session, self.wish
        session.asked = True
        return Attach(
            version=VERSION,
            token=channel.token,
            group=self.name,
            join_id=session.join_id,
            next_seq=session.end,
            released=session.released,
            on_loss=wish.on_loss,
            pid=os.getpid(),
            program=self.program,
            session=session.members,
            places=session.places,
            former=session.former,
            loss=session.former_loss,
            local_rank=wish.local_rank,
            local_size=wish.local_size,
            members=wish.members,
            ordered=wish.ordered,
            call_socket=True,
        )

    def _look_for_seal(self, op: Op) -> None:
        """End *op* if the former daemon finished it, and died before it could say so."""
        if not op.ended and op.stands:
            if op.hold:
                op.sealed = True
            else:
                self.session.finish(op, None)

    def _retire(self, floor: int) -> None:
        """Ops from *floor* on are about to be forgotten.

        Nobody is going to tell us when they are released. Until then the daemon, also one that we
        have parted with, may write to their memory, or serve others from it.
        """
        for op in self.session.ops.values():
            if op.seq >= floor:
                for block in (op.source_block, op.target, *op.kept):
                    if block is not None:
                        self.daemon.pool.retire(block)
