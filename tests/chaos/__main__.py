"""``make chaos``: see the package's docstring."""

from __future__ import annotations

import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import click

from chaos.faults import KINDS
from chaos.run import Options, chosen, play


@click.command()
@click.option("--seed", type=int, help="Repeats a run; by default a new one, which is printed.")
@click.option("--size", type=click.IntRange(2, 16), default=4, show_default=True, help="Daemons.")
@click.option("--duration", type=float, default=120.0, show_default=True, help="Seconds.")
@click.option("--faults", type=int, default=0, help="Go on until there were so many, instead.")
@click.option("--checksum/--no-checksum", default=True, help="The setting ops.checksum.")
@click.option(
    "--only",
    type=click.Choice([kind.name for kind in KINDS]),
    multiple=True,
    help="Do this kind of faults; may be given several times. By default all.",
)
@click.option(
    "--without",
    type=click.Choice([kind.name for kind in KINDS]),
    multiple=True,
    help="Do none of this kind; may be given several times.",
)
@click.option("--report", type=click.Path(path_type=Path), help="Write the table there, too.")
@click.option("--keep", is_flag=True, help="Keep the logs also of a run in which all went well.")
def main(
    *,
    seed: int | None,
    size: int,
    duration: float,
    faults: int,
    checksum: bool,
    only: tuple[str, ...],
    without: tuple[str, ...],
    report: Path | None,
    keep: bool,
) -> None:
    """Run a ring of daemons and programs under a seeded adversary; check every value."""
    seed = random.SystemRandom().randrange(1 << 31) if seed is None else seed
    options = Options(seed, size, faults, duration, checksum, only=only, without=without)
    if not chosen(options):
        raise click.UsageError("that leaves no faults")
    command = f"make chaos SEED={seed} SIZE={size} " + (
        f"FAULTS={faults}" if faults else f"DURATION={duration:g}"
    )
    command += "" if checksum else " CHECKSUM=off"
    words = [word for name in only for word in ("--only", name)]
    words += [word for name in without for word in ("--without", name)]
    command += f" ARGS={shlex.quote(shlex.join(words))}" if words else ""
    directory = Path(tempfile.mkdtemp(prefix="ringd-chaos-"))
    click.echo(f"{command}; logs in {directory}")
    for signum in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: the report is written all the same
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, signal.default_int_handler)
    begun = time.monotonic()
    result = play(
        options,
        directory,
        command,
        lambda text: click.echo(f"{time.monotonic() - begun:7.1f} s  {text}"),
    )
    page = result.markdown()
    click.echo("\n" + page)
    if report is not None:
        report.write_text(page + "\n")
    if result.good and not keep:
        shutil.rmtree(directory)
    for violation in result.ledger.violations:
        click.echo(f"VIOLATED {violation}", err=True)
    sys.exit(0 if result.good else 1)


if __name__ == "__main__":
    main()
