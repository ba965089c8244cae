"""Who is missing, why, and for how long, in words."""

from __future__ import annotations

from ringd.membership.machine import MemberView
from ringd.ring.neighbours import Neighbours


def waiting_for(neighbours: Neighbours, now: float) -> dict[str, str]:
    """Return whom the ring waits for, and why: those out of reach, else those that complain."""
    machine = neighbours.machine
    if machine.in_ring:
        return {}
    views = machine.members(now)
    lost = {view.rank: _why(view) for view in views if view.state != "up"}
    lost.pop(neighbours.rank, None)
    missing = lost or machine.missing()
    return {neighbours.names[rank]: why for rank, why in missing.items()}


def _why(view: MemberView) -> str:
    if view.state == "unknown":  # the last error may be long over
        return "unknown while its neighbours are out of reach"
    return view.error or "not heard of yet"


def out_of_reach(neighbours: Neighbours, now: float) -> str:
    """Return which members are missing, for how long and why; empty if none is known to be."""
    return "; ".join(
        f"{neighbours.names[view.rank]} {_since(view, now)}"
        for view in neighbours.machine.members(now)
        if view.state == "down"
    )


def slow_disks(neighbours: Neighbours, now: float) -> str:
    """Return which members' disks keep them out of the ring's new generation, and since when."""
    return "; ".join(
        f"{neighbours.names[view.rank]} still writes its {view.disk_slow}"
        for view in neighbours.machine.members(now)
        if view.disk_slow
    )


def _since(view: MemberView, now: float) -> str:
    if view.missed_since is None:
        return "not heard of yet"
    return f"missing for {max(0.0, now - view.missed_since):.1f} s ({view.error})"
