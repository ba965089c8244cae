"""What the groups engine decides, carried out: on the ring, in memory, and towards programs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import repeat
from typing import Any, cast

import msgspec
import numpy as np
import structlog

from ringd import errors
from ringd.border.accounts import Held
from ringd.border.client import Client
from ringd.collective import kinds
from ringd.collective.call import Call
from ringd.collective.layout import Layout
from ringd.collective.reduction import Array, Reduction, dtype_from_name
from ringd.collective.view import View
from ringd.config.settings import Config
from ringd.groups import actions as groups
from ringd.groups.op import OK
from ringd.host import heap
from ringd.loop import Loop, Timer
from ringd.observe.counters import Counters
from ringd.observe.recorder import OpEvent, Recorder
from ringd.ring.bulk import Bulk, flat
from ringd.ring.neighbours import Neighbours
from ringd.wire.border import messages as border

TIDY_AFTER = 1.0
"""Seconds without a call after which what lies free is given back; up to twice as many."""

_BYTES = np.dtype(np.uint8)


# A Struct rather than a dataclass: made for every call, in C, and without a function.
class Buffers(msgspec.Struct, eq=False):
    """Where the input and the result of a submission live."""

    source: memoryview
    """Empty when the call carries no data, or ended before and needs none."""
    target: memoryview | None
    """In the client's segment; None when the result travels in the message."""
    seal: memoryview | None
    """Behind the target."""
    submitted: float
    held: Held | None = None
    """Has the bytes of what travels in messages count in the account of the program."""
    counted: int = 0
    """Bytes of the result that it counts already."""
    started: float | None = None
    result: Array | None = None
    """An inline result, once there is one."""


@dataclass(slots=True)
class Computation:
    """A large op that is computed for all ranks here together."""

    view: View
    """Of one of them."""
    runs: list[groups.Run] = field(default_factory=list)


class Form(msgspec.Struct, frozen=True):
    """What a call means to a rank."""

    dtype: np.dtype[Any]
    """Of its elements."""
    reduction: Reduction | None
    compute: Callable[[kinds.Inputs, Array], None]
    """Computes a small one."""
    count: int
    """Elements of the result."""
    gives: bool
    """Whether the rank is given one, be it of no elements."""


