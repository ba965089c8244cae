"""What this daemon has counted since its start: all of it, in one place.

Whoever does something counts it here, at once and without a lock, as there is one loop.
``ringd-cli status`` and the metrics say what stands here; neither keeps numbers of its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from ringd.collective.kinds import KINDS
from ringd.collective.view import Side

UNKNOWN_KIND = "unknown"
"""In the place of the kind of a call that no daemon can run, which a program has made up."""

FOR_NO_CALL = "chunk of no call here"

OK = "ok"

SECONDS: tuple[float, ...] = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
BYTES: tuple[int, ...] = tuple(1 << bits for bits in range(6, 31, 2))  # 64 B to 1 GiB


@dataclass(slots=True)
class Histogram:
    """How many values there were up to each bound, and between them."""

    bounds: tuple[float, ...]
    """Rising; each is counted with what is below it."""
    counts: list[int] = field(init=False)
    """By bound, of the values above the last one and up to it; one more, for those above all."""
    total: float = 0.0
    """All values added up."""

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)


@dataclass(slots=True)
class Calls:
    """The calls of one kind that have ended here."""

    errors: Counter[str] = field(default_factory=Counter)
    """Those that did not complete, by the error's code."""
    seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    """Of those that completed, from when the daemon had them."""
    nbytes: Histogram = field(default_factory=lambda: Histogram(BYTES))
    """Of those that completed: of the input or of the result, whichever has more."""

    def completed(self, seconds: float, nbytes: int) -> None:
        """Count one that did; as fast as it can be, since that is done for every call."""
        histogram = self.seconds
        histogram.counts[bisect_left(SECONDS, seconds)] += 1
        histogram.total += seconds
        histogram = self.nbytes
        histogram.counts[bisect_left(BYTES, nbytes)] += 1
        histogram.total += nbytes

    @property
    def results(self) -> Counter[str]:
        """How many ended how: ``"ok"``, or with an error's code."""
        completed = self.seconds.count
        return Counter({OK: completed} if completed else {}) + self.errors


class ByKind(dict[str, Calls]):
    """The calls of each kind; those of one that a program has made up, with all such."""

    def __init__(self) -> None:
        super().__init__((kind, Calls()) for kind in (*KINDS, UNKNOWN_KIND))

    def __missing__(self, _made_up: str) -> Calls:
        return self[UNKNOWN_KIND]


@dataclass(slots=True)
class Counters:
    """See the module's docstring."""

    calls: ByKind = field(default_factory=ByKind)
    rings: int = 0
    """Rings that this member was in."""
    links_lost: Counter[tuple[Side, str]] = field(default_factory=Counter)
    """By side and cause (:data:`ringd.net.link.Cause`)."""
    reconnects: Counter[tuple[Side, str]] = field(default_factory=Counter)
    """Links that were made anew, by side and by what had ended the one before."""
    bytes_in: Counter[Side] = field(default_factory=Counter)
    """Over links that have ended, by side."""
    bytes_out: Counter[Side] = field(default_factory=Counter)
    """Likewise."""
    refused_connections: Counter[str] = field(default_factory=Counter)
    """From other machines, by cause."""
    refused_programs: Counter[str] = field(default_factory=Counter)
    """Programs, and questions, that were not let in, by cause."""
    refused_requests: Counter[str] = field(default_factory=Counter)
    """For metrics or a probe, by cause."""
    dropped_frames: Counter[str] = field(default_factory=Counter)
    """Frames from other members that were of no use, by reason."""
    dropped_messages: Counter[str] = field(default_factory=Counter)
    """Group messages that were of no use, by reason."""
    denied_messages: int = 0
    """From programs, which could not be used."""
    dropped_replies: int = 0
    """To programs, which could not be delivered."""

    def results(self) -> Counter[str]:
        """Return the calls that have ended here by outcome, of whatever kind."""
        return sum((calls.results for calls in self.calls.values()), Counter[str]())
