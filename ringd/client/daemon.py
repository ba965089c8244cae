"""The daemon that a connection lives with: what it says of itself, and the way to it.

It knows of no group. The next daemon takes the place of one that has ended.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ringd.client.callsocket import Part
from ringd.client.channel import Channel
from ringd.client.pool import Pool
from ringd.client.session import Op
from ringd.wire.border.messages import Attached, RingState


class Daemon:
    """Sends to it, and keeps what was last heard of it; *pool* is the memory that it is handed."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.channel: Channel | None = None
        """The way to the one that is there; None while none is."""
        self.info: Attached | None = None
        """What a daemon said last of itself; None before any has."""
        self.window = 1
        """How many unreleased ops it takes of each group."""
        self.lost_after = 0.0
        """Seconds that it may be late to notice that a deadline has passed."""
        self.timeout: float | None = None
        """Seconds; the deadline of calls that name none. None for no deadline."""
        self.ready: Channel | None = None
        """The same, unless it has been missed, and not heard since: then it is sent nothing."""
        self.trouble = ""
        """What went wrong last with a daemon, for messages."""
        self.broke = ""
        """Why the ring broke the last time, for messages."""
        self.breaks = 0
        """How often it did, as far as is known."""
        self.wake: Callable[[], None] = _nobody
        """Called when there is something to do that no message tells of."""

    @property
    def silent(self) -> bool:
        """Whether it is there, and has been missed."""
        return self.ready is not self.channel

    def installed(self, channel: Channel) -> None:
        """One is there, and speaks, at the other end of *channel*."""
        self.channel = self.ready = channel

    def missed(self) -> None:
        """It has not spoken for too long."""
        self.ready = None

    # --- what it says -----------------------------------------------------------------

    def introduces_itself(self, info: Attached) -> None:
        """It has taken a program in."""
        if self.channel is not None:
            self.channel.attached = True
        self.info, self.window = info, info.window
        self.lost_after, self.timeout = info.lost_after, info.timeout
        self.pool.budget = info.segment_budget
        self.trouble = ""

    def tells_of_the_ring(self, news: RingState) -> None:
        """The ring's state changed."""
        if news.reason:
            self.broke = news.reason
            self.breaks += 1
        self._set_state(news.state, news.generation)

    def ended(self, channel: Channel) -> None:
        """The one behind *channel* is gone."""
        self.trouble = self.trouble or f"{channel.path}: the daemon ended"
        if self.info is not None:
            self._set_state("forming", self.info.generation)
        self.ready = None

    def _set_state(self, state: str, generation: int) -> None:
        info = self.info
        if info is not None and (info.state, info.generation) != (state, generation):
            self.info = msgspec.structs.replace(info, state=state, generation=generation)

    # --- what it is sent --------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether something waits here until it reads what it was sent before."""
        return self.channel is not None and bool(self.channel.calls.unsent)

    def send(self, message: tuple[Part, ...], *, anyway: bool = False, apart: bool = False) -> bool:
        """Send *message*, a packed request.

        Where that cannot be, part with the daemon, and return False.

        Args:
            message: what it is made of.
            anyway: to a silent one, too.
            apart: over ZeroMQ, as of a stay that it has not taken in yet.
        """
        channel = self.channel if anyway else self.ready
        if channel is None:
            return False
        try:
            if apart:
                channel.ask_in(message)
            else:
                channel.calls.send(message)
                if channel.calls.unsent:
                    channel.wake()
        except ConnectionError:
            channel.hang_up()  # as it did
            return False
        except OSError as error:
            self.part(f"it cannot be sent messages: {error}")
            return False
        return True

    def part(self, trouble: str) -> None:
        """Hang up on one that cannot be worked with; the keeper finds the next one."""
        if self.channel is not None:
            self.trouble = f"{self.channel.path}: {trouble}"
            self.channel.hang_up()

    def pass_memory(self, op: Op | None = None) -> bool:
        """Tell it which segments are gone, and hand it those that *op* refers to.

        Where that cannot be, part with it, and return False.
        """
        channel = self.ready
        if channel is None:
            return False
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
            self.part(f"its lifeline broke: {error}")
            return False
        return True

    def tell_dropped(self) -> None:
        """Tell it now which segments are gone: while it maps them, they are not."""
        self.pool.note_dropped_segments()
        self.pass_memory()


def _nobody() -> None:
    """Nobody is to be woken."""
