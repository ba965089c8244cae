"""Messages from rank to rank: this program's ends of channels.

What one rank sends another one under one tag is a channel. Each end numbers its calls by itself, as
a group does, and is told how they end, as a group is; so it is one, within the stay of another. It
ends with the session in which it was opened.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter, deque
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from ringd import errors
from ringd.client.callsocket import Part
from ringd.client.channel import Channel
from ringd.client.group import LOSSES, Group
from ringd.client.groups import Groups
from ringd.client.session import Op, Session
from ringd.client.stay import Stay
from ringd.collective.call import title_of
from ringd.wire.border.messages import Open

BUFFERED = 1 << 20
"""Bytes; a message of up to so many is sent without waiting for its receiver."""

MOST_BUFFERED = 16 << 20
"""Bytes of such messages of one ring that are not received yet; what is beyond waits."""

ANY = -1
"""In the place of a source: whoever sends."""


class Key(NamedTuple):
    """Which channel of a session."""

    source: int
    """The sender's rank."""
    to: int
    """The receiver's rank."""
    tag: int


class End(Group):
    """One end of a channel of *parent*, which is in a session that has formed.

    Invariant: the daemon hears of it after it has heard of the parent.
    """

    def __init__(self, parent: Group, key: Key, groups: Groups) -> None:
        super().__init__(dataclasses.replace(parent.wish, local_rank=-1), parent.daemon)
        self.key = key
        self.of = parent.session
        """In which it was opened."""
        self.watch = False
        """Whether the daemon is to say how many messages have come."""
        self.accepted = True
        self.buffered: deque[Op] = deque()
        """What was sent and nobody waits for; in order, until it is known how that ended."""
        self._parent = parent
        self._groups = groups

    @property
    def waits(self) -> bool:
        """Whether a message has come that nobody has asked for."""
        return self.arrived > self.session.next_seq

    @property
    def awaits_message(self) -> bool:
        """Whether a receiver waits, or has waited, for the next message to come."""
        return self.watch and not self.waits

    @property
    def sends_on(self) -> int:
        """How many messages of this program are not known to be received."""
        place = self._parent.place
        mine = place is not None and place.rank == self.key.source
        return sum(not op.ended for op in list(self.session.ops.values())) if mine else 0

    @property
    def lost(self) -> int:
        """How many buffered messages were lost with the session, if the user does not know that."""
        lost = [op.error for op in list(self.buffered) if isinstance(op.error, LOSSES)]
        return sum(error.code not in self.of.told for error in lost)

    def refused(self) -> errors.RingError | None:
        """Return why a buffered message was not received, once, if the group does not tell it."""
        while self.buffered and self.buffered[0].ended:
            error = self.buffered.popleft().error
            if error is not None and not isinstance(error, LOSSES):
                text = f"an earlier message to rank {self.key.to} was not received: {error}"
                return type(error)(text)
        return None

    def watch_from_now_on(self) -> None:
        """Have the daemon say how many messages have come."""
        if not self.watch:
            self.watch = True
            self.session.attached_over = self.session.taken_in_over = None  # so that it is told
            self._groups.add(self)  # for a later time, if it cannot be now
            self.push()

    # --- as of a group, but for what follows --------------------------------------------

    def title(self, seq: int) -> str:
        """Return what texts call its message *seq*."""
        return title_of(self.name, seq, self.key)

    def install(self) -> None:
        """A daemon is there: open it anew, and hand over what is unfinished."""
        if self.session.over and not self.session.open:
            self._finish()
        else:
            super().install()

    def postpone(self) -> None:
        """As the parent is: once that has its place, open it anew."""
        super().postpone()
        self._groups.add(self)

    def push(self, made_seq: int = -1, made: tuple[Part, ...] = ()) -> bool:
        """Send what the daemon lacks, once it has taken the parent in; as of a group."""
        if not self._parent.taken_in:
            return self.ended
        return super().push(made_seq, made)

    def _ask_in(self, channel: Channel) -> None:
        """Open it; that it is open is not said."""
        self.session.answered_over = channel
        super()._ask_in(channel)

    def room(self, length: int, calls: int = 1) -> Session | None:
        """Return the session; a message is refused once that is over."""
        if self.session.over:
            loss = self.session.loss
            assert loss is not None  # noqa: S101 - what is over has a reason
            self._tell_parent(loss)
            raise type(loss)(*loss.args)
        return super().room(length, calls)

    def progress(self, released: int) -> None:
        """All ops below *released* are finished; forget it when it is over."""
        session = self.session
        session.release(released)
        if session.over and not session.open:
            self._finish()

    def cut(self, floor: int, error: errors.RingError) -> None:
        """It is over from op *floor* on; why, the parent's session knows best."""
        loss = self.of.loss
        lost = isinstance(error, errors.GroupLost) and isinstance(loss, errors.GroupLost)
        self.close_session(floor, loss if lost and loss is not None else error)

    def told(self, op: Op, error: errors.RingError) -> None:
        """As of a group; a loss is told once, whether of a message or of the whole group."""
        super().told(op, error)
        self._tell_parent(error)

    def _tell_parent(self, error: errors.RingError) -> None:
        if isinstance(error, LOSSES):
            self._parent.told_in(self.of, error)
            self._parent.known_lost = (self.of, error)

    def _finish(self) -> None:
        self._retire(0)
        if lost := self.lost:
            self._parent.lost_messages[self.of][self.key.to, self.key.tag] += lost
        self._parent.ends.pop(self.session.join_id, None)
        self._parent.sending.pop(self, None)
        if self._parent.ends_by_key.get(self.key) is self:
            del self._parent.ends_by_key[self.key]
        self._groups.remove(self)
        self.ended = True

    def _request(self, _channel: Channel) -> Open:
        """Return what opens it."""
        session = self.session
        return Open(
            join_id=self.of.join_id,
            channel_id=session.join_id,
            source=self.key.source,
            to=self.key.to,
            tag=self.key.tag,
            next_seq=session.end,
            released=session.released,
            watch=self.watch,
        )


