"""Model daemons and model clients around a real engine, for :mod:`groups_simulation`.

They are as unkind as the real ones may be: inputs are read as late as possible, and overwritten
as soon as their owner may do so. So an input that is read after its time shows as a wrong sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ringd.groups import actions
from ringd.groups.engine import Engine
from ringd.groups.op import OK, Submission
from ringd.groups.session import Before
from ringd.wire.control import Call

if TYPE_CHECKING:
    from groups_simulation import Sim

GARBAGE = 0xBAD << 70
"""What freed or reused memory holds; far outside of any sum of inputs."""


class Violation(AssertionError):
    """The engine broke a promise."""


@dataclass(frozen=True)
class Spec:
    """What one op of a program looks like."""

    kind: str = "inline"
    """``inline``, ``eager`` (small, in shared memory), ``large``, or ``bare`` (large, without
    shared memory)."""
    hold: bool = False
    timeout: float | None = None
    shape: int = 1

    @property
    def sealed(self) -> bool:
        """Whether the result goes to shared memory."""
        return self.kind in ("eager", "large")

    @property
    def call(self) -> Call:
        """What the members have to agree on."""
        return Call("all_reduce", "sum", "int64", (self.shape,), self.kind)


class Memory:
    """A tensor of one element in memory that client and daemon share."""

    def __init__(self, value: int) -> None:
        self.bytes = bytearray(16)
        self.write(value)

    def write(self, value: int) -> None:
        """Overwrite it."""
        self.bytes[:] = value.to_bytes(16, "little")

    @property
    def value(self) -> int:
        """What it holds."""
        return int.from_bytes(self.bytes, "little")


@dataclass(eq=False)
class Work:
    """A call as its client sees it."""

    client: Client
    join_id: int
    seq: int
    spec: Spec
    token: int
    born: float
    source: Memory
    target: Memory | None
    seal: tuple[int, int] | None = None
    outcome: str = ""
    message: str = ""
    value: int | None = None
    released: bool = False

    def end(self, code: str, message: str, value: int | None) -> None:
        """The client learns how the call ended."""
        if self.outcome:
            if OK in {self.outcome, code} and self.outcome != code:
                self.client.sim.fail(f"{self} ended twice: {self.outcome}, then {code} {message}")
            return
        self.outcome, self.message = code, message
        sim = self.client.sim
        if code == OK:
            self.value = value
            sim.check_value(self)
            if self.spec.hold:
                self.source.write(GARBAGE)
            if self.target is not None:
                self.target.write(GARBAGE)
        else:
            sim.check_error(self)
            self.source.write(GARBAGE)

    def counts_on(self, join_ids: tuple[int, ...]) -> bool:
        """Whether its client is still there and knows that it is in this session."""
        return self.client.alive and self.client.sessions.get(self.join_id) == join_ids

    def __str__(self) -> str:
        return f"{self.client}: op {self.seq} of join {self.join_id} ({self.spec})"


@dataclass(eq=False)
class Buffers:
    """What the daemon keeps of a submission."""

    work: Work
    copy: int | None
    """The input, where it came inside the message."""
    freed: bool = False
    result: int | None = None

    def read(self) -> int:
        """Return the input as it stands now."""
        if self.freed:
            raise Violation(f"{self.work}: its input is read after it was freed")
        return self.work.source.value if self.copy is None else self.copy


class Client:
    """A program of one rank in one group; it runs *specs* once through, again after a loss."""

    def __init__(self, sim: Sim, rank: int, group: str, specs: list[Spec], on_loss: str) -> None:
        self.sim = sim
        self.rank = rank
        self.group = group
        self.specs = specs
        self.on_loss = on_loss
        self.number = next(sim.counter)
        self.alive = True
        self.connection: tuple[int, int] | None = None
        self.join_id = 0
        self.sessions: dict[int, tuple[int, ...]] = {}
        self.works: dict[int, dict[int, Work]] = {}
        self.released: dict[int, int] = {}
        self.accepted = False
        self.lost = True
        self.doomed = False
        self.retrying = False
        self.owing = False
        """The daemon asked for an acknowledgement."""
        self.before = Before()
        self.losses: dict[int, tuple[str, str]] = {}
        """By join id, the code and the text with which a stay ended."""
        self.connect()

    def __str__(self) -> str:
        return f"client {self.number} on {self.rank} in {self.group!r}"

    @property
    def mine(self) -> dict[int, Work]:
        """The works of the present join."""
        return self.works[self.join_id]

    @property
    def finished(self) -> bool:
        """Whether the program ran through."""
        return not self.lost and len(self.mine) == len(self.specs) and not self.open

    @property
    def open(self) -> list[Work]:
        """Calls of any join that have not ended."""
        return [w for works in self.works.values() for w in works.values() if not w.outcome]

    # --- the connection ---------------------------------------------------------------

    def connect(self) -> None:
        """Attach to this machine's daemon, anew or as before."""
        node = self.sim.nodes[self.rank]
        if not self.alive or self.connection is not None or node.engine is None:
            return
        self.connection = (self.number, next(self.sim.counter))
        node.peers[self.connection] = self
        if self.lost:
            self._join_anew()
        else:
            self._attach_again()

    def _join_anew(self) -> None:
        code, loss = self.losses.get(self.join_id, ("", ""))
        self.before = Before(self.join_id, loss if code == "group_lost" else "")
        self.join_id = next(self.sim.counter)
        self.works[self.join_id] = {}
        self.released[self.join_id] = 0
        self.lost = self.doomed = False
        self.accepted = False
        self.sim.owners[self.join_id] = self
        self._attach()
        self.advance()

    def _attach(self) -> None:
        join_id, released = self.join_id, self.released[self.join_id]
        connection, group, on_loss = self.connection, self.group, self.on_loss
        session = self.sessions.get(join_id, ())
        expected, before = len(self.mine), self.before

        def attach(engine: Engine, now: float) -> list[actions.Action]:
            return engine.attach(
                connection,
                group=group,
                join_id=join_id,
                released=released,
                on_loss=on_loss,
                now=now,
                session=session,
                expected=expected,
                before=before,
            )

        self._send(attach)

    def _attach_again(self) -> None:
        """The daemon is another one: look at the seals, then offer again what it needs."""
        for seq, work in sorted(self.mine.items()):
            sealed = work.seal == (self.join_id, seq)
            if sealed and not work.outcome and not work.spec.hold:
                assert work.target is not None
                work.end(OK, "", work.target.value)
        self._attach()
        for seq in range(self.released[self.join_id], len(self.mine)):
            self._submit(self.mine[seq], again=True)
        self.advance()

    def disconnected(self) -> None:
        """The daemon is gone, and what it said and was not heard."""
        self.sim.cut(("down", self.connection), keep=False)
        self.connection = None
        for join_id, works in self.works.items():
            for work in works.values():
                if work.outcome:
                    continue
                if join_id != self.join_id or self.lost:
                    work.end(*self.losses[join_id], None)
                elif self.on_loss == "fail":
                    self.sim.unkind.add(self.group)
                    work.end("peer_lost", "this machine's daemon went away", None)
        if self.on_loss == "fail":
            self.losses.setdefault(self.join_id, ("peer_lost", "its daemon went away"))
            self.lost = True
            self.sim.dead.add(self.join_id)
        self.sim.after(self.sim.delay(5), self.connect)

    def _send(self, request: Callable[[Engine, float], list[actions.Action]]) -> None:
        node, connection = self.sim.nodes[self.rank], self.connection

        def arrive() -> None:
            if node.engine is not None and connection in node.peers:
                node.carry_out(request(node.engine, self.sim.now))

        self.sim.queue(("up", connection), arrive)

    # --- calls ------------------------------------------------------------------------

    def advance(self) -> None:
        """Submit what the program's depth allows."""
        if not self.alive or self.lost or self.connection is None or self.sim.closing:
            return
        while len(self.mine) < len(self.specs) and len(self.open) < self.sim.depth:
            seq = len(self.mine)
            spec = self.sim.spec(self, seq)
            token = self.sim.rng.getrandbits(60)
            work = Work(
                client=self,
                join_id=self.join_id,
                seq=seq,
                spec=spec,
                token=token,
                born=self.sim.now,
                source=Memory(token),
                target=Memory(0) if spec.sealed else None,
            )
            self.sim.works[self.join_id, seq] = work
            self.mine[seq] = work
            self._submit(work, again=False)
        if self.doomed and self.finished:
            self._rejoin_soon()

    def _submit(self, work: Work, *, again: bool) -> None:
        copied = work.spec.kind in ("inline", "bare")
        copy = work.source.value if copied else None
        acked = next((s for s, w in sorted(self.mine.items()) if not w.outcome), len(self.mine))
        outcome, message = work.outcome, work.message
        if again and work.spec.hold and outcome == OK:
            outcome = "error"  # the program may have changed what it lent by now
        elif again and work.spec.hold and work.seal is not None and not outcome:
            outcome = OK
        hold = work.spec.hold and work.outcome == ""  # once told, it lends nothing any more

        def submit(engine: Engine, now: float) -> list[actions.Action]:
            submission = self.sim.nodes[self.rank].take(work, copy, hold=hold)
            return engine.submit(
                self.connection,
                work.join_id,
                submission,
                acked=acked,
                outcome=outcome,
                message=message,
                now=now,
            )

        self._send(submit)

    # --- what the daemon says ---------------------------------------------------------

    def hear(self, action: actions.Action, result: int | None) -> None:
        """A message of the daemon arrived."""
        if not self.alive:
            return
        if isinstance(action, actions.Accept):
            self.accepted = action.join_id == self.join_id or self.accepted
        elif isinstance(action, actions.Deny):
            self._denied(action)
        elif isinstance(action, actions.Report):
            self._release(action.join_id, action.released)
            work = self.works[action.join_id][action.submission.seq]
            if action.code == OK and work.target is not None:
                result = work.target.value
            work.end(action.code, action.message, result)
            self.owing |= action.ack
            if self.owing and not self.open:
                self.owing = False
                self._ack(action.join_id)
        elif isinstance(action, actions.TellReleased):
            self._release(action.join_id, action.released)
        elif isinstance(action, actions.TellLost):
            self._lost(action.join_id, action.floor, action.code, action.message)
        self.advance()

    def _ack(self, join_id: int) -> None:
        connection, works = self.connection, self.works[join_id]
        acked = next((s for s, w in sorted(works.items()) if not w.outcome), len(works))
        self._send(lambda engine, now: engine.ack(connection, join_id, acked, now))

    def _release(self, join_id: int, released: int) -> None:
        for seq in range(self.released[join_id], released):
            work = self.works[join_id][seq]
            work.released = True
            work.source.write(GARBAGE)
            if not work.outcome and not work.spec.sealed:
                self.sim.fail(f"{work} is released before its client has the outcome")
        self.released[join_id] = max(released, self.released[join_id])

    def _denied(self, action: actions.Deny) -> None:
        if action.join_id != self.join_id or self.lost:
            return
        if action.code == "group_lost":
            self._lost(action.join_id, 0, action.code, action.message)
        elif self.accepted or "join" in action.message:
            self.sim.fail(f"{self} is denied: {action.message}")
        elif not self.retrying:  # the one before us is not known to be dead yet
            self.retrying = True
            self.sim.after(self.sim.delay(20), self._retry)

    def _retry(self) -> None:
        self.retrying = False
        if self.alive and self.connection is not None and not self.accepted:
            self._attach_again()

    def _lost(self, join_id: int, floor: int, code: str, message: str) -> None:
        works = self.works[join_id]
        if code == "peer_lost":
            self.sim.dead.add(join_id)
        for seq, work in works.items():
            if seq >= floor and not work.outcome:
                work.end(code, message, None)
        self.losses.setdefault(join_id, (code, message))
        if join_id != self.join_id or self.lost:
            return
        if floor < len(self.specs):
            self._rejoin_soon()
        else:
            self.doomed = True  # the program makes no call that fails, but others start over

    def _rejoin_soon(self) -> None:
        self.lost = True
        self.sim.after(self.sim.delay(10), self._again)

    def _again(self) -> None:
        if self.alive and self.lost and self.connection is not None and not self.sim.closing:
            self._join_anew()

    def die(self) -> None:
        """The process is gone; its daemon learns that a little later."""
        self.alive = False
        self.sim.dead.add(self.join_id)
        self.sim.clients.remove(self)
        node, connection = self.sim.nodes[self.rank], self.connection

        def notice() -> None:
            if node.engine is not None and node.peers.pop(connection, None) is not None:
                node.carry_out(node.engine.detach(connection, "died", self.sim.now, lives=False))

        self.sim.after(self.sim.delay(5), notice)

    def close(self) -> None:
        """Leave in good order; what was lent is the program's again once the daemon knows."""
        node, connection = self.sim.nodes[self.rank], self.connection

        def leave() -> None:
            if node.engine is not None and node.peers.pop(connection, None) is not None:
                node.carry_out(node.engine.detach(connection, "left the group", self.sim.now))
            for works in self.works.values():
                for work in works.values():
                    if work.spec.hold:
                        work.source.write(GARBAGE)

        self.sim.queue(("up", connection), leave)
        self.alive = False
        self.sim.dead.add(self.join_id)
        self.sim.clients.remove(self)