class Performer:
    """Has a method for every action, and carries them out one after the other.

    Invariant: actions are carried out in the order in which they were handed over. Those that
    follow from one of them (a small call has its result at once) wait for all before them.

    Args:
        on_finished: Called with an op's session, rank and number and the time when its computation
            is through; returns the actions that follow.
    """

    def __init__(
        self,
        loop: Loop,
        config: Config,
        view: View,
        neighbours: Neighbours,
        recorder: Recorder,
        *,
        counters: Counters,
        on_finished: Callable[[int, int, int, float], Sequence[groups.Action]],
    ) -> None:
        self._loop = loop
        self.config = config
        """As it was read last."""
        self._view = view
        self._neighbours = neighbours
        self._links = neighbours.links
        self._recorder = recorder
        self._counters = counters
        self._finished = on_finished
        self._log = structlog.get_logger("groups")
        self.bulk = Bulk(
            view.rank,
            chunk_bytes=config.ops.chunk,
            checksum=config.ops.checksum and not config.ring.sealed,
            by_rank=config.ops.order == "rank",
            on_finished=self._computed,
            send=neighbours.send_credit,
            defer=loop.call_soon,
            on_way=neighbours.on_way,
            counters=counters,
        )
        self._computations: dict[tuple[int, int], Computation] = {}
        """Large ops under way, by session and number."""
        self._worked = False  # whether a call was made, or a program left, since the timer was set
        self._tidying: Timer | None = None
        self._queue: deque[groups.Action] = deque()
        self._performing = False
        self._doers: dict[type, Callable[[Any], None]] = {
            groups.Broadcast: neighbours.send_group,
            groups.Relay: neighbours.send_group,
            groups.Run: self._run,
            groups.Stop: self._stop,
            groups.Seal: self._seal,
            groups.Free: self._free,
            groups.Accept: self._accept,
            groups.TellSession: self._tell_session,
            groups.TellArrived: self._tell_arrived,
            groups.Forget: self._forget,
            groups.Deny: self._deny,
            groups.Report: self._report,
            groups.TellReleased: self._tell_released,
            groups.TellLost: self._tell_lost,
            groups.Warn: self._warn,
            groups.Dropped: self._count_dropped,
        }

    def perform(self, actions: Sequence[groups.Action]) -> None:
        """Carry *actions* out, after all that were handed over before."""
        queue = self._queue
        queue.extend(actions)
        if self._performing:  # called by an action, whose caller goes on with these
            return
        self._performing = True
        try:
            while queue:
                action = queue.popleft()
                self._doers[type(action)](action)
        finally:
            self._performing = False

    # --- computing --------------------------------------------------------------------

    def _run(self, action: groups.Run) -> None:
        for link in self._links.values():
            link.hurry()  # where our offer was the last one, the others wait for it
        self._worked = True
        if self._tidying is None:  # that is a function less for most calls
            self.tidy_later()
        if action.payloads is None:
            self._run_large(action)
            return
        view, calls, payloads = action.view, action.calls, action.payloads
        rank, now = view.rank, self._loop.now()
        call = calls[rank]
        call = kinds.bare(call) if call.name or call.tensors else call
        form = _form(call, rank, view.size)
        target = self._target(action, form, now)
        array = np.frombuffer if all(payloads) else flat  # the one takes none of no bytes
        inputs = list(map(array, payloads, repeat(form.dtype)))
        form.compute(kinds.Inputs(inputs, calls, rank, form.reduction, view.order), target)
        # What follows waits for all actions that were there before.
        self._queue.extend(self._finished(action.gid, rank, action.seq, now))

    def _run_large(self, action: groups.Run) -> None:
        """Compute a large op, once all ranks here are ready for it."""
        key, view = (action.gid, action.seq), action.view
        computation = self._computations.setdefault(key, Computation(view))
        computation.runs.append(action)
        if len(computation.runs) < len(view.here):
            return
        runs = sorted(computation.runs, key=lambda run: run.view.rank)
        calls, size, now = action.calls, view.size, self._loop.now()
        forms = [_form(kinds.bare(calls[rank]), rank, size) for rank in view.here]
        targets = [self._target(run, form, now) for run, form in zip(runs, forms, strict=True)]
        form = forms[0]  # of all, but for the counts
        sources = [flat(run.submission.buffers.source, form.dtype) for run in runs]
        self.bulk.start(key, view, _layout(view), calls, form.reduction, sources, targets)
        self._neighbours.kick(view.side)

    def _target(self, action: groups.Run, form: Form, now: float) -> Array:
        """Return where the result of a rank here goes, which is computed from *now* on."""
        buffers: Buffers = action.submission.buffers
        buffers.started = now
        if buffers.target is not None and not action.serve:
            return flat(buffers.target, form.dtype)
        # To serve: the client has its result, and may have changed it since.
        target = np.empty(form.count, form.dtype)
        if not action.serve and form.gives:
            buffers.result = target
            if buffers.held is not None and target.nbytes > buffers.counted:
                buffers.held.grow(target.nbytes - buffers.counted)
        return target

    def _computed(self, gid: int, seq: int) -> None:
        """A large op is through."""
        for run in self._computations.pop((gid, seq)).runs:
            self.perform(self._finished(gid, run.view.rank, seq, self._loop.now()))

    def tidy_later(self) -> None:
        """Give back what calls and programs leave behind, once there has been neither for long."""
        self._worked = True
        if self._tidying is None:
            self._tidying = self._loop.call_later(TIDY_AFTER, self._tidy)

    def _tidy(self) -> None:
        if self._worked or len(self.bulk):
            self._worked = False
            self._tidying = self._loop.call_later(TIDY_AFTER, self._tidy)
        else:
            self._tidying = None
            self.bulk.give_back()
            heap.give_back_free_blocks()

    def _stop(self, action: groups.Stop) -> None:
        if self._computations.pop((action.gid, action.seq), None) is not None:
            self.bulk.stop(action.gid, action.seq)
            self._neighbours.let_go(action.gid, action.seq)

    def _seal(self, action: groups.Seal) -> None:
        buffers: Buffers = action.submission.buffers
        if buffers.seal is not None:
            border.SEAL.pack_into(buffers.seal, 0, action.join_id, action.submission.seq)

    def _free(self, action: groups.Free) -> None:
        action.submission.buffers = None
        action.submission.payload = None
        action.submission.fault = None  # which knows the client; a timer may keep the call for long

    def _accept(self, action: groups.Accept) -> None:
        client = cast(Client, action.client)
        limits = client.limits
        machine = self._neighbours.machine
        client.send(
            border.Attached(
                join_id=action.join_id,
                node=self.config.node,
                rank=self._view.rank,
                size=self._view.size,
                state=machine.state.value,
                generation=machine.generation,
                inline_limit=limits.inline_limit,
                max_message=limits.max_message,
                segment_budget=limits.segment_budget,
                window=limits.window,
                lost_after=self.config.join.lost_after,
                timeout=self.config.ops.timeout,
                nodes=self._view.names,
            )
        )

    def _tell_session(self, action: groups.TellSession) -> None:
        cast(Client, action.client).tell_session(action.join_id, action.session, action.places)

    def _tell_arrived(self, action: groups.TellArrived) -> None:
        cast(Client, action.client).send(border.Arrived(action.join_id, action.count))

    def _forget(self, action: groups.Forget) -> None:
        cast(Client, action.client).closes(action.join_id)

    def _deny(self, action: groups.Deny) -> None:
        client = cast(Client, action.client)
        client.send(border.Denied(action.join_id, action.code, action.message))
        client.closes(action.join_id)  # if that was to be a channel

    def _report(self, action: groups.Report) -> None:
        client: Client = action.client  # type: ignore[assignment]  # a cast costs a call
        submission = action.submission
        buffers: Buffers | None = submission.buffers
        if action.code == OK:
            result = None if buffers is None else buffers.result
            machine = self._neighbours.machine
            client.send(
                border.Completed(
                    action.join_id,
                    submission.seq,
                    action.released,
                    machine.in_use or machine.generation,
                    action.ack,
                    action.keep,
                ),
                None if result is None else result.view(_BYTES).data,
            )
        else:
            client.send(
                border.Failed(
                    action.join_id,
                    submission.seq,
                    action.released,
                    action.code,
                    action.message,
                    action.ack,
                )
            )
        if not action.again:
            self._record(action, buffers)  # while the program goes on

    def _record(self, action: groups.Report, buffers: Buffers | None) -> None:
        submission, now, code = action.submission, self._loop.now(), action.code
        nbytes, submitted, started = 0, now, None
        if buffers is not None:
            submitted, started = buffers.submitted, buffers.started
            result = buffers.result if buffers.target is None else buffers.target
            nbytes = max(buffers.source.nbytes, 0 if result is None else result.nbytes)
        call = submission.call
        calls = self._counters.calls[call.kind]
        if code == OK:
            calls.completed(now - submitted, nbytes)
        else:
            # A wrong program, on any machine, may have made its code up, and each time another.
            calls.errors[errors.from_code(code, "").code] += 1
        self._recorder.op(
            OpEvent(
                at=now,
                group=action.group,
                seq=submission.seq,
                call=str(call) if call.tensors else call,
                nbytes=nbytes,
                submitted=submitted,
                started=started,
                outcome=code,
            )
        )

    def _tell_released(self, action: groups.TellReleased) -> None:
        client = cast(Client, action.client)
        client.send(border.Released(action.join_id, action.released))

    def _tell_lost(self, action: groups.TellLost) -> None:
        client = cast(Client, action.client)
        if action.join_id not in client.channels:  # which end with it, and may be many
            group = client.group_of(action.join_id)
            self._log.info(
                "session over",
                group=group,
                reason=action.message,
                pid=client.pid,
                program=client.program,
            )
            self._recorder.note("session over", group=group, reason=action.message)
        client.send(border.Lost(action.join_id, action.floor, action.code, action.message))

    def _warn(self, action: groups.Warn) -> None:
        self._recorder.note("call waits", group=action.group, seq=action.seq, why=action.missing)
        self._log.warning(
            "call waits",
            group=action.group,
            op=action.seq,
            call=str(action.call),
            seconds=round(action.age, 1),
            waiting_for=action.missing,
        )

    def _count_dropped(self, action: groups.Dropped) -> None:
        self._counters.dropped_messages[action.reason] += 1


@lru_cache(maxsize=256)
def _arithmetic(
    kind: str, operation: str, dtype: str, size: int
) -> tuple[np.dtype[Any], Reduction | None]:
    """Return what the elements of such a call are, and how they are reduced if they are."""
    known = kinds.KINDS[kind]
    elements = dtype_from_name(dtype) if known.data else _BYTES
    return elements, Reduction(operation, elements, size) if known.reduces else None


@lru_cache(maxsize=256)
def _form(call: Call, rank: int, size: int) -> Form:
    """Return what *call*, which is bare, means to *rank* of *size*."""
    kind = kinds.of(call)
    dtype, reduction = _arithmetic(call.kind, call.reduction, call.dtype, size)
    gives = kind.target(call, rank, size) is not None
    return Form(dtype, reduction, kind.compute, kinds.target_count(call, rank, size), gives)


@lru_cache(maxsize=256)
def _layout(view: View) -> Layout:
    return Layout.of(view.places, view.place)
