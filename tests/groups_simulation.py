"""A ring of group engines in virtual time, with faults.

Messages and chunks travel over FIFO links and are all lost when the ring breaks, members notice at
different times, and a daemon dies between any two of its actions, or stands still for a while.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Collection, Iterator
from random import Random
from typing import Any, Union

from groups_model_calls import Spec, Violation
from groups_model_client import Client
from groups_model_node import SIDES, Node
from groups_witness import Witness

from ringd.collective.view import Side
from ringd.groups.channels import Key
from ringd.groups.session import Part
from ringd.wire.link.control import Poll

LOST_AFTER = 0.05
"""Seconds without a sign of life after which the ring breaks."""

_UNWATCHED = 8
"""Events between two looks at whether all is done."""

Said = tuple[int, int, int, Any, Union[bytes, memoryview]]
"""A rank, its session, an op, a message and what goes with it."""


Arrival = Callable[[Node], None]
"""What a message or a chunk does where it arrives."""


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
        parts: dict[str, dict[int, list[Part]]] | None = None,
        channels: dict[str, dict[Key, list[Spec]]] | None = None,
        slow: float = 1.0,
        by_rank: bool = False,
        poor: Collection[int] = (),
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
        self.slow = slow
        """Milliseconds that a chunk takes at most until it is read, and until it has left."""
        self.by_rank = by_rank
        self.poor = frozenset(poor)
        """Members whose daemon does not know bfloat16."""
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.pipes: dict[object, deque[Callable[[], None]]] = {}
        self.generation = 0
        self.generations = 0
        self.stalls = 0
        self.forming = False
        self.links: dict[tuple[int, Side], deque[Arrival]] = {
            (rank, side): deque() for rank in range(n) for side in SIDES
        }
        self.points = 0
        self.storm = 50_000 + 400 * n * n * (4 + sum(map(len, programs.values())))
        self.injections: dict[int, Callable[[], None]] = {}
        self.witness = Witness(self)
        self.closing = False
        self.clients: list[Client] = []
        self.nodes: list[Node] = []
        for rank in range(n):
            self.nodes.append(Node(self, rank))
        self.channels = channels or {}
        """By group, what its ranks send each other."""
        self._ends: dict[tuple[tuple[int, ...], Key], tuple[int, int]] = {}
        self.parts = parts or {group: {rank: [Part()] for rank in range(n)} for group in programs}
        """By group and member, what its programs say of their parts."""
        for rank in range(n):
            for group in programs:
                for part in self.parts[group].get(rank, ()):
                    self.after(self.delay(20), self.spawner(rank, group, part))
        self.form_soon()

    def ends_of(self, session: tuple[int, ...], key: Key) -> tuple[int, int]:
        """Return the numbers of a channel's two ends."""
        numbers = next(self.counter), next(self.counter)
        return self._ends.setdefault((session, key), numbers)

    def size(self, group: str) -> int:
        """Return how many programs *group* has."""
        return sum(map(len, self.parts[group].values()))

    def spawner(self, rank: int, group: str, part: Part) -> Callable[[], None]:
        """Return what starts a program."""

        def spawn() -> None:
            if self.closing:
                return
            on_loss = self.on_loss(rank, group)
            self.clients.append(Client(self, rank, group, self.programs[group], on_loss, part))

        return spawn

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
            for _ in range(min(_UNWATCHED, len(self.events))):
                when, _, event = self.events[0]
                if when > end:
                    return until()
                heapq.heappop(self.events)
                self.now = when
                if self.points > self.storm:
                    raise Violation(f"a storm of messages: {self.describe()}")
                self.point()
                event()
        return until()

    # --- the ring ---------------------------------------------------------------------

    def send(self, node: Node, origin: int, until: int, said: Said, side: Side = "right") -> None:
        """Put a message on a link."""

        def arrive(other: Node) -> None:
            rank, gid, seq, message, payload = said
            copy = bytes(payload)
            if not isinstance(message, Poll) and other.rank != until:
                self.send(other, origin, until, (rank, gid, seq, message, copy), side)
            assert other.engine is not None
            other.carry_out(other.engine.received(origin, rank, gid, seq, message, copy, self.now))

        self.put(node, side, arrive)

    def put(self, node: Node, side: Side, arrival: Arrival) -> None:
        """Put something on a link."""
        if node.generation == 0 or node.generation != self.generation or self.n == 1:
            return  # into the void
        self.links[node.rank, side].append(arrival)
        generation = self.generation
        self.after(self.delay(1), lambda: self.deliver(node.rank, side, generation))

    def deliver(self, rank: int, side: Side, generation: int) -> None:
        """The first one on a link arrives."""
        other = self.nodes[(rank + (1 if side == "right" else -1)) % self.n]
        link = self.links[rank, side]
        if generation != self.generation or not link or other.generation != generation:
            return
        if self.now < other.frozen_until:
            self.at(other.frozen_until, lambda: self.deliver(rank, side, generation))
        else:
            link.popleft()(other)

    def break_ring(self) -> None:
        """Everything in flight is lost; the members notice one by one."""
        self.generation = 0
        for link in self.links.values():
            link.clear()
        for node in self.nodes:
            if node.generation:
                node.soon(self.delay(5), self.noticer(node, node.generation))
        self.form_soon()

    def noticer(self, node: Node, generation: int) -> Callable[[], None]:
        """Return what tells *node* of the break."""

        def notice() -> None:
            if node.generation == generation:
                node.ring_down()
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
            node.soon(self.delay(4), self.raiser(node, self.generation))

    def raiser(self, node: Node, generation: int) -> Callable[[], None]:
        """Return what tells *node* of the new ring; what comes early waits for that."""

        def up() -> None:
            if self.generation != generation:
                return
            node.ring_up(generation)
            sides: tuple[tuple[int, Side], ...] = ((-1, "right"), (1, "left"))
            for step, side in sides:
                self._hurry((node.rank + step) % self.n, side, generation)

        return up

    def _hurry(self, rank: int, side: Side, generation: int) -> None:
        for _ in range(len(self.links[rank, side])):
            self.after(self.delay(1), lambda: self.deliver(rank, side, generation))

    # --- the end ---------------------------------------------------------------------

    def finish(self, limit: float = 120.0) -> None:
        """After the last fault: every call ends, and then nothing is left over."""
        expected = sum(map(self.size, self.programs))

        def done() -> bool:
            return (
                sum(c.parent is None for c in self.clients) == expected
                and all(c.finished for c in self.clients)
                and self.generation != 0
                and all(node.generation == self.generation for node in self.nodes)
            )

        if not self.run(done, limit):
            raise Violation(f"hangs: {self.describe()}")
        self.witness.check_agreement()
        self.closing = True
        for client in [client for client in self.clients if client.parent is None]:
            client.close()
        if not self.run(self.empty, self.reattach + 10):
            raise Violation(f"left over: {self.describe()}")
        for node in self.nodes:
            for buffers in node.buffers:
                if not buffers.freed:
                    raise Violation(f"{buffers.work} was never freed by {node.rank}")
        self.witness.check_memory()

    def empty(self) -> bool:
        """Whether no daemon knows of anything any more."""
        return not any(self.pipes.values()) and all(node.idle for node in self.nodes)

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
            roll = node.engine.roll
            yield f"node {node.rank}: generation {node.generation} absent {roll.absences.absent}"
            for seat in roll.seats.values():
                session, ledger = seat.session, seat.ledger
                yield (
                    f"  {seat.group} {seat.join_id} in {session.peers.join_ids} live={session.live}"
                    f" limit={seat.calls.limit} floor={ledger.released} done={ledger.done}"
                    f" left={seat.left is not None}"
                )
                for op in seat.calls.ops.values():
                    why = node.engine.waiting_for(seat, op)
                    yield f"    op {op.seq} {op.phase.value} {op.outcome} {why}"

    # --- faults -----------------------------------------------------------------------

    def crash_daemon(self, rank: int, downtime: float = 0.03) -> None:
        """Kill a daemon; it comes back."""
        self.nodes[rank].crash(downtime)

    def freeze(self, rank: int, seconds: float) -> None:
        """Have a daemon stand still; the others notice if that takes long, as it does itself."""
        node = self.nodes[rank]
        node.frozen_until = max(node.frozen_until, self.now + seconds)
        if seconds > LOST_AFTER:
            self.after(LOST_AFTER, self.cut_link)

    def stall(self, member: int, seconds: float) -> None:
        """Have a member's links carry no chunks for a while, but messages."""
        self.stalls += 1
        for side in SIDES:
            self.nodes[member].stalled_until[side] = self.now + seconds

    def cut_link(self) -> None:
        """The ring breaks and forms again."""
        if self.generation:
            self.break_ring()

    def kill_client(
        self, rank: int, group: str, wait: float | None = None, *, leaves: bool = False
    ) -> None:
        """Kill a program, or have it leave in good order; another one starts in its place."""
        there = [
            client
            for client in self.clients
            if (client.member, client.group, client.parent) == (rank, group, None)
        ]
        for client in self.rng.sample(there, min(1, len(there))):
            client.close() if leaves else client.die()
            again = self.delay(30) if wait is None else wait
            self.after(again, self.spawner(rank, group, client.part))
