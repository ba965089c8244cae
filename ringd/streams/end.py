"""One end of one stream: what its program has said, and what came for it.

Both ends count bytes, so whatever happens to what was under way, they can go on: each keeps what
the other one has not received, and what comes twice is known by its offset. How much may be under
way, and wait for a slow reader, is up to the receiver: it says up to which offset it takes bytes,
and raises that as its program takes them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ringd.wire.link.streams import SEGMENT, Connect, Data, State

MOST_SEGMENTS = 1024
"""Kept at most: a program that writes byte by byte would have each of them cost a hundred."""

JOIN_BELOW = 16 << 10
"""Bytes: what has come is joined to what came before as long as that is shorter."""


END = b"\0"
"""Stands for the end of a direction."""


class StreamError(Exception):
    """The other end broke the rules; the text says which."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes of one direction, or its end."""

    offset: int
    data: bytes
    last: bool

    @property
    def behind(self) -> int:
        """The offset that follows."""
        return self.offset + len(self.data)


class End:
    """See the module's docstring.

    Args:
        number: The stream's.
        member: Where the other end is.
        window: Returns how many bytes of each direction may wait here from now on; what was granted
            before stays so.
        connect: What is to be said to begin the stream; None where the other end did.
    """

    def __init__(
        self,
        number: int,
        member: int,
        *,
        window: Callable[[], int],
        connect: Connect | None = None,
    ) -> None:
        self.number = number
        self.member = member
        self.connect = connect
        self.heard = False
        """Whether the other end was ever heard."""
        self.live = False
        """Whether what is sent now arrives: the other end has been heard since the way is there."""
        self.to_program = False
        """Whether the other end is in a program."""

        self._kept: deque[Segment] = deque()  # what the other end has not received
        self._next = 0  # which of them is to be sent next
        self._written = 0  # offset behind all of them
        self._allowed = 0  # the other end takes bytes below this
        self.closed = False
        """Whether the program has said all."""

        self.inbox: deque[bytes | bytearray | memoryview] = deque()
        """What came and the program has not taken; for :meth:`taken`."""
        self._received = 0
        self._taken = 0
        self._window = window
        self._granted = window()
        self._told = (0, self._granted)  # what the other end knows of the two
        self.other_closed = False
        """Whether the other end's program has said all, and all of it is here."""

    # --- from the program -------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many bytes the program may hand over now.

        Whatever the other end grants, no more than a window is kept for it.
        """
        if self.closed or len(self._kept) >= MOST_SEGMENTS:
            return 0
        kept = self._written - self._kept[0].offset if self._kept else 0
        return max(0, min(SEGMENT, self._allowed - self._written, self._window() - kept))

    def write(self, data: bytes) -> None:
        """Take 1 to :attr:`room` bytes of the program."""
        self._keep(Segment(self._written, data, last=False))

    def close(self) -> None:
        """The program has said all; it may still listen."""
        if not self.closed:
            self.closed = True
            self._keep(Segment(self._written, END, last=True))

    @property
    def used(self) -> bool:
        """Whether either program has said anything, as far as that is known here."""
        return self._written > self.closed or self._received > self.other_closed

    def taken(self, count: int) -> None:
        """The program has taken *count* bytes of the inbox."""
        self._taken += count
        inbox = self.inbox
        while count:
            first = inbox.popleft()
            if count < len(first):
                inbox.appendleft(memoryview(first)[count:])
                return
            count -= len(first)

    def _keep(self, segment: Segment) -> None:
        self._kept.append(segment)
        self._written = segment.behind

    # --- to the other end -------------------------------------------------------------

    def next_segment(self) -> Segment | None:
        """Return what is to be sent next, once; None if there is nothing for now."""
        if not self.live or self._next == len(self._kept):
            return None
        self._next += 1
        return self._kept[self._next - 1]

    @property
    def owes_state(self) -> bool:
        """Whether the other end is to be told something."""
        return self._received > self._told[0] or self._owes_room

    @property
    def is_awaited(self) -> bool:
        """Whether the other end may wait for that: for room, or for all to have arrived."""
        return self._owes_room or (self.other_closed and self._received > self._told[0])

    @property
    def _owes_room(self) -> bool:
        """Whether so much has been taken that the other end is to be granted more."""
        granted = self._told[1]
        window = self._window()
        limit = self._taken + window
        used_up = limit > granted and self._received >= granted
        return used_up or limit - granted >= window // 4

    def state(self, *, in_program: bool, ask: bool = False) -> State:
        """Return what to tell the other end, which is counted as told.

        Args:
            in_program: Where this end is.
            ask: Whether what was under way may be lost.
        """
        self._granted = max(self._granted, self._taken + self._window())
        self._told = self._received, self._granted
        return State(self._received, self._granted, ask, in_program, self.to_program)

    @property
    def arrived(self) -> bool:
        """Whether the program has said all, and all of that has arrived."""
        return self.closed and not self._kept

    @property
    def settled(self) -> bool:
        """Whether the same is true of the other end: that is needed no more."""
        return self.arrived and self.other_closed

    @property
    def complete(self) -> bool:
        """Whether besides all was taken, and the other end was told that all has arrived."""
        return self.settled and not self.inbox and self._told[0] == self._received

    # --- from the other end -----------------------------------------------------------

    def answered(self, state: State | Connect) -> None:
        """The other end has said what it received.

        Raises:
            StreamError: That was never sent.
        """
        received, ask = (state.received, state.ask) if isinstance(state, State) else (0, True)
        if received > self._written:
            raise StreamError(f"it received {received} bytes, of {self._written} that were sent")
        while self._kept and self._kept[0].behind <= received:
            self._kept.popleft()
            self._next = max(0, self._next - 1)
        self._allowed = max(self._allowed, state.limit)
        self.to_program = state.in_program
        if ask or not self.live:
            self._next = 0
        self.heard = self.live = True

    def came(self, offset: int, message: Data, data: memoryview) -> bool:
        """Take bytes; return whether they were new, and in their turn.

        *data* is copied, unless it is long and read-only: then nobody may write to it any more.

        Raises:
            StreamError: They are more than was granted, or come behind the end.
        """
        behind = offset + len(data)
        if offset > self._received or behind <= self._received:
            return False  # what was lost before it comes again, and this behind it; or it was here
        end = behind - message.last
        if end > self._granted:
            raise StreamError(f"it sent up to {end} where {self._granted} was granted")
        if self.other_closed:
            raise StreamError("it sent more behind its end")
        new = data[self._received - offset : end - offset]
        if new:
            inbox = self.inbox
            if inbox and len(inbox[-1]) < JOIN_BELOW:
                joined = inbox.pop()
                longer = joined if isinstance(joined, bytearray) else bytearray(joined)
                longer += new
                inbox.append(longer)
            elif new.readonly and len(new) >= JOIN_BELOW:
                inbox.append(new)
            else:
                inbox.append(bytes(new))
        self._received = behind
        self.other_closed = message.last
        return True

    def lost(self) -> None:
        """What was under way may be lost; nothing is to be sent until the other end is heard."""
        self.live = False
