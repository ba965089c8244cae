"""When the ring was broken: by the daemons' own logs, and by the ends that the run has caused.

The ring holds at an instant if all members are in it then. A member is in the ring from the
line "ring ready" in its daemon's log to the next one that says otherwise, or to its end. "ring
forming" is written when the programs have been told, hence the lines on what comes before. The logs
are at level "debug", at which no line is held back.
"""

from __future__ import annotations

import bisect
import json
import math
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from chaos.lives import Lives

ASKED = 0.3
"""Seconds of a ring that is up in which its members surely can ask each other: they look for that
every 0.05 s, say who is there, and then ask; both go round, by one slow link (0.1 s) at most."""

NOTICED = 0.1
"""Seconds in which silence is noticed besides the settings, by a busy machine."""

SLACK = 0.005
"""Seconds: a line is written as soon as, but not before, what it tells of is done."""

_READY = {
    "ring ready": True,
    "ring forming": False,
    "ring draining": False,
    "link lost": False,
    "link dropped": False,
    "rejoin asked for": False,
}


class Breaks:
    """Reads the *logs* of all members, by rank, as far as they are written.

    *detection* is the time in seconds in which the loss of a member is noticed.
    """

    def __init__(self, logs: Sequence[Path], lives: Lives, detection: float) -> None:
        self.hurts: list[float] = []
        """When the run has done what members notice only after a while."""
        self.detection = detection
        self._logs = logs
        self._lives = lives
        self._places = [0] * len(logs)
        self._events: list[tuple[float, int, bool]] = []
        """Moment, rank, whether it is in the ring from then on."""
        self._spans: list[tuple[float, float]] = []
        self._stays: list[tuple[float, int, str]] = []
        # Logs tell the time of day.
        self._shift = time.monotonic() - time.time()

    def ended(self, rank: int, moment: float) -> None:
        """The end of a daemon was begun."""
        self._events.append((moment, rank, False))

    def read(self) -> None:
        """Take in what the daemons have written since the last time."""
        for rank, log in enumerate(self._logs):
            if not log.exists():
                continue
            with log.open("rb") as file:
                file.seek(self._places[rank])
                data = file.read()
            whole = data.rfind(b"\n") + 1
            self._places[rank] += whole
            for line in data[:whole].splitlines():
                if line.startswith(b"{"):
                    self._take(rank, json.loads(line))
        self._spans = self._broken()

    def take_stays(self) -> list[tuple[float, int, str]]:
        """Return the stays that daemons have ended since: when, whose (pid), in which group."""
        stays, self._stays = self._stays, []
        return stays

    def _take(self, rank: int, event: dict[str, Any]) -> None:
        what = event["event"]
        if what not in _READY and what not in {"ringd started", "session over"}:
            return
        stamp = datetime.fromisoformat(event["timestamp"].replace("Z", "+00:00"))
        moment = stamp.timestamp() + self._shift
        if what == "ringd started":
            self._lives.daemon_up(rank, moment)
        elif what == "session over":
            self._stays.append((moment, event["pid"], event["group"]))
        else:
            self._events.append((moment, rank, _READY[what]))

    def _broken(self) -> list[tuple[float, float]]:
        self._events.sort()
        spans = []
        up: set[int] = set()
        since = -math.inf
        for moment, rank, ready in self._events:
            before = len(up) == len(self._logs)
            (up.add if ready else up.discard)(rank)
            now = len(up) == len(self._logs)
            if before and not now:
                since = moment
            elif now and not before:
                spans.append((since, moment))
        if len(up) < len(self._logs):
            spans.append((since, math.inf))
        return spans

    def during(self, since: float, until: float) -> tuple[float, float] | None:
        """Return when the ring was broken, if it was at any instant from *since* to *until*.

        The first break that began in that time, else the one that lasted then.
        """
        at = bisect.bisect_right(self._spans, (until + SLACK, math.inf)) - 1
        if at < 0 or self._spans[at][1] < since - SLACK:
            return None
        while at > 0 and self._spans[at - 1][0] >= since:
            at -= 1
        return self._spans[at]

    def begins(self, since: float, until: float) -> list[float]:
        """Return when the ring broke in that time."""
        return [begin for begin, _ in self._spans if since <= begin <= until]

    def unasked(self, since: float, until: float) -> list[tuple[float, float]] | None:
        """Return the times in which a member could not be asked, if they cover all that time.

        That is: the ring was broken, also as long as nobody had noticed, or a daemon or the
        programs of one that was started again were not there.
        """
        found = []
        covered = since
        for begin, end in sorted([*self._from_their_causes(), *self._lives.away()]):
            if end < since:
                continue
            if covered >= until or begin > covered + ASKED:
                break
            found.append((begin, end))
            covered = max(covered, end)
        return found if covered + ASKED >= until and found else None

    def _from_their_causes(self) -> Iterator[tuple[float, float]]:
        """Return the breaks, each from when that was done which the members noticed then."""
        hurts = sorted(self.hurts)
        before = -math.inf
        for begin, end in self._spans:
            earliest = max(before, begin - self.detection - NOTICED)
            at = bisect.bisect_left(hurts, earliest)
            yield min([begin, *hurts[at : at + 1]]), end
            before = end
