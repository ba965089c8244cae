"""Model machines around a real engine and real transfers, for :mod:`groups_simulation`.

They are as unkind as the real ones may be: inputs are read as late as possible, and chunks take
their time.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING
from unittest.mock import patch

from groups_model_calls import CHUNK, EAGER, RULE, Buffers, Violation, Work
from groups_model_client import Client

from ringd.border.validate import unfit
from ringd.collective import kinds
from ringd.collective.call import Call
from ringd.collective.layout import Layout
from ringd.collective.view import Side, View
from ringd.daemon.performer import _arithmetic
from ringd.groups import actions
from ringd.groups.engine import Engine
from ringd.groups.offers import Rules
from ringd.groups.op import OK, Submission
from ringd.observe.counters import Counters
from ringd.ring import bulk
from ringd.ring.bulk import OPPOSITE, flat
from ringd.wire.link.frames import FrameError, Header

if TYPE_CHECKING:
    from groups_simulation import Sim

SIDES: tuple[Side, Side] = ("left", "right")


class Node:
    """A machine: its daemon, which can die and start again."""

    def __init__(self, sim: Sim, rank: int) -> None:
        self.sim = sim
        self.rank = rank
        self.life = 0
        self.engine: Engine | None = None
        self.generation = 0
        self.peers: dict[Hashable, Client] = {}
        self.buffers: list[Buffers] = []
        self.running: dict[tuple[int, int, int], actions.Run] = {}
        """By session, rank and number."""
        self.log: Counter[str] = Counter()
        self.alarm: float | None = None
        self.frozen_until = 0.0
        self.stalled_until: dict[Side, float] = {"left": 0.0, "right": 0.0}
        """Until when no chunk leaves for a neighbour, though messages do."""
        self.start()

    def start(self) -> None:
        """A daemon starts that knows nothing."""
        self.life += 1
        names = tuple(f"m{r}" for r in range(self.sim.n))
        self.engine = Engine(
            view=View(names, self.rank),
            reattach=self.sim.reattach,
            rules=Rules(
                refusal=self.refusal,
                ends_together=partial(kinds.ends_together, by_rank=self.sim.by_rank),
                eager=RULE.is_eager,
                fits=RULE.fits,
            ),
        )
        with (
            patch.object(bulk, "share_of_memory", return_value=1 << 30),  # it reads files
            patch.object(bulk, "cores", return_value=1),
        ):
            self.bulk = bulk.Bulk(
                self.rank,
                chunk_bytes=CHUNK,
                checksum=False,
                by_rank=self.sim.by_rank,
                on_finished=self.computed,
                send=self._send_credit,
                defer=lambda event: self.soon(self.sim.delay(1), event),
                on_way=lambda _side, _gid: 0,
                counters=Counters(),
            )
        self.generation = 0
        self.peers = {}
        self.buffers = []
        self.running = {}
        self.alarm = None
        self.frozen_until = 0.0
        self._waiting: deque[Callable[[], None]] = deque()
        """What happens when it runs again."""
        self.ending: tuple[int, int] | None = None
        """The large call of which one rank after the other hears that it is through."""
        self._todo: deque[actions.Action] = deque()
        self._performing = False
        self._pulling: set[Side] = set()
        self._leaving: dict[Side, tuple[Header, memoryview | bytes]] = {}
        """What is being sent to a neighbour; as bytes where its op was stopped meanwhile."""
        for client in list(self.sim.clients):
            if client.member == self.rank and client.parent is None:
                self.sim.after(self.sim.delay(5), client.connect)
        self.sim.form_soon()

    def refusal(self, call: Call, size: int) -> str:
        """Return why a call cannot be run here."""
        if call.dtype == "bfloat16" and self.rank in self.sim.poor:
            return f"bfloat16 is unknown on m{self.rank}"
        return unfit(call, size)

    def crash(self, downtime: float) -> None:
        """The daemon is killed, and started again after *downtime*."""
        if self.engine is None:
            return
        self.engine = None
        self.life += 1
        self.generation = 0
        self.sim.witness.crashed.add(self.rank)
        self.sim.break_ring()
        for connection, client in self.peers.items():
            self.sim.cut(("up", connection), keep=False)
            self.sim.cut(("down", connection), keep=self.sim.rng.random() < self.sim.survive)
            self.sim.after(self.sim.delay(3), client.disconnected)
        self.peers = {}
        self.sim.after(downtime, self.start)

    def soon(self, wait: float, event: Callable[[], None]) -> None:
        """Let *event* happen here *wait* seconds from now, or when the daemon runs again."""
        life = self.life

        def happen() -> None:
            if self.life == life:
                self.when_awake(event)

        self.sim.after(wait, happen)

    def when_awake(self, event: Callable[[], None]) -> None:
        """Let *event* happen now, or in its turn when the daemon runs again."""
        if self.sim.now >= self.frozen_until and not self._waiting:
            event()
            return
        self._waiting.append(event)
        if len(self._waiting) == 1:
            self._thaw_later()

    def _thaw_later(self) -> None:
        life = self.life

        def thaw() -> None:
            while self.life == life and self._waiting and self.sim.now >= self.frozen_until:
                self._waiting.popleft()()
            if self.life == life and self._waiting:
                self._thaw_later()

        self.sim.at(self.frozen_until, thaw)

    def take(self, work: Work, copy: bytes | None, *, hold: bool) -> Submission:
        """Build what the engine gets for a client's message."""
        spec = work.spec
        buffers = Buffers(work, None if copy is None else bytearray(copy))
        self.buffers.append(buffers)
        source = buffers.source
        return Submission(
            seq=work.seq,
            call=work.call,
            payload=source if source.nbytes <= EAGER else None,
            deadline=None if spec.timeout is None else self.sim.now + spec.timeout,
            timeout=spec.timeout,
            hold=hold,
            sealed=work.sealed,
            buffers=buffers,
            fault=self._fault(work),
        )

    def _fault(self, work: Work) -> Callable[[int, int], str] | None:
        """Return what looks at a call once the size of its group is known, if need be."""
        if not work.spec.unfit:
            return None
        return lambda _rank, size: self.refusal(work.call, size)

    def known_fault(self, work: Work) -> str:
        """Return why the border does not take a call, as far as that can be known."""
        assert self.engine is not None
        seat = self.engine.roll.seats.get(work.join_id)
        formed = seat is not None and seat.session.formed
        return self.refusal(work.call, seat.session.view.size if formed and seat else 0)

    # --- carrying out actions ---------------------------------------------------------

    def carry_out(self, todo: list[actions.Action]) -> None:
        """Perform *todo* in order; a daemon that dies on the way leaves the rest undone."""
        life, queue = self.life, self._todo
        self.sim.witness.note_live(self)
        queue.extend(todo)
        if self._performing:  # what follows from an action waits for all before it
            return
        self._performing = True
        while queue:
            self.sim.point()
            if self.life != life:
                return
            self.perform(queue.popleft())
            if self.life != life:
                return
        self._performing = False
        self.sim.witness.check_step(self)
        self.set_alarm()

    def set_alarm(self) -> None:
        """Tick the engine when it wants it."""
        engine = self.engine
        due = engine.next_deadline if engine is not None else None
        if due is None or (self.alarm is not None and self.alarm <= due):
            return
        self.alarm = due

        def ring() -> None:
            if engine is not None and self.alarm == due:
                self.alarm = None
                self.carry_out(engine.tick(self.sim.now))

        self.soon(due - self.sim.now, ring)

    def perform(self, action: actions.Action) -> None:
        """Do what the engine asks for."""
        self.log[type(action).__name__] += 1
        if isinstance(action, actions.Broadcast):
            said = (action.rank, action.gid, action.seq, action.message, action.payload)
            self.sim.send(self, self.rank, action.until, said, action.side)
        elif isinstance(action, actions.Relay):
            poll = (action.rank, action.gid, action.seq, action.message, b"")
            self.sim.send(self, action.origin, action.origin, poll)
        elif isinstance(action, actions.Run):
            self.run(action)
        elif isinstance(action, actions.Stop):
            self.stop(action)
        elif isinstance(action, actions.Seal):
            work = action.submission.buffers.work
            work.seal = (action.join_id, work.seq)
        elif isinstance(action, actions.Free):
            action.submission.buffers.free()
            if any(run.submission is action.submission for run in self.running.values()):
                raise Violation(f"{action.submission.buffers.work} is freed while it runs")
        elif isinstance(action, actions.ToClient):
            self.tell(action)

    def tell(self, action: actions.ToClient) -> None:
        """Tell a client something, a little later."""
        if isinstance(action, actions.Report):
            self.sim.witness.note_late(self, action)
        client = self.peers.get(action.client)
        if client is None:
            return
        if isinstance(action, actions.TellSession):
            # The kernel has it before anything is offered.
            client.note_session(action.join_id, action.session, action.places)
        result = None
        if isinstance(action, actions.Report):
            result = action.submission.buffers.result
        value = None if result is None else bytes(result)
        self.sim.queue(("down", action.client), lambda: client.hear(action, value))

    # --- computing --------------------------------------------------------------------

    def run(self, action: actions.Run) -> None:
        """Start a computation; a small one may take its time."""
        key = (action.gid, action.view.rank, action.seq)
        if key in self.running:
            raise Violation(f"op {key} runs twice at once")
        self.running[key] = action
        if action.payloads is None:
            self._run_large(action)
        elif self.sim.rng.random() < 0.5:
            self._compute(action)
        else:
            self.soon(self.sim.delay(3), lambda: self._compute(action))

    def _target(self, action: actions.Run) -> bytearray:
        """Return where the result of a rank here goes."""
        buffers, rank = action.submission.buffers, action.view.rank
        call, size = action.calls[rank], action.view.size
        nbytes = kinds.nbytes(call, rank, size)[1] or 0
        if action.serve:
            return bytearray(nbytes)
        if buffers.work.target is not None:
            return buffers.work.target.bytes  # type: ignore[no-any-return]
        buffers.result = bytearray(nbytes)
        return buffers.result

    def _compute(self, action: actions.Run) -> None:
        """Compute a small call, unless it was stopped."""
        key = (action.gid, action.view.rank, action.seq)
        if self.running.get(key) is not action:
            return
        assert action.payloads is not None
        view, calls = action.view, action.calls
        call = calls[view.rank]
        dtype, reduction = _arithmetic(call.kind, call.reduction, call.dtype, view.size)
        inputs = [flat(payload, dtype) for payload in action.payloads]
        target = flat(memoryview(self._target(action)), dtype)
        kinds.of(call).compute(
            kinds.Inputs(inputs, calls, view.rank, reduction, view.order), target
        )
        self._finished(action)

    def _run_large(self, action: actions.Run) -> None:
        """Begin with a large call once all ranks here are ready for it."""
        view, calls = action.view, action.calls
        runs = [self.running.get((action.gid, rank, action.seq)) for rank in view.here]
        call = calls[view.rank]
        dtype, reduction = _arithmetic(call.kind, call.reduction, call.dtype, view.size)
        sources, targets = [], []
        for run in runs:
            if run is None:
                return
            sources.append(flat(run.submission.buffers.source, dtype))
            targets.append(flat(memoryview(self._target(run)), dtype))
        layout = Layout.of(view.places, view.place)
        key = action.gid, action.seq
        self.bulk.start(key, view, layout, calls, reduction, sources, targets)
        self.pull(view.side)

    def computed(self, gid: int, seq: int) -> None:
        """A large call is through, for all ranks here."""
        life, self.ending = self.life, (gid, seq)
        for run in [r for (g, _, s), r in self.running.items() if (g, s) == (gid, seq)]:
            if self.life == life:
                self._finished(run)
        self.ending = None

    def _finished(self, run: actions.Run) -> None:
        key = (run.gid, run.view.rank, run.seq)
        del self.running[key]
        assert self.engine is not None
        if not run.serve and run.submission.buffers.work.outcome == OK:
            raise Violation(f"{run.submission.buffers.work} is computed after it had its result")
        self.carry_out(self.engine.finished(*key, self.sim.now))

    def stop(self, action: actions.Stop) -> None:
        """Abandon a computation."""
        run = self.running.pop((action.gid, action.rank, action.seq), None)
        if run is None:
            raise Violation("stopped what does not run")
        if run.payloads is not None:
            return
        self.bulk.stop(action.gid, action.seq)
        for side, (header, data) in self._leaving.items():
            if (header.group, header.seq) == (action.gid, action.seq):
                self._leaving[side] = header, bytes(data)

    # --- chunks -----------------------------------------------------------------------

    def pull(self, side: Side | None) -> None:
        """There may be a chunk for a neighbour: take it a little later."""
        generation = self.generation
        if side is None or not generation or side in self._pulling or side in self._leaving:
            return
        self._pulling.add(side)

        def take() -> None:
            if self.generation != generation:
                return
            self._pulling.discard(side)
            chunk = self.bulk.next_chunk(side)
            if chunk is not None:
                self._leaving[side] = chunk
                self.soon(self._chunk_delay(side), lambda: self._leave(side, generation))

        self.soon(self._chunk_delay(side), take)

    def _chunk_delay(self, side: Side) -> float:
        stall = max(0.0, self.stalled_until[side] - self.sim.now)
        return stall + self.sim.delay(self.sim.slow)

    def _leave(self, side: Side, generation: int) -> None:
        """The last byte of a chunk leaves."""
        if self.generation != generation:
            return  # the link is gone, and what it was sending
        header, data = self._leaving.pop(side)
        whole = bytes(data)
        self.sim.put(self, side, lambda other: other.take_chunk(OPPOSITE[side], header, whole))
        if not isinstance(data, bytes):
            self.bulk.sent(header)
        self.pull(side)

    def take_chunk(self, side: Side, header: Header, data: bytes) -> None:
        """A chunk comes from a neighbour."""
        try:
            buffer = self.bulk.buffer(side, header)
        except FrameError as error:
            raise Violation(f"m{self.rank} cannot take {header}: {error}") from error
        if buffer is not None:
            buffer[:] = data
            self.pull(self.bulk.received(side, header))

    def _send_credit(self, side: Side, header: Header) -> None:
        self.sim.put(self, side, lambda other: other.take_credit(OPPOSITE[side], header))

    def take_credit(self, side: Side, header: Header) -> None:
        """A neighbour says how many chunks are welcome."""
        if header.until == self.rank:
            self.pull(self.bulk.credit(header))
        else:
            self._send_credit(OPPOSITE[side], header)

    # --- the ring ---------------------------------------------------------------------

    def ring_up(self, generation: int) -> None:
        """This member is in a ring."""
        assert self.engine is not None
        self.generation = self.bulk.generation = generation
        self.carry_out(self.engine.ring_up(self.sim.now))

    def ring_down(self) -> None:
        """It has noticed that the ring broke."""
        assert self.engine is not None
        self.generation = 0
        self._pulling.clear()
        self._leaving.clear()
        self.bulk.broke()
        self.carry_out(self.engine.ring_down("link lost", self.sim.now))

    @property
    def idle(self) -> bool:
        """Whether nothing is known of any call."""
        engine = self.engine
        if engine is None or self.running or self._leaving or len(self.bulk):
            return False
        roll = engine.roll
        known = roll.seats or roll.by_gid or roll.groups or roll.winding_up
        lanes = self.bulk._lanes.values()
        return not (known or roll.absences.absent or any(lane.passing for lane in lanes))
