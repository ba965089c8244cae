"""Messages that no neighbour could send, however late or out of date it is.

That numbers are within their bounds, the decoder sees to (:mod:`ringd.wire.link.bounds`).
"""

from __future__ import annotations

from ringd.membership.actions import Persist, Side
from ringd.wire.link.bounds import NEARBY, counted_on
from ringd.wire.link.control import MembershipMessage, News, Propose


def objection(rank: int, size: int, side: Side, message: MembershipMessage, own: Persist) -> str:
    """Return what is impossible about *message*, come from *side* to *rank*; else nothing.

    *own*: what this member has on disk, or is about to have.
    """
    if isinstance(message, News):
        for state in message.states:
            if state.rank >= size:
                return f"news of rank {state.rank}"
            if state.rank == rank and not counted_on(state.incarnation, own.incarnation):
                return (
                    f"news of incarnation {state.incarnation} of this member, which no count of "
                    "starts reaches; restart the daemons that believe it"
                )
        return ""
    kind = type(message).__name__
    if side != "left":
        return f"{kind} from the right"
    # A proposal holds the incarnations of those that it has passed.
    passed = rank if isinstance(message, Propose) and rank else size
    if len(message.incarnations) != passed:
        return f"{kind} with {len(message.incarnations)} incarnations instead of {passed}"
    # The others may have believed what is a little further ahead of this member's own number.
    if not counted_on(message.generation - NEARBY, own.generation):
        return f"{kind} of generation {message.generation}, which no count of rings reaches"
    return ""
