"""``ringd-cli``: the command line tool. Every command stands in a file beside this one."""

from __future__ import annotations

from typing import Any

import click

from ringd import __version__
from ringd.cli.bench import bench
from ringd.cli.bugreport import bugreport
from ringd.cli.completion import completion
from ringd.cli.demo import demo
from ringd.cli.doctor import doctor
from ringd.cli.exchange import export, import_
from ringd.cli.service import service
from ringd.cli.setup import init, keygen
from ringd.cli.state import reset_state
from ringd.cli.steer import drain, log_level, rejoin, reload, resume
from ringd.cli.trace import trace
from ringd.cli.watch import health, status, wait
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

    \b
    Exit codes: 0 well, 1 error, 2 wrong usage, 3 no daemon, 4 not ready.
    Example: ringd-cli status --watch
    """  # noqa: D301  click wants the backspace itself


main.add_command(init)
main.add_command(keygen)
main.add_command(import_)
main.add_command(export)
main.add_command(status)
main.add_command(health)
main.add_command(wait)
main.add_command(rejoin)
main.add_command(reload)
main.add_command(drain)
main.add_command(resume)
main.add_command(log_level)
main.add_command(doctor)
main.add_command(bugreport)
main.add_command(bench)
main.add_command(reset_state)
main.add_command(demo)
main.add_command(trace)
main.add_command(service)
main.add_command(completion)

if __name__ == "__main__":
    main()
