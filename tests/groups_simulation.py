"""A ring of group engines in virtual time, with model daemons, clients and faults.

Everything around :class:`~ringd.groups.engine.Engine` is modelled as unkindly as the real thing
may be: messages travel one way round over FIFO links and are all lost when the ring breaks,
members notice at different times, a daemon dies between any two of its actions, inputs are
read as late as possible and overwritten as soon as their owner may do so. So an input that is
read after its time shows as a wrong sum.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from ringd.groups import actions
from ringd.groups.engine import Engine
from ringd.groups.op import OK, Submission
from ringd.wire.control import Call, Poll

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
    seal: tuple[int, int, int] | None = None
    outcome: str = ""
    message: str = ""
    value: int | None = None
    released: bool = False

    def end(self, code: str, message: str, gid: int, value: int | None) -> None:
        """The client learns how the call ended."""
        if self.outcome:
            if OK in {self.outcome, code} and self.outcome != code:
                self.client.sim.fail(f"{self} ended twice: {self.outcome}, then {code} {message}")
            return
        self.outcome, self.message = code, message
        sim = self.client.sim
        if code == OK:
            self.value = value
            sim.check_value(self, gid)
            if self.spec.hold:
                self.source.write(GARBAGE)
            if self.target is not None:
                self.target.write(GARBAGE)
        else:
            sim.check_error(self)
            self.source.write(GARBAGE)

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
        self.session = 0
        self.works: dict[int, dict[int, Work]] = {}
        self.released: dict[int, int] = {}
        self.accepted = False
        self.lost = True
        self.doomed = False
        self.retrying = False
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
        self.join_id = next(self.sim.counter)
        self.session = 0
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
        next_seq = len(self.works[join_id])
        session = self.session

        def attach(engine: Engine, now: float) -> list[actions.Action]:
            return engine.attach(
                connection,
                group=group,
                join_id=join_id,
                released=released,
                on_loss=on_loss,
                now=now,
                next_seq=next_seq,
                session_number=session,
            )

        self._send(attach)

    def _attach_again(self) -> None:
        """The daemon is another one: look at the seals, then offer again what it needs."""
        for seq, work in sorted(self.mine.items()):
            if work.seal is not None and work.seal[:2] == (self.join_id, seq):
                self.session = work.seal[2]
                if not work.outcome and not work.spec.hold:
                    assert work.target is not None
                    work.end(OK, "", self.session, work.target.value)
        self._attach()
        for seq in range(self.released[self.join_id], len(self.mine)):
            self._submit(self.mine[seq], again=True)
        self.advance()

    def disconnected(self) -> None:
        """The daemon is gone."""
        self.connection = None
        for join_id, works in self.works.items():
            for work in works.values():
                if work.outcome:
                    continue
                if join_id != self.join_id or self.lost:
                    work.end("group_lost", "its daemon went away", 0, None)
                elif self.on_loss == "fail":
                    self.sim.unkind.add(self.group)
                    work.end("peer_lost", "this machine's daemon went away", 0, None)
        if self.on_loss == "fail":
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
        if again and work.spec.hold and work.seal is not None and outcome in ("", OK):
            outcome = OK

        def submit(engine: Engine, now: float) -> list[actions.Action]:
            submission = self.sim.nodes[self.rank].take(work, copy)
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
            if action.code == OK and action.join_id == self.join_id:
                self.session = action.session
            if action.code == OK and work.target is not None:
                result = work.target.value
            work.end(action.code, action.message, action.session, result)
        elif isinstance(action, actions.TellReleased):
            self._release(action.join_id, action.released)
        elif isinstance(action, actions.TellLost):
            self._lost(action.join_id, action.floor, action.code, action.message)
        self.advance()

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
        for seq, work in works.items():
            if seq >= floor and not work.outcome:
                work.end(code, message, 0, None)
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
                node.carry_out(node.engine.detach(connection, "died", self.sim.now))

        self.sim.after(self.sim.delay(5), notice)

    def close(self) -> None:
        """Leave in good order."""
        connection = self.connection
        self._send(lambda engine, now: engine.detach(connection, "left the group", now))
        self.die()


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
        self.sim.break_ring()
        for connection, client in self.peers.items():
            self.sim.cut(("up", connection), keep=False)
            self.sim.cut(("down", connection), keep=self.sim.rng.random() < self.sim.survive)
            self.sim.after(self.sim.delay(3), client.disconnected)
        self.peers = {}
        self.sim.after(downtime, self.start)

    def take(self, work: Work, copy: int | None) -> Submission:
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
            hold=spec.hold,
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
            work.seal = (action.join_id, work.seq, action.session)
        elif isinstance(action, actions.Free):
            buffers = action.submission.buffers
            if buffers.freed:
                raise Violation(f"{buffers.work} is freed twice")
            buffers.freed = True
            if any(run.submission is action.submission for run in self.running.values()):
                raise Violation(f"{buffers.work} is freed while it runs")
        elif isinstance(action, (actions.Warn, actions.Dropped)):
            pass
        else:
            client = self.peers.get(action.client)  # type: ignore[arg-type] - our own tuples
            if client is None:
                return
            result = None
            if isinstance(action, actions.Report):
                result = action.submission.buffers.result
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


@dataclass
class Exchange:
    """One large op in one generation: all members' chunks depend on each other."""

    parts: dict[int, actions.Run] = field(default_factory=dict)
    broken: bool = False
    read: dict[int, int] = field(default_factory=dict)
    """Inputs of the members that are through."""


