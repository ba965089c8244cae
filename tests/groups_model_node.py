"""Model machines around a real engine, for :mod:`groups_simulation`.

They are as unkind as the real ones may be: inputs are read as late as possible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import TYPE_CHECKING

from groups_model_calls import Buffers, Violation, Work
from groups_model_client import Client

from ringd.collective.view import View
from ringd.groups import actions
from ringd.groups.engine import Engine
from ringd.groups.offers import Rules
from ringd.groups.op import OK, Submission

if TYPE_CHECKING:
    from groups_simulation import Sim


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
        self.log: Counter[str] = Counter()
        self.alarm: float | None = None
        self.start()

    def start(self) -> None:
        """A daemon starts that knows nothing."""
        self.life += 1
        names = tuple(f"m{r}" for r in range(self.sim.n))
        self.engine = Engine(
            view=View(names, self.rank),
            reattach=self.sim.reattach,
            rules=Rules(ends_together=lambda call: not call.name.endswith("apart")),
        )
        self.generation = 0
        self.peers = {}
        self.buffers = []
        self.running = {}
        self.alarm = None
        for client in list(self.sim.clients):
            if client.rank == self.rank:
                self.sim.after(self.sim.delay(5), client.connect)
        self.sim.form_soon()

    def crash(self, downtime: float) -> None:
        """The daemon is killed, and started again after *downtime*."""
        if self.engine is None:
            return
        self.engine = None
        self.sim.witness.crashed.add(self.rank)
        self.sim.break_ring()
        for connection, client in self.peers.items():
            self.sim.cut(("up", connection), keep=False)
            self.sim.cut(("down", connection), keep=self.sim.rng.random() < self.sim.survive)
            self.sim.after(self.sim.delay(3), client.disconnected)
        self.peers = {}
        self.sim.after(downtime, self.start)

    def take(self, work: Work, copy: int | None, *, hold: bool) -> Submission:
        """Build what the engine gets for a client's message."""
        spec = work.spec
        buffers = Buffers(work, copy)
        self.buffers.append(buffers)
        payload: bytes | memoryview | None = None
        if spec.kind == "inline":
            assert copy is not None
            payload = copy.to_bytes(16, "little")
        elif spec.kind == "eager":
            payload = memoryview(work.source.bytes)
        return Submission(
            seq=work.seq,
            call=spec.call,
            payload=payload,
            deadline=None if spec.timeout is None else self.sim.now + spec.timeout,
            timeout=spec.timeout,
            hold=hold,
            sealed=spec.sealed,
            buffers=buffers,
        )

    # --- carrying out actions ---------------------------------------------------------

    def carry_out(self, todo: list[actions.Action]) -> None:
        """Perform *todo* in order; a daemon that dies on the way leaves the rest undone."""
        life = self.life
        self.sim.witness.note_live(self)
        for action in todo:
            self.sim.point()
            if self.engine is None or self.life != life:
                return
            self.perform(action)
        if self.engine is not None and self.life == life:
            self.set_alarm()

    def set_alarm(self) -> None:
        """Tick the engine when it wants it."""
        engine = self.engine
        due = engine.next_deadline if engine is not None else None
        if due is None or (self.alarm is not None and self.alarm <= due):
            return
        self.alarm = due

        def ring() -> None:
            if self.engine is engine and engine is not None and self.alarm == due:
                self.alarm = None
                self.carry_out(engine.tick(self.sim.now))

        self.sim.at(due, ring)

    def perform(self, action: actions.Action) -> None:  # noqa: C901, PLR0912 - one branch each
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
            if self.running.pop((action.gid, action.rank, action.seq), None) is None:
                raise Violation("stopped what does not run")
            self.sim.leave_exchange(action)
        elif isinstance(action, actions.Seal):
            work = action.submission.buffers.work
            work.seal = (action.join_id, work.seq)
        elif isinstance(action, actions.Free):
            buffers = action.submission.buffers
            if buffers.freed:
                raise Violation(f"{buffers.work} is freed twice")
            buffers.freed = True
            if any(run.submission is action.submission for run in self.running.values()):
                raise Violation(f"{buffers.work} is freed while it runs")
        elif isinstance(action, actions.TellSession):
            client = self.peers.get(action.client)
            if client is not None:  # the kernel has it before anything is offered
                client.sessions[action.join_id] = action.session
                client.places[action.join_id] = action.places
                self.sim.witness.agreed.add(action.session)
                self.sim.queue(("down", action.client), lambda: client.hear(action, None))
        elif isinstance(action, (actions.Warn, actions.Dropped)):
            pass
        else:
            result = None
            if isinstance(action, actions.Report):
                result = action.submission.buffers.result
                self.sim.witness.note_late(self, action)
            client = self.peers.get(action.client)
            if client is None:
                return
            self.sim.queue(("down", action.client), lambda: client.hear(action, result))

    def run(self, action: actions.Run) -> None:
        """Start a computation; it takes its time."""
        key = (action.gid, action.view.rank, action.seq)
        if key in self.running:
            raise Violation(f"op {key} runs twice at once")
        self.running[key] = action
        if action.payloads is None:
            self.sim.join_exchange(self, action)
        else:
            self.sim.after(self.sim.delay(3), lambda: self.computed(action, eager=True))

    def computed(self, action: actions.Run, *, eager: bool) -> None:
        """The computation is through, unless it was stopped."""
        key = (action.gid, action.view.rank, action.seq)
        if self.engine is None or self.running.get(key) is not action:
            return
        del self.running[key]
        if eager:
            assert action.payloads is not None
            value = sum(int.from_bytes(payload, "little") for payload in action.payloads)
        else:
            value = self.sim.exchanged(action)
        buffers = action.submission.buffers
        if not action.serve:
            if buffers.work.outcome == OK:
                raise Violation(f"{buffers.work}: its result is written after it was handed over")
            buffers.result = value
            if buffers.work.target is not None:
                buffers.work.target.write(value)
        self.carry_out(self.engine.finished(*key, self.sim.now))
