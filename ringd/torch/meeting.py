"""How the ranks of a process group come together: in the ring, through a store, or as a part."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from torch import distributed as dist

from ringd import errors
from ringd.client.ring import Ring, connect
from ringd.torch.seats import Claim, Seats, check_size, ranks_of

_DAEMON_TIMEOUT = 30.0
"""Seconds; a group's own may be half an hour, which is for other ranks."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """Ranks that are together, or will be with their first call."""

    rings: Sequence[Ring]
    """The last one has the ranks' own numbers."""
    seats: Seats

    def close(self) -> None:
        """Leave."""
        for ring in reversed(self.rings):
            ring.close()


def meet_in_ring(group: str, claim: Claim, timeout: float, **place: Any) -> Meeting:
    """Wait for all programs of *group*, and agree on their ranks.

    Args:
        group: of the ring.
        claim: what this program was told.
        timeout: in seconds.
        place: the program's ``members``, ``local_rank`` and ``local_size``, as for
            :func:`ringd.connect`.

    Raises:
        ValueError: the programs' claims do not fit together; says which ones.
        RingError: as :func:`ringd.connect`, and its calls.
    """
    ring = connect(group=group, timeout=_for_daemon(timeout), **place)
    try:
        check_size(claim, place["members"] or ring.members, place["local_size"])
        said = _hear_all(ring, msgspec.msgpack.encode(claim), timeout)
        claims = [msgspec.msgpack.decode(one, type=Claim) for one in said]
        ranks = ranks_of(claims, ring.nodes)
        nodes = [ring.nodes[ranks.index(rank)] for rank in range(ring.size)]
        members = tuple(dict.fromkeys(ring.nodes))
        seats = Seats(group, ranks[ring.rank], tuple(nodes), members)
        return Meeting(_ordered(ring, seats, timeout), seats)
    except BaseException:
        ring.close()
        raise


def _hear_all(ring: Ring, mine: bytes, timeout: float) -> list[bytes]:
    """Return what all programs say, of whom some may have yet to leave the group's former life.

    Who meets one of these is told that it left, and meets the others then.
    """
    until = time.monotonic() + timeout
    while True:
        try:
            return ring.all_gather_bytes(mine, timeout=max(0.1, until - time.monotonic()))
        except errors.GroupLost:
            if time.monotonic() >= until:
                raise


def meet_in_store(store: Any, rank: int, size: int, timeout: float) -> Meeting:
    """Find out through *store*, which all ranks share, where they are, and join a new group.

    Args:
        store: of torch.
        rank: this one.
        size: how many they are.
        timeout: in seconds.

    Raises:
        DistBackendError: a rank has not come; says which one.
        RingError: as :func:`ringd.connect`, and its calls.
    """
    group = f"torch-{secrets.token_hex(6)}"
    with connect(
        group=group, timeout=_for_daemon(timeout)
    ) as alone:  # to be told on which machine this is
        # A store may outlive a process group. All ranks make theirs in the same order.
        times = store.add(f"{rank}/times", 1)
        store.set(f"{times}/{rank}", alone.node)
        if rank == 0:
            store.set(f"{times}/group", f"{group}-all")
        nodes = tuple(_get(store, f"{times}/{other}", other) for other in range(size))
        seats = Seats(_get(store, f"{times}/group", 0), rank, nodes, ())
        ring = _join(seats, tuple(set(nodes)), timeout)
    try:
        ring.barrier(timeout)
        seats = replace(seats, members=tuple(dict.fromkeys(ring.nodes)))
        return Meeting(_ordered(ring, seats, timeout), seats)
    except BaseException:
        ring.close()
        raise


def meet_as_part(seats: Seats, timeout: float) -> Meeting:
    """Join the part of a process group that has *seats*; waits for nobody if it counts as the ring.

    Raises:
        RingError: as :func:`ringd.connect`, and its calls.
    """
    ring = _join(seats, seats.members, timeout)
    try:
        return Meeting(_ordered(ring, seats, timeout), seats)
    except BaseException:
        ring.close()
        raise


def _for_daemon(timeout: float) -> float:
    """Return how long a program with *timeout* waits for a daemon to appear."""
    return min(timeout, _DAEMON_TIMEOUT)


def _join(seats: Seats, members: Sequence[str], timeout: float) -> Ring:
    return connect(
        group=seats.group,
        timeout=_for_daemon(timeout),
        members=members,
        local_rank=seats.local_rank,
        local_size=seats.local_size,
    )


def _ordered(ring: Ring, seats: Seats, timeout: float) -> Sequence[Ring]:
    """Return *ring*, and behind it one with the ranks of *seats* if its own are others."""
    if seats.in_ring_order:
        return [ring]
    part = ring.split(0, seats.rank, timeout=timeout)
    assert part is not None  # noqa: S101 - it has a color
    return [ring, part]


def _get(store: Any, key: str, rank: int) -> str:
    """Return what *rank* has written to *store*; waits for it."""
    try:
        text: str = store.get(key).decode()
    except RuntimeError as error:  # of which the stores have several kinds
        raise dist.DistBackendError(f"rank {rank} has not come: {error}") from error
    return text
