"""Runs panels: every cell in its turn, until all rounds are through."""

from __future__ import annotations

from collections.abc import Sequence

from instrument.batch import Failure
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

    A peer that fails is left out from then on, which the results note.

    Raises:
        Failure: A team of ringd has failed.
    """
    for number, cell in in_turn(panel, count):
        for made in line_ups:
            n, team = made.site.size, MODES[cell.mode].team
            if team in made.teams:
                try:
                    _measure(made, number, cell, results)
                except Failure as failure:
                    if team in made.rings:
                        raise Failure(f"{failure}\n{made.rings[team].complaints()}") from None
                    del made.teams[team]
                    what = f"{cell.what}, {human(cell.nbytes)}, n = {n}"
                    results.notes.append(
                        f"{MODES[cell.mode].title} failed at {what}; without it since"
                    )
                    progress.say(str(failure))
            progress.step(seconds_of(cell), f"n = {n}, {cell.what}, {human(cell.nbytes)}")


def _measure(made: LineUp, number: int, cell: Cell, results: Results) -> None:
    key = cell.key(made.site.size)
    series = results.of(key)
    batch = cell.batch(number, series.pace)
    outcome = made.teams[MODES[cell.mode].team].measure(batch)
    series.add(batch, outcome, counts=number > 0)


def forecast(panels: Sequence[Panel], count: int) -> float:
    """Return about how many seconds it takes to run *panels* in *count* rounds."""
    return sum(seconds_of(cell) for panel in panels for cell in panel) * (count + 1)
