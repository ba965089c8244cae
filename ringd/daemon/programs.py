"""The programs beside this daemon, and what their calls make it do.

Between the border (clients, messages, memory), the pure groups engine and the ring: turns
messages into the engine's events and carries its actions out.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import structlog

from ringd import errors
from ringd.border.client import Client
from ringd.collective.reduction import Array, Reduction, dtype_from_name
from ringd.config.settings import Config
from ringd.daemon.bulk import Bulk, Key, flat
from ringd.daemon.neighbours import Neighbours
from ringd.daemon.recorder import OpEvent, Recorder
from ringd.groups import actions as groups
from ringd.groups.engine import Engine
from ringd.groups.op import OK, Submission
from ringd.groups.session import Before
from ringd.net.loop import Loop, Timer
from ringd.wire import border
from ringd.wire.control import GroupMessage

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
    run: Key | None = None
    """The op that was started on them last."""
    result: Array | None = None
    """An inline result, once there is one."""


class Programs:
    """The user of the ring: see the module's docstring."""

    def __init__(
        self, loop: Loop, config: Config, neighbours: Neighbours, recorder: Recorder
    ) -> None:
        self._loop = loop
        self._config = config
        self._neighbours = neighbours
        self._recorder = recorder
        self._log = structlog.get_logger("groups")
        self.engine = Engine(
            rank=config.rank,
            names=neighbours.names,
            stall_warning=config.ops.stall_warning,
            reattach=config.ops.reattach,
            window=config.ipc.window,
        )
        self.bulk = Bulk(
            config.rank,
            config.size,
            chunk_bytes=config.ops.chunk,
            checksum=config.ops.checksum,
            on_finished=self._finished,
        )
        self.outcomes: Counter[str] = Counter()
        """Calls that ended here, by outcome."""
        self.dropped: Counter[str] = Counter()
        """Group messages that were of no use, by reason."""
        self._clients: set[Client] = set()
        self._tick: Timer | None = None
        self.draining = False
        self._doers: dict[type, Callable[[Any], None]] = {
            groups.Broadcast: self._broadcast,
            groups.Relay: self._relay,
            groups.Run: self._run,
            groups.Stop: self._stop,
            groups.Seal: self._seal,
            groups.Free: self._free,
            groups.KeepInput: self._keep_input,
            groups.Accept: self._accept,
            groups.TellSession: self._tell_session,
            groups.Deny: self._deny,
            groups.Report: self._report,
            groups.TellReleased: self._tell_released,
            groups.TellLost: self._tell_lost,
            groups.Warn: self._warn,
            groups.Dropped: self._count_dropped,
        }

    @property
    def clients(self) -> set[Client]:
        """The clients that are attached."""
        return self._clients

    # --- the border's side ------------------------------------------------------------

    def attach(self, client: Client, message: border.Attach) -> None:
        """A program joins a group."""
        self._clients.add(client)
        self._recorder.note("client joins", pid=client.pid, group=message.group)
        self._perform(
            self.engine.attach(
                client,
                group=message.group,
                join_id=message.join_id,
                released=message.released,
                on_loss=message.on_loss,
                now=self._loop.now(),
                session=message.session,
                expected=message.next_seq,
                before=Before(message.former, message.loss),
            )
        )

    def submit(self, client: Client, message: border.Submit, payload: memoryview | None) -> None:
        """A program hands over a call; while we leave, it keeps the call for our successor."""
        if self.draining:
            return
        now = self._loop.now()
        try:
            buffers = self._buffers(client, message, payload, now)
        except errors.RingError as error:
            self._submit_error(client, message, error.code, str(error))
        else:
            submission = self._submission(message, buffers, now)
            self._hand_over(client, message, submission, message.outcome, message.message)

    def submit_failed(self, client: Client, message: border.Submit, text: str) -> None:
        """A call came that cannot be run here."""
        if not self.draining:
            self._submit_error(client, message, errors.Refused.code, text)

    def _submit_error(self, client: Client, message: border.Submit, code: str, text: str) -> None:
        """End the call here; the others hear of it, so that the group goes on in step."""
        client.send(border.Failed(message.join_id, message.seq, 0, code, text))
        now = self._loop.now()
        submission = self._submission(message, Buffers(memoryview(b""), None, None, now), now)
        self._hand_over(client, message, submission, code, text)

    def _hand_over(
        self,
        client: Client,
        message: border.Submit,
        submission: Submission,
        outcome: str,
        text: str,
    ) -> None:
        self._perform(
            self.engine.submit(
                client,
                message.join_id,
                submission,
                acked=message.acked,
                outcome=outcome,
                message=text,
                now=self._loop.now(),
            )
        )

    def ack(self, client: Client, message: border.Ack) -> None:
        """A program has outcomes that somebody waits for it to have."""
        now = self._loop.now()
        self._perform(self.engine.ack(client, message.join_id, message.acked, now))

    def detach(self, client: Client, message: border.Detach) -> None:  # noqa: ARG002 - the border's
        """A program leaves in good order."""
        self._gone(client, "left the group")

    def client_gone(self, client: Client, reason: str) -> None:
        """A program died."""
        self._log.info("client gone", pid=client.pid, program=client.program, reason=reason)
        self._gone(client, f"(pid {client.pid}) {'hung up' if client.parted else 'died'}")

    def _gone(self, client: Client, how: str) -> None:
        self._clients.discard(client)
        self._recorder.note("client leaves", pid=client.pid, how=how)
        how += time.strftime(" at %Y-%m-%dT%H:%M:%SZ", time.gmtime())
        now = self._loop.now()
        todo = self.engine.detach(client, how, now, lives=not client.died)
        # The others learn of it before memory is copied, and the client, which may write to it
        # once it is hung up on, after that: what is called soon is called in order.
        copies = [action for action in todo if isinstance(action, groups.KeepInput)]
        self._perform([action for action in todo if not isinstance(action, groups.KeepInput)])
        if copies:
            self._loop.call_soon(lambda: self._perform(copies))

    def _buffers(
        self, client: Client, message: border.Submit, payload: memoryview | None, now: float
    ) -> Buffers:
        source, target, seal = payload, None, None
        if message.source is not None:
            source = client.view(message.source, writable=False)
        if message.target is not None:
            target = client.view(message.target, writable=True)
            place = border.Ref(
                message.target.segment, border.seal_offset(message.target), border.SEAL.size
            )
            seal = client.view(place, writable=True)
        return Buffers(memoryview(b"") if source is None else source, target, seal, now)

    def _submission(self, message: border.Submit, buffers: Buffers, now: float) -> Submission:
        timeout = message.timeout if message.timeout is not None else self._config.ops.timeout
        if timeout is not None and timeout <= 0:
            timeout = None
        eager = buffers.source.nbytes <= self._config.ops.eager_limit
        return Submission(
            seq=message.seq,
            call=message.call,
            payload=buffers.source if eager else None,
            deadline=None if timeout is None else now + timeout,
            timeout=timeout,
            hold=message.hold,
            sealed=buffers.seal is not None,
            buffers=buffers,
        )

    def drain(self) -> None:
        """Take no more calls; clients keep theirs for our successor."""
        self.draining = True
        self._tell_state("draining", self._neighbours.machine.generation)

    # --- the ring's side --------------------------------------------------------------

    def ring_up(self, generation: int) -> None:
        """The ring formed."""
        self._recorder.note("ring up", generation=generation)
        self._tell_state("ready", generation)
        self._perform(self.engine.ring_up(self._loop.now()))

    def ring_down(self, reason: str) -> None:
        """The ring broke."""
        self._recorder.note("ring down", reason=reason)
        self._tell_state("forming", self._neighbours.machine.generation)
        self._perform(self.engine.ring_down(reason, self._loop.now()))

    def _tell_state(self, state: str, generation: int) -> None:
        for client in self._clients:
            client.send(border.RingState("draining" if self.draining else state, generation))

    def group_message(
        self, origin: int, gid: int, seq: int, message: GroupMessage, payload: bytes
    ) -> None:
        """A message of rank *origin* came round."""
        self._perform(self.engine.received(origin, gid, seq, message, payload, self._loop.now()))

    def _finished(self, gid: int, seq: int) -> None:
        self._perform(self.engine.finished(gid, seq, self._loop.now()))

    # --- the engine's actions ---------------------------------------------------------

    def _perform(self, actions: Sequence[groups.Action]) -> None:
        for action in actions:
            self._doers[type(action)](action)
        self._arm()

    def _broadcast(self, action: groups.Broadcast) -> None:
        self._neighbours.broadcast(action.gid, action.seq, action.message, action.payload)

    def _relay(self, action: groups.Relay) -> None:
        self._neighbours.relay(action.origin, action.gid, action.seq, action.message)

    def _run(self, action: groups.Run) -> None:
        call, buffers = action.call, cast(Buffers, action.submission.buffers)
        if call.kind == "barrier":
            self._finished(action.gid, action.seq)
            return
        reduction = _reduction(call.reduction, call.dtype, self._config.size)
        dtype = reduction.dtype
        count = math.prod(call.shape)
        if action.serve:  # the client has its result, and may have changed it since
            target = np.empty(count, dtype)
        elif buffers.target is not None:
            target = flat(buffers.target, dtype)
        else:
            target = buffers.result = np.empty(count, dtype)
        buffers.started = self._loop.now()
        buffers.run = (action.gid, action.seq)
        if action.payloads is not None:
            inputs = [flat(payload, dtype) for payload in action.payloads]
            reduction.reduce_all(inputs, target)
            self._finished(action.gid, action.seq)
        else:
            source = flat(buffers.source, dtype)
            self.bulk.start(action.gid, action.seq, reduction, source, target)
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

    def _keep_input(self, action: groups.KeepInput) -> None:
        """Copy the program's own memory, which it is about to have back."""
        submission = action.submission
        buffers = cast("Buffers | None", submission.buffers)
        if buffers is None:
            return
        buffers.source = flat(buffers.source, _BYTES).copy().data  # touches huge pages, if any
        if submission.payload is not None:
            submission.payload = buffers.source
        if buffers.run is not None:
            source = flat(buffers.source, dtype_from_name(submission.call.dtype))
            self.bulk.use_source(*buffers.run, source)
            self._neighbours.copy_outgoing(*buffers.run)

    def _accept(self, action: groups.Accept) -> None:
        client, ipc = cast(Client, action.client), self._config.ipc
        machine = self._neighbours.machine
        client.send(
            border.Attached(
                join_id=action.join_id,
                node=self._config.node,
                rank=self._config.rank,
                size=self._config.size,
                state=machine.state.value,
                generation=machine.generation,
                inline_limit=ipc.inline_limit,
                max_message=ipc.max_message,
                segment_budget=ipc.segment_budget,
                window=ipc.window,
                lost_after=self._config.join.lost_after,
                timeout=self._config.ops.timeout,
            )
        )

    def _tell_session(self, action: groups.TellSession) -> None:
        cast(Client, action.client).tell_session(action.join_id, action.session)

    def _deny(self, action: groups.Deny) -> None:
        client = cast(Client, action.client)
        client.send(border.Denied(action.join_id, action.code, action.message))

    def _report(self, action: groups.Report) -> None:
        client, submission = cast(Client, action.client), action.submission
        # A wrong program, on any machine, may have made its code up, and each time another.
        self.outcomes[OK if action.code == OK else errors.from_code(action.code, "").code] += 1
        buffers = cast("Buffers | None", submission.buffers)
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
                action.join_id, submission.seq, action.released, generation, action.ack
            ),
            None if result is None else result.view(_BYTES).data,
        )

    def _record(self, action: groups.Report, buffers: Buffers | None) -> None:
        session = self.engine.joins.get(action.join_id)
        submission, now = action.submission, self._loop.now()
        self._recorder.op(
            OpEvent(
                at=now,
                group="" if session is None else session.group,
                seq=submission.seq,
                call=submission.call,
                nbytes=0 if buffers is None else buffers.source.nbytes,
                submitted=now if buffers is None else buffers.submitted,
                started=None if buffers is None else buffers.started,
                outcome=action.code,
            )
        )

    def _tell_released(self, action: groups.TellReleased) -> None:
        client = cast(Client, action.client)
        client.send(border.Released(action.join_id, action.released))

    def _tell_lost(self, action: groups.TellLost) -> None:
        self._log.info("session over", reason=action.message, client=str(action.client))
        self._recorder.note("session over", reason=action.message)
        client = cast(Client, action.client)
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

    # --- time -------------------------------------------------------------------------

    def _arm(self) -> None:
        """Let the loop call us at the engine's next deadline.

        A timer that is early is left alone, as re-arming for every op would cost more than
        the idle tick.
        """
        due = self.engine.next_deadline
        if due is None:
            return
        if self._tick is not None:
            if self._tick.when <= due:
                return
            self._tick.cancel()
        self._tick = self._loop.call_later(max(0.0, due - self._loop.now()), self._ticked)

    def _ticked(self) -> None:
        self._tick = None
        self._perform(self.engine.tick(self._loop.now()))


@lru_cache(maxsize=256)
def _reduction(operation: str, dtype: str, size: int) -> Reduction:
    return Reduction(operation, dtype_from_name(dtype), size)
