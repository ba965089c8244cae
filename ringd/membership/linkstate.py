"""What a member knows of all members' links.

Every member floods its own :class:`~ringd.wire.link.control.LinkState`; the table keeps the
newest of each. "Newest" is decided by ``(incarnation, version)``. Two states can share
both and still differ, when a member lost its state file and so counted from the beginning
again: then the larger content wins, the same one everywhere, so that all tables converge
and the member itself comes to hear of its older self.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from ringd.wire.link.control import LinkState


def is_newer(state: LinkState, known: LinkState | None) -> bool:
    """Whether *state* replaces *known*."""
    if known is None:
        return True
    if state.incarnation != known.incarnation:
        return state.incarnation > known.incarnation
    if state.version != known.version:
        return state.version > known.version
    return msgspec.structs.astuple(state) > msgspec.structs.astuple(known)


def is_fit(state: LinkState) -> bool:
    """Whether the member could take part in a ring."""
    return state.left_up and state.right_up and not state.error and not state.draining


@dataclass(frozen=True, slots=True)
class Merge:
    """What a round of news changed."""

    changed: tuple[LinkState, ...]
    """The states that were news; to be passed on."""
    moved: LinkState | None
    """One of *changed* that ends any ring formed before it; None if all are harmless."""


class LinkTable:
    """The newest known link state of every member.

    Args:
        size: Number of members.
    """

    __slots__ = ("_states", "_unfit")

    def __init__(self, size: int) -> None:
        self._states: list[LinkState | None] = [None] * size
        # Kept up to date, so that asking for all_up costs the same at any size.
        self._unfit = set(range(size))

    def __getitem__(self, rank: int) -> LinkState | None:
        return self._states[rank]

    def put(self, state: LinkState) -> None:
        """Store *state* as the newest of its member."""
        self._states[state.rank] = state
        if is_fit(state):
            self._unfit.discard(state.rank)
        else:
            self._unfit.add(state.rank)

    def merge(self, states: Iterable[LinkState]) -> Merge:
        """Take over what is newer in *states* and return it."""
        changed = []
        moved = None
        for state in states:
            known = self._states[state.rank]
            if not is_newer(state, known):
                continue
            self.put(state)
            changed.append(state)
            if known is None or (state.incarnation, state.epoch) != (
                known.incarnation,
                known.epoch,
            ):
                moved = state if moved is None or state.error else moved
        return Merge(tuple(changed), moved)

    def all_up(self) -> bool:
        """Whether every member is known, linked to both neighbours, and willing."""
        return not self._unfit

    def known(self) -> tuple[LinkState, ...]:
        """Return all known states in rank order."""
        return tuple(state for state in self._states if state is not None)

    def incarnations(self) -> tuple[int, ...]:
        """Return the members' incarnations in rank order; 0 for those never heard of."""
        return tuple(0 if state is None else state.incarnation for state in self._states)

    def missing(self) -> dict[int, str]:
        """Return, by rank, why the members that keep the ring from forming do so."""
        slow = {state.rank for state in self.known() if state.disk_slow}
        return {rank: self._why(rank) for rank in sorted(self._unfit | slow)}

    def reachable(self, rank: int) -> set[int]:
        """Return the members that news can reach *rank* from; itself among them.

        Beyond a link that either end calls down, the table may be out of date.
        """
        size = len(self._states)
        found = {rank}
        for step in (1, -1):
            here = rank
            while (here + step) % size not in found and self._linked(here, step):
                here = (here + step) % size
                found.add(here)
        return found

    def current(self, rank: int, seen_from: int) -> bool:
        """Whether news of *rank* comes to *seen_from* over links that go right from there."""
        size = len(self._states)
        while seen_from != rank:
            if not self._linked(seen_from, 1):
                return False
            seen_from = (seen_from + 1) % size
        return True

    def complaint(self, rank: int) -> str:
        """Return what is said about *rank*: by a neighbour that misses it, or by itself."""
        size = len(self._states)
        left, own, right = (self._states[r % size] for r in (rank - 1, rank, rank + 1))
        if left is not None and left.right_error:
            return left.right_error
        if right is not None and right.left_error:
            return right.left_error
        return "" if own is None else own.disk_error or own.disk_slow

    def _linked(self, rank: int, step: int) -> bool:
        here = self._states[rank]
        there = self._states[(rank + step) % len(self._states)]
        if here is None or there is None:
            return False
        return (here.right_up and there.left_up) if step == 1 else (here.left_up and there.right_up)

    def _why(self, rank: int) -> str:
        state = self._states[rank]
        if state is None:
            return "not heard of yet"
        if state.draining:
            return "shutting down, or drained by its operator (`ringd-cli resume` there ends that)"
        return state.error or state.disk_slow or "not linked to both neighbours yet"
