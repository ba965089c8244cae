"""What a membership machine asks its surroundings to do, and what it tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Union

from ringd.membership.states import State
from ringd.wire.link.control import MembershipMessage

Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Send:
    """Send *message* over the link on this side; only ever over one that is up."""

    side: Side
    message: MembershipMessage


@dataclass(frozen=True, slots=True)
class Persist:
    """Write both numbers to disk, then call ``persisted`` or ``persist_failed``.

    Always the last of its list, and never more than one is outstanding.
    """

    generation: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The ring is formed; frames of this generation may be sent and taken."""

    generation: int


@dataclass(frozen=True, slots=True)
class Broken:
    """The ring of the last :class:`Ready` is over."""

    reason: str


@dataclass(frozen=True, slots=True)
class DropLinks:
    """Close the links on these sides and join anew; the machine counts them as down already."""

    reason: str
    sides: tuple[Side, ...]


@dataclass(frozen=True, slots=True)
class Changed:
    """For the log: the state changed, and why."""

    old: State
    new: State
    reason: str


Action = Union[Send, Persist, Ready, Broken, DropLinks, Changed]


@dataclass(frozen=True, slots=True)
class MemberView:
    """What is known of one member, for people."""

    rank: int
    state: Literal["up", "down", "unknown"]
    address: str
    """Where its left neighbour reaches it, or last tried to."""
    error: str
    """The last thing that went wrong with it; stays after it came back."""
    error_since: float | None
    """When that became known here, on the clock of the events."""
    missed_since: float | None
    """Since when there has been an error all the time, if there is one; as above."""
    disk_slow: str
    """What it says of a write of its state file that lasts, while it can be reached."""
