"""What the groups engine decides, carried out: on the ring, in memory, and towards programs."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import structlog

from ringd import errors
from ringd.border.client import Client
from ringd.collective import kinds
from ringd.collective.reduction import Array, Reduction, dtype_from_name
from ringd.collective.view import View
from ringd.config.settings import Config, IpcSettings
from ringd.groups import actions as groups
from ringd.groups.op import OK
from ringd.host.machine import share_of_memory
from ringd.loop import Loop
from ringd.observe.recorder import OpEvent, Recorder
from ringd.ring.bulk import Bulk, flat
from ringd.ring.neighbours import Neighbours
from ringd.wire.border import messages as border

_BYTES = np.dtype(np.uint8)


@dataclass(slots=True)
class Buffers:
    """Where the input and the result of a submission live."""

    source: memoryview
    """Empty when the call carries no data, or ended before and needs none."""
    target: memoryview | None
    """In the client's segment; None when the result travels in the message."""
    seal: memoryview | None
    """Behind the target."""
    submitted: float
    started: float | None = None
    result: Array | None = None
    """An inline result, once there is one."""

    @property
    def nbytes(self) -> int:
        """Bytes of the input or of the result, whichever has more."""
        given = self.result.nbytes if self.target is None and self.result is not None else 0
        return max(self.source.nbytes, given if self.target is None else self.target.nbytes)


