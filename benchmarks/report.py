"""The results of a benchmark run: as lines while it runs, as JSON, as a Markdown page."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from roofline import human
from systems import FLOAT32

PEER = "gloo"
"""The system that the others are compared with."""
LEAST_RATIO = 0.8
"""Of its speed, that ringd must reach ..."""
CHECKED_FROM = 1 << 20
"""... for tensors of so many bytes and more."""

_LINE = "{:>8} {:>10} {:<12} {:>10} {:>6} {:>9} {:>7} {:>7} {:>6} {:>7}"
HEADER = "\n".join(
    (
        _LINE.format(
            *("size", "count", "system", "time", "spread", "cpu"),
            *("algbw", "busbw", "#wrong", f"x {PEER}"),
        ),
        _LINE.format("", "(f32)", "", "(us)", "(%)", "(us)", "(GB/s)", "(GB/s)", "", "").rstrip(),
    )
)

_INTRODUCTION = """\
Written by `make bench`: f32 sum through the client library and real daemons (`ringd`: ordinary
arrays, `ringd-empty`: arrays made by `ring.empty`), beside Gloo in process (torch, one thread)
and a bare ring of TCP connections (`roofline`: no daemon, no protocol, the same additions).
Measured in turn, round by round, in one run: the time is the median over {rounds} rounds of the
slowest member's time per call, the spread is from the fastest to the slowest round, and every
result was checked. cpu is the CPU time per call of one member's processes, its daemon's included,
with all threads; busbw is algbw x 2(n-1)/n; the last column is the speed by that of {peer}.
"""


@dataclass(slots=True)
class Row:
    """One system at one tensor size."""

    n: int
    nbytes: int
    system: str
    calls: int
    """Per batch."""
    in_flight: bool
    seconds: list[float] = field(default_factory=list)
    """Per call, one figure per round: the slowest member's."""
    cpu: list[float] = field(default_factory=list)
    """CPU seconds per call of one member's processes, the mean of the members; by round."""
    wrong: int = 0
    """Elements, of all results of all members in all rounds."""

    @property
    def median(self) -> float:
        """Return the median over the rounds, in seconds per call."""
        return statistics.median(self.seconds)

    @property
    def median_cpu(self) -> float:
        """Return the median of :attr:`cpu`."""
        return statistics.median(self.cpu)

    @property
    def spread(self) -> float:
        """Return the distance from the fastest to the slowest round by the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median

    @property
    def algbw(self) -> float:
        """Return tensor bytes by time, in GB/s."""
        return self.nbytes / self.median / 1e9

    @property
    def busbw(self) -> float:
        """Return what each link carried, in GB/s."""
        return self.algbw * 2 * (self.n - 1) / self.n


class Report:
    """All rows of a run."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.rows: list[Row] = []

    def ratio(self, row: Row) -> float | None:
        """Return how many times as fast as the peer *row* is; None if the peer has no such row."""
        for other in self.rows:
            alike = (other.n, other.nbytes, other.in_flight) == (row.n, row.nbytes, row.in_flight)
            if alike and other.system == PEER:
                return other.median / row.median
        return None

    def line(self, row: Row) -> str:
        """Return *row* for the terminal."""
        return _LINE.format(
            human(row.nbytes),
            row.nbytes // FLOAT32.itemsize,
            row.system,
            f"{row.median * 1e6:.1f}",
            f"{row.spread * 100:.0f}",
            f"{row.median_cpu * 1e6:.1f}",
            f"{row.algbw:.3f}",
            f"{row.busbw:.3f}",
            row.wrong,
            self._ratio_text(row),
        )

    def flight_line(self, row: Row) -> str:
        """Return *row*, of calls in flight, for the terminal."""
        ratio = self.ratio(row)
        return (
            f"{row.calls:,} x {human(row.nbytes)} in flight: {row.system:<12} "
            f"{1 / row.median:>9,.0f} calls/s, cpu {row.median_cpu * 1e6:.1f} us, "
            f"#wrong {row.wrong}" + ("" if ratio is None else f", {ratio:.2f} x {PEER}")
        )

    def checks(self) -> tuple[list[str], bool]:
        """Return the closing lines, and whether all that must hold does."""
        wrong = sum(row.wrong for row in self.rows)
        lines = [f"results: {'all right' if not wrong else f'{wrong} WRONG ELEMENTS'}"]
        good = not wrong
        for n in sorted({row.n for row in self.rows}):
            compared = [
                (ratio, row)
                for row in self.rows
                if row.n == n and row.system.startswith("ringd") and not row.in_flight
                if row.nbytes >= CHECKED_FROM
                if (ratio := self.ratio(row)) is not None
            ]
            what = f"n = {n}, {human(CHECKED_FROM)} and above, at least {LEAST_RATIO} of {PEER}"
            if not compared:
                lines.append(f"{what}: not measured")
                continue
            low = [f"{row.system} {human(row.nbytes)} {r:.2f}" for r, row in compared]
            low = [text for text, (r, _) in zip(low, compared, strict=True) if r < LEAST_RATIO]
            least, row = min(compared, key=lambda pair: pair[0])
            good = good and not low
            lines.append(
                f"{what}: FAILED: {', '.join(low)}"
                if low
                else f"{what}: ok; least {least:.2f} ({row.system}, {human(row.nbytes)})"
            )
        return lines, good

    def write(self, path: Path) -> None:
        """Write JSON to *path* and a Markdown page beside it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines, good = self.checks()
        rows = [
            {
                **asdict(row),
                "count": row.nbytes // FLOAT32.itemsize,
                "median_us": row.median * 1e6,
                "median_cpu_us": row.median_cpu * 1e6,
                "algbw": row.algbw,
                "busbw": row.busbw,
                "ratio": self.ratio(row),
            }
            for row in self.rows
        ]
        document = {
            "schema_version": 1,
            "facts": facts(),
            "rounds": self.rounds,
            "peer": PEER,
            "good": good,
            "checks": lines,
            "rows": rows,
        }
        path.write_text(json.dumps(document, indent=1) + "\n")
        path.with_suffix(".md").write_text(self._markdown(lines))

    def _markdown(self, checks: list[str]) -> str:
        known = ", ".join(f"{key} {value}" for key, value in facts().items())
        text = [
            "# All-reduce over loopback\n",
            _INTRODUCTION.format(rounds=self.rounds, peer=PEER),
            f"Machine: {known}.\n",
        ]
        for n in sorted({row.n for row in self.rows}):
            rows = [row for row in self.rows if row.n == n]
            text.append(f"## n = {n}\n")
            text.append(
                _table(
                    "size|count|system|time (us)|spread|cpu (us)|algbw (GB/s)|busbw (GB/s)"
                    f"|#wrong|x {PEER}",
                    (
                        f"{human(row.nbytes)}|{row.nbytes // FLOAT32.itemsize}|{row.system}|"
                        f"{row.median * 1e6:.1f}|{row.spread:.0%}|"
                        f"{row.median_cpu * 1e6:.1f}|{row.algbw:.3f}|"
                        f"{row.busbw:.3f}|{row.wrong}|{self._ratio_text(row)}"
                        for row in rows
                        if not row.in_flight
                    ),
                )
            )
            flights = [row for row in rows if row.in_flight]
            if flights:
                text.append(
                    _table(
                        f"in flight|system|calls/s|cpu (us)|#wrong|x {PEER}",
                        (
                            f"{row.calls} x {human(row.nbytes)}|{row.system}|"
                            f"{1 / row.median:.0f}|{row.median_cpu * 1e6:.1f}|"
                            f"{row.wrong}|{self._ratio_text(row)}"
                            for row in flights
                        ),
                    )
                )
        text.append("## Checks\n")
        text.extend(f"- {line}" for line in checks)
        return "\n".join(text) + "\n"

    def _ratio_text(self, row: Row) -> str:
        ratio = self.ratio(row)
        return "" if ratio is None else f"{ratio:.2f}"


def facts() -> dict[str, str]:
    """Return what of this machine and its software the figures depend on."""
    known = {
        "cores": str(os.cpu_count()),
        "machine": platform.machine(),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
    }
    installed = {found.name: found.version for found in metadata.distributions()}
    wanted = ("ringd", "numpy", "pyzmq", "torch")
    return known | {name: installed[name] for name in wanted if name in installed}


def _table(header: str, rows: Iterable[str]) -> str:
    columns = header.count("|") + 1
    lines = [header, "|".join(["---"] * columns), *rows]
    return "\n".join(f"| {line.replace('|', ' | ')} |" for line in lines) + "\n"