class Node:
    """A machine: its daemon, which can die and start again."""

    def __init__(self, sim: Sim, rank: int) -> None:
        self.sim = sim
        self.rank = rank
        self.life = 0
        self.engine: Engine | None = None
        self.generation = 0
        self.peers: dict[tuple[int, int] | None, Client] = {}
        self.buffers: list[Buffers] = []
        self.running: dict[tuple[int, int], actions.Run] = {}
        self.log: Counter[str] = Counter()
        self.alarm: float | None = None
        self.start()

    def start(self) -> None:
        """A daemon starts that knows nothing."""
        self.life += 1
        names = tuple(f"m{r}" for r in range(self.sim.n))
        self.engine = Engine(rank=self.rank, names=names, reattach=self.sim.reattach)
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
        self.sim.crashed.add(self.rank)
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
        self.sim.note(self)
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
            self.sim.send(self, self.rank, action.gid, action.seq, action.message, action.payload)
        elif isinstance(action, actions.Relay):
            self.sim.send(self, action.origin, action.gid, action.seq, action.message, b"")
        elif isinstance(action, actions.Run):
            self.run(action)
        elif isinstance(action, actions.Stop):
            if self.running.pop((action.gid, action.seq), None) is None:
                raise Violation("stopped what does not run")
            self.sim.leave_exchange(self, action.gid, action.seq)
        elif isinstance(action, actions.Seal):
            work = action.submission.buffers.work
            work.seal = (action.join_id, work.seq)
        elif isinstance(action, actions.KeepInput):
            buffers = action.submission.buffers
            buffers.copy = buffers.read()
            if action.submission.payload is not None:
                action.submission.payload = bytes(action.submission.payload)
        elif isinstance(action, actions.Free):
            buffers = action.submission.buffers
            if buffers.freed:
                raise Violation(f"{buffers.work} is freed twice")
            buffers.freed = True
            if any(run.submission is action.submission for run in self.running.values()):
                raise Violation(f"{buffers.work} is freed while it runs")
        elif isinstance(action, actions.TellSession):
            client = self.peers.get(action.client)  # type: ignore[arg-type] - our own tuples
            if client is not None:  # the kernel has it before anything is offered
                client.sessions[action.join_id] = action.session
                self.sim.agreed.add(action.session)
        elif isinstance(action, (actions.Warn, actions.Dropped)):
            pass
        else:
            result = None
            if isinstance(action, actions.Report):
                result = action.submission.buffers.result
                self.sim.note_late(self, action)
            client = self.peers.get(action.client)  # type: ignore[arg-type] - our own tuples
            if client is None:
                return
            self.sim.queue(("down", action.client), lambda: client.hear(action, result))

    def run(self, action: actions.Run) -> None:
        """Start a computation; it takes its time."""
        key = (action.gid, action.seq)
        if key in self.running:
            raise Violation(f"op {key} runs twice at once")
        self.running[key] = action
        if action.payloads is None:
            self.sim.join_exchange(self, action)
        else:
            self.sim.after(self.sim.delay(3), lambda: self.computed(action, eager=True))

    def computed(self, action: actions.Run, *, eager: bool) -> None:
        """The computation is through, unless it was stopped."""
        key = (action.gid, action.seq)
        if self.engine is None or self.running.get(key) is not action:
            return
        del self.running[key]
        if eager:
            assert action.payloads is not None
            value = sum(int.from_bytes(payload, "little") for payload in action.payloads)
        else:
            value = self.sim.exchanged(self, key)
        buffers = action.submission.buffers
        if not action.serve:
            if buffers.work.outcome == OK:
                raise Violation(f"{buffers.work}: its result is written after it was handed over")
            buffers.result = value
            if buffers.work.target is not None:
                buffers.work.target.write(value)
        self.carry_out(self.engine.finished(action.gid, action.seq, self.sim.now))
