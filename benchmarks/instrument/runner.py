"""Runs panels: every cell in its turn, until all rounds are through."""

from __future__ import annotations

from collections.abc import Sequence

from instrument.line_up import LineUp
from instrument.modes import MODES
from instrument.plan import Cell, Panel, in_turn, seconds_of
from instrument.progress import Progress
from instrument.results import Results
from instrument.sizes import human


def run(
    line_ups: Sequence[LineUp],
    panel: Panel,
    count: int,
    results: Results,
    progress: Progress,
) -> None:
    """Measure *panel* in *count* rounds on each of *line_ups* in turn.

    Raises:
        Failure: A team of ringd has failed.
    """
    for number, cell in in_turn(panel, count):
        for made in line_ups:
            team = MODES[cell.mode].team
            where = f"n = {made.site.size}, {cell.what}, {human(cell.nbytes)}"
            if team in made.teams:
                with made.without_failed(team, where):
                    _measure(made, number, cell, results)
            progress.step(seconds_of(cell), where)


def _measure(made: LineUp, number: int, cell: Cell, results: Results) -> None:
    key = cell.key(made.site.size)
    series = results.of(key)
    batch = cell.batch(number, series.pace)
    outcome = made.teams[MODES[cell.mode].team].measure(batch)
    series.add(batch, outcome, counts=number > 0)


def forecast(panels: Sequence[Panel], count: int) -> float:
    """Return about how many seconds it takes to run *panels* in *count* rounds."""
    return sum(seconds_of(cell) for panel in panels for cell in panel) * (count + 1)