class Sim:
    """The world; see the module's docstring."""

    def __init__(  # noqa: PLR0913 - a world has many settings
        self,
        n: int,
        seed: int,
        programs: dict[str, list[Spec]],
        *,
        depth: int = 2,
        reattach: float = 1.0,
        on_loss: Callable[[int, str], str] = lambda _rank, _group: "wait",
        spec: Callable[[Client, int], Spec] = lambda client, seq: client.specs[seq],
        survive: float = 0.5,
        jitter: bool = True,
    ) -> None:
        self.n = n
        self.rng = Random(seed)
        self.counter = iter(range(1, 1 << 60))
        self.programs = programs
        self.depth = depth
        self.reattach = reattach
        self.spec = spec
        self.on_loss = on_loss
        self.survive = survive
        self.jitter = jitter
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.pipes: dict[object, deque[Callable[[], None]]] = {}
        self.generation = 0
        self.generations = 0
        self.forming = False
        self.links: list[deque[tuple[int, int, int, int, object, bytes | memoryview]]] = []
        self.links = [deque() for _ in range(n)]
        self.exchanges: dict[tuple[int, int], Exchange] = {}
        self.points = 0
        self.injections: dict[int, Callable[[], None]] = {}
        self.sessions: dict[int, tuple[int, ...]] = {}
        """All that were formed anywhere, by gid."""
        self.owners: dict[int, Client] = {}
        self.works: dict[tuple[int, int], Work] = {}
        self.dead: set[int] = set()
        """Join ids of clients that died, or left of their own accord."""
        self.unkind: set[str] = set()
        """Groups in which somebody asked for errors on any loss."""
        self.applied: dict[tuple[int, int], int] = {}
        """For each input, the session in which it was summed."""
        self.outcomes: Counter[str] = Counter()
        self.closing = False
        self.clients: list[Client] = []
        self.nodes: list[Node] = []
        for rank in range(n):
            self.nodes.append(Node(self, rank))
        for rank in range(n):
            for group in programs:
                self.after(self.delay(20), self.spawner(rank, group))
        self.form_soon()

    def spawner(self, rank: int, group: str) -> Callable[[], None]:
        """Return what starts a program."""

        def spawn() -> None:
            if self.closing:
                return
            on_loss = self.on_loss(rank, group)
            self.clients.append(Client(self, rank, group, self.programs[group], on_loss))

        return spawn

    def fail(self, text: str) -> None:
        """Report a broken promise."""
        raise Violation(text)

    # --- time -------------------------------------------------------------------------

    def delay(self, most: float) -> float:
        """Return a random time of up to *most* milliseconds."""
        return self.rng.uniform(0, most) / 1000 if self.jitter else most / 2000

    def after(self, wait: float, event: Callable[[], None]) -> None:
        """Let *event* happen *wait* seconds from now."""
        self.at(self.now + wait, event)

    def at(self, when: float, event: Callable[[], None]) -> None:
        """Let *event* happen at *when*."""
        heapq.heappush(self.events, (max(when, self.now), next(self.counter), event))

    def queue(self, pipe: object, event: Callable[[], None]) -> None:
        """Let *event* happen a little later, after those queued on the same *pipe* before."""
        events = self.pipes.setdefault(pipe, deque())
        events.append(event)

        def deliver() -> None:
            if events:
                events.popleft()()

        self.after(self.delay(1), deliver)

    def cut(self, pipe: object, *, keep: bool) -> None:
        """The pipe is closed; what is in it arrives all the same, or does not."""
        if not keep and pipe in self.pipes:
            self.pipes[pipe].clear()

    def point(self) -> None:
        """A place where a fault may strike."""
        self.points += 1
        injection = self.injections.pop(self.points, None)
        if injection is not None:
            injection()

    def run(self, until: Callable[[], bool], limit: float) -> bool:
        """Let time pass until a condition holds; return whether it did within *limit* seconds."""
        end = self.now + limit
        while self.events and not until():
            when, _, event = heapq.heappop(self.events)
            if when > end:
                return False
            self.now = when
            self.point()
            event()
        return until()

    # --- the ring ---------------------------------------------------------------------

    def send(
        self,
        node: Node,
        origin: int,
        gid: int,
        seq: int,
        message: object,
        payload: bytes | memoryview,
    ) -> None:
        """Put a message on the link to the right."""
        if node.generation == 0 or node.generation != self.generation:
            return  # into the void
        if self.n == 1:
            return
        generation = self.generation
        link = self.links[node.rank]
        link.append((generation, origin, gid, seq, message, payload))
        self.after(self.delay(1), lambda: self.deliver(node.rank, generation))

    def deliver(self, rank: int, generation: int) -> None:
        """The first message on a link arrives."""
        right = self.nodes[(rank + 1) % self.n]
        link = self.links[rank]
        if generation != self.generation or not link or right.generation != generation:
            return
        _, origin, gid, seq, message, payload = link.popleft()
        payload = bytes(payload)
        if not isinstance(message, Poll) and (right.rank + 1) % self.n != origin:
            self.send(right, origin, gid, seq, message, payload)
        assert right.engine is not None
        todo = right.engine.received(origin, gid, seq, message, payload, self.now)  # type: ignore[arg-type] - what a Broadcast carries
        right.carry_out(todo)

    def break_ring(self) -> None:
        """Everything in flight is lost; the members notice one by one."""
        self.generation = 0
        for link in self.links:
            link.clear()
        self.exchanges.clear()
        for node in self.nodes:
            if node.generation:
                self.after(self.delay(5), self.noticer(node, node.life))
        self.form_soon()

    def noticer(self, node: Node, life: int) -> Callable[[], None]:
        """Return what tells *node* of the break."""

        def notice() -> None:
            if node.life == life and node.engine is not None and node.generation:
                node.generation = 0
                node.carry_out(node.engine.ring_down("link lost", self.now))
                self.form_soon()

        return notice

    def form_soon(self) -> None:
        """Form a ring when all members are there and know of no other."""
        if self.forming or self.generation:
            return
        self.forming = True
        self.after(self.delay(10), self.form)

    def form(self) -> None:
        """A new generation, if all are ready for one."""
        self.forming = False
        ready = len(self.nodes) == self.n and all(
            node.engine is not None and node.generation == 0 for node in self.nodes
        )
        if not ready or self.generation:
            return
        self.generations += 1
        self.generation = self.generations
        for node in self.nodes:
            self.after(self.delay(4), self.raiser(node, node.life, self.generation))

    def raiser(self, node: Node, life: int, generation: int) -> Callable[[], None]:
        """Return what tells *node* of the new ring; early messages wait for that."""

        def up() -> None:
            if node.life != life or node.engine is None or self.generation != generation:
                return
            node.generation = generation
            node.carry_out(node.engine.ring_up(self.now))
            left = (node.rank - 1) % self.n
            for _ in range(len(self.links[left])):
                self.after(self.delay(1), lambda: self.deliver(left, generation))

        return up

    # --- large ops --------------------------------------------------------------------

    def join_exchange(self, node: Node, action: actions.Run) -> None:
        """A member starts its part; when all have, each is through some time later."""
        if node.generation != self.generation and self.n > 1:
            return  # the links are dead already
        key = (action.gid, action.seq)
        exchange = self.exchanges.setdefault(key, Exchange())
        exchange.parts[node.rank] = action
        if len(exchange.parts) == self.n and not exchange.broken:
            for rank in range(self.n):
                self.after(self.delay(20), self.finisher(rank, exchange))

    def finisher(self, rank: int, exchange: Exchange) -> Callable[[], None]:
        """Return what ends one member's part."""
        action = exchange.parts[rank]
        key = (action.gid, action.seq)

        def finish() -> None:
            if self.exchanges.get(key) is exchange and not exchange.broken:
                self.nodes[rank].computed(action, eager=False)

        return finish

    def exchanged(self, node: Node, key: tuple[int, int]) -> int:
        """Return the sum; who is not through yet has its input read now."""
        exchange = self.exchanges[key]
        own = exchange.parts[node.rank]
        exchange.read[node.rank] = own.submission.buffers.read()
        value = 0
        for rank, part in exchange.parts.items():
            if rank not in exchange.read:
                value += part.submission.buffers.read()
            else:
                value += exchange.read[rank]
        return value

    def leave_exchange(self, node: Node, gid: int, seq: int) -> None:
        """A member stops in the middle: the others' chunks never come."""
        exchange = self.exchanges.get((gid, seq))
        if exchange is not None and node.rank not in exchange.read:
            exchange.broken = True
            del self.exchanges[gid, seq]

    # --- checks -----------------------------------------------------------------------

    def note(self, node: Node) -> None:
        """Remember which sessions exist."""
        if node.engine is not None:
            for gid, session in node.engine.by_gid.items():
                self.sessions.setdefault(gid, session.join_ids)

    def check_value(self, work: Work, gid: int) -> None:
        """A result is the sum of what the members of its session handed over, once."""
        self.outcomes[OK] += 1
        join_ids = self.sessions.get(gid)
        if join_ids is None or work.join_id not in join_ids:
            raise Violation(f"{work} completed in no session of its own")
        parts = [self.works.get((join_id, work.seq)) for join_id in join_ids]
        if any(part is None for part in parts):
            raise Violation(f"{work} completed without all inputs")
        expected = sum(part.token for part in parts if part is not None)
        if work.value != expected:
            raise Violation(f"{work} is wrong: {work.value} is not {expected}")
        for join_id in join_ids:
            if self.applied.setdefault((join_id, work.seq), gid) != gid:
                raise Violation(f"op {work.seq} of join {join_id} was applied twice")

    def check_error(self, work: Work) -> None:
        """An error has a reason that the promises allow."""
        self.outcomes[work.outcome] += 1
        mates = {j for ids in self.sessions.values() if work.join_id in ids for j in ids}
        if work.outcome == "group_lost":
            allowed = bool(mates & self.dead)
        elif work.outcome == "peer_lost":
            allowed = work.client.group in self.unkind
        elif work.outcome == "deadline_exceeded":
            calls = [self.works.get((j, work.seq)) for j in mates | {work.join_id}]
            allowed = any(
                c is not None
                and c.spec.timeout is not None
                and self.now >= c.born + c.spec.timeout
                for c in calls
            )
        elif work.outcome == "mismatch":
            calls = [self.works.get((j, work.seq)) for j in mates]
            allowed = len({c.spec.call for c in calls if c is not None}) > 1
        else:
            allowed = False
        if not allowed:
            raise Violation(f"{work} failed without reason: {work.outcome}: {work.message}")

    def finish(self, limit: float = 120.0) -> None:
        """After the last fault: every call ends, and then nothing is left over."""
        expected = self.n * len(self.programs)

        def done() -> bool:
            return (
                len(self.clients) == expected
                and all(c.finished for c in self.clients)
                and self.generation != 0
                and all(node.generation == self.generation for node in self.nodes)
            )

        if not self.run(done, limit):
            raise Violation(f"hangs: {self.describe()}")
        self.closing = True
        for client in list(self.clients):
            client.close()
        if not self.run(self.empty, self.reattach + 5):
            raise Violation(f"left over: {self.describe()}")
        for node in self.nodes:
            for buffers in node.buffers:
                if not buffers.freed:
                    raise Violation(f"{buffers.work} was never freed by {node.rank}")

    def empty(self) -> bool:
        """Whether no daemon knows of anything any more."""
        return not any(pipe for pipe in self.pipes.values()) and all(
            node.engine is not None
            and not (node.engine.joins or node.engine.by_gid or node.engine.groups)
            and not node.engine.absent
            and not node.running
            for node in self.nodes
        )

    def describe(self) -> str:
        """Return what is still going on."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"t={self.now:.3f} generation {self.generation}"
        for client in self.clients:
            if not client.finished:
                yield f"{client}: join {client.join_id} lost={client.lost} open={len(client.open)}"
        for node in self.nodes:
            if node.engine is None:
                yield f"node {node.rank} is down"
                continue
            yield f"node {node.rank}: generation {node.generation} absent {node.engine.absent}"
            for session in node.engine.joins.values():
                yield (
                    f"  {session.group} {session.join_id} in {session.join_ids} live={session.live}"
                    f" limit={session.limit} floor={session.floor} done={session.ledger.done}"
                    f" left={session.left is not None}"
                )
                for op in session.ops.values():
                    why = node.engine.waiting_for(session, op)
                    yield f"    op {op.seq} {op.phase.value} {op.outcome} {why}"

    # --- faults -----------------------------------------------------------------------

    def crash_daemon(self, rank: int, downtime: float = 0.03) -> None:
        """Kill a daemon; it comes back."""
        self.nodes[rank].crash(downtime)

    def cut_link(self) -> None:
        """The ring breaks and forms again."""
        if self.generation:
            self.break_ring()

    def kill_client(self, rank: int, group: str, wait: float | None = None) -> None:
        """Kill a program; another one starts in its place."""
        for client in list(self.clients):
            if client.rank == rank and client.group == group:
                client.die()
                again = self.delay(30) if wait is None else wait
                self.after(again, self.spawner(rank, group))
