"""A status as people read it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import Any

_LATELY = 60.0  # seconds


def state(body: Mapping[str, Any]) -> str:
    """Return how the ring is, in a few words."""
    return f"{body['node']}: {body['state']}, generation {body['generation']}"


def headline(body: Mapping[str, Any]) -> str:
    """Return the status in one line."""
    text = state(body)
    if body["state"] != "ready":
        for name, why in body["waiting_for"].items():
            text += f"; waiting for {name}: {why}"
    return text


@dataclass(frozen=True, slots=True)
class Row:
    """A member in the status, for people; empty where nothing is known of it.

    Attributes:
        address: Where it is reached, with a word if that is not the preferred one.
        round_trip: To it and back, for a neighbour.
        received, sent: How much a second, for a neighbour.
        error: What went wrong last, and when.
    """

    rank: int
    name: str
    state: str
    address: str
    round_trip: str = ""
    received: str = ""
    sent: str = ""
    error: str = ""


Rates = Mapping[str, tuple[float, float]]
"""By side, the bytes that came and went in a second."""


def lasting_rates(body: Mapping[str, Any]) -> Rates:
    """Return the rates over the whole life of each link."""
    return {
        side: (
            link["bytes_in"] / max(1.0, link["up_for"]),
            link["bytes_out"] / max(1.0, link["up_for"]),
        )
        for side, link in body["links"].items()
    }


def rows(body: Mapping[str, Any], rates: Rates) -> list[Row]:
    """Return the members by rank, with what the links to them tell."""
    links: dict[str, Any] = body["links"]
    return [_row(body, member, links, rates) for member in body["members"]]


def _row(
    body: Mapping[str, Any], member: Mapping[str, Any], links: Mapping[str, Any], rates: Rates
) -> Row:
    name = member["name"]
    own = name == body["node"]
    # The right link runs over an address of the neighbour's, the left one over one of ours.
    over = links.get("left" if own else "right")
    strange = over is not None and not over["preferred"] and (own or over["peer"] == name)
    sides = [side for side in ("right", "left") if side in links and links[side]["peer"] == name]
    trips = [links[side]["round_trip"] for side in sides if links[side]["round_trip"] is not None]
    received, sent = (sum(rates.get(side, (0.0, 0.0))[way] for side in sides) for way in (0, 1))
    error = ""
    if member["last_error"] and member["state"] not in ("up", "self"):
        last = "last error: " if member["state"] == "unknown" else ""
        error = f"{last}{member['last_error']} ({age(member['last_error_age'])} ago)"
    return Row(
        rank=member["rank"],
        name=name,
        state=member["state"],
        address=member["address"] + (" (not preferred)" if strange else ""),
        round_trip=f"{trips[0] * 1e3:.2f} ms" if trips else "",
        received=f"{size(received)}/s" if sides else "",
        sent=f"{size(sent)}/s" if sides else "",
        error=error,
    )


def render(body: Mapping[str, Any]) -> str:
    """Return the status for people; what is wrong comes first."""
    count = f"{body['size']} member{'' if body['size'] == 1 else 's'}"
    lines = [f"! {line}" for line in warnings(body)]
    lines += [f"ring {body['ring']!r}, {count}", state(body), ""]
    table = [HEADINGS] + [astuple(row) for row in rows(body, lasting_rates(body))]
    widths = [max(len(str(line[column])) for line in table) for column in range(len(HEADINGS))]
    for line in table:
        cells = [f"{cell!s:<{width}}" for cell, width in zip(line, widths, strict=True)]
        lines.append(f"  {'  '.join(cells)}".rstrip())
    for side, link in body["links"].items():
        lines.append(
            f"  {side} link to {link['peer']}: up for {age(link['up_for'])}, "
            f"{size(link['bytes_in'])} in, {size(link['bytes_out'])} out; "
            f"protection: {link.get('protection', '?')}"
        )
    streams = body.get("streams", {"open": 0, "programs": ()})
    carried = streams["open"] + sum(program["open"] for program in streams["programs"])
    if carried:
        lines.append(f"  streams: {carried} open")
    for group in body["groups"]:
        lines += ["", *group_lines(group)]
    programs = body.get("clients", ())
    if programs:
        lines.append("")
    lines += [f"program {program_line(program)}" for program in programs]
    return "\n".join(lines)


HEADINGS = ("", "member", "state", "address", "round trip", "in", "out", "")
"""Of the columns of a :class:`Row`; what comes and goes is an average over a link's life."""


def program_line(program: Mapping[str, Any]) -> str:
    """Return what is known of a program that is connected here."""
    shared = size(program["shared_memory"])
    return f"{program['program'] or '?'} (pid {program['pid']}): {shared} of shared memory"


def group_lines(group: Mapping[str, Any]) -> list[str]:
    """Return who is in a group, and which of its calls are open."""
    line = f"group {group['name']!r}: {', '.join(group['present']) or 'nobody'} present"
    unknown = ", ".join(group.get("unknown", ()))
    lines = [line + (f", unknown while the ring is not up: {unknown}" if unknown else "")]
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
    return lines


def warnings(body: Mapping[str, Any]) -> list[str]:
    """Return what is wrong, a line each."""
    lines = []
    if body["state"] != "ready":
        lines += [f"waiting for {name}: {why}" for name, why in body["waiting_for"].items()]
    refused = body.get("reload_error")
    if refused is not None:
        lines.append(f"the reload {age(refused['age'])} ago was refused, the old settings stay:")
        lines += [f"  {line}" for line in refused["reason"].splitlines()]
    level = body.get("log_level")
    if level is not None:
        lines.append(f"the log has level {level['level']!r} for {age(level['for'])} more")
    lines += _stalled(body["groups"])
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
    for side, link in body["links"].items():
        if not link.get("preferred", True):
            why = f" ({link['preferred_error']})" if link["preferred_error"] else ""
            lines.append(
                f"the {side} link to {link['peer']} is not over the preferred address{why}"
            )
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


def _stalled(groups: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield for each group with calls that wait for long which one has done so longest."""
    for group in groups:
        stalled = [op for op in group["open_ops"] if op.get("stalled")]
        if stalled:
            op = max(stalled, key=lambda one: one["age"])
            more = f", and {len(stalled) - 1} more" if len(stalled) > 1 else ""
            yield (
                f"a call of group {group['name']!r} has waited for {age(op['age'])}{more}: "
                f"{op['call'] or 'a call'}; {op['waiting_for']}"
            )


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
