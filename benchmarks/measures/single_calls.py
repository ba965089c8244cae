"""One call at a time, of every size: each begins when the one before it has ended."""

from __future__ import annotations

from collections.abc import Sequence

from instrument.plan import Panel, panel

WHAT = "one call at a time"


def panels(
    modes: Sequence[str], sizes: Sequence[int], budget: float, pace: float = 0.5e9
) -> list[Panel]:
    """Return a panel for each size, whose batches take *budget* seconds.

    *pace*: bytes per second that large calls may be expected to make.
    """
    return [panel(WHAT, modes, nbytes, budget=budget, pace=pace) for nbytes in sizes]
