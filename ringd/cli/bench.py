"""``bench``: how fast the ring is, and what of it is slow."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import ringd
from ringd.cli.ask import ERROR, ask, daemon_options, fail, find_socket
from ringd.cli.figures import HEAD, CallFigure, call_line, link_lines, slowest
from ringd.cli.output import FILE, check_output, force_option, write_output
from ringd.cli.plot import svg
from ringd.config.units import parse_size
from ringd.errors import RingError
from ringd.wire.border.messages import AskStatus

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMA_VERSION = 1

GROUP = "ringd-cli bench"

_LOOK_EVERY = 0.2  # seconds
_LEAST = 4  # bytes, of one float32


def _size(_context: click.Context, _option: click.Parameter, value: str) -> int:
    try:
        size = parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if size < _LEAST:
        raise click.BadParameter(f"less than {_LEAST} bytes, an element")
    return size // _LEAST * _LEAST


@click.command()
@daemon_options
@click.option(
    "--min",
    "least",
    metavar="SIZE",
    default="8",
    show_default=True,
    callback=_size,
    help="Smallest size, in bytes, KiB, MiB or GiB.",
)
@click.option(
    "--max",
    "most",
    metavar="SIZE",
    default="64MiB",
    show_default=True,
    callback=_size,
    help="Largest size.",
)
@click.option(
    "--plot",
    type=FILE,
    metavar="FILE",
    help="Draw bandwidth by size: SVG.",
)
@force_option
def bench(
    socket: Path | None, *, as_json: bool, least: int, most: int, plot: Path | None, force: bool
) -> None:
    """Measure links and all-reduces, and say what is slowest.

    Start it on every member with the same sizes; it waits until it runs on all of them. Links are
    measured one at a time, as programs see them: the round trip of 8 bytes, and the bandwidth
    of large messages. All-reduces come in the columns of nccl-tests, from the smallest size on,
    each four times the one before; busbw is what each link carries.

    \b
    Exit codes: 0 measured, 1 error, or a wrong value, 2 wrong usage, 3 no daemon.
    Example: ringd-cli bench --max 256MiB --plot bench.svg
    """  # noqa: D301  click wants the backspace itself
    if least > most:
        raise click.UsageError("--min is more than --max")
    say = (lambda _text: None) if as_json else click.echo
    if plot is not None:
        check_output(plot, force=force)
    try:
        body, calls = run_bench(find_socket(socket), sizes(least, most), say)
    except RingError as error:
        fail(error)
    if as_json:
        click.echo(json.dumps(body))
    if plot is not None:
        picture = svg(calls, f"all-reduce, {len(body['nodes'])} members, float32 sum")
        write_output(plot, picture.encode(), force=force)
        say(f"Wrote {plot}.")
    if any(sum(call.wrong) for call in calls):
        sys.exit(ERROR)


def sizes(least: int, most: int) -> Iterator[int]:
    """Yield the sizes from *least* to *most* bytes, each four times the one before."""
    while least < most:
        yield least
        least *= 4
    yield most


def run_bench(
    socket: Path, sizes: Iterator[int], say: Callable[[str], None]
) -> tuple[dict[str, Any], list[CallFigure]]:
    """Return what was measured, as JSON and as figures; *say* each line as soon as it is known.

    Raises:
        RingError: As of any call.
    """
    from ringd.cli import measure  # noqa: PLC0415 - numpy, which other commands do without

    tell = _progress(sys.stderr.isatty())
    calls = []
    with ringd.connect(socket, group=GROUP) as ring:
        _wait_for_all(socket)
        links = measure.links(ring, tell)
        tell("")
        for line in link_lines(links):
            say(line)
        for line in HEAD:
            say(line)
        for call in measure.all_reduces(ring, sizes, tell):
            tell("")
            calls.append(call)
            say(call_line(call))
        nodes = list(ring.nodes)
    words = slowest(links, calls)
    for sentence in words:
        say(sentence)
    body = {
        "schema_version": SCHEMA_VERSION,
        "nodes": nodes,
        "links": [asdict(link) for link in links],
        "sizes": [_figures(call) for call in calls],
        "slowest": words,
    }
    return body, calls


def _wait_for_all(socket: Path) -> None:
    """Wait until this runs on all members, and say where it does not yet."""
    said: list[str] = []
    while missing := missing_members(ask(socket, AskStatus)):
        if missing != said:
            click.echo(f"Waiting for ringd-cli bench on {', '.join(missing)}.", err=True)
        said = missing
        time.sleep(_LOOK_EVERY)


def missing_members(body: Mapping[str, Any]) -> list[str]:
    """Return the members on which this does not run, as far as their daemons say."""
    present = {
        name for group in body["groups"] if group["name"] == GROUP for name in group["present"]
    }
    return [member["name"] for member in body["members"] if member["name"] not in present]


def _figures(call: CallFigure) -> dict[str, Any]:
    kinds = {"out_of_place": call.out_of_place, "in_place": call.in_place}
    return {
        "size": call.size,
        **{
            kind: {
                "seconds": seconds,
                "algbw": call.algbw(seconds),
                "busbw": call.busbw(seconds),
                "wrong": wrong,
            }
            for (kind, seconds), wrong in zip(kinds.items(), call.wrong, strict=True)
        },
    }


def _progress(terminal: bool) -> Callable[[str], None]:
    """Return what shows in one line of a terminal what is being measured; elsewhere, nothing."""

    def tell(text: str) -> None:
        if terminal:
            click.echo(f"\r\x1b[K{text}", nl=False, err=True)

    return tell
