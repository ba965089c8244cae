"""Calls with a pause before each, so that every one finds daemons and programs asleep."""

from __future__ import annotations

from collections.abc import Sequence

from instrument.plan import Panel, panel

WHAT = "calls 2 ms apart"
SIZES = (4, 16 << 10)
MODES = ("ringd", "before", "gloo", "mpi", "relay")
_CALLS = 50
_PAUSE = 2e-3


def panels(modes: Sequence[str]) -> list[Panel]:
    """Return a panel for each size."""
    return [panel(WHAT, modes, nbytes, calls=_CALLS, options={"pause": _PAUSE}) for nbytes in SIZES]
