"""How many system calls a small call takes, of all processes together; counted by the kernel."""

from __future__ import annotations

from collections.abc import Sequence

from instrument.batch import Batch
from instrument.counters import system_calls
from instrument.line_up import LineUp
from instrument.modes import MODES
from instrument.results import Results

SIZES = (4, 16 << 10)
_CALLS = 50


def name(mode: str, nbytes: int) -> str:
    """Return the figure's name."""
    return f"system calls of {mode} at {nbytes}"


def measure(made: LineUp, modes: Sequence[str], results: Results) -> None:
    """Count, and keep a figure for each mode and size."""
    for nbytes in SIZES:
        for mode in modes:
            if MODES[mode].team in made.teams and MODES[mode].takes(nbytes):
                few, many = (_counted(made, mode, nbytes, calls) for calls in (_CALLS, 3 * _CALLS))
                # What a batch takes beside its calls is the same in both.
                each = (many - few) / (2 * _CALLS)
                results.set_figure(name(mode, nbytes), made.site.size, each)


def _counted(made: LineUp, mode: str, nbytes: int, calls: int) -> int:
    team = made.teams[MODES[mode].team]
    batch = Batch(mode, nbytes, calls, warm_up=10, kind=MODES[mode].kind)
    team.measure(batch)  # has made what the calls need
    with system_calls(team.pids) as counted:
        team.measure(batch)
    return counted[0]
