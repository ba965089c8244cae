"""``status --watch``: the status as it changes, with what comes and goes in a second.

The picture is rich's, which is an extra: in ringd's checkout, ``pip install '.[watch]'``. Lines of
JSON need none.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import click

from ringd.cli.picture import HEADINGS, Rates, group_lines, program_line, rows, state, warnings
from ringd.errors import DaemonUnavailable, RingError

if TYPE_CHECKING:
    from rich.console import Group

EVERY = 1.0
"""Seconds between two looks."""

_EQUAL = 1e-3  # seconds, for two times that were calculated

_STATES = {"self": "green", "up": "green", "down": "red", "unknown": "yellow"}

Look = Callable[[], dict[str, Any]]


class Meter:
    """Turns what each link has carried so far into rates, by the daemon's own clock."""

    def __init__(self) -> None:
        self._before: Mapping[str, Any] = {"uptime": 0.0, "links": {}}

    def rates(self, body: Mapping[str, Any]) -> Rates:
        """Return the rates since the last call; 0 of a link that was not there then."""
        before, self._before = self._before, body
        span = body["uptime"] - before["uptime"]
        return {
            side: _rate(link, before["links"].get(side), span)
            for side, link in body["links"].items()
        }


def _rate(
    link: Mapping[str, Any], before: Mapping[str, Any] | None, span: float
) -> tuple[float, float]:
    # Of the same link, as that came up at the same time.
    if before is None or span <= 0 or abs(link["up_for"] - before["up_for"] - span) > _EQUAL:
        return 0.0, 0.0
    received, sent = (link[key] - before[key] for key in ("bytes_in", "bytes_out"))
    return received / span, sent / span


def show(look: Look, *, as_json: bool) -> None:
    """Show what *look* returns, once a second, until Ctrl-C.

    In the picture a daemon may come and go. The lines, for scripts, end where there is none.

    Raises:
        RingError: The picture cannot be drawn, or the daemon may not be asked.
        DaemonUnavailable: There is none, with *as_json*.
    """
    with contextlib.suppress(KeyboardInterrupt):
        if as_json:
            _print_lines(look)
        else:
            _draw(look)


def _print_lines(look: Look) -> None:
    while True:
        click.echo(json.dumps(look()))
        time.sleep(EVERY)


def _draw(look: Look) -> None:
    if not sys.stdout.isatty():
        raise RingError("--watch draws on a terminal; elsewhere use --watch --json")
    try:
        from rich.live import Live  # noqa: PLC0415 - an extra, and slow to import
        from rich.text import Text  # noqa: PLC0415
    except ModuleNotFoundError:
        raise RingError(
            "--watch draws with rich, which is not here: in ringd's checkout, pip install "
            "'.[watch]', or use --watch --json"
        ) from None
    meter = Meter()
    with Live(auto_refresh=False, screen=True) as live:
        while True:
            try:
                body = look()
            except DaemonUnavailable as error:
                live.update(Text(f"! {error}", style="bold red"), refresh=True)
            else:
                live.update(picture(body, meter.rates(body)), refresh=True)
            time.sleep(EVERY)


def picture(body: Mapping[str, Any], rates: Rates) -> Group:
    """Return the status as rich shows it."""
    from rich.console import Group  # noqa: PLC0415 - as above
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for row in rows(body, rates):
        cells = [Text(str(cell)) for cell in astuple(row)]
        cells[2].stylize(_STATES.get(row.state, ""))
        table.add_row(*cells)
    good = body["state"] == "ready"
    title = f"ring {body['ring']!r}, {state(body)}"
    parts: list[Any] = [Text(f"! {line}", style="bold red") for line in warnings(body)]
    parts += [Text(title, style="bold green" if good else "bold yellow"), table]
    for group in body["groups"]:
        parts += [Text(line) for line in ("", *group_lines(group))]
    parts += [Text(f"program {program_line(program)}") for program in body["clients"]]
    return Group(*parts)
