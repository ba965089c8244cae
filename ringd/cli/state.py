"""``ringd-cli reset-state``: a member begins anew."""

from __future__ import annotations

from pathlib import Path

import click

from ringd.cli.ask import fail
from ringd.errors import RingError
from ringd.host import paths
from ringd.ring.state import reset


@click.command("reset-state")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False, readable=False),
    envvar="RINGD_STATE_DIR",
    help="Where the daemon keeps its state; or RINGD_STATE_DIR. Default: the usual place.",
)
def reset_state(state_dir: Path | None) -> None:
    """Set this machine's generation and incarnation aside.

    For a member that the others turn away because of its numbers, or whose numbers are used up, as
    its log says. Stop the daemon first; it begins anew, and learns from the others what it must
    know. Where all members name numbers that cannot be, stop all, run this on each, and start them.

    \b
    Exit codes: 0 done, 1 error, 2 wrong usage.

    \b
    Example:
      sudo systemctl stop ringd
      sudo ringd-cli reset-state
      sudo systemctl start ringd
    """  # noqa: D301  click wants the backspace itself
    directory = state_dir or paths.default_paths().state_dir
    try:
        aside = reset(directory)
    except RingError as error:
        fail(error)
    if aside is None:
        click.echo(f"{directory} has no state: the daemon begins anew anyway.")
    else:
        click.echo(f"Set aside as {aside}. The daemon begins anew when it starts.")
