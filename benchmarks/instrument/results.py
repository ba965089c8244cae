"""What a run has measured: samples by what, members, size and mode; and single figures. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, final

from instrument import samples
from instrument.batch import Batch, Outcome


class Key(NamedTuple):
    """What a series is about."""

    what: str
    n: int
    nbytes: int
    mode: str


@dataclass(slots=True)
class Series:
    """Samples of one cell, one for each round."""

    seconds: list[float] = field(default_factory=list)
    """For each call: the slowest member's."""
    cpu: list[float] = field(default_factory=list)
    """Processor seconds for each call, of all processes."""
    sleeps: list[float] = field(default_factory=list)
    """Voluntary context switches for each call, of all processes."""
    wrong: int = 0
    """Elements, of all results of all members in all rounds, the one for warming up included."""
    pace: float | None = None
    """Seconds that a call took in the round for warming up."""

    def add(self, batch: Batch, outcome: Outcome, *, counts: bool) -> None:
        """Take in what a batch has brought; only its pace and its check if it does not count."""
        self.wrong += outcome.wrong
        if not counts:
            self.pace = outcome.seconds / batch.calls
        else:
            self.seconds.append(outcome.seconds / batch.calls)
            self.cpu.append(outcome.cpu / batch.calls)
            self.sleeps.append(outcome.sleeps / batch.calls)

    @property
    def median(self) -> float:
        """Seconds for each call."""
        return samples.median(self.seconds)


@final
class Results:
    """All that a run has measured."""

    def __init__(self) -> None:
        self.series: dict[Key, Series] = {}
        self.figures: dict[str, dict[int, float]] = {}
        """Single ones, by name and members."""
        self.notes: list[str] = []
        """What was left out, and why."""

    def of(self, key: Key) -> Series:
        """Return the series, which is there from now on."""
        return self.series.setdefault(key, Series())

    def set_figure(self, name: str, n: int, value: float) -> None:
        """Keep a single figure."""
        self.figures.setdefault(name, {})[n] = value

    def figure(self, name: str, n: int) -> float | None:
        """Return a single figure; None if it was not measured."""
        return self.figures.get(name, {}).get(n)

    def median(self, what: str, n: int, nbytes: int, mode: str) -> float | None:
        """Return the seconds for each call; None if that was not measured."""
        found = self.series.get(Key(what, n, nbytes, mode))
        return found.median if found is not None and found.seconds else None

    def median_cpu(self, what: str, n: int, nbytes: int, mode: str) -> float | None:
        """Return the processor seconds for each call; None if that was not measured."""
        found = self.series.get(Key(what, n, nbytes, mode))
        return samples.median(found.cpu) if found is not None and found.cpu else None

    def speedup(self, what: str, n: int, nbytes: int, mode: str, peer: str) -> float | None:
        """Return how many times as fast *mode* is as *peer*; None if one was not measured."""
        mine, its = (self.median(what, n, nbytes, each) for each in (mode, peer))
        return its / mine if mine and its else None

    def sizes(self, what: str, n: int) -> list[int]:
        """Return the tensor sizes of which there is something, in ascending order."""
        return sorted({key.nbytes for key in self.series if (key.what, key.n) == (what, n)})

    def members(self, what: str) -> list[int]:
        """Return the numbers of members with which that was measured, in ascending order."""
        return sorted({key.n for key in self.series if key.what == what})

    def rows(self, what: str, n: int) -> Iterator[tuple[Key, Series]]:
        """Yield what was measured of that, by size; modes in the order of their first measuring."""
        for nbytes in self.sizes(what, n):
            for key, series in self.series.items():
                if (key.what, key.n, key.nbytes) == (what, n, nbytes) and series.seconds:
                    yield key, series

    @property
    def wrong(self) -> int:
        """Elements that were wrong in the whole run."""
        return sum(series.wrong for series in self.series.values())

    def save(self, path: Path) -> None:
        """Write everything to *path*."""
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "series": [[*key, asdict(series)] for key, series in self.series.items()],
            "figures": self.figures,
            "notes": self.notes,
        }
        path.write_text(json.dumps(document) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Return what was saved to *path*."""
        document = json.loads(path.read_text())
        results = cls()
        for *key, series in document["series"]:
            results.series[Key(*key)] = Series(**series)
        results.figures = {
            name: {int(n): value for n, value in by_members.items()}
            for name, by_members in document["figures"].items()
        }
        results.notes = document["notes"]
        return results
