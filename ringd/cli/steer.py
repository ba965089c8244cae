"""``rejoin``, ``reload``, ``drain``, ``resume`` and ``log-level``: orders to a running daemon.

They disturb, and so are for root and the daemon's user, unless ``ipc.control`` in the config gives
them to the socket's group.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from ringd.cli.ask import ANSWER_WITHIN, ERROR, ask, daemon_options, fail, find_socket
from ringd.config.settings import LOG_LEVELS
from ringd.config.units import parse_duration
from ringd.errors import RingError
from ringd.wire.border.messages import (
    AskDrain,
    AskLogLevel,
    AskRejoin,
    AskReload,
    AskResume,
    Order,
)

RELOAD_WITHIN = 60.0
"""Seconds; the group in ``ipc.group`` may be looked up over the network."""

DRAIN_WITHIN = 30.0
"""Seconds; the daemon gives calls some of them to finish."""

RESUME = '"ringd-cli resume" brings this machine back.'

OUT = "draining"
"""The state of a member that takes no part in the ring."""


@click.command()
@daemon_options
def rejoin(socket: Path | None, *, as_json: bool) -> None:
    """Drop the links and join again.

    Backoff is forgotten, and names are looked up afresh. Calls in flight are not lost: they
    come back when the ring has formed again.

    \b
    Exit codes: 0 done, 1 error or not allowed, 2 wrong usage, 3 no daemon.
    Example: sudo ringd-cli rejoin && ringd-cli health --wait 10s
    """  # noqa: D301  click wants the backspace itself
    body = _order(socket, AskRejoin)
    stays_out = body.get("state") == OUT  # a daemon from before an upgrade does not say
    if stays_out and not as_json:
        fail(RingError(f"not joined again: this machine is drained, or its daemon stops. {RESUME}"))
    _say(body, "Rejoining.", as_json=as_json)
    if stays_out:
        sys.exit(ERROR)


@click.command()
@daemon_options
def reload(socket: Path | None, *, as_json: bool) -> None:
    """Have the daemon read its configuration again.

    What SIGHUP does too; but this says what came of it. Of a file with a fault nothing is used, and
    the settings that need a restart are named.

    \b
    Exit codes: 0 they are in use, 1 refused, 2 wrong usage, 3 no daemon.
    Example: sudo ringd --check-config && sudo ringd-cli reload
    """  # noqa: D301
    body = _order(socket, AskReload, RELOAD_WITHIN)
    refused = body["refused"]
    if refused is not None and not as_json:
        fail(RingError(f"the reload was refused, the old settings stay: {refused}"))
    _say(body, "Reloaded.", as_json=as_json)
    if refused is not None:
        sys.exit(ERROR)


@click.command()
@daemon_options
def drain(socket: Path | None, *, as_json: bool) -> None:
    """Take this machine out of the ring, for work on it.

    Calls under way get some seconds to finish. What is called then, on any machine, waits until
    "ringd-cli resume" or a restart of the daemon brings this member back.

    \b
    Exit codes: 0 drained, 1 error or not allowed, 2 wrong usage, 3 no daemon.
    Example: sudo ringd-cli drain && sudo ip link set eth0 mtu 9000
    """  # noqa: D301
    body = _order(socket, AskDrain, DRAIN_WITHIN)
    drained = body.get("drained", True)  # a daemon from before an upgrade does not say
    if not drained and not as_json:
        fail(RingError("not drained: it was resumed before the calls under way had finished"))
    left = body["unfinished"]
    text = f" Not finished, and run again later: {left} calls." if left else ""
    _say(body, f"Drained. {RESUME}{text}", as_json=as_json)
    if not drained:
        sys.exit(ERROR)


@click.command()
@daemon_options
def resume(socket: Path | None, *, as_json: bool) -> None:
    """Bring a machine back into the ring that was drained.

    \b
    Exit codes: 0 done, 1 error or not allowed, 2 wrong usage, 3 no daemon.
    Example: sudo ringd-cli resume && ringd-cli health --wait 10s
    """  # noqa: D301
    body = _order(socket, AskResume)
    stops = body["state"] == OUT
    if stops and not as_json:
        fail(RingError("not resumed: the daemon stops; start it again, as with systemctl"))
    _say(body, "Resuming.", as_json=as_json)
    if stops:
        sys.exit(ERROR)


@click.command("log-level")
@click.argument("level", type=click.Choice(LOG_LEVELS))
@click.option(
    "--for", "duration", metavar="DURATION", default="10m", show_default=True, help="How long."
)
@daemon_options
def log_level(level: str, duration: str, socket: Path | None, *, as_json: bool) -> None:
    """Have the daemon log from LEVEL on for a while.

    Then it logs as its config says again; so it does after a reload.

    \b
    Exit codes: 0 done, 1 error or not allowed, 2 wrong usage, 3 no daemon.
    Example: sudo ringd-cli log-level debug --for 10m
    """  # noqa: D301
    try:
        seconds = parse_duration(duration)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--for") from None
    body = _order(socket, AskLogLevel, level=level, seconds=seconds)
    refused = body["refused"]
    if refused is not None and not as_json:
        fail(RingError(refused))
    _say(body, f"Logging from {level} on, for {duration}.", as_json=as_json)
    if refused is not None:
        sys.exit(ERROR)


def _order(
    socket: Path | None, order: type[Order], timeout: float = ANSWER_WITHIN, **details: Any
) -> dict[str, Any]:
    try:
        return ask(find_socket(socket), order, timeout, **details)
    except RingError as error:
        fail(error)


def _say(body: dict[str, Any], text: str, *, as_json: bool) -> None:
    click.echo(json.dumps(body) if as_json else text)
