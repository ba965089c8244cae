"""A ring of group engines in virtual time, with faults.

Messages travel one way round over FIFO links and are all lost when the ring breaks, members
notice at different times, and a daemon dies between any two of its actions.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from groups_models import Client, Node, Spec, Violation, Work

from ringd.groups import actions
from ringd.groups.op import OK
from ringd.wire.control import Poll


@dataclass
class Exchange:
    """One large op in one generation: all members' chunks depend on each other."""

    parts: dict[int, actions.Run] = field(default_factory=dict)
    broken: bool = False
    read: dict[int, int] = field(default_factory=dict)
    """Inputs of the members that are through."""


class Sim:
    """The world; see the module's docstring."""

    def __init__(
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
        pipe: float = 1.0,
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
        self.pipe = pipe
        """Milliseconds that a message between client and daemon takes at most."""
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
        self.storm = 20_000 + 100 * n * n * (4 + sum(map(len, programs.values())))
        self.crashed: set[int] = set()
        """Ranks whose daemon died at least once."""
        self.injections: dict[int, Callable[[], None]] = {}
        self.sessions: dict[int, tuple[int, ...]] = {}
        """All that were formed anywhere, by gid."""
        self.agreed: set[tuple[int, ...]] = set()
        """Those that some client was told of."""
        self.owners: dict[int, Client] = {}
        self.works: dict[tuple[int, int], Work] = {}
        self.dead: set[int] = set()
        """Join ids of clients that died, or left of their own accord."""
        self.unkind: set[str] = set()
        """Groups in which somebody asked for errors on any loss."""
        self.applied: dict[tuple[int, int], dict[tuple[int, ...], list[Client]]] = {}
        """For each input, the sessions in which it was summed, and who saw that."""
        self.parted: set[tuple[int, int]] = set()
        """By rank and gid, sessions that are not live there."""
        self.parted_last: dict[int, float] = {}
        """By gid, when a member last went live in that session."""
        self.late_alone: set[tuple[int, int]] = set()
        """Calls, by join id and number, that ended late while not everybody could be asked."""
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
        return self.rng.uniform(0, most) / 1000

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

        self.after(self.delay(self.pipe), deliver)

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
            if self.points > self.storm:
                raise Violation(f"a storm of messages: {self.describe()}")
            self.point()
            event()
        return until()

    # --- the ring ---------------------------------------------------------------------

    def send(  # noqa: PLR0917 - as in a frame
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
                self.after(self.delay(5), self.noticer(node, node.life, node.generation))
        self.form_soon()

    def noticer(self, node: Node, life: int, generation: int) -> Callable[[], None]:
        """Return what tells *node* of the break."""

        def notice() -> None:
            if node.life == life and node.engine is not None and node.generation == generation:
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
        """Remember which sessions exist, and where they are not live."""
        if node.engine is not None:
            for gid, session in node.engine.by_gid.items():
                self.sessions.setdefault(gid, session.join_ids)
                place = (node.rank, gid)
                if not session.live:
                    self.parted.add(place)
                elif place in self.parted:
                    self.parted.remove(place)
                    self.parted_last[gid] = self.now

    def note_late(self, node: Node, report: actions.Report) -> None:
        """Remember whether a deadline that has passed was decided on without the others."""
        deadline = report.submission.deadline
        if report.code != "deadline_exceeded" or deadline is None or deadline > self.now:
            return
        assert node.engine is not None
        gid = node.engine.joins[report.join_id].gid
        whole = (
            gid != 0
            and self.generation != 0
            and all(other.generation == self.generation for other in self.nodes)
            and not any((rank, gid) in self.parted for rank in range(self.n))
        )
        if not whole or self.parted_last.get(gid, 0.0) >= deadline:
            self.late_alone.add((report.join_id, report.submission.seq))

    def check_value(self, work: Work) -> None:
        """A result is the sum of what the members of its session handed over, once."""
        self.outcomes[OK] += 1
        join_ids = work.client.sessions.get(work.join_id, ())
        if work.join_id not in join_ids:
            raise Violation(f"{work} completed in no session that its client knows")
        parts = [self.works.get((join_id, work.seq)) for join_id in join_ids]
        if any(part is None for part in parts):
            raise Violation(f"{work} completed without all inputs")
        expected = sum(part.token for part in parts if part is not None)
        if work.value != expected:
            raise Violation(f"{work} is wrong: {work.value} is not {expected}")
        for join_id in join_ids:
            seen = self.applied.setdefault((join_id, work.seq), {})
            seen.setdefault(join_ids, []).append(work.client)
            if sum(any(client.alive for client in who) for who in seen.values()) > 1:
                raise Violation(f"op {work.seq} of join {join_id} was applied twice")

    def check_error(self, work: Work) -> None:
        """An error has a reason that the promises allow."""
        self.outcomes[work.outcome] += 1
        mates = {j for ids in self.sessions.values() if work.join_id in ids for j in ids}
        if work.outcome == "group_lost":
            gone = {j for j in mates if j in self.dead or not self.owners[j].alive}
            lost = {self.owners[join_id].rank for join_id in gone}
            named = {int(rank) for rank in re.findall(r"'m(\d+)'", work.message)}
            allowed = bool(named) and named <= lost
        elif work.outcome == "peer_lost":
            allowed = work.client.group in self.unkind
        elif work.outcome == "deadline_exceeded":
            calls = [self.works.get((j, work.seq)) for j in mates | {work.join_id}]
            allowed = any(
                c is not None and c.spec.timeout is not None and self.now >= c.born + c.spec.timeout
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
        self.check_agreement()
        self.closing = True
        for client in list(self.clients):
            client.close()
        if not self.run(self.empty, self.reattach + 5):
            raise Violation(f"left over: {self.describe()}")
        for node in self.nodes:
            for buffers in node.buffers:
                if not buffers.freed:
                    raise Violation(f"{buffers.work} was never freed by {node.rank}")

    def check_agreement(self) -> None:
        """Who lives sees one outcome everywhere, but for what the promises except.

        That is: a daemon died after its client had left, or a deadline passed while the ring
        was down or the session not live.
        """
        for join_ids in self.agreed:
            self.check_blame(join_ids)
            gone = [join_id for join_id in join_ids if self.owners[join_id].join_id != join_id]
            lost = {self.owners[j].rank for j in join_ids if j in self.dead or j in gone}
            if lost & self.crashed or self.owners[join_ids[0]].group in self.unkind:
                continue
            for seq in range(len(self.owners[join_ids[0]].specs)):
                works = [self.works.get((join_id, seq)) for join_id in join_ids]
                ends = {w.outcome for w in works if w and w.outcome and w.counts_on(join_ids)}
                alone = any((join_id, seq) in self.late_alone for join_id in join_ids)
                excused = alone and "deadline_exceeded" in ends
                if len(ends) > 1 and OK in ends and not excused:
                    raise Violation(f"op {seq} of {join_ids} ended in two ways: {ends}")

    def check_blame(self, join_ids: tuple[int, ...]) -> None:
        """Where one client ended a session, and its daemon lived, all read the same of it."""
        gone = [j for j in join_ids if j in self.dead or not self.owners[j].alive]
        if len(gone) == 1 and self.owners[gone[0]].rank not in self.crashed:
            ends = [work for j in join_ids for work in self.owners[j].works.get(j, {}).values()]
            texts = {work.message for work in ends if work.outcome == "group_lost"}
            if len(texts) > 1:
                raise Violation(f"the loss of {join_ids} reads differently: {texts}")

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

    def kill_client(
        self, rank: int, group: str, wait: float | None = None, *, leaves: bool = False
    ) -> None:
        """Kill a program, or have it leave in good order; another one starts in its place."""
        for client in list(self.clients):
            if client.rank == rank and client.group == group:
                client.close() if leaves else client.die()
                again = self.delay(30) if wait is None else wait
                self.after(again, self.spawner(rank, group))
