"""How much memory of its own a daemon has while a large tensor is reduced."""

from __future__ import annotations

from instrument.batch import Batch
from instrument.counters import highest_memory
from instrument.line_up import LineUp
from instrument.results import Results

HIGHEST = "memory of a daemon beside segments, at most"
NBYTES = 256 << 20


def measure(made: LineUp, results: Results) -> None:
    """Reduce, and keep the figure, in bytes, of the daemon that has most."""
    with highest_memory(made.rings["ringd"].pids) as highest:
        for mode in ("ringd", "ringd-empty"):
            made.teams["ringd"].measure(Batch(mode, NBYTES, calls=1, warm_up=1))
    results.set_figure(HIGHEST, made.site.size, max(highest))
