"""What a message of the daemon does to the group that it is for; twice is like once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ringd import errors
from ringd.client.channel import Payload
from ringd.client.daemon import Daemon
from ringd.client.group import Group
from ringd.client.session import Op
from ringd.wire.border.messages import (
    Answer,
    Arrived,
    Attached,
    Awaited,
    Completed,
    Denied,
    Detached,
    Failed,
    Lost,
    Released,
    Reply,
    RingState,
)


def _attached(daemon: Daemon, group: Group, reply: Attached, _payload: Payload | None) -> None:
    group.session.answered_over = group.session.taken_in_over = daemon.channel
    daemon.introduces_itself(reply)
    group.accepted = True


def _completed(_daemon: Daemon, group: Group, reply: Completed, payload: Payload | None) -> None:
    session = group.session
    op = session.ops.get(reply.seq)
    if op is not None and not op.ended:
        inline = None if op.target is not None else op.result_length
        if inline != (None if payload is None else len(payload)):
            text = f"op {op.seq}: the daemon answered with a result of another length"
            group.give_up(op, errors.RingError(text))
        elif reply.keep and not group.leave_input(op):
            op.sealed = True  # it ends when it is released
        else:
            op.reply = payload
            op.ended = op.over = True
    session.settle()
    if reply.ack or session.ack_wanted > session.ack_sent:
        group.acknowledge(reply)
    if session.limit is None:
        session.release(reply.released)
    else:
        group.progress(reply.released)


def _failed(daemon: Daemon, group: Group, reply: Failed, _payload: Payload | None) -> None:
    session = group.session
    op = session.ops.get(reply.seq)
    if op is not None and not op.ended:
        if reply.code == errors.ResourceExhausted.code:
            op.pass_memory_again()
        session.fail(op, errors.from_code(reply.code, _with_breaks(daemon, op, reply)))
    session.settle()
    group.acknowledge(reply)
    group.progress(reply.released)


def _with_breaks(daemon: Daemon, op: Op, reply: Failed) -> str:
    """Return why *op* failed, and, where that took long, what may have cost the time."""
    breaks, text = daemon.breaks - op.breaks, reply.message
    if reply.code != errors.DeadlineExceeded.code or breaks <= 0 or daemon.broke in text:
        return text
    times = "once" if breaks == 1 else f"{breaks} times, at last"
    return f"{text}; since the call the ring broke {times}: {daemon.broke}"


def _released(_daemon: Daemon, group: Group, reply: Released, _payload: Payload | None) -> None:
    group.progress(reply.released)


def _lost(_daemon: Daemon, group: Group, reply: Lost, _payload: Payload | None) -> None:
    group.cut(reply.floor, errors.from_code(reply.code, reply.message))
    group.progress(0)


def _detached(_daemon: Daemon, group: Group, _reply: Detached, _payload: Payload | None) -> None:
    group.parted = True


def _arrived(_daemon: Daemon, group: Group, reply: Arrived, _payload: Payload | None) -> None:
    group.arrived = reply.count


def _awaited(_daemon: Daemon, group: Group, reply: Awaited, _payload: Payload | None) -> None:
    group.awaited, group.conflict = reply.text, reply.conflict


def _denied(daemon: Daemon, group: Group, reply: Denied, _payload: Payload | None) -> None:
    error = errors.from_code(reply.code, reply.message)
    if isinstance(error, errors.NotReady):
        if daemon.channel is None or daemon.channel.attached:
            group.postpone()
        else:
            daemon.part(str(error))  # it is on its way out; try the next one
    elif not group.accepted:
        group.refusal = error
    else:
        group.leave_inputs()  # it may have taken in some of our calls before
        group.cut(group.session.released, error)
        group.progress(0)


def _ignore(_daemon: Daemon, _group: Group, _reply: Reply, _payload: Payload | None) -> None:
    """It is for no group."""


HANDLERS: dict[type[Reply], Callable[[Daemon, Group, Any, Payload | None], None]] = {
    Attached: _attached,
    Completed: _completed,
    Failed: _failed,
    Released: _released,
    Lost: _lost,
    Detached: _detached,
    Arrived: _arrived,
    Awaited: _awaited,
    Denied: _denied,
    RingState: _ignore,
    Answer: _ignore,
}
"""Lets a reply of the daemon, which is for the present session of the group, take effect."""
