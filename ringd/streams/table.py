"""The ends of streams that one process has: which message is for which of them.

Invariant: after :meth:`Table.up` each end asks the other one how far it is, and sends nothing else
until it has heard that. So no way that breaks, and no order in which the two sides notice it, can
lose, double or reorder a byte; and an end whose other end is gone for good hears that it is.

An end that another member begins is answered when its outlet is ready. Until then nothing is said
by it: if whoever has it ends, the other end can be tried with the next one. It lasts as long as its
way, as nobody hears of it from an end that is gone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from ringd.streams.end import End, StreamError
from ringd.wire.link.streams import MAX_REASON, Connect, Data, Reset, State, StreamMessage
from ringd.wire.text import printable

MOST_ENDS = 4096

_WINDOW = 2 << 20
_LEAST_WINDOW = 64 << 10
_ALL_WINDOWS = 64 << 20  # bytes, which many streams share
_REMEMBERED = 4096  # ends that are over

TELL_WITHIN = 0.005
"""Seconds in which another end hears what is here, where it need not know that at once: each word
takes as long as the bytes of a small message do."""

_NOTHING = memoryview(b"")

Send = Callable[[int, int, int, StreamMessage, bytes], None]
"""Sends to a stream's other end: (member, number, offset, message, bytes behind the message)."""


class Refusal(Exception):
    """A stream cannot be begun, for this reason.

    Args:
        absent: Whether that may change by itself.
    """

    def __init__(self, reason: str, *, absent: bool = False) -> None:
        super().__init__(reason)
        self.absent = absent


class Outlet(Protocol):
    """Whoever hands over, and takes, an end's bytes. It may call any method of the table."""

    @property
    def ready(self) -> bool:
        """Whether somebody is there; an outlet that is not calls :meth:`Table.answer` later."""

    def more(self) -> None:
        """Look at the end: more may have come, or all of it, and there may be room to write."""

    def reset(self, reason: str) -> None:
        """The stream is over, and its end forgotten; not called after our own reset."""

    def waits(self) -> bool:
        """Nobody is there yet at the other end; return whether to wait for that."""


