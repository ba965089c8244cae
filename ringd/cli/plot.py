"""A picture of what ``bench`` has measured: SVG, which needs no library and any browser shows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ringd.cli.figures import CallFigure

_FONT = 'font-family="sans-serif" font-size="12"'
_WIDTH, _HEIGHT = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 50, 60
_COLOURS = {"algbw": "#1f77b4", "busbw": "#d62728"}


def svg(calls: Sequence[CallFigure], title: str) -> str:
    """Return a picture of the bandwidths by size: SVG, both axes logarithmic."""
    lines = {
        "algbw": [(call.size, call.algbw(call.out_of_place) / 1e9) for call in calls],
        "busbw": [(call.size, call.busbw(call.out_of_place) / 1e9) for call in calls],
    }
    lines = {name: [p for p in points if p[1] > 0] for name, points in lines.items()}
    values = [value for points in lines.values() for _, value in points] or [1.0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    high = max(high, low + 1)
    first, last = math.log2(calls[0].size), math.log2(calls[-1].size)
    last = max(last, first + 1)

    def x(size: float) -> float:
        return _LEFT + (math.log2(size) - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return (
            _HEIGHT
            - _BOTTOM
            - (math.log10(value) - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {_FONT}>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_WIDTH / 2, 22, title, "middle", size=15),
    ]
    for decade in range(low, high + 1):
        here = y(10.0**decade)
        parts.append(_line(_LEFT, here, _WIDTH - _RIGHT, here))
        parts.append(_text(_LEFT - 6, here + 4, f"{10.0**decade:g}", "end"))
    for call in calls:
        here = x(call.size)
        parts.append(_line(here, _TOP, here, _HEIGHT - _BOTTOM))
        parts.append(_text(here, _HEIGHT - _BOTTOM + 16, _short(call.size), "middle"))
    parts.append(_text((_LEFT + _WIDTH) / 2, _HEIGHT - 16, "size (bytes)", "middle"))
    parts.append(_text(_LEFT - 50, _TOP - 12, "GB/s", "start"))
    for index, (name, points) in enumerate(lines.items()):
        colour = _COLOURS[name]
        path = " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(size):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}">'
            f"<title>{name} of {size} B: {value:.3f} GB/s</title></circle>"
            for size, value in points
        ]
        parts.append(_text(_LEFT + 12, _TOP + 16 + 16 * index, name, "start", colour=colour))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _short(size: int) -> str:
    for unit, bits in (("G", 30), ("M", 20), ("K", 10)):
        if size >= 1 << bits:
            return f"{size / (1 << bits):g}{unit}"
    return str(size)


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(
    x: float, y: float, text: str, anchor: str, *, size: int = 12, colour: str = "black"
) -> str:
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="{colour}">{safe}</text>'
    )
