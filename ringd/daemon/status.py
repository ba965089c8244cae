"""What ``ringd-cli status`` shows, as one JSON object."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from ringd import __version__
from ringd.border.accounts import Accounts
from ringd.collective.view import View
from ringd.config.settings import Config
from ringd.daemon.programs import Programs
from ringd.daemon.streams import Streams
from ringd.groups.channels import Channel
from ringd.groups.seat import Seat
from ringd.host import limits
from ringd.membership.machine import Side
from ringd.net.dialer import configured
from ringd.observe import logs
from ringd.observe.counters import FOR_NO_CALL, Counters
from ringd.observe.recorder import OpEvent
from ringd.ring.absence import waiting_for
from ringd.ring.neighbours import Neighbours

SCHEMA_VERSION = 1

MOST_GROUPS = 256
"""So many are shown, as the loop does nothing else meanwhile; and of each, so many open calls."""
MOST_OPEN_OPS = 64


def status(
    config: Config,
    neighbours: Neighbours,
    programs: Programs,
    streams: Streams,
    counters: Counters,
    *,
    accounts: Accounts,
    started: float,
    fingerprints: Mapping[str, str],
    reload_error: tuple[str, float] | None,
    log_level: tuple[str, float] | None,
    now: float,
) -> bytes:
    """Return the status as JSON; times are seconds ago."""
    machine, view = neighbours.machine, programs.view
    members = machine.members(now)
    names = sorted(programs.engine.roll.groups)
    body = {
        "schema_version": SCHEMA_VERSION,
        "version": __version__,
        "pid": os.getpid(),
        "uptime": now - started,
        "config": str(config.path.absolute()),
        "fingerprints": dict(fingerprints),
        "ring": config.ring.name,
        "node": config.node,
        "rank": view.rank,
        "size": view.size,
        "state": machine.state.value,
        "generation": machine.generation,
        "incarnation": machine.incarnation,
        "waiting_for": waiting_for(neighbours, now),
        "reload_error": None
        if reload_error is None
        else {"reason": reload_error[0], "age": now - reload_error[1]},
        "log_level": None
        if log_level is None
        else {"level": log_level[0], "for": log_level[1] - now},
        "disk": {
            "slow": neighbours.disk.slow,
            "writing_for": neighbours.disk.writing_for,
            "last_write": neighbours.disk.last_write,
            "last_write_age": neighbours.disk.last_write_age,
        },
        "open_files": {
            "count": limits.OWN.count(),
            "limit": limits.OWN.limit,
            "reserve": limits.OWN.reserve,
        },
        "members": [
            {
                "name": view.names[member.rank],
                "rank": member.rank,
                "state": "self" if member.rank == view.rank else member.state,
                "address": member.address or config.ring.members[member.rank].addresses[0],
                "disk_slow": member.disk_slow or None,
                "last_error": member.error or None,
                "last_error_age": None if member.error_since is None else now - member.error_since,
            }
            for member in members
        ],
        "links": {
            side: {
                "peer": link.peer.name,
                "address": link.address,
                "protection": link.protection,
                **_preference(config, neighbours, side, members[view.rank].address),
                "up_for": now - link.since,
                "round_trip": link.round_trip,
                "bytes_in": link.bytes_in,
                "bytes_out": link.bytes_out,
            }
            for side, link in neighbours.links.items()
        },
        "namesakes": [
            {
                "name": namesake.name,
                "address": namesake.address,
                "reason": namesake.reason,
                "age": now - namesake.at,
            }
            for namesake in neighbours.namesakes.seen.values()
        ],
        "black_hole": _black_hole(view, neighbours, now),
        "groups": [_group(programs, name, now) for name in names[:MOST_GROUPS]],
        "groups_left_out": len(names[MOST_GROUPS:]),
        "streams": {
            "open": len(streams),
            "programs": [
                {
                    "pid": holder.client.pid,
                    "program": holder.client.program,
                    "serves": list(holder.serves),
                    "open": len(holder.ends),
                }
                for holder in streams.holders
            ],
            "listens": [
                {
                    "port": rule.listen,
                    "to": f"{rule.to}:{rule.port}",
                    "trouble": streams.trouble.get(rule),
                }
                for rule in streams.rules
            ],
        },
        "clients": [
            {"pid": client.pid, "program": client.program, "shared_memory": client.segment_bytes}
            for client in programs.clients
        ],
        "accounts": {
            name: {
                "used": resource.used(),
                "total": resource.limit.total,
                "users": {str(uid): used for uid, used in resource.by_user().items()},
            }
            for name, resource in accounts.resources().items()
        },
        "counters": {
            "calls": dict(counters.results()),
            "dropped_frames": dict(counters.dropped_frames),
            "dropped_messages": dict(counters.dropped_messages),
            "denied_messages": counters.denied_messages,
            "dropped_replies": counters.dropped_replies,
            "stale_chunks": counters.dropped_frames[FOR_NO_CALL],
            "links_lost": _by_side(counters.links_lost),
            "reconnects": _by_side(counters.reconnects),
            "lost_log_lines": logs.lost(),
            "refused_connections": counters.refused_connections.total(),
            "refusals": dict(counters.refused_connections),
            "refused_programs": dict(counters.refused_programs),
        },
    }
    return json.dumps(body).encode()


def _by_side(counts: Counter[tuple[Side, str]]) -> dict[Side, int]:
    """Return *counts* by side, whatever the cause."""
    sides: Counter[Side] = Counter()
    for (side, _), count in counts.items():
        sides[side] += count
    return dict(sides)


def _preference(config: Config, neighbours: Neighbours, side: Side, dialed: str) -> dict[str, Any]:
    """Return whether a link runs over the preferred address.

    A left one runs over *dialed*, as the dialer says.
    """
    link, homing = neighbours.links[side], neighbours.homing
    target = config.member(link.peer.name if side == "right" else config.node)
    address = link.address if side == "right" else dialed
    preferred = configured(address) == target.addresses[0]
    if side == "left" or homing is None:
        return {"preferred": preferred, "preferred_error": None, "probes": 0}
    error = None if preferred else homing.error()
    return {"preferred": preferred, "preferred_error": error, "probes": homing.probes}


def _black_hole(view: View, neighbours: Neighbours, now: float) -> dict[str, Any] | None:
    """Return what is suspected of the way to the right neighbour, and when that arose."""
    reason = neighbours.suspicion
    if not reason:
        return None
    peer = view.names[view.next]
    return {"peer": peer, "reason": reason, "age": now - neighbours.black_hole.last}


def open_ops(programs: Programs) -> list[OpEvent]:
    """Return the calls that were submitted here and have no outcome yet."""
    return [
        OpEvent(
            at=op.submission.buffers.submitted,
            group=name,
            seq=op.seq,
            call=op.submission.call,
            nbytes=op.submission.buffers.source.nbytes,
            submitted=op.submission.buffers.submitted,
            started=op.submission.buffers.started,
            outcome="",
        )
        for name, group in programs.engine.roll.groups.items()
        for seat in group.local.values()
        for stay in (seat, *seat.channels.values())
        for op in stay.calls.ops.values()
        if not op.ended and op.submission is not None and op.submission.buffers is not None
    ]


def _group(programs: Programs, name: str, now: float) -> dict[str, Any]:
    roll = programs.engine.roll
    group = roll.groups[name]
    names = programs.view.names
    present = sorted(group.present)
    seats = [group.local[local_rank] for local_rank in sorted(group.local)]
    view = seats[0].session.view if seats else None
    return {
        "name": name,
        "present": list(dict.fromkeys(names[member] for member, _ in present)),
        "programs": [f"{names[member]} (local rank {local})" for member, local in present],
        # The others say who is there once the ring is up.
        "unknown": [] if roll.up else [n for n in names if n != programs.view.name],
        "op_counts": {}
        if view is None
        else dict(zip(view.described(), seats[0].session.counts, strict=True)),
        "open_ops": list(
            islice(
                (
                    op
                    for seat in seats
                    for stay in (seat, *seat.channels.values())
                    for op in _open_ops(programs, stay, now)
                ),
                MOST_OPEN_OPS,
            )
        ),
    }


def _channel(channel: Channel) -> str:
    source, to, tag = channel.key
    return f"rank {source} to rank {to}, tag {tag}"


def _open_ops(programs: Programs, seat: Seat, now: float) -> Iterator[dict[str, Any]]:
    for seq, op in sorted(seat.calls.ops.items()):
        if op.ended:
            continue
        progress = programs.performer.bulk.progress(seat.session.gid, seq)
        yield {
            "op": seq,
            "channel": _channel(seat) if isinstance(seat, Channel) else None,
            "call": None if op.call is None else str(op.call),
            "age": now - op.since,
            "stalled": programs.engine.timing.stalled(op, now),
            "phase": op.phase.value,
            "waiting_for": programs.engine.waiting_for(seat, op)
            if op.submission
            else "not submitted here",
            "progress": None if progress is None else progress[0] / max(1, progress[1]),
        }
