"""``import`` and ``export``: rings as other systems write them down."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import IO

import click

from ringd.cli.output import FILE, force_option, write_output
from ringd.cli.setup import KEY_FILE
from ringd.config import load
from ringd.config.rosters import mlx_hostfile, read_roster
from ringd.config.sample import render
from ringd.errors import ConfigError
from ringd.host import paths

_LARGEST_FILE = 1 << 20  # bytes, as of a config

_output = click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="PATH",
    help="Write it there, and not to standard output.",
)


@click.command("import")
@click.argument("file", type=click.File("rb"))
@_output
@click.option("--name", help='What the ring is called. Default: as in the file, else "home".')
@force_option
def import_(file: IO[bytes], output: Path | None, name: str | None, force: bool) -> None:
    """Turn another system's list of machines into a config.

    FILE is an MLX hostfile (nested or flat), a file of mlx.launch, one of exo's, or TOML with
    [[cluster.members]]; "-" is standard input. What could not be carried over is said on standard
    error.

    \b
    Exit codes: 0 written, 1 the file cannot be used, 2 wrong usage.
    Example: ringd-cli import hosts.json -o ringd.toml
    """  # noqa: D301  click wants the backspace itself
    source = getattr(file, "name", "<stdin>")
    try:
        roster = read_roster(file.read(_LARGEST_FILE).decode("utf-8-sig"))
    except OSError as error:
        raise click.ClickException(f"{source} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise click.ClickException(f"{source}: not UTF-8") from None
    except ValueError as error:
        raise click.ClickException(f"{source}: {error}") from None
    name = name or roster.name or "home"
    if lines := load.ring_problems(source, name, roster.members):
        raise click.ClickException("\nError: ".join(lines))
    _deliver(render(name, roster.members, key_file=KEY_FILE), output, roster.remarks, force=force)
    key = (output or Path(KEY_FILE)).with_name(KEY_FILE)
    if not key.exists():
        click.echo(f'Next: "ringd-cli keygen {key}", then copy both to every machine.', err=True)


@click.command()
@click.option("--mlx", is_flag=True, help="As MLX's ring backend reads it (MLX_HOSTFILE).")
@click.option(
    "--config",
    type=click.Path(path_type=Path, readable=False),
    envvar="RINGD_CONFIG",
    help="The config; default: the one that ringd would use.",
)
@_output
@force_option
def export(mlx: bool, config: Path | None, output: Path | None, force: bool) -> None:
    """Write the ring down for another system.

    What could not be carried over is said on standard error.

    \b
    Exit codes: 0 written, 1 error, 2 wrong usage.
    Example: ringd-cli export --mlx -o hosts.json
    """  # noqa: D301
    if not mlx:
        raise click.UsageError("say for which system: --mlx")
    path = config or paths.find_config()
    try:
        try:
            settings = load.load(path)
        except load.UnknownHost as error:  # on a machine beside the ring
            settings = error.config
        text, remarks = mlx_hostfile(settings)
    except (ConfigError, ValueError) as error:
        raise click.ClickException("\nError: ".join(str(error).splitlines())) from None
    _deliver(text, output, remarks, force=force)


def _deliver(text: str, output: Path | None, remarks: Iterable[str], *, force: bool) -> None:
    if output is None:
        click.echo(text, nl=False)
    else:
        write_output(output, text.encode(), force=force)
        click.echo(f"Wrote {output}.", err=True)
    for remark in remarks:
        click.echo(f"Note: {remark}", err=True)