class Performer:
    """Has a method for every action, and carries them out one after the other.

    Invariant: actions are carried out in the order in which they were handed over. Those that
    follow from one of them (a small call has its result at once) wait for all before them.

    Args:
        on_finished: Called with an op's key when the computation of it is through.
    """

    def __init__(
        self,
        loop: Loop,
        config: Config,
        view: View,
        neighbours: Neighbours,
        recorder: Recorder,
        *,
        on_finished: Callable[[int, int], None],
    ) -> None:
        self._loop = loop
        self.config = config
        """As it was read last."""
        self._view = view
        self.segment_budget = segment_budget(config.ipc)
        """Bytes of shared memory that one client may hold."""
        self._neighbours = neighbours
        self._recorder = recorder
        self._finished = on_finished
        self._log = structlog.get_logger("groups")
        self.bulk = Bulk(
            view.rank,
            chunk_bytes=config.ops.chunk,
            checksum=config.ops.checksum,
            by_rank=config.ops.order == "rank",
            on_finished=on_finished,
        )
        self.outcomes: Counter[str] = Counter()
        """Calls that ended here, by outcome."""
        self.dropped: Counter[str] = Counter()
        """Group messages that were of no use, by reason."""
        self._queue: deque[groups.Action] = deque()
        self._performing = False
        self._doers: dict[type, Callable[[Any], None]] = {
            groups.Broadcast: self._broadcast,
            groups.Relay: self._relay,
            groups.Run: self._run,
            groups.Stop: self._stop,
            groups.Seal: self._seal,
            groups.Free: self._free,
            groups.Accept: self._accept,
            groups.TellSession: self._tell_session,
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

    # --- towards the other members ----------------------------------------------------

    def _broadcast(self, action: groups.Broadcast) -> None:
        self._neighbours.broadcast(action.gid, action.seq, action.message, action.payload)

    def _relay(self, action: groups.Relay) -> None:
        self._neighbours.relay(action.origin, action.gid, action.seq, action.message)

    def _run(self, action: groups.Run) -> None:
        calls, rank, size = action.calls, self._view.rank, self._view.size
        call, buffers = calls[rank], cast(Buffers, action.submission.buffers)
        kind = kinds.of(call)
        dtype = dtype_from_name(call.dtype) if kind.data else _BYTES
        reduction = _reduction(call.reduction, call.dtype, size) if kind.reduces else None
        if buffers.target is not None and not action.serve:
            target = flat(buffers.target, dtype)
        else:  # to serve: the client has its result, and may have changed it since
            target = np.empty(kinds.target_count(call, rank, size), dtype)
            if not action.serve and kind.target(call, rank, size) is not None:
                buffers.result = target
        buffers.started = self._loop.now()
        if action.payloads is not None:
            inputs = [flat(payload, dtype) for payload in action.payloads]
            kind.compute(kinds.Inputs(inputs, calls, rank, reduction), target)
            self._finished(action.gid, action.seq)
        else:
            source = flat(buffers.source, dtype)
            self.bulk.start((action.gid, action.seq), calls, reduction, source, target)
            self._neighbours.kick()

    def _stop(self, action: groups.Stop) -> None:
        self.bulk.stop(action.gid, action.seq)
        self._neighbours.let_go(action.gid, action.seq)

    def _seal(self, action: groups.Seal) -> None:
        buffers = cast(Buffers, action.submission.buffers)
        if buffers.seal is not None:
            border.SEAL.pack_into(buffers.seal, 0, action.join_id, action.submission.seq)

    def _free(self, action: groups.Free) -> None:
        action.submission.buffers = None
        action.submission.payload = None

    def _accept(self, action: groups.Accept) -> None:
        client, ipc = cast(Client, action.client), self.config.ipc
        machine = self._neighbours.machine
        client.send(
            border.Attached(
                join_id=action.join_id,
                node=self.config.node,
                rank=self._view.rank,
                size=self._view.size,
                state=machine.state.value,
                generation=machine.generation,
                inline_limit=ipc.inline_limit,
                max_message=ipc.max_message,
                segment_budget=self.segment_budget,
                window=ipc.window,
                lost_after=self.config.join.lost_after,
                timeout=self.config.ops.timeout,
                nodes=self._view.names,
            )
        )

    def _tell_session(self, action: groups.TellSession) -> None:
        cast(Client, action.client).tell_session(action.join_id, action.session, action.places)

    def _deny(self, action: groups.Deny) -> None:
        client = cast(Client, action.client)
        client.send(border.Denied(action.join_id, action.code, action.message))

    def _report(self, action: groups.Report) -> None:
        client, submission = cast(Client, action.client), action.submission
        buffers = cast("Buffers | None", submission.buffers)
        if not action.again:
            # A wrong program, on any machine, may have made its code up, and each time another.
            self.outcomes[OK if action.code == OK else errors.from_code(action.code, "").code] += 1
            self._record(action, buffers)
        if action.code != OK:
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
            return
        result = None if buffers is None else buffers.result
        generation = self._neighbours.machine.generation
        client.send(
            border.Completed(
                action.join_id,
                submission.seq,
                action.released,
                generation,
                action.ack,
                action.keep,
            ),
            None if result is None else result.view(_BYTES).data,
        )

    def _record(self, action: groups.Report, buffers: Buffers | None) -> None:
        submission, now = action.submission, self._loop.now()
        self._recorder.op(
            OpEvent(
                at=now,
                group=cast(Client, action.client).stays.get(action.join_id, ""),
                seq=submission.seq,
                call=submission.call,
                nbytes=0 if buffers is None else buffers.nbytes,
                submitted=now if buffers is None else buffers.submitted,
                started=None if buffers is None else buffers.started,
                outcome=action.code,
            )
        )

    def _tell_released(self, action: groups.TellReleased) -> None:
        client = cast(Client, action.client)
        client.send(border.Released(action.join_id, action.released))

    def _tell_lost(self, action: groups.TellLost) -> None:
        client = cast(Client, action.client)
        self._log.info(
            "session over", reason=action.message, pid=client.pid, program=client.program
        )
        self._recorder.note("session over", reason=action.message)
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
        self.dropped[action.reason] += 1


def segment_budget(ipc: IpcSettings) -> int:
    """Return the bytes of shared memory that one client may hold."""
    if ipc.segment_budget is not None:
        return ipc.segment_budget
    return share_of_memory(least=2 * ipc.inline_limit)  # an input and a result


@lru_cache(maxsize=256)
def _reduction(operation: str, dtype: str, size: int) -> Reduction:
    return Reduction(operation, dtype_from_name(dtype), size)
