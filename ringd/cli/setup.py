"""``ringd-cli init`` and ``keygen``: the two files that go to every machine."""

from __future__ import annotations

from pathlib import Path

import click

from ringd.cli.output import FILE, force_option, write_output
from ringd.config.keyfile import create_key
from ringd.config.load import ring_problems
from ringd.config.sample import render
from ringd.config.settings import Member

KEY_FILE = "ring.key"


def _members(
    _context: click.Context, _option: click.Parameter, values: tuple[str, ...]
) -> tuple[Member, ...]:
    """Split ``NAME=ADDRESS[,ADDRESS]``; how names and addresses must look is the loader's word."""
    members = []
    for value in values:
        name, equals, addresses = value.partition("=")
        if not equals:
            raise click.BadParameter(f'"{value}" has no "="')
        members.append(Member(name.strip(), tuple(part.strip() for part in addresses.split(","))))
    return tuple(members)


@click.command()
@click.argument("path", type=FILE)
@click.option(
    "--member",
    "members",
    metavar="NAME=ADDRESS[,ADDRESS]",
    callback=_members,
    multiple=True,
    required=True,
    help="A machine and where the others reach it; once for each machine, in ring order.",
)
@click.option("--name", default="home", show_default=True, help="What the ring is called.")
@click.option("--insecure", is_flag=True, help="Do without a key: anybody there can join.")
@force_option
def init(path: Path, members: tuple[Member, ...], name: str, insecure: bool, force: bool) -> None:
    """Write a commented config file to PATH.

    The same file goes to every machine.

    \b
    Exit codes: 0 written, 1 error, 2 wrong usage.

    \b
    Example:
      ringd-cli init ringd.toml --member studio=10.0.0.1:5680,studio.local:5680 \\
                                --member mini=10.0.0.2:5680
    """  # noqa: D301  click wants the backspace itself
    lines = ring_problems(path, name, members)
    if lines:
        raise click.UsageError("\nError: ".join(lines))
    text = render(name, members, key_file=KEY_FILE, insecure=insecure)
    write_output(path, text.encode(), force=force)
    click.echo(f"Wrote {path}.")
    key = path.parent / KEY_FILE
    if insecure:
        click.echo("Copy it to every machine and run ringd there.")
    elif key.exists():
        click.echo(f"Copy it and {key} to every machine and run ringd there.")
    else:
        click.echo(f'Next: "ringd-cli keygen {key}", then copy both files to every machine.')


@click.command()
@click.argument("path", type=FILE)
def keygen(path: Path) -> None:
    """Write a new random key to PATH.

    Its owner alone can read the file, and the key is never shown. Make one key for a ring and
    copy it, over a channel you trust, to every machine. To change the key of a ring, remove the
    old file first.

    \b
    Exit codes: 0 written, 1 error, 2 wrong usage.

    \b
    Example:
      ringd-cli keygen ring.key
    """  # noqa: D301  click wants the backspace itself
    try:
        create_key(path)
    except FileExistsError:
        raise click.ClickException(
            f"{path} is there already and is left as it is; a ring with another key would turn "
            "this machine away; to make another one all the same, remove that first"
        ) from None
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from None
    click.echo(
        f"Wrote {path}. Copy it to every machine; the user that runs ringd must own it, or root, "
        "with that user's group to read it."
    )
