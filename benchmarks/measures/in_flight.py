"""Many small tensors at a time: all are submitted before the first one's result is taken.

Each by a call of its own (Gloo's with ``async_op``), or all of them by one call.
"""

from __future__ import annotations

from collections.abc import Sequence

from instrument.modes import TOGETHER
from instrument.plan import Panel, panel

WHAT = "1,000 tensors in flight"
ABOUT = (
    f"{WHAT}: each handed over by a call of its own, Gloo's with `async_op`, before the first "
    "result is taken; or all by one call, all_reduce_coalesced. Figures are for one tensor:"
)
NBYTES = 4096
_CALLS = 1000


def panels(modes: Sequence[str]) -> list[Panel]:
    """Return the panel of *modes*, and of what they have for many tensors in one call."""
    modes = [each for mode in modes for each in (mode, TOGETHER[mode])]
    return [panel(WHAT, modes, NBYTES, calls=_CALLS, budget=0.6, options={"in_flight": True})]
