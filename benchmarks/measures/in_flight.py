"""Many small calls at a time: all are submitted before the first one's result is taken."""

from __future__ import annotations

from collections.abc import Sequence

from instrument.plan import Panel, panel

WHAT = "1,000 calls in flight"
NBYTES = 4096
_CALLS = 1000


def panels(modes: Sequence[str]) -> list[Panel]:
    """Return the panel."""
    return [panel(WHAT, modes, NBYTES, calls=_CALLS, budget=0.6, options={"in_flight": True})]
