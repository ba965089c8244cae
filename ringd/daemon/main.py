"""``ringd``: the command."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib.util
import os
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import click
import structlog

from ringd import __version__
from ringd.border.lock import SocketLock
from ringd.config import load
from ringd.config.settings import Config
from ringd.daemon.daemon import EX_TEMPFAIL, Daemon
from ringd.daemon.notify import ServiceManager
from ringd.errors import ConfigError, RingError
from ringd.host import heap, limits, paths
from ringd.host.container import take_first_place
from ringd.host.journal import complaint
from ringd.host.limits import raise_open_files
from ringd.host.secrecy import keep_memory_private
from ringd.host.streams import prepare_standard_streams
from ringd.net.listener import obstacles
from ringd.observe import logs
from ringd.wire.border.lifeline import SUFFIX

EX_CONFIG = 78
"""Of sysexits.h: what is wrong stands in the config, so a restart cannot help."""

WAIT_FOR_NAME = 30.0
"""Seconds to wait for this host's name. A service manager waits as well, and others for it."""

LOOK_AGAIN = 1.0
"""Seconds."""


class Command(click.Command):
    """A command whose output may find no place."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run, whatever becomes of what is printed."""
        prepare_standard_streams()
        return super().main(*args, **extra)


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=click.Path(path_type=Path, readable=False),
    envvar="RINGD_CONFIG",
    help="The configuration file, the same on every machine; or RINGD_CONFIG. Default: "
    "ringd.toml in the usual place of this user, or of the system.",
)
@click.option(
    "--node",
    envvar="RINGD_NODE",
    metavar="NAME",
    help="Which member this is; or RINGD_NODE. Default: the one named like this host.",
)
@click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path, readable=False),
    envvar="RINGD_SOCKET",
    help="Where programs reach this daemon; or RINGD_SOCKET. Default: ipc.socket in the "
    "configuration, else the usual place.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, readable=False),
    envvar="RINGD_STATE_DIR",
    help="Where generation and incarnation are kept; or RINGD_STATE_DIR.",
)
@click.option(
    "--check-config", is_flag=True, help="Say all that is wrong with the configuration, and exit."
)
@click.version_option(__version__, prog_name="ringd")
def main(
    config: Path | None,
    node: str | None,
    socket_path: Path | None,
    state_dir: Path | None,
    *,
    check_config: bool,
) -> None:
    """Hold this machine's place in the ring, and all-reduce for the programs beside it.

    Runs in the foreground and logs to standard error. SIGTERM ends it, SIGHUP makes it read
    its configuration again.

    \b
    Exit codes: 0 ended as asked, 1 error, 2 wrong usage, 75 worth another try,
                78 the configuration must be changed.
    Example: ringd --config ringd.toml --node studio
    """  # noqa: D301  click wants the backspace itself
    take_first_place()
    path = config or paths.find_config()
    try:
        if check_config:
            settings = load.load(path, node)
        else:
            settings = _load_patiently(path, node, socket_path)
        _check_library(settings)
    except ConfigError as error:
        _give_up(str(error).splitlines())
    except RingError as error:
        _cannot_start(error, 1)
    named = socket_path or (Path(settings.ipc.socket) if settings.ipc.socket else None)
    socket_path = _place(settings, socket_path)
    if check_config:
        _check_ports(settings, socket_path)
        click.echo(f"{path}: good; this is {settings.node!r}, rank {settings.rank}")
        return
    _prepare_process(settings)
    logs.configure(settings.log.level, settings.log.format)
    hostname = socket.gethostname()
    if node is None and not load.bears(settings.node, hostname):
        structlog.get_logger("ringd").warning(
            "this host has another name",
            host=hostname,
            reason=f"it seems to be the member {settings.node!r}, renamed by the network; if it is "
            "another machine, give it a member of its own, else use --node or RINGD_NODE",
        )
    if named is None and os.geteuid() and (hidden := paths.by_environment()):
        structlog.get_logger("ringd").warning("not all programs find this daemon", reason=hidden)
    try:
        faulthandler.enable(2)  # one that its watchdog ends says where it hung
        code = Daemon(settings, socket_path, state_dir or paths.default_paths().state_dir).run()
    except RingError as error:
        _cannot_start(error, EX_CONFIG if isinstance(error, ConfigError) else 1)
    except Exception:  # noqa: BLE001 - the log's form and severity, whatever it is
        structlog.get_logger("ringd").critical("ended by a fault of ringd", exc_info=True)
        code = 1
    if code:
        sys.exit(code)


def _prepare_process(settings: Config) -> None:
    """Set what holds for the whole process, before there is anything in it."""
    if settings.ring.key:
        keep_memory_private()
    raise_open_files()
    limits.OWN.reserve = settings.ipc.reserve
    heap.give_back_large_blocks()


def _place(settings: Config, given: Path | None) -> Path:
    """Return where the socket belongs."""
    if given is not None:
        return given
    return Path(settings.ipc.socket) if settings.ipc.socket else paths.default_paths().socket


def _load_patiently(path: Path, node: str | None, socket_path: Path | None) -> Config:
    """Return the config, as soon as this host has the name of a member.

    A host is "localhost" until the network has told it its name, for instance.

    Raises:
        ConfigError: Something else is wrong.
        Refused: Another daemon has the socket.
    """
    deadline = time.monotonic() + WAIT_FOR_NAME
    said = False
    with contextlib.ExitStack() as held:
        while True:
            try:
                return load.load(path, node)
            except load.UnknownHost as error:
                if not said:
                    said = True
                    logs.configure()
                    event = "waiting for this host's name"
                    structlog.get_logger("ringd").warning(event, reason=str(error))
                    # A copy: the daemon takes these out of the environment.
                    ServiceManager(dict(os.environ)).tell(f"STATUS={event}: {error}")
                    place = _place(error.config, socket_path)
                    held.enter_context(SocketLock(place, node="?", waits=f"{event}: {error}"))
                if time.monotonic() >= deadline:
                    _cannot_start(error, EX_TEMPFAIL)
            time.sleep(LOOK_AGAIN)


def _check_library(settings: Config) -> None:
    """Make sure that what the settings need is installed.

    Raises:
        ConfigError: It is not.
    """
    if settings.metrics.wanted and importlib.util.find_spec("prometheus_client") is None:
        raise ConfigError(
            f"{settings.path}: metrics: needs prometheus_client; install it in the daemon's "
            "environment (in ringd's checkout, pip install '.[metrics]'), or leave metrics.listen "
            "and metrics.textfile empty"
        )


def _check_ports(settings: Config, socket_path: Path) -> None:
    """Exit with a line for each address that is not this machine's; name those in use.

    The latter is no fault of the config: the daemon itself may run, with its socket in a place that
    only its own command line names.
    """
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(str(socket_path) + SUFFIX)
        return
    where = f"{settings.path}: {settings.listen_key}"
    found = obstacles(settings.listen_addresses(settings.node))
    if faults := [one for one in found if not one.in_use]:
        _give_up(f"{where}: {one.text}" for one in faults)
    for one in found:
        click.echo(f"Note: {where}: {one.text}, unless it is this member's own ringd", err=True)


def _cannot_start(error: RingError, code: int) -> NoReturn:
    """Log why the daemon does not come to run, and exit."""
    structlog.get_logger("ringd").error("cannot start", reason=str(error))
    sys.exit(code)


def _give_up(lines: Iterable[str]) -> NoReturn:
    """Print all that is wrong with the config, in click's form, and exit."""
    for line in lines:
        click.echo(complaint(f"Error: {line}"), err=True)
    sys.exit(EX_CONFIG)


if __name__ == "__main__":
    main()
