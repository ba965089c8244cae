"""Who is missing, why, and for how long, in words."""

from __future__ import annotations

from ringd.daemon.neighbours import Neighbours


def waiting_for(neighbours: Neighbours, now: float) -> dict[str, str]:
    """Return whom the ring waits for, and why: those out of reach, else those that complain."""
    machine = neighbours.machine
    if machine.in_ring:
        return {}
    views = machine.members(now)
    lost = {view.rank: view.error or "not heard of yet" for view in views if view.state != "up"}
    lost.pop(neighbours.rank, None)
    missing = lost or machine.missing()
    return {neighbours.names[rank]: why for rank, why in missing.items()}


def out_of_reach(neighbours: Neighbours, now: float) -> str:
    """Return which members are missing, for how long and why; empty if none is known to be."""
    return "; ".join(
        f"{neighbours.names[view.rank]} missing for {now - view.error_since:.1f} s ({view.error})"
        for view in neighbours.machine.members(now)
        if view.state != "up" and view.rank != neighbours.rank and view.error_since is not None
    )
