"""``ringd-cli``: the command line tool. Every command stands in a file beside this one."""

from __future__ import annotations

from typing import Any

import click

from ringd import __version__
from ringd.cli.demo import demo
from ringd.cli.forward import forward
from ringd.cli.mlx import mlx_hostfile
from ringd.cli.run import run
from ringd.cli.service import service
from ringd.cli.setup import init, keygen
from ringd.cli.trace import trace
from ringd.cli.watch import health, rejoin, reload, status
from ringd.host.streams import prepare_standard_streams


class Commands(click.Group):
    """Commands whose output may find no place."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run, whatever becomes of what is printed."""
        prepare_standard_streams()
        return super().main(*args, **extra)


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
main.add_command(forward)
main.add_command(run)
main.add_command(mlx_hostfile)
main.add_command(trace)
main.add_command(service)

if __name__ == "__main__":
    main()