class Line(Stay):
    """What a ring does with one of its ends."""

    def __init__(self, stay: Stay, end: End) -> None:
        super().__init__(stay.connection, end)
        self.end = end
        self.source = end.key.source
        self._stay = stay

    @property
    def closed(self) -> bool:
        """Whether the ring is."""
        return self._stay.closed

    def check(self) -> None:
        """As of the ring."""
        self._stay.check()

    def _end(self) -> None:
        self._stay._end()  # noqa: SLF001 - of the same kind


def open_line(stay: Stay, key: Key, until: float | None, *, watch: bool = False) -> Line:
    """Return this program's end of a channel, in the session that it is in now.

    Raises:
        DeadlineExceeded: the group has not formed before *until*.
        RingError: why the last session ended, if the user does not know yet.
    """
    found: list[End] = []

    def step() -> bool:
        stay.connection.settle()
        if not stay.group.may_call():
            return False
        end = _end_of(stay, key)
        if watch:
            end.watch_from_now_on()
        found.append(end)
        return True

    stay.until_formed(step, until)
    return Line(stay, found[-1])


def _end_of(stay: Stay, key: Key) -> End:
    """Return the end that is there, which an interrupt may have kept from being opened."""
    group, groups = stay.group, stay.connection.groups
    end = group.ends_by_key.get(key)
    if not isinstance(end, End) or end.ended or end.of is not group.session:
        end = End(group, key, groups)
        group.ends_by_key[key] = end  # first: there must not be two of them
    if end not in groups:
        group.ends[end.session.join_id] = end
        groups.add(end)
        end.push()
    return end


def submit_when_sent(stay: Stay, source: int, tag: int, op: Op, until: float | None) -> Line:
    """Submit *op*, of a receiver, once a message has come under *tag*; wait for that.

    So that who gives up waiting has received nothing: the message that comes later is the next
    call's.

    Args:
        stay: of the ring.
        source: a rank, or ``ANY``: where a message has come first.
        tag: of the channel.
        op: the call.
        until: when the time for that is over; None for never.

    Raises:
        DeadlineExceeded: none came before *until*.
        RingError: as :func:`open_line`.
    """
    connection = stay.connection

    def take(lines: list[Line]) -> Line | None:
        connection.settle()
        for line in lines:
            if line.end.waits:
                connection.groups.submit(line.end, op)
                return line
        return None

    while True:
        place = stay.place(until)
        sources = range(place.size) if source == ANY else [source]
        keys = [Key(rank, place.rank, tag) for rank in sources if rank != place.rank]
        lines = [open_line(stay, key, until, watch=True) for key in keys]
        chosen = connection.pump.run(take, lines)
        if chosen is not None:
            return chosen
        ends = [line.end for line in lines]
        came = connection.wait(partial(_has_news, stay, ends), until)
        stay.check()
        for end in ends:
            alone = end.of is stay.group.session and not end.of.over
            if alone and end.session.over:  # a new one would end in the same way
                end.room(0)  # which raises why
        if not came:
            raise errors.DeadlineExceeded(
                f"{op.call} from any rank of group {stay.group.name!r}: none has been sent"
                if source == ANY
                else f"{op.call} from rank {source} of group {stay.group.name!r}: not sent yet by: "
                f"{connection.latest.nodes[place.machines[source]]}"
            )


def _has_news(stay: Stay, ends: Sequence[End]) -> bool:
    """Whether a message has come, or none will."""
    over = stay.closed or stay.group.pending_error is not None
    return over or any(end.waits or end.session.over for end in ends)


def ends_of(stay: Stay) -> list[End]:
    """Return this program's ends of channels."""
    return [end for end in list(stay.group.ends.values()) if isinstance(end, End)]


def linger(stay: Stay, seconds: float) -> str:
    """Wait until buffered messages are received, for so long; return which ones are not, in words.

    Raises:
        RingError: as any call that waits.
    """
    ends = ends_of(stay)
    if any(end.sends_on for end in ends):
        until = time.monotonic() + seconds
        stay.connection.wait(lambda: stay.hung_up or not any(end.sends_on for end in ends), until)
    left = sum(list(stay.group.lost_messages.values()), Counter[tuple[int, int]]())
    for end in ends_of(stay):
        left[end.key.to, end.key.tag] += end.sends_on + end.lost
    words = [f"{number} to rank {to} under tag {tag}" for (to, tag), number in (+left).items()]
    return ", ".join(words + [str(error) for end in ends if (error := end.refused())])


def unreceived(stay: Stay) -> int:
    """Return how many bytes of messages are not known to be received, in all channels."""
    sending = stay.group.sending
    total = 0
    for end in list(sending):
        if end.session.over or not end.session.unfinished:
            sending.pop(end, None)
        else:
            total += end.session.unfinished
    return total
