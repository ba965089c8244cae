"""What users read when a call waits or fails: who, which op, and why."""

from __future__ import annotations

from collections.abc import Sequence

from ringd.collective.call import MAX_TEXT, Call
from ringd.groups.op import Op, Phase
from ringd.groups.session import Session


def client_on(node: str, reason: str, which: str = "") -> str:
    """Return what all members read of a client; *reason* completes the sentence.

    *which*: its rank in words, where that is known.
    """
    return f"the client{which and f' of {which}'} on {node!r} {reason}"


def which_of(session: Session) -> str:
    """Return which client of its member is in *session*, in words.

    Before the session has formed its rank is not known; empty then for the only one there.
    """
    if session.formed:
        return f"rank {session.view.rank}"
    return f"local rank {session.part.local_rank}" if session.part.local_size > 1 else ""


def late(session: Session, op: Op, why: str) -> str:
    """Return why a deadline ended *op* here."""
    timeout = op.submission.timeout if op.submission else None
    seconds = "" if timeout is None else f" of {timeout:g} s"
    what = f"{op.call or 'a call'} ({session.title(op.seq)})"
    node = session.view.described()[session.view.rank]
    text = f"{what}: the deadline{seconds} passed on {node!r}; {why}"
    return shorten(text, MAX_TEXT)


def differences(title: str, calls: Sequence[Call], names: Sequence[str], reason: str) -> str:
    """Return what each member called, one and the same text on all ranks.

    *title*: of the op. *reason*: why these do not fit together, if it does not show in them.
    """
    by_call: dict[str, list[str]] = {}
    for rank, call in enumerate(calls):
        by_call.setdefault(str(call), []).append(names[rank])
    what = f"the calls do not fit together, as {reason}" if reason else ""
    head = f"{title}: {what or 'the members sent different calls'}: "
    sent = [(", ".join(who), call) for call, who in by_call.items()]
    text = head + "; ".join(f"{who}: {call}" for who, call in sent)
    if len(text) <= MAX_TEXT:
        return text
    room = (MAX_TEXT - len(head)) // len(sent) - len(": ; ")  # for each, so that none is left out
    short = [(shorten(who, room // 2), call) for who, call in sent]
    return head + "; ".join(f"{who}: {shorten(call, room - len(who))}" for who, call in short)


def shorten(text: str, room: int) -> str:
    """Return *text* in at most *room* characters, without its middle if need be."""
    if len(text) <= room:
        return text
    head = room // 2
    return f"{text[:head]}…{text[len(text) - (room - 1 - head) :]}"


def waiting_for(op: Op, session: Session, needed: Sequence[int]) -> str:
    """Return for whom *op* waits in a formed session; ranks *needed* may need our input again."""
    names = session.view.described()
    if not session.live:
        return "no client back in the group on: " + ", ".join(session.unconfirmed())
    if op.phase in (Phase.HELD, Phase.LENDING):
        who = ", ".join(names[rank] for rank in needed)
        return f"the result is here, but the input may still be needed by: {who}"
    absent = [names[rank] for rank in op.missing()]
    if absent:
        return "not submitted by: " + ", ".join(absent)
    if op.computing:
        who = ", ".join(names[rank] for rank in op.computing)
        return f"all members had submitted; data was still on its way to or from: {who}"
    return "all members had submitted and the data was on its way"
