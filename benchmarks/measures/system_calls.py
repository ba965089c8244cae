"""How many system calls a small call takes, of all processes together; counted by the kernel."""

from __future__ import annotations

from collections.abc import Sequence

from instrument import samples
from instrument.batch import Batch
from instrument.counters import system_calls
from instrument.line_up import LineUp
from instrument.modes import MODES
from instrument.results import Results

SIZES = (4, 16 << 10)
_CALLS = 100
_ROUNDS = 3
"""Of which the median counts: how often a thread spins before it sleeps changes from one to the
next, and so does who is woken for what a system does beside its calls."""


def name(mode: str, nbytes: int) -> str:
    """Return the figure's name."""
    return f"system calls of {mode} at {nbytes}"


def measure(made: LineUp, modes: Sequence[str], results: Results) -> None:
    """Count, and keep a figure for each mode and size."""
    for nbytes in SIZES:
        for mode in modes:
            if MODES[mode].team in made.teams and MODES[mode].takes(nbytes):
                each = samples.median([_of_a_call(made, mode, nbytes) for _ in range(_ROUNDS)])
                results.set_figure(name(mode, nbytes), made.site.size, each)


def _of_a_call(made: LineUp, mode: str, nbytes: int) -> float:
    few, many = (_counted(made, mode, nbytes, calls) for calls in (_CALLS, 3 * _CALLS))
    return (many - few) / (2 * _CALLS)  # what a batch takes beside its calls is the same in both


def _counted(made: LineUp, mode: str, nbytes: int, calls: int) -> int:
    team = made.teams[MODES[mode].team]
    batch = Batch(mode, nbytes, calls, warm_up=10, kind=MODES[mode].kind)
    team.measure(batch)  # has made what the calls need
    with system_calls(team.pids) as counted:
        team.measure(batch)
    return counted[0]
