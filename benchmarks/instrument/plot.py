"""Plots as SVG: a quantity over the size of the tensor, both with logarithmic axes."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instrument.sizes import human

Points = Sequence[tuple[int, float]]
"""Of one line: bytes, and what is plotted."""


def can_plot() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def plot(
    path: Path, title: str, quantity: str, lines: Mapping[str, Points], mark: float | None = None
) -> None:
    """Write the plot of *lines*, by their names, to *path*.

    Args:
        path: Of an SVG file.
        title: What it shows.
        quantity: Of the vertical axis, with its unit.
        lines: What is plotted.
        mark: Where a horizontal line is drawn.
    """
    import matplotlib as mpl  # noqa: PLC0415 - tables come without it, see can_plot

    # Text stays text, and the same figures give the same file.
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "ringd"}
    mpl.use("svg")
    import matplotlib.pyplot as plt  # noqa: PLC0415  after its backend is chosen

    figure, axes = plt.subplots(figsize=(8, 4.5))
    for place, (name, points) in enumerate(lines.items()):
        marker = "osv^D<>pX"[place % 9]
        axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, label=name)
    if mark is not None:
        axes.axhline(mark, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({size for points in lines.values() for size, _ in points})
    axes.set_xticks(ticks, [human(size) for size in ticks], rotation=45)
    axes.set(title=title, xlabel="tensor", ylabel=quantity)
    axes.grid(visible=True, linewidth=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    metadata: dict[str, Any] = {"Date": None}
    figure.savefig(path, metadata=metadata, bbox_inches="tight")
    plt.close(figure)
