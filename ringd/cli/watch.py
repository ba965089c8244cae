"""``status``, ``health``, ``rejoin`` and ``reload``: looking at a running daemon, and a push."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from ringd.cli.ask import ERROR, NOT_READY, ask, daemon_options, fail, find_socket
from ringd.config.units import parse_duration
from ringd.errors import DaemonUnavailable, RingError
from ringd.wire.border.messages import AskRejoin, AskReload, AskStatus

_POLL = 0.05
_LATELY = 60.0  # seconds

RELOAD_WITHIN = 60.0
"""Seconds; the group in ``ipc.group`` may be looked up over the network."""


@click.command()
@daemon_options
def status(socket: Path | None, *, as_json: bool) -> None:
    """Show the ring as this machine's daemon sees it.

    \b
    Exit codes: 0 ready, 1 error, 3 no daemon, 4 running but not ready.
    Example: ringd-cli status --json | jq .generation
    """  # noqa: D301  click wants the backspace itself
    try:
        body = ask(find_socket(socket), AskStatus)
    except RingError as error:
        fail(error)
    click.echo(json.dumps(body, indent=2) if as_json else render(body))
    if body["state"] != "ready":
        sys.exit(NOT_READY)


@click.command()
@daemon_options
@click.option("--wait", metavar="DURATION", help='Wait until the ring is ready, such as "30s".')
def health(socket: Path | None, *, as_json: bool, wait: str | None) -> None:
    """Say in a line, and by the exit code, whether the ring is up.

    \b
    Exit codes: 0 ready, 1 error, 3 no daemon, 4 running but not ready.
    Example: ringd-cli health --wait 30s && python train.py
    """  # noqa: D301
    try:
        seconds = parse_duration(wait) if wait is not None else 0.0
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--wait") from None
    deadline = time.monotonic() + seconds
    while True:
        try:
            # A busy daemon gets a second also when the user's time is over: it is not gone.
            left = max(1.0, deadline - time.monotonic()) if seconds else 5.0
            body = ask(find_socket(socket), AskStatus, timeout=min(5.0, left))
        except DaemonUnavailable as error:
            if time.monotonic() >= deadline:
                fail(error)
        except RingError as error:
            fail(error)
        else:
            if body["state"] == "ready" or time.monotonic() >= deadline:
                break
        time.sleep(_POLL)
    keys = ("schema_version", "node", "state", "generation", "waiting_for")
    click.echo(json.dumps({key: body[key] for key in keys}) if as_json else headline(body))
    if body["state"] != "ready":
        sys.exit(NOT_READY)


@click.command()
@daemon_options
def rejoin(socket: Path | None, *, as_json: bool) -> None:
    """Drop the links and join again.

    Backoff is forgotten, and names are looked up afresh. Calls in flight are not lost: they
    come back when the ring has formed again.

    \b
    Example: ringd-cli rejoin && ringd-cli health --wait 10s
    """  # noqa: D301
    try:
        body = ask(find_socket(socket), AskRejoin)
    except RingError as error:
        fail(error)
    click.echo(json.dumps(body) if as_json else "Rejoining.")


@click.command()
@daemon_options
def reload(socket: Path | None, *, as_json: bool) -> None:
    """Have the daemon read its configuration again.

    What SIGHUP does too; but this says what came of it. Of a file with a fault nothing is used, and
    the settings that need a restart are named.

    \b
    Exit codes: 0 the new settings are in use, 1 refused, 3 no daemon.
    Example: ringd --check-config && ringd-cli reload
    """  # noqa: D301
    try:
        body = ask(find_socket(socket), AskReload, RELOAD_WITHIN)
    except RingError as error:
        fail(error)
    if as_json:
        click.echo(json.dumps(body))
    elif body["refused"] is None:
        click.echo("Reloaded.")
    else:
        fail(RingError(f"the reload was refused, the old settings stay: {body['refused']}"))
    if body["refused"] is not None:
        sys.exit(ERROR)


def headline(body: dict[str, Any]) -> str:
    """Return the status in one line."""
    text = f"{body['node']}: {body['state']}, generation {body['generation']}"
    if body["state"] != "ready":
        for name, why in body["waiting_for"].items():
            text += f"; waiting for {name}: {why}"
    return text


def render(body: dict[str, Any]) -> str:
    """Return the status for people; what is wrong comes first."""
    count = f"{body['size']} member{'' if body['size'] == 1 else 's'}"
    lines = [f"ring {body['ring']!r}, {count}", headline(body)]
    lines += _warnings(body)
    lines.append("")
    width = max(len(member["name"]) for member in body["members"])
    for member in body["members"]:
        line = f"  {member['rank']:>3}  {member['name']:<{width}}  {member['state']:<8}"
        line += f" {member['address']}"
        if member["last_error"] and member["state"] not in ("up", "self"):
            last = "last error: " if member["state"] == "unknown" else ""
            line += f"  {last}{member['last_error']} ({age(member['last_error_age'])} ago)"
        lines.append(line.rstrip())
    for side, link in body["links"].items():
        trip = "" if link["round_trip"] is None else f", {link['round_trip'] * 1e3:.2f} ms"
        lines.append(
            f"  {side} link to {link['peer']}: up for {age(link['up_for'])}{trip}, "
            f"{size(link['bytes_in'])} in, {size(link['bytes_out'])} out"
        )
        if not link.get("preferred", True):
            why = link["preferred_error"]
            lines.append(f"    not over the preferred address{f' ({why})' if why else ''}")
    streams = body.get("streams", {"open": 0, "programs": ()})
    carried = streams["open"] + sum(program["open"] for program in streams["programs"])
    if carried:
        lines.append(f"streams: {carried} open")
    for group in body["groups"]:
        lines.append("")
        line = f"group {group['name']!r}: {', '.join(group['present']) or 'nobody'} present"
        unknown = ", ".join(group.get("unknown", ()))
        lines.append(line + (f", unknown while the ring is not up: {unknown}" if unknown else ""))
        counts = ", ".join(f"{name} {count}" for name, count in group["op_counts"].items())
        if counts:
            lines.append(f"  ops submitted{', as last heard' if unknown else ''}: {counts}")
        for op in group["open_ops"]:
            channel = f" ({op['channel']})" if op.get("channel") else ""
            progress = "" if op["progress"] is None else f", {op['progress']:.0%} received"
            lines.append(
                f"  op {op['op']}{channel}: {op['call'] or 'a call'}, {op['phase']} for "
                f"{age(op['age'])}{progress}; {op['waiting_for']}"
            )
    return "\n".join(lines)


def _warnings(body: dict[str, Any]) -> list[str]:
    """Return what is wrong, beside what the headline says."""
    lines = []
    refused = body.get("reload_error")
    if refused is not None:
        lines.append(f"the reload {age(refused['age'])} ago was refused, the old settings stay:")
        lines += [f"  {line}" for line in refused["reason"].splitlines()]
    disk = body.get("disk")
    if disk is not None and disk["slow"]:
        text = f"the state file has been written for {age(disk['writing_for'])}"
        if disk["writing_for"] is None:
            text = f"the last write of the state file took {age(disk['last_write'])}"
            text += f" ({age(disk.get('last_write_age'))} ago)"
        lines.append(f"the disk is slow: {text}")
    lines += [
        f"the disk of {member['name']} is slow, and keeps it out of the ring: {member['disk_slow']}"
        for member in body["members"]
        if member.get("disk_slow") and member["state"] != "self"
        if member["name"] not in body["waiting_for"]
    ]
    lines += [
        f"streams to {listen['to']}: {listen['trouble']}"
        for listen in body.get("streams", {}).get("listens", ())
        if listen["trouble"] is not None
    ]
    hole = body.get("black_hole")
    if hole is not None:
        lines.append(f"the way to {hole['peer']}: {hole['reason']} ({age(hole['age'])} ago)")
    lines += [
        f"a machine at {namesake['address']} is turned away: {namesake['reason']} "
        f"({age(namesake['age'])} ago)"
        for namesake in body.get("namesakes", ())
        if namesake["age"] < _LATELY
    ]
    return lines


def age(seconds: float | None) -> str:
    """Return a duration for people."""
    if seconds is None:
        return "?"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def size(nbytes: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:  # noqa: PLR2004 - the step between units
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"
