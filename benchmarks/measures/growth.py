"""How a small call's cost grows with the members: two rings of this build, beside each other."""

from __future__ import annotations

from instrument.plan import Panel, panel
from instrument.progress import Progress
from instrument.results import Results
from instrument.runner import run
from instrument.sites import loopback
from instrument.starts import line_up

WHAT = "growth"
NBYTES = 4
MEMBERS = (2, 16)


def panels() -> list[Panel]:
    """Return the panel, which is measured with each number of members."""
    return [panel(WHAT, ["ringd"], NBYTES, budget=0.3)]


def measure(results: Results, rounds: int, progress: Progress) -> None:
    """Run it."""
    few, many = MEMBERS
    with (
        line_up(loopback(few), ["ringd"]) as small,
        line_up(loopback(many), ["ringd"]) as large,
    ):
        for each in panels():
            run([small, large], each, rounds, results, progress)


def growth(results: Results) -> float | None:
    """Return the processor time per member and call with many members by that with few."""
    few, many = (
        (found, n) if (found := results.median_cpu(WHAT, n, NBYTES, "ringd")) else None
        for n in MEMBERS
    )
    return None if few is None or many is None else many[0] / many[1] / (few[0] / few[1])
