"""A small call beside a huge one of another group: a large tensor must not hold up a small one."""

from __future__ import annotations

from instrument import samples
from instrument.batch import Batch
from instrument.builds import Build
from instrument.line_up import LineUp
from instrument.results import Results
from instrument.starts import start_programs

RATIO = "a small call beside a huge one, against its quiet time and that of a chunk"
QUIET = "a small call, quiet"
BUSY = "a small call beside a huge one"
_NBYTES = 4
_CALLS = 20
_HUGE = 1 << 30
_CHUNK = 512 << 10  # ops.chunk's default
_TEAM = "huge"
_HEAD_START = 0.05  # seconds of the huge call before the small ones begin


def measure(made: LineUp, rounds: int, results: Results) -> None:
    """Measure in so many rounds, and keep the figures: the ratio, and seconds."""
    made.add(_TEAM, start_programs(made, _TEAM, made.rings["ringd"], Build(), group=_TEAM))
    made.wait_ready([_TEAM])
    n, small, huge = made.site.size, made.teams["ringd"], made.teams[_TEAM]
    call = Batch("ringd", _NBYTES, _CALLS, warm_up=_CALLS)
    quiet, busy, chunk = [], [], []
    for _ in range(rounds):
        quiet.append(small.measure(call).seconds / _CALLS)
        huge.prepare(Batch("ringd-empty", _HUGE, calls=1))
        small.prepare(call)
        huge.go()
        small.go(_HEAD_START)
        busy.append(small.collect().seconds / _CALLS)
        seconds = huge.collect().seconds
        chunk.append(seconds / (2 * (n - 1) / n * _HUGE / _CHUNK))
    results.set_figure(QUIET, n, samples.median(quiet))
    results.set_figure(BUSY, n, samples.median(busy))
    allowed = samples.median(quiet) + samples.median(chunk)
    results.set_figure(RATIO, n, samples.median(busy) / allowed)
