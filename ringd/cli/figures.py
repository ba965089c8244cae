"""What ``bench`` has measured: its tables, and what is slowest in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

_UNEVEN = 0.8
"""A link that carries less than this part of what the others do is worth a word."""

_LATE = 1.5
"""So is one whose round trip takes more than this many times that of the others."""

_BOUND = 0.7
"""An all-reduce that reaches this part of its slowest link is held up by that link."""

_LARGE = 1 << 20  # bytes, from which bandwidth counts


@dataclass(frozen=True, slots=True)
class LinkFigure:
    """One link, as programs at its two ends see it.

    Attributes:
        source, to: The members' names.
        round_trip: Of a message of 8 bytes and its answer, in seconds; the median.
        bandwidth: Bytes a second, of large messages.
    """

    source: str
    to: str
    round_trip: float
    bandwidth: float

    def __str__(self) -> str:
        return f"{self.source} -> {self.to}"


@dataclass(frozen=True, slots=True)
class CallFigure:
    """All-reduces of one size; seconds are the mean of a call, over all ranks.

    Attributes:
        size: Bytes of each rank's float32 array.
        ranks: How many take part.
        out_of_place, in_place: Seconds of a call.
        wrong: Elements that were wrong, of either kind.
    """

    size: int
    ranks: int
    out_of_place: float
    in_place: float
    wrong: tuple[int, int] = (0, 0)

    def algbw(self, seconds: float) -> float:
        """Return the bytes of the array in a second."""
        return self.size / seconds

    def busbw(self, seconds: float) -> float:
        """Return the bytes that each link carries in a second, by NCCL's definition."""
        return self.algbw(seconds) * 2 * (self.ranks - 1) / self.ranks


def link_lines(links: Sequence[LinkFigure]) -> Iterator[str]:
    """Yield the links, a line each."""
    width = max((len(str(link)) for link in links), default=0)
    yield f"# {'link':<{width}}  round trip (us)  bandwidth (GB/s)"
    for link in links:
        trip, bandwidth = link.round_trip * 1e6, link.bandwidth / 1e9
        yield f"  {link!s:<{width}}  {trip:>15.1f}  {bandwidth:>16.3f}"


_ROW = "{:>11}  {:>12}  {:>8}  {:>6}  {:>6}" + 2 * "  {:>9}  {:>6}  {:>6}  {:>6}"
_KIND = ("time", "algbw", "busbw", "#wrong")
_UNIT = ("(us)", "(GB/s)", "(GB/s)", "")

HEAD = (
    f"#{'out-of-place':>74}{'in-place':>35}",
    "#" + _ROW.format("size", "count", "type", "redop", "root", *_KIND, *_KIND),
    "#" + _ROW.format("(B)", "(elements)", "", "", "", *_UNIT, *_UNIT),
)
"""As nccl-tests has it, so that the two can be laid side by side."""


def call_line(figure: CallFigure) -> str:
    """Return the line of one size, below :data:`HEAD`."""
    cells: list[str] = []
    for seconds, wrong in zip((figure.out_of_place, figure.in_place), figure.wrong, strict=True):
        algbw, busbw = figure.algbw(seconds) / 1e9, figure.busbw(seconds) / 1e9
        cells += (f"{seconds * 1e6:.1f}", f"{algbw:.2f}", f"{busbw:.2f}", str(wrong))
    return " " + _ROW.format(figure.size, figure.size // 4, "float", "sum", -1, *cells)


def slowest(links: Sequence[LinkFigure], calls: Sequence[CallFigure]) -> list[str]:
    """Return in words what holds the ring up, a sentence each."""
    if not links:
        return ["There is one member, and so no link: what was measured is this machine alone."]
    words = [*_narrow(links), *_late(links)]
    if not words:
        words = [f"All links are much alike: {_carries(min(links, key=_bandwidth))} at least."]
    large = [call for call in calls if call.size >= _LARGE]
    if large:
        best = max(large, key=lambda call: call.busbw(call.out_of_place))
        reached = best.busbw(best.out_of_place)
        link = min(links, key=_bandwidth)
        part = reached / link.bandwidth
        said = f"Large all-reduces carry {reached / 1e9:.2f} GB/s over each link, "
        if part >= _BOUND:
            words.append(f"{said}{part:.0%} of what {link} can: that link is what they wait for.")
        else:
            words.append(
                f"{said}{part:.0%} of what {link} can: they wait for the machines (processors, "
                "memory, other programs) more than for the links."
            )
    wrong = sum(sum(call.wrong) for call in calls)
    if wrong:
        words.insert(0, f"{wrong} elements were WRONG: do not trust this ring with anything.")
    return words


def _bandwidth(link: LinkFigure) -> float:
    return link.bandwidth


def _carries(link: LinkFigure) -> str:
    return f"{link} carries {link.bandwidth / 1e9:.3f} GB/s"


def _narrow(links: Sequence[LinkFigure]) -> Iterator[str]:
    narrowest = min(links, key=_bandwidth)
    others = [link.bandwidth for link in links if link is not narrowest]
    if others and narrowest.bandwidth < _UNEVEN * median(others):
        part = narrowest.bandwidth / median(others)
        yield f"The slowest link: {_carries(narrowest)}, {part:.0%} of what the others do."


def _late(links: Sequence[LinkFigure]) -> Iterator[str]:
    latest = max(links, key=lambda link: link.round_trip)
    others = [link.round_trip for link in links if link is not latest]
    if others and latest.round_trip > _LATE * median(others):
        times = latest.round_trip / median(others)
        yield (
            f"The longest round trip is that of {latest}, {latest.round_trip * 1e3:.2f} ms, "
            f"{times:.1f} times that of the others: small calls wait for it."
        )
