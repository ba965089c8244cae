"""``ringd-cli``: the command line tool. Every command stands in a file beside this one."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from ringd import __version__
from ringd.cli.ask import ERROR
from ringd.cli.demo import demo
from ringd.cli.setup import init, keygen
from ringd.cli.trace import trace
from ringd.cli.watch import health, rejoin, reload, status
from ringd.host.streams import open_standard_streams


class Commands(click.Group):
    """Commands whose output may find no place; a closed pipe is click's business."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run, with an error in words where the output cannot be written."""
        open_standard_streams()
        try:
            return super().main(*args, **extra)
        except OSError:
            try:
                sys.stdout.flush()  # fails once more if that was it
            except OSError as error:
                # And would again at the exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                click.echo(f"Error: standard output: {error.strerror}", err=True)
                sys.exit(ERROR)
            raise


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ringd-cli")
def main() -> None:
    """Set up, watch and steer the ring of daemons.

    Exit codes: 0 healthy, 1 error, 2 wrong usage, 3 no daemon answers, 4 running but not ready.
    """


main.add_command(init)
main.add_command(keygen)
main.add_command(status)
main.add_command(health)
main.add_command(rejoin)
main.add_command(reload)
main.add_command(demo)
main.add_command(trace)

if __name__ == "__main__":
    main()
