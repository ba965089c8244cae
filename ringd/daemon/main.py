"""``ringd``: the command."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import structlog

from ringd import __version__
from ringd.config import load
from ringd.daemon import logs
from ringd.daemon.daemon import Daemon
from ringd.errors import ConfigError, RingError
from ringd.host import heap, paths
from ringd.host.limits import raise_open_files

EX_CONFIG = 78
"""Of sysexits.h: what is wrong stands in the config, so a restart cannot help."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="RINGD_CONFIG",
    help="The configuration file, the same on every machine.",
)
@click.option("--node", envvar="RINGD_NODE", help="Which member this is; default: the host's name.")
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    envvar="RINGD_SOCKET",
    help="Where programs reach this daemon.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    envvar="RINGD_STATE_DIR",
    help="Where generation and incarnation are kept.",
)
@click.option("--check-config", is_flag=True, help="Check the configuration, and exit.")
@click.version_option(__version__, prog_name="ringd")
def main(
    config: Path | None,
    node: str | None,
    socket: Path | None,
    state_dir: Path | None,
    *,
    check_config: bool,
) -> None:
    """Hold this machine's place in the ring, and all-reduce for the programs beside it.

    Runs in the foreground and logs to standard error. SIGTERM ends it, SIGHUP makes it read
    its configuration again.
    """
    path = config or paths.find_config()
    try:
        settings = load.load(path, node)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(EX_CONFIG)
    if check_config:
        click.echo(f"{path}: good; this is {settings.node!r}, rank {settings.rank}")
        return
    raise_open_files()
    heap.give_back_large_blocks()
    logs.configure(settings.log.level, settings.log.format)
    places = paths.default_paths()
    socket = socket or (Path(settings.ipc.socket) if settings.ipc.socket else places.socket)
    try:
        Daemon(settings, socket, state_dir or places.state_dir).run()
    except RingError as error:
        structlog.get_logger("ringd").error("cannot start", reason=str(error))
        sys.exit(EX_CONFIG if isinstance(error, ConfigError) else 1)


if __name__ == "__main__":
    main()
