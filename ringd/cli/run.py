"""``ringd-cli run``: a program, with the ends of its streams beside it.

They are in this command, and not in the daemon: so when the daemon is killed, restarted or upgraded
the program's connections stay, and notice only that it takes a while.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import click

from ringd.cli.ask import fail, find_socket, socket_option
from ringd.cli.guard import SHELL, Guard
from ringd.cli.holding import MAX_PORT, Forward, Holding, forwards, say
from ringd.cli.mlx import MAX_FIRST_PORT, Chain
from ringd.errors import RingError
from ringd.loop import Loop

NOT_FOUND, NOT_RUNNABLE = 127, 126
"""Exit codes for a command that there is not, or that cannot be run: as of a shell."""

BY_SIGNAL = 128
"""Added to the number of the signal that ended the program: likewise."""

LINGER = 10.0
"""Seconds that what the program has said gets to arrive after its end."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,40}", re.ASCII)

_LOOK = 0.02  # seconds
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_OF_TERMINAL = (signal.SIGINT, signal.SIGQUIT)


class Child:
    """The program, from :meth:`start` to its end.

    If this process is killed outright, it is sent SIGTERM: without its streams it might wait for
    others without end.

    Args:
        loop: Where it runs.
        command: The program and its arguments.
    """

    def __init__(self, loop: Loop, command: tuple[str, ...]) -> None:
        self.code: int | None = None
        """Its exit code, or that of a shell; None while it runs."""
        self._loop = loop
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None

    def start(self, environ: Mapping[str, str]) -> None:
        """Start it, with *environ* beside what is here; if that fails, that is its end."""
        name = self._command[0]
        try:
            self._process = subprocess.Popen(self._command, env={**os.environ, **environ})  # noqa: S603 - the user's own
        except FileNotFoundError:
            say(f"{name}: there is no such command")
            self.code = NOT_FOUND
        except OSError as error:
            say(f"{name}: cannot be run: {error.strerror}")
            self.code = NOT_RUNNABLE
        else:
            self._watch_over(self._process.pid)

    def _watch_over(self, pid: int) -> None:
        try:
            self._guard = Guard(pid)
        except OSError as error:
            say(f"{SHELL}: {error.strerror}: if this is killed, {self._command[0]} goes on alone")

    def reap(self) -> None:
        """See whether it has ended."""
        code = None if self._process is None else self._process.poll()
        if code is not None and self.code is None:
            self.code = code if code >= 0 else BY_SIGNAL - code
            if self._guard is not None:
                self._guard.dismiss()

    def pass_on(self, signum: int) -> None:
        """Send it a signal that came here; before its start, that is its end."""
        if self._process is None:
            self.code = BY_SIGNAL + signum
            self._loop.stop()
        elif not (signum in _OF_TERMINAL and _has_terminal()):  # which has sent it there as well
            self._process.send_signal(signum)


def pass_signals_on(loop: Loop, child: Child) -> None:
    """Have signals that are sent here go to *child* as well."""
    for signum in (*_PASSED_ON, *_OF_TERMINAL):
        loop.on_signal(signum, partial(child.pass_on, signum))


def _has_terminal() -> bool:
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError, AttributeError):
        return False


def wait_for(loop: Loop, child: Child, holding: Holding) -> None:
    """Run *loop* until *child* has ended and what it has said has arrived."""

    def ended() -> None:
        child.reap()
        if child.code is not None:
            holding.program_ended(well=child.code == 0)
            linger(loop.now() + LINGER)

    def linger(latest: float) -> None:
        if holding.unsaid and loop.now() < latest:
            loop.call_later(_LOOK, lambda: linger(latest))
            return
        if holding.unsaid:
            count = f"of {holding.unsaid} connections"
            say(f"{count} not all has arrived {LINGER:g} s after the program's end; they are reset")
        loop.stop()

    loop.on_signal(signal.SIGCHLD, ended)
    loop.run()
    holding.close("the program has ended")
    loop.close()


def _name(_context: click.Context, _option: click.Parameter, value: str) -> str:
    if not _NAME.fullmatch(value):
        raise click.BadParameter("1 to 40 letters, digits and . _ - make a name")
    return value


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--forward",
    "ports",
    metavar="[PORT=]MEMBER:PORT",
    multiple=True,
    callback=forwards,
    help="A port of loopback here that leads to one on another member; any number of times.",
)
@click.option(
    "--serve",
    "serves",
    type=click.IntRange(1, MAX_PORT),
    metavar="PORT",
    multiple=True,
    help="A port of the program that other members reach; any number of times.",
)
@click.option("--mlx", is_flag=True, help="It is an MLX program: be its neighbours (docs/mlx.md).")
@click.option(
    "--name",
    default="default",
    callback=_name,
    show_default=True,
    help="Of the MLX job, the same on all machines; several at a time have names.",
)
@click.option(
    "--connections",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Between two ranks of MLX, the same on all machines.",
)
@click.option(
    "--port",
    type=click.IntRange(1, MAX_FIRST_PORT),
    help="MLX's first port, as in mlx-hostfile; default: ports that are free.",
)
@socket_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    *,
    ports: tuple[Forward, ...],
    serves: tuple[int, ...],
    mlx: bool,
    name: str,
    connections: int,
    port: int | None,
    socket: Path | None,
    command: tuple[str, ...],
) -> None:
    """Run a program whose connections survive the daemon.

    COMMAND's connections through the ring, that is; the config has to allow those ports. Signals
    are passed on.

    \b
    Exit codes: 0 and others as the command, 126 it cannot be run, 127 there is
    none such, 1 error, 2 wrong usage, 3 no daemon.

    \b
    Examples:
      ringd-cli run --forward 15000=studio:5000 -- ./client --port 15000
      ringd-cli run --mlx -- python generate.py
    """  # noqa: D301  click wants the backspace itself
    loop = Loop()
    try:
        path = find_socket(socket)
    except RingError as error:
        fail(error)
    child = Child(loop, command)

    def conflict(reason: str) -> None:
        say(reason)
        child.pass_on(signal.SIGTERM)

    chain = Chain(
        loop,
        name=name,
        connections=connections,
        first_port=port,
        tell=say,
        on_conflict=conflict,
    )

    def ready() -> None:
        child.start(chain.environ)
        if child.code is not None:
            loop.stop()

    holding = Holding(
        loop,
        path,
        f"ringd-cli run {command[0]}",
        forwards=ports,
        serves=serves,
        chain=chain if mlx else None,
        on_ready=ready,
        tell=say,
    )
    pass_signals_on(loop, child)
    loop.call_soon(holding.start)
    wait_for(loop, child, holding)
    if holding.error is not None:
        fail(holding.error)
    sys.exit(child.code)
