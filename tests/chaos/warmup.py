"""Before memory is measured: calls in peace, so that daemons have what they keep for good.

Records and caches fill with any calls. The buffers for chunks on their way fill when these have to
wait: while large calls are under way, one link after the other is held up for a moment.
"""

from __future__ import annotations

import time
from functools import partial

from cluster import wait_until

from chaos.proxy import Proxy
from chaos.stage import LOST_AFTER, Stage

PEACE = 120.0
"""Seconds in which the calls must be through."""

STOP = 120.0
"""Seconds in which all programs must have agreed to stop."""

HELD = LOST_AFTER / 2
"""Seconds for which a link is held up; the members do not miss each other yet."""


def warm_up(stage: Stage, calls: int, *, fill: bool) -> None:
    """Have the programs of each group make so many *calls*, and *fill* the chunk buffers."""
    ledger, programs = stage.ledger, stage.programs
    before = ledger.calls.copy()
    programs.start_all()

    def enough() -> bool:
        programs.pump(0.05)
        fewest = min(ledger.calls[group] - before[group] for group in stage.groups)
        return fewest >= calls or ledger.failed

    wait_until(enough, f"{calls} calls of each group in peace", PEACE)
    if fill:
        _fill(stage)
    programs.finish(STOP)


def _fill(stage: Stage) -> None:
    """Have chunks wait at each member in turn, for the link to its right neighbour."""
    ledger, programs = stage.ledger, stage.programs
    group = max(stage.groups, key=lambda name: len(stage.layout(name).members))
    until = time.monotonic() + PEACE
    for proxy in stage.proxies:
        wanted = ledger.fillings[group] + stage.layout(group).size
        programs.ask_for("fill", group, wanted=True)
        while ledger.fillings[group] < wanted and not ledger.failed and time.monotonic() < until:
            _hold_up(stage, proxy)
        programs.ask_for("fill", group, wanted=False)


def _hold_up(stage: Stage, proxy: Proxy) -> None:
    """Let nothing through *proxy* for a moment, then all for another."""
    for stalled, seconds in ((True, HELD), (False, HELD / 4)):
        stage.network.ask(partial(setattr, proxy, "stalled", stalled))
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            stage.programs.pump(0.02)
