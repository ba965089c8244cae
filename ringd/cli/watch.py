"""``status``, ``health`` and ``wait``: looking at a running daemon."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import click

from ringd.cli.ask import NOT_READY, ask, daemon_options, fail, find_socket
from ringd.cli.live import show
from ringd.cli.picture import headline, render
from ringd.config.units import parse_duration
from ringd.errors import DaemonUnavailable, RingError
from ringd.wire.border.messages import AskStatus

_POLL = 0.05


@click.command()
@daemon_options
@click.option("--watch", is_flag=True, help="Go on showing it, once a second, until Ctrl-C.")
def status(socket: Path | None, *, as_json: bool, watch: bool) -> None:
    """Show the ring as this machine's daemon sees it.

    What is wrong comes first. A neighbour has its round trip, and what comes and goes over the
    links to it: on average since they came up, with --watch in the last second. With --watch and
    --json there is a line of JSON for each second.

    \b
    Exit codes: 0 ready, 1 error, 2 wrong usage, 3 no daemon, 4 not ready.
    Example: ringd-cli status --watch
    Example: ringd-cli status --json | jq .generation
    """  # noqa: D301  click wants the backspace itself
    if watch:
        try:
            show(lambda: ask(find_socket(socket), AskStatus), as_json=as_json)
        except RingError as error:
            fail(error)
        return
    try:
        body = ask(find_socket(socket), AskStatus)
    except RingError as error:
        fail(error)
    click.echo(json.dumps(body, indent=2) if as_json else render(body))
    if body["state"] != "ready":
        sys.exit(NOT_READY)


@click.command()
@daemon_options
@click.option("--wait", metavar="DURATION", help='Wait until the ring is ready, such as "30s".')
def health(socket: Path | None, *, as_json: bool, wait: str | None) -> None:
    """Say in one line whether the ring is ready.

    \b
    Exit codes: 0 ready, 1 error, 2 wrong usage, 3 no daemon, 4 not ready.
    Example: ringd-cli health --wait 30s && python train.py
    """  # noqa: D301
    _say_when_ready(socket, _seconds(wait, "--wait") if wait is not None else 0.0, as_json=as_json)


@click.command()
@daemon_options
@click.option(
    "--timeout", metavar="DURATION", help='How long at most, such as "5m". Default: for ever.'
)
def wait(socket: Path | None, *, as_json: bool, timeout: str | None) -> None:
    """Wait until there is a daemon, and its ring is ready.

    \b
    Exit codes: 0 ready, 1 error, 2 wrong usage, 3 no daemon, 4 not ready in time.
    Example: ringd-cli wait --timeout 5m && python train.py
    """  # noqa: D301
    limit = math.inf if timeout is None else _seconds(timeout, "--timeout")
    _say_when_ready(socket, limit, as_json=as_json)


def _seconds(text: str, option: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from None


def _say_when_ready(socket: Path | None, seconds: float, *, as_json: bool) -> None:
    """Say how the ring is once it is ready, or after *seconds*; exit if it is not.

    Meanwhile the standard error says for whom it waits, and again when that is somebody else.
    """
    deadline = time.monotonic() + seconds
    said: tuple[str, ...] = ()
    while True:
        try:
            # A busy daemon gets a second also when the user's time is over: it is not gone.
            left = max(1.0, deadline - time.monotonic()) if seconds else 5.0
            body = ask(find_socket(socket), AskStatus, timeout=min(5.0, left))
        except DaemonUnavailable as error:
            if time.monotonic() >= deadline:
                fail(error)
            awaited, text = ("a daemon",), str(error)
        except RingError as error:
            fail(error)
        else:
            if body["state"] == "ready" or time.monotonic() >= deadline:
                break
            # The reasons say for how long already, which is always something else.
            awaited, text = (body["state"], *body["waiting_for"]), headline(body)
        if awaited != said and not as_json:
            click.echo(f"waiting: {text}", err=True)
            said = awaited
        time.sleep(_POLL)
    keys = ("schema_version", "node", "state", "generation", "waiting_for")
    click.echo(json.dumps({key: body[key] for key in keys}) if as_json else headline(body))
    if body["state"] != "ready":
        sys.exit(NOT_READY)
