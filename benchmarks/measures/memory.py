"""How much memory of its own a daemon has while a large tensor is reduced."""

from __future__ import annotations

from instrument.batch import Batch
from instrument.counters import highest_memory, own_memory
from instrument.line_up import LineUp
from instrument.results import Results

HIGHEST = "memory of a daemon beside its segments while 256 MiB is reduced"
BEFORE = "memory of a daemon before that"
NBYTES = 256 << 20


def measure(made: LineUp, results: Results) -> None:
    """Reduce, and keep the figures, in bytes, of the daemon that has most."""
    pids = made.rings["ringd"].pids
    results.set_figure(BEFORE, made.site.size, max(map(own_memory, pids)))
    with highest_memory(pids) as highest:
        for mode in ("ringd", "ringd-empty"):
            made.teams["ringd"].measure(Batch(mode, NBYTES, calls=1, warm_up=1))
    results.set_figure(HIGHEST, made.site.size, max(highest))
