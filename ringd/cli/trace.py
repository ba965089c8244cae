"""``trace``: what happened lately, on all members that answer."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from ringd.cli.ask import ask, daemon_options, fail, find_socket
from ringd.cli.output import FILE, check_output, force_option, write_output
from ringd.errors import RingError
from ringd.wire.border.messages import AskTrace
from ringd.wire.text import printable

SCHEMA_VERSION = 1
"""Of what is said of a file that was written; a trace has the daemon's."""

_MICROSECONDS = 1e6

_LONGEST = 4096
"""Characters of an event's text."""


@click.command()
@daemon_options
@click.option(
    "--chrome",
    type=FILE,
    metavar="FILE",
    help="Write a Chrome trace, for ui.perfetto.dev or chrome://tracing.",
)
@force_option
def trace(socket: Path | None, *, as_json: bool, chrome: Path | None, force: bool) -> None:
    """Print what happened lately on all members that answer.

    From their flight recorders, the oldest event first; times are UTC, by each machine's own clock.

    \b
    Exit codes: 0 printed, 1 error, 2 wrong usage, 3 no daemon.
    Example: ringd-cli trace --chrome ring.json
    """  # noqa: D301  click wants the backspace itself
    if chrome is not None:
        check_output(chrome, force=force)
    try:
        body = ask(find_socket(socket), AskTrace)
    except RingError as error:
        fail(error)
    if chrome is not None:
        write_output(chrome, json.dumps(chrome_trace(body)).encode(), force=force)
        if as_json:
            click.echo(json.dumps({"schema_version": SCHEMA_VERSION, "path": str(chrome)}))
        else:
            click.echo(f"Wrote {chrome}; open it at ui.perfetto.dev.")
    elif as_json:
        click.echo(json.dumps(body))
    else:
        for line in lines(body):
            click.echo(line)


def merged(body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return all members' events as (node, event), by time."""
    events = [(member["node"], event) for member in body["members"] for event in member["events"]]
    return sorted(events, key=lambda pair: float(pair[1]["at"]))


def lines(body: dict[str, Any]) -> list[str]:
    """Return the trace for people, one line for each event."""
    width = max((len(member["node"]) for member in body["members"]), default=0)
    out = []
    for node, event in merged(body):
        at = datetime.fromtimestamp(event["at"], tz=timezone.utc)
        text = printable(_text(event), _LONGEST)  # of other members, in part
        out.append(f"{at:%Y-%m-%dT%H:%M:%S.%fZ}  {node:<{width}}  {text}")
    if body["silent"]:
        out.append(f"No answer from: {', '.join(body['silent'])}")
    return out


def _text(event: dict[str, Any]) -> str:
    op = f"op {event['seq']} of group {event['group']!r}: {event['call']}" if _is_op(event) else ""
    if event["what"] == "op begun":
        waits = "others" if event["started"] is None else "its end"
        return f"{op}, begun and open: it waits for {waits}"
    if not op:
        details = [f"{k}={v}" for k, v in event.items() if k not in ("at", "what")]
        return " ".join([event["what"], *details])
    took = (event["at"] - event["submitted"]) * 1e3
    waited = ""
    if event["started"] is not None:
        others = (event["started"] - event["submitted"]) * 1e3
        waited = f", all had made it after {others:.2f} ms"
    return f"{op}, {event['outcome']} after {took:.2f} ms{waited}"


def _is_op(event: dict[str, Any]) -> bool:
    return event["what"] in ("op", "op begun")


def chrome_trace(body: dict[str, Any]) -> dict[str, Any]:
    """Return the trace in Chrome's JSON format: a process for each member, a thread a group.

    Source: the Trace Event Format document (phases M, X, B and i; times in microseconds).
    """
    out: list[dict[str, Any]] = []
    for pid, member in enumerate(body["members"]):
        out.append(_named("process_name", pid, 0, member["node"]))
        out.append(_named("thread_name", pid, 0, "ring"))
        groups: dict[str, int] = {}
        for event in member["events"]:
            if not _is_op(event):
                details = {k: v for k, v in event.items() if k not in ("at", "what")}
                out.append(
                    {
                        "ph": "i",
                        "s": "p",
                        "name": event["what"],
                        "pid": pid,
                        "tid": 0,
                        "ts": event["at"] * _MICROSECONDS,
                        "args": details,
                    }
                )
                continue
            tid = groups.setdefault(event["group"], len(groups) + 1)
            if tid == len(groups):
                out.append(_named("thread_name", pid, tid, f"group {event['group']}"))
            out += _spans(pid, tid, event)
    return {"traceEvents": out, "displayTimeUnit": "ms"}


def _spans(pid: int, tid: int, event: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the op as one or two spans: waiting for the others, then running.

    The last span of one that is open has no end.
    """
    end = None if event["what"] == "op begun" else event["at"]
    phases: list[tuple[str, float, float | None]] = []
    if event["started"] is None:
        phases.append(("wait for others", event["submitted"], end))
    else:
        phases.append(("wait for others", event["submitted"], event["started"]))
        phases.append((event["call"], event["started"], end))
    spans = []
    for name, start, stop in phases:
        span: dict[str, Any] = {
            "ph": "B" if stop is None else "X",
            "name": name,
            "cat": event["call"],
            "pid": pid,
            "tid": tid,
            "ts": start * _MICROSECONDS,
            "args": {key: event[key] for key in ("seq", "bytes", "outcome")},
        }
        if stop is not None:
            span["dur"] = max(0.0, stop - start) * _MICROSECONDS
        spans.append(span)
    return spans


def _named(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}
