"""What a member can be doing, and what moves it from there: the table of states."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """What a member is doing."""

    FORMING = "forming"
    READY = "ready"
    DRAINING = "draining"


class Event(Enum):
    """What can change the state."""

    FORMED = "the ring formed"
    LINK_LOST = "a link was lost"
    LINK_UP = "a neighbour has connected anew"
    NEWS = "links changed elsewhere"
    ROUND = "rank 0 has started another round"
    DISK = "the state file cannot be written"
    MISTAKEN = (
        "the others believe of this member what it has not said: its state file was lost, or "
        "somebody told what is not so"
    )
    REJOIN = "asked to rejoin"
    RELOAD = "reloaded, with another key or other addresses"
    DRAIN = "asked to shut down"
    LEAVE = "drained by its operator"
    RESUME = "resumed by its operator"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.FORMING, Event.FORMED): State.READY,
    (State.FORMING, Event.LINK_LOST): State.FORMING,
    (State.FORMING, Event.LINK_UP): State.FORMING,
    (State.FORMING, Event.NEWS): State.FORMING,
    (State.FORMING, Event.ROUND): State.FORMING,
    (State.FORMING, Event.DISK): State.FORMING,
    (State.FORMING, Event.MISTAKEN): State.FORMING,
    (State.FORMING, Event.REJOIN): State.FORMING,
    (State.FORMING, Event.RELOAD): State.FORMING,
    (State.FORMING, Event.DRAIN): State.DRAINING,
    (State.FORMING, Event.LEAVE): State.DRAINING,
    (State.READY, Event.LINK_LOST): State.FORMING,
    (State.READY, Event.LINK_UP): State.FORMING,
    (State.READY, Event.NEWS): State.FORMING,
    (State.READY, Event.ROUND): State.FORMING,
    (State.READY, Event.DISK): State.FORMING,
    (State.READY, Event.MISTAKEN): State.FORMING,
    (State.READY, Event.REJOIN): State.FORMING,
    (State.READY, Event.RELOAD): State.FORMING,
    (State.READY, Event.DRAIN): State.DRAINING,
    (State.READY, Event.LEAVE): State.DRAINING,
    # A ring that a draining member is in may break; it takes no part in another.
    (State.DRAINING, Event.LINK_LOST): State.DRAINING,
    (State.DRAINING, Event.LINK_UP): State.DRAINING,
    (State.DRAINING, Event.NEWS): State.DRAINING,
    (State.DRAINING, Event.ROUND): State.DRAINING,
    (State.DRAINING, Event.DISK): State.DRAINING,
    (State.DRAINING, Event.MISTAKEN): State.DRAINING,
    (State.DRAINING, Event.REJOIN): State.DRAINING,
    (State.DRAINING, Event.RELOAD): State.DRAINING,
    (State.DRAINING, Event.DRAIN): State.DRAINING,
    (State.DRAINING, Event.LEAVE): State.DRAINING,
    (State.DRAINING, Event.RESUME): State.FORMING,
}
"""Every legal move; to form a ring while in one or draining, or to resume what was not drained,
would be bugs, and raise KeyError."""
