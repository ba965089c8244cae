"""``ringd-cli forward``: a port here that leads to one on another machine, while it runs."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from ringd.cli.ask import fail, find_socket, socket_option
from ringd.cli.holding import Forward, Holding, forwards, say
from ringd.errors import RingError
from ringd.host.limits import raise_open_files
from ringd.loop import Loop


@click.command()
@click.argument(
    "ports", metavar="[PORT=]MEMBER:PORT...", nargs=-1, required=True, callback=forwards
)
@socket_option
def forward(ports: tuple[Forward, ...], socket: Path | None) -> None:
    """Have ports here lead to ports of other members.

    From this machine's loopback to theirs, for as long as this runs; only you, and root, can
    connect. The config has to allow it.

    \b
    Exit codes: 0 ended by a signal, 1 error, 2 wrong usage, 3 no daemon.
    Example: ringd-cli forward 15000=studio:5000
    """  # noqa: D301  click wants the backspace itself
    raise_open_files()
    loop = Loop()
    try:
        path = find_socket(socket)
    except RingError as error:
        fail(error)

    def ready() -> None:
        for port in ports:
            click.echo(str(port))

    holding = Holding(
        loop, path, "ringd-cli forward", forwards=ports, serves=(), on_ready=ready, tell=say
    )
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.on_signal(signum, loop.stop)
    loop.call_soon(holding.start)
    loop.run()
    holding.close("ringd-cli forward was ended")
    loop.close()
    if holding.error is not None:
        fail(holding.error)
