"""What users read when a call waits or fails: who, which op, and why."""

from __future__ import annotations

from collections.abc import Sequence

from ringd.groups.op import Op, Phase
from ringd.wire.control import Offer


def describe(group: str, op: Op) -> str:
    """Return the op's name."""
    what = str(op.submission.call) if op.submission else "a call"
    return f"{what} (op {op.seq} of group {group!r})"


def late(group: str, op: Op, node: str, why: str) -> str:
    """Return why a deadline ended *op*."""
    timeout = op.submission.timeout if op.submission else None
    # What arrives is the user's number less the microseconds of its way here.
    seconds = "" if timeout is None else f" of {round(timeout, 2) or timeout:g} s"
    return f"{describe(group, op)}: the deadline{seconds} passed on {node!r}; {why}"


def differences(group: str, seq: int, offers: Sequence[Offer], names: Sequence[str]) -> str:
    """Return what each member sent, one and the same text on all ranks."""
    by_call: dict[str, list[str]] = {}
    for rank, offer in enumerate(offers):
        by_call.setdefault(str(offer.call), []).append(names[rank])
    sent = "; ".join(f"{', '.join(who)}: {call}" for call, who in by_call.items())
    return f"op {seq} of group {group!r}: the members sent different calls: {sent}"


def missing(op: Op, names: Sequence[str], needy: Sequence[int]) -> str:
    """Return for whom *op* waits in a live session; *needy* ranks may need our input again."""
    if op.phase in (Phase.HELD, Phase.LENDING):
        who = ", ".join(names[rank] for rank in needy)
        return f"the result is here, but the input may still be needed by: {who}"
    absent = [names[rank] for rank in op.missing()]
    if absent:
        return "not submitted by: " + ", ".join(absent)
    return "all members had submitted and the data was on its way"