class Table:
    """See the module's docstring.

    Args:
        send: Sends a message, if there is a way; it may be lost later.
        accept: Returns the outlet of a new end, that another member begins for a service, or raises
            :class:`Refusal`.
        in_program: Whether this is in a program, and no daemon.
        wake: Called when :meth:`flush` is to be called, with the seconds until then: 0 for soon.
        on_over: Told the number of each end that is over.
    """

    def __init__(
        self,
        send: Send,
        accept: Callable[[End, str], Outlet],
        *,
        in_program: bool,
        wake: Callable[[float], None],
        on_over: Callable[[int], None] = lambda _number: None,
    ) -> None:
        self._send = send
        self._accept = accept
        self._in_program = in_program
        self._wake = wake
        self._on_over = on_over
        self._way = False
        self._ends: dict[int, tuple[End, Outlet]] = {}
        self._due: dict[int, End] = {}  # those whose other end may have to be told something
        self._woken = False  # flush is to be called soon
        self._waiting: set[int] = set()
        self._unanswered: dict[int, Connect] = {}  # what began those whose outlet is not ready
        self._over: OrderedDict[int, State | Reset] = OrderedDict()
        """The last words of ends that are over: the other end may not have heard them."""

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def unsaid(self) -> int:
        """How many there are of which something may have yet to arrive at the other end."""
        return sum(not end.arrived for end, _ in self._ends.values())

    @property
    def window(self) -> int:
        """Bytes that may wait at each end."""
        return max(_LEAST_WINDOW, min(_WINDOW, _ALL_WINDOWS // max(1, len(self._ends))))

    # --- the way ----------------------------------------------------------------------

    def up(self) -> None:
        """There is a way to the other members, a new one."""
        self.down()
        self._way = True
        for number in list(self._unanswered):  # whoever began it may be gone, and cannot be asked
            end, outlet = self._ends[number]
            self.reset(end, "the way was lost")
            outlet.reset("the way was lost")
        for end, _ in list(self._ends.values()):
            self._greet(end)

    def down(self) -> None:
        """The way is gone, with all that was under way."""
        self._way = False
        for end, _ in self._ends.values():
            end.lost()

    def retry(self) -> None:
        """Try again those that nobody was there for."""
        waiting, self._waiting = self._waiting, set()
        if self._way:
            for number in waiting & self._ends.keys():
                self._greet(self._ends[number][0])

    def _greet(self, end: End) -> None:
        if end.settled:  # the other end may have forgotten it; what is here is yet to be taken
            self._say(end, end.state(in_program=self._in_program))
            self._owes(end)
        elif end.heard:
            self._say(end, end.state(in_program=self._in_program, ask=True))
        elif end.connect is not None:
            self._say(end, end.connect)

    # --- from here --------------------------------------------------------------------

    def connect(self, number: int, member: int, service: str, outlet: Outlet) -> End:
        """Begin a stream to *service* on *member*, and return its end here.

        Raises:
            Refusal: There are too many.
        """
        self._check_room()
        begin = Connect(service, self.window, self._in_program)
        end = End(number, member, window=lambda: self.window, connect=begin)
        self._ends[number] = end, outlet
        if self._way:
            self._greet(end)
        return end

    def answer(self, end: End) -> None:
        """The outlet of an end is ready now."""
        message = self._unanswered.pop(end.number, None)
        if message is not None:
            self._answered(end, self._ends[end.number][1], message)
            if not self._way:
                end.lost()

    def proceed(self, end: End) -> None:
        """The outlet has handed over or taken something."""
        while (segment := end.next_segment()) is not None:
            message = Data(segment.last)
            self._send(end.member, end.number, segment.offset, message, segment.data)
        self._owes(end)

    def reset(self, end: End, reason: str) -> None:
        """End a stream, whatever is under way."""
        if self._ends.pop(end.number, None) is not None:
            unanswered = self._unanswered.pop(end.number, None) is not None
            word = Reset(printable(reason, MAX_REASON), absent=unanswered)
            self._say(end, word)
            if not unanswered:  # else it may be begun anew
                self._remember(end.number, word)

    def close(self, reason: str) -> None:
        """End all streams."""
        for end, outlet in list(self._ends.values()):
            self.reset(end, reason)
            outlet.reset(reason)

    def give_up_waiting(self, reason: str, *, unanswered: bool = False) -> None:
        """End those that nobody was there for, or that there is no way to find out of.

        Args:
            reason: Why, for the other ends.
            unanswered: Whether to end also those that somebody may have yet to answer.
        """
        waiting, self._waiting = self._waiting, set()
        for number, (end, outlet) in list(self._ends.items()):
            if number in waiting or not (end.heard or (self._way and not unanswered)):
                self.reset(end, reason)
                outlet.reset(reason)

    def flush(self) -> None:
        """Tell other ends what they are to be told, and forget those ends that are through."""
        due, self._due = self._due, {}
        self._woken = False
        for number, end in due.items():
            if number not in self._ends:
                continue
            if end.live and end.owes_state:
                self._say(end, end.state(in_program=self._in_program))
            if end.complete:
                del self._ends[number]
                self._remember(number, end.state(in_program=self._in_program))

    def _owes(self, end: End) -> None:
        if not self._due:
            self._wake(TELL_WITHIN)
        self._due[end.number] = end
        if not self._woken and end.is_awaited:
            self._woken = True
            self._wake(0.0)

    def _say(self, end: End, message: StreamMessage) -> None:
        if self._way:
            self._send(end.member, end.number, 0, message, b"")

    def _check_room(self) -> None:
        if len(self._ends) >= MOST_ENDS:
            raise Refusal(f"there are {MOST_ENDS} streams already, which is the most")

    def _remember(self, number: int, word: State | Reset) -> None:
        self._over[number] = word
        if len(self._over) > _REMEMBERED:
            self._over.popitem(last=False)
        self._on_over(number)

    # --- from the other ends ----------------------------------------------------------

    def knows(self, number: int) -> bool:
        """Whether an end of this number is, or lately was, here."""
        return number in self._ends or number in self._over

    def received(
        self, member: int, number: int, offset: int, message: StreamMessage, data: memoryview
    ) -> None:
        """Take a message of *member* for the stream *number*; *data* as in :meth:`End.came`."""
        known = self._ends.get(number)
        if known is None:
            self._unknown(member, number, message)
            return
        end, outlet = known
        if end.member != member:
            return
        try:
            if isinstance(message, Reset):
                self._was_reset(end, outlet, message)
            elif number in self._unanswered:
                pass  # it is begun once more
            elif isinstance(message, Data):
                if end.came(offset, message, data):
                    outlet.more()
                self._owes(end)
            else:
                self._answered(end, outlet, message)
        except StreamError as error:
            self.reset(end, f"the other end broke the rules: {error}")
            outlet.reset(f"the other end broke the rules: {error}")

    def _answered(self, end: End, outlet: Outlet, message: State | Connect) -> None:
        end.answered(message)
        if isinstance(message, Connect) or message.ask:
            self._say(end, end.state(in_program=self._in_program))
        self.proceed(end)
        outlet.more()

    def _was_reset(self, end: End, outlet: Outlet, message: Reset) -> None:
        if end.settled:  # it is over there, as it will be here when the rest is taken
            return
        if message.absent and not end.heard and outlet.waits():
            self._waiting.add(end.number)
            return
        reason = printable(message.reason, MAX_REASON)
        del self._ends[end.number]
        self._unanswered.pop(end.number, None)
        self._remember(end.number, Reset(reason))
        outlet.reset(reason)

    def _unknown(self, member: int, number: int, message: StreamMessage) -> None:
        if isinstance(message, State) and not message.ask:
            return
        if isinstance(message, (Connect, State)) and number in self._over:
            self._send(member, number, 0, self._over[number], b"")
        elif isinstance(message, State) and not self._in_program:  # its daemon knows whether others
            text = "nothing is known of this stream here any more"
            self._send(member, number, 0, Reset(text), b"")
        elif isinstance(message, Connect):
            self._begun(member, number, message)

    def _begun(self, member: int, number: int, message: Connect) -> None:
        end = End(number, member, window=lambda: self.window)
        try:
            self._check_room()
            outlet = self._accept(end, message.service)
        except Refusal as refusal:
            word = Reset(printable(str(refusal), MAX_REASON), refusal.absent)
            self._send(member, number, 0, word, b"")
            return
        self._ends[number] = end, outlet
        if outlet.ready:
            self._answered(end, outlet, message)
        else:
            self._unanswered[number] = message
