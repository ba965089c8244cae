"""A token of a sharded model: layers of which each makes two small calls, with work between.

What counts is the time beyond the work: that of a token less that of the same work without calls,
measured in the same round.
"""

from __future__ import annotations

from collections.abc import Sequence

from instrument import samples
from instrument.plan import Panel, panel
from instrument.results import Key, Results

WHAT = "a token"
NBYTES = 16 << 10
CALLS = 24 * 2
MODES = ("ringd", "before", "gloo", "mlx", "mpi", "nothing")
_WORK = 0.5e-3


def panels(modes: Sequence[str]) -> list[Panel]:
    """Return the panel; a batch is one token."""
    options = {"work": _WORK}
    return [panel(WHAT, modes, NBYTES, calls=CALLS, budget=0.1, options=options)]


def beyond_work(results: Results, n: int, mode: str) -> float | None:
    """Return the seconds of a token beyond the work; None if that was not measured."""
    whole, work = (results.series.get(Key(WHAT, n, NBYTES, each)) for each in (mode, "nothing"))
    if whole is None or work is None or not whole.seconds:
        return None
    beyond = [one - other for one, other in zip(whole.seconds, work.seconds, strict=False)]
    return CALLS * samples.median(beyond)
