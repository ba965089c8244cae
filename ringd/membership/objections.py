"""Messages that no neighbour could send, however late or out of date it is."""

from __future__ import annotations

from ringd.membership.actions import Side
from ringd.wire.link.control import MembershipMessage, News, Propose

MAX_GENERATION = 1 << 63
"""Far beyond any that counting can reach, and still below what frames can carry."""


def objection(rank: int, size: int, side: Side, message: MembershipMessage) -> str:
    """Return what is impossible about *message*, come from *side* to *rank*; else nothing."""
    if isinstance(message, News):
        for state in message.states:
            if not (0 <= state.rank < size and 0 <= state.generation < MAX_GENERATION):
                return f"news of rank {state.rank} in generation {state.generation}"
        return ""
    kind = type(message).__name__
    if side != "left":
        return f"{kind} from the right"
    # A proposal holds the incarnations of those that it has passed.
    passed = rank if isinstance(message, Propose) and rank else size
    if len(message.incarnations) != passed:
        return f"{kind} with {len(message.incarnations)} incarnations instead of {passed}"
    if not 0 <= message.generation < MAX_GENERATION:
        return f"{kind} of generation {message.generation}"
    return ""
