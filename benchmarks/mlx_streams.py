"""What do MLX's sums cost under ``ringd-cli run --mlx``, beside MLX that connects by itself?

    python benchmarks/mlx_streams.py [--rounds 15] [--machines 2] [--markdown FILE]

Both are measured in one run, in turn, round by round, by programs of their own, which sleep while
the others have their turn; figures are medians. MLX's threads spin while they wait, which keeps
whatever carries their bytes from the processor where cores are few. So on Linux all of the programs
run in the scheduling class for what is idle (``chrt --idle 0``), as if there were cores enough;
``--lower ""`` leaves them alone. Every element of every sum is checked.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from instrument import samples
from instrument.batch import Batch, Failure, Outcome
from instrument.line_up import LineUp
from instrument.machine import Others
from instrument.markdown import table
from instrument.plan import in_turn
from instrument.processes import end_on_sigterm
from instrument.sites import loopback
from instrument.sizes import human, sizes_of
from instrument.starts import line_up, start_mlx, start_mlx_run

DIRECT, RUN = "mlx", "mlx-run"
LOWER = "chrt --idle 0" if sys.platform == "linux" else "nice -n 19"
KIB, MIB = 1 << 10, 1 << 20
MOST_MORE = 250e-6
"""Seconds that a sum of 4 KiB may take longer than directly."""
LEAST_OF_SPEED = 0.6
"""Of a sum of 64 MiB, as a share of the direct one's."""
_ENOUGH = 32 * MIB  # of a batch, if that makes more than two calls
_MOST_CALLS = 300
_WARM_UP = 10


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured of sums of one size, in seconds of a call, by mode and round."""

    nbytes: int
    seconds: dict[str, list[float]]
    cpu: dict[str, list[float]]
    wrong: int

    def median(self, mode: str) -> float:
        """Return how long a call takes."""
        return samples.median(self.seconds[mode])

    @property
    def more(self) -> float:
        """Seconds that a call takes longer under run."""
        return self.median(RUN) - self.median(DIRECT)

    @property
    def of_speed(self) -> float:
        """Its speed under run, as a share of the direct one's."""
        return samples.ratio(self.seconds[RUN], self.seconds[DIRECT])

    def row(self) -> list[str]:
        """Return its line of the table."""
        cells = [human(self.nbytes)]
        for mode in (DIRECT, RUN):
            spread = samples.spread(self.seconds[mode])
            cells.append(f"{_pace(self.nbytes, self.median(mode))} (±{50 * spread:.0f} %)")
        cells += [f"{1e6 * self.more:.0f} µs", f"{self.of_speed:.2f}"]
        cells.append(f"{1e6 * samples.median(self.cpu[RUN]):.0f} µs")
        return [*cells, f"{self.wrong}"]


def _pace(nbytes: int, seconds: float) -> str:
    return f"{1e6 * seconds:.0f} µs" if nbytes < MIB else f"{nbytes / seconds / 1e9:.3f} GB/s"


def calls_for(nbytes: int) -> int:
    """Return how many calls of one batch take long enough to be timed."""
    return max(2, min(_MOST_CALLS, _ENOUGH // nbytes))


def measure(made: LineUp, nbytes: int, rounds: int) -> Found:
    """Measure sums of one size."""
    seconds: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    calls, wrong = calls_for(nbytes), 0
    for number, mode in in_turn((DIRECT, RUN), rounds):
        batch = Batch(mode, nbytes, calls, min(calls, _WARM_UP), number * calls)
        outcome: Outcome = made.teams[mode].measure(batch)
        wrong += outcome.wrong
        if number:  # the first round is for warming up
            seconds[mode].append(outcome.seconds / calls)
            cpu[mode].append(outcome.cpu / calls)
    return Found(nbytes, seconds, cpu, wrong)


def targets(found: Sequence[Found]) -> list[str]:
    """Return what was to be reached, and whether it was."""
    lines = []
    for each in found:
        if each.nbytes == 4 * KIB:
            word = "reached" if each.more <= MOST_MORE else "missed"
            lines.append(
                f"4 KiB: {1e6 * each.more:.0f} µs more than directly, "
                f"of {1e6 * MOST_MORE:.0f} at most: {word}"
            )
        elif each.nbytes == 64 * MIB:
            word = "reached" if each.of_speed >= LEAST_OF_SPEED else "missed"
            lines.append(
                f"64 MiB: {each.of_speed:.2f} of the direct speed, "
                f"of {LEAST_OF_SPEED} at least: {word}"
            )
    return lines


def report(chosen: argparse.Namespace) -> str:
    """Measure everything; return the page's text.

    Raises:
        Failure: The programs did not come together, or one has failed.
    """
    lower = chosen.lower.split()
    others = Others()
    with line_up(loopback(chosen.machines), []) as made:
        made.add(DIRECT, start_mlx(made, lower))
        made.add(RUN, start_mlx_run(made, lower))
        made.wait_ready([DIRECT, RUN])
        found = [measure(made, nbytes, chosen.rounds) for nbytes in sizes_of(chosen.sizes)]
    head = ["all_sum", "MLX direct", "under run --mlx", "more", "of the speed"]
    head += ["its processor time", "wrong"]
    text = table(head, [each.row() for each in found])
    text += "".join(f"\n{line}.\n" for line in targets(found))
    share = others.share()
    if share is not None:
        text += f"\nOther processes had {share:.0%} of the processors meanwhile.\n"
    return text


def main() -> None:
    """Measure and print."""
    end_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--machines", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=15, help="the median counts; %(default)s")
    parser.add_argument(
        "--sizes", default="4KiB,64KiB,1MiB,64MiB", help="of a tensor; default: %(default)s"
    )
    parser.add_argument(
        "--lower", default=LOWER, help="what the programs are started with; %(default)s"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there too")
    chosen = parser.parse_args()
    try:
        text = report(chosen)
    except Failure as failure:
        sys.exit(str(failure))
    print(text, end="")
    if chosen.markdown is not None:
        chosen.markdown.write_text(text)


if __name__ == "__main__":
    main()
