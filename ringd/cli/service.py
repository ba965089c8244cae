"""``service``: ringd as a service of this machine or of one user, installed and taken away."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import dataclass

import click

from ringd.cli.ask import ERROR, NO_DAEMON, fail
from ringd.cli.host import Host
from ringd.cli.managers import Manager, manager
from ringd.cli.setup import KEY_FILE
from ringd.config import load
from ringd.errors import ConfigError, RingError
from ringd.host.paths import MACOS
from ringd.service.steps import describe

HOST = Host()

SCHEMA_VERSION = 1

_for_user = click.option(
    "--user", is_flag=True, help="This user's own service, which needs no root."
)
_dry_run = click.option(
    "--dry-run", is_flag=True, help="Print what would be written and run, and do nothing."
)


@click.group()
def service() -> None:
    """Install ringd as a service that starts with the machine.

    \b
    Example: sudo ringd-cli service install && ringd-cli service status
    """  # noqa: D301  click wants the backspace itself


@dataclass(frozen=True, slots=True)
class Outlook:
    """Whether the daemon can be started.

    Attributes:
        there: Whether there is a config.
        problems: What is wrong with it, or with this machine's place in it.
        node: Which member this machine is; empty while that is not known.
        group: Whose members may use the socket, by the config; empty for the daemon's own.
    """

    there: bool
    problems: tuple[str, ...] = ()
    node: str = ""
    group: str = ""

    @property
    def good(self) -> bool:
        """Whether it can."""
        return self.there and not self.problems


@service.command()
@_for_user
@click.option(
    "--node",
    metavar="NAME",
    help="Which member this machine is. Default: the one that an earlier install named, else the "
    "one named like this host.",
)
@_dry_run
def install(*, user: bool, node: str | None, dry_run: bool) -> None:
    """Install the service, and start it if there is a config.

    Installing again is an upgrade. Config and key are never written. The member's name is fixed in
    the service, so that a host that the network renames stays that member.

    \b
    Exit codes: 0 installed, 1 error (or a faulty config), 2 wrong usage.
    Example: ringd-cli service install --user --dry-run
    """  # noqa: D301
    try:
        _need_root(user=user, dry_run=dry_run)
        chosen = manager(HOST, user=user, macos=MACOS)
        if dry_run:
            outlook = _look_at_config(chosen, node)
            click.echo(describe(chosen.install(outlook.node, start=outlook.good)))
            return
        _check_program(chosen)
        chosen.check()
        with HOST.alone(chosen.definition, _say_waiting):
            outlook = _look_at_config(chosen, node)
            HOST.carry_out(chosen.install(outlook.node, start=outlook.good))
    except RingError as error:
        fail(error)
    for line in _next(chosen, outlook):
        click.echo(line)
    if outlook.problems:
        sys.exit(ERROR)


@service.command()
@_for_user
@click.option("--purge", is_flag=True, help="Config, key, state and the daemon's user, too.")
@_dry_run
def uninstall(*, user: bool, purge: bool, dry_run: bool) -> None:
    """Stop the service and take it away.

    The program stays; so do config, key and state, unless --purge is given.

    \b
    Exit codes: 0 removed, or nothing was there, 1 error, 2 wrong usage.
    Example: sudo ringd-cli service uninstall --purge
    """  # noqa: D301
    try:
        _need_root(user=user, dry_run=dry_run)
        chosen = manager(HOST, user=user, macos=MACOS)
        if dry_run:
            click.echo(describe(chosen.uninstall(purge=purge)))
            return
        with HOST.alone(chosen.definition, _say_waiting):
            # By what there is now: who had the lock before may have changed it.
            was_there = HOST.has(chosen.definition)
            HOST.carry_out(chosen.uninstall(purge=purge))
    except RingError as error:
        fail(error)
    click.echo("Removed." if was_there or purge else "It was not installed.")
    about = chosen.service
    left = [path for path in (about.config.parent, about.state_dir) if path and HOST.has(path)]
    if left and not purge:
        places = ", ".join(map(str, left))
        click.echo(f"Still there: {places}; `ringd-cli service uninstall --purge` takes all.")


@service.command()
@_for_user
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
def status(*, user: bool, as_json: bool) -> None:
    """Say whether the service is installed and runs.

    How the ring is says `ringd-cli status`.

    \b
    Exit codes: 0 it runs, 1 error, 2 wrong usage, 3 not running or not installed.
    Example: ringd-cli service status --json | jq .pid
    """  # noqa: D301
    try:
        chosen = manager(HOST, user=user, macos=MACOS)
        state = chosen.state()
    except RingError as error:
        fail(error)
    if as_json:
        body = {
            "schema_version": SCHEMA_VERSION,
            "definition": state.definition or None,
            "enabled": state.enabled,
            "running": state.running,
            "pid": state.pid or None,
            "words": state.words,
        }
        click.echo(json.dumps(body))
    elif not state.definition:
        click.echo(f"not installed; install it with `{_again(chosen)}`")
    else:
        starts = "at each login" if user else "with the machine"
        enabled = f"starts {starts}" if state.enabled else "does not start by itself"
        process = f"running, process {state.pid}" if state.running else "not running"
        click.echo(f"{process}; {state.words}")
        click.echo(f"installed as {state.definition}; {enabled}")
    if not state.running:
        sys.exit(NO_DAEMON)


def _say_waiting() -> None:
    click.echo("Waiting for another ringd-cli that changes this service ...", err=True)


def _need_root(*, user: bool, dry_run: bool) -> None:
    if not dry_run and not user and os.geteuid():
        raise RingError(
            "a service of the machine needs root: put sudo in front, or add --user for a service "
            "of your own"
        )
    if not dry_run and user and not os.geteuid():
        raise RingError("root's service is the machine's: leave --user out, or sudo")


def _check_program(chosen: Manager) -> None:
    for program in (chosen.service.program, chosen.service.control):
        if not os.access(program, os.X_OK):
            raise RingError(
                f"there is no {program}: install ringd as a whole, such as with pipx, and run the "
                "ringd-cli of that installation"
            )


def _look_at_config(chosen: Manager, node: str | None) -> Outlook:
    """Return whether the daemon could start, as the member *node* or one that is found out."""
    config = chosen.service.config
    known = node or chosen.node()
    if not HOST.has(config):
        return Outlook(there=False, node=known)
    try:
        settings = load.load(HOST.place(config), known or None)
    except ConfigError as error:
        return Outlook(there=True, problems=tuple(str(error).splitlines()), node=known)
    return Outlook(there=True, node=settings.node, group=settings.ipc.group)


def _next(chosen: Manager, outlook: Outlook) -> list[str]:
    """Return what to tell whoever has just installed the service."""
    about = chosen.service
    if outlook.good:
        lines = [
            f"Installed and started, as the member {outlook.node!r}.",
            "How it is: ringd-cli status; ringd-cli service status",
        ]
    elif outlook.problems:
        lines = [
            "Installed, and not started, for the config has a fault:",
            *(f"    {line}" for line in outlook.problems),
            f"Correct it, then: {_again(chosen)}",
        ]
    else:
        config, key = (
            shlex.quote(str(path)) for path in (about.config, about.config.parent / KEY_FILE)
        )
        sudo = "sudo " if about.user else ""
        lines = [
            "Installed, and not started, for there is no config yet.",
            "Copy both files of another machine here, or make them:",
            f"    {sudo}ringd-cli init {config} --member NAME=ADDRESS:PORT ...",
            f"    {sudo}ringd-cli keygen {key}",
            f"Then: {_again(chosen)}",
        ]
    return [*lines, *chosen.hints(outlook.group or about.user)]


def _again(chosen: Manager) -> str:
    """Return the command that installs the service, and starts it."""
    if chosen.service.user:
        return "sudo ringd-cli service install"
    return "ringd-cli service install --user"
