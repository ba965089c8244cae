"""The flight recorder: the last few thousand events of this daemon, in memory.

Events are kept as they come and turned into JSON only when somebody asks. Times are wall
clock seconds, so that the records of several members can be laid side by side.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Optional

import msgspec

from ringd import __version__
from ringd.collective.call import Call

_LONGEST_CALL = 100

KEPT = 4096
"""Events; the oldest go first."""

MAX_EVENTS = 4 * KEPT
"""Events that another member's dump may have: those that it keeps, and its open calls."""

OPS = ("op", "op begun")
"""What events of calls are called."""

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to the ring or to a client."""

    at: float
    """On the monotonic clock."""
    what: str
    details: dict[str, Any]


# A Struct rather than a dataclass: made for every call, and several times as fast to make.
class OpEvent(msgspec.Struct, frozen=True, gc=False):
    """A call, as a rule one that ended here; times on the monotonic clock."""

    at: float
    """When it ended; while it is open, when it was submitted."""
    group: str
    seq: int
    call: Call | str
    """In words where it says the shapes of many tensors: thousands of events are kept."""
    nbytes: int
    submitted: float
    started: float | None
    """When all members had submitted; None when that never came."""
    outcome: str
    """Empty while it is open."""


class _Shown(msgspec.Struct, gc=False):
    """What an event must have for the commands that show it."""

    at: Annotated[float, msgspec.Meta(ge=0, le=1e11)]
    what: str
    group: Optional[str] = None
    seq: Optional[int] = None
    call: Optional[str] = None
    bytes: Optional[int] = None
    submitted: Optional[float] = None
    started: Optional[float] = None
    outcome: Optional[str] = None

    @property
    def sound(self) -> bool:
        """Whether it can be shown."""
        needed = (self.group, self.seq, self.call, self.bytes, self.submitted, self.outcome)
        return self.what not in OPS or None not in needed


class _Dump(msgspec.Struct):
    node: str
    events: list[_Shown]


_decoder = msgspec.json.Decoder(_Dump)


def can_be_shown(dump: bytes, node: str) -> bool:
    """Whether *dump*, which came from the member *node*, is what its recorder could say."""
    if dump.count(b'"at":') > MAX_EVENTS:  # each event has one; the rest of a lie is not even read
        return False
    try:
        said = _decoder.decode(dump)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return said.node == node and all(event.sound for event in said.events)


class Recorder:
    """See the module's docstring."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._events: deque[Event | OpEvent] = deque(maxlen=KEPT)
        self.op: Callable[[OpEvent], None] = self._events.append
        """Records a call that ended."""
        self.open_ops: Callable[[], list[OpEvent]] = list
        """Gives the calls that are open, which is what a stall is about."""

    def note(self, what: str, **details: Any) -> None:
        """Record that *what* happened."""
        self._events.append(Event(time.monotonic(), what, details))

    def dump(self) -> bytes:
        """Return all events as JSON, oldest first, and behind them the calls that are open."""
        shift = time.time() - time.monotonic()
        events = [_plain(event, shift) for event in (*self._events, *self.open_ops())]
        body = {
            "schema_version": SCHEMA_VERSION,
            "node": self._node,
            "version": __version__,
            "now": time.time(),
            "events": events,
        }
        return msgspec.json.encode(body, enc_hook=str)


def _plain(event: Event | OpEvent, shift: float) -> dict[str, Any]:
    if isinstance(event, Event):
        return {"at": event.at + shift, "what": event.what, **event.details}
    return {
        "at": event.at + shift,
        "what": OPS[0] if event.outcome else OPS[1],
        "group": event.group,
        "seq": event.seq,
        "call": str(event.call)[:_LONGEST_CALL],
        "bytes": event.nbytes,
        "submitted": event.submitted + shift,
        "started": None if event.started is None else event.started + shift,
        "outcome": event.outcome,
    }
