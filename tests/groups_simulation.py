"""A ring of group engines in virtual time, with faults.

Messages travel one way round over FIFO links and are all lost when the ring breaks, members
notice at different times, and a daemon dies between any two of its actions.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Union

from groups_model_calls import Spec, Violation
from groups_model_client import Client
from groups_model_node import Node
from groups_witness import Witness

from ringd.collective.view import Side
from ringd.groups import actions
from ringd.groups.channels import Key
from ringd.groups.roll import Roll
from ringd.groups.session import Part
from ringd.wire.link.control import Poll

Said = tuple[int, int, int, Any, Union[bytes, memoryview]]
"""A rank, its session, an op, a message and what goes with it."""


@dataclass
class Exchange:
    """One large op in one generation: all members' chunks depend on each other."""

    here: bool
    """Whether all ranks are on one member, and no link is needed."""
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
        parts: dict[str, dict[int, list[Part]]] | None = None,
        channels: dict[str, dict[Key, list[Spec]]] | None = None,
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
        self.links: dict[tuple[int, Side], deque[tuple[int, int, int, Said]]] = {
            (rank, side): deque() for rank in range(n) for side in ("left", "right")
        }
        self.exchanges: dict[tuple[int, int], Exchange] = {}
        self.points = 0
        self.storm = 20_000 + 100 * n * n * (4 + sum(map(len, programs.values())))
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

    def send(self, node: Node, origin: int, until: int, said: Said, side: Side = "right") -> None:
        """Put a message on a link."""
        if node.generation == 0 or node.generation != self.generation:
            return  # into the void
        if self.n == 1:
            return
        generation = self.generation
        link = self.links[node.rank, side]
        link.append((generation, origin, until, said))
        self.after(self.delay(1), lambda: self.deliver(node.rank, side, generation))

    def deliver(self, rank: int, side: Side, generation: int) -> None:
        """The first message on a link arrives."""
        right = self.nodes[(rank + (1 if side == "right" else -1)) % self.n]
        link = self.links[rank, side]
        if generation != self.generation or not link or right.generation != generation:
            return
        _, origin, until, (of, gid, seq, message, payload) = link.popleft()
        payload = bytes(payload)
        if not isinstance(message, Poll) and right.rank != until:
            self.send(right, origin, until, (of, gid, seq, message, payload), side)
        assert right.engine is not None
        todo = right.engine.received(origin, of, gid, seq, message, payload, self.now)
        right.carry_out(todo)

    def break_ring(self) -> None:
        """Everything in flight is lost; the members notice one by one."""
        self.generation = 0
        for link in self.links.values():
            link.clear()
        self.exchanges = {key: part for key, part in self.exchanges.items() if part.here}
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
            sides: tuple[tuple[int, Side], ...] = ((-1, "right"), (1, "left"))
            for step, side in sides:
                self._hurry((node.rank + step) % self.n, side, generation)

        return up

    def _hurry(self, rank: int, side: Side, generation: int) -> None:
        for _ in range(len(self.links[rank, side])):
            self.after(self.delay(1), lambda: self.deliver(rank, side, generation))

    # --- large ops --------------------------------------------------------------------

    def join_exchange(self, node: Node, action: actions.Run) -> None:
        """A member starts its part; when all have, each is through some time later."""
        here = set(action.view.places) == {node.rank}
        if node.generation != self.generation and not here:
            return  # the links are dead already
        key = (action.gid, action.seq)
        exchange = self.exchanges.setdefault(key, Exchange(here))
        exchange.parts[action.view.rank] = action
        if len(exchange.parts) == action.view.size and not exchange.broken:
            longest = 400 if action.calls[0].name.endswith("apart") else 20
            for rank in range(action.view.size):
                self.after(self.delay(longest), self.finisher(rank, exchange))

    def finisher(self, rank: int, exchange: Exchange) -> Callable[[], None]:
        """Return what ends one member's part."""
        action = exchange.parts[rank]
        key = (action.gid, action.seq)

        def finish() -> None:
            if self.exchanges.get(key) is exchange and not exchange.broken:
                self.nodes[action.view.place].computed(action, eager=False)

        return finish

    def exchanged(self, own: actions.Run) -> int:
        """Return the sum; who is not through yet has its input read now."""
        exchange = self.exchanges[own.gid, own.seq]
        exchange.read[own.view.rank] = own.submission.buffers.read()
        value = 0
        for rank, part in exchange.parts.items():
            if rank not in exchange.read:
                value += part.submission.buffers.read()
            else:
                value += exchange.read[rank]
        return value

    def leave_exchange(self, stop: actions.Stop) -> None:
        """A rank stops in the middle: the others' chunks never come."""
        exchange = self.exchanges.get((stop.gid, stop.seq))
        if exchange is not None and stop.rank not in exchange.read:
            exchange.broken = True
            del self.exchanges[stop.gid, stop.seq]

    # --- the end ---------------------------------------------------------------------

    def finish(self, limit: float = 120.0) -> None:
        """After the last fault: every call ends, and then nothing is left over."""
        expected = sum(map(self.size, self.programs))

        def done() -> bool:
            return (
                len(self.clients) == expected
                and all(c.finished for c in self.clients)
                and self.generation != 0
                and all(node.generation == self.generation for node in self.nodes)
            )

        if not self.run(done, limit):
            raise Violation(f"hangs: {self.describe()}")
        self.witness.check_agreement()
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
            node.engine is not None and not self.known(node.engine.roll) and not node.running
            for node in self.nodes
        )

    def known(self, roll: Roll) -> bool:
        """Whether a daemon knows of any client."""
        return bool(roll.seats or roll.by_gid or roll.groups or roll.absences.absent)

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

    def cut_link(self) -> None:
        """The ring breaks and forms again."""
        if self.generation:
            self.break_ring()

    def kill_client(
        self, rank: int, group: str, wait: float | None = None, *, leaves: bool = False
    ) -> None:
        """Kill a program, or have it leave in good order; another one starts in its place."""
        there = [client for client in self.clients if (client.rank, client.group) == (rank, group)]
        for client in self.rng.sample(there, min(1, len(there))):
            client.close() if leaves else client.die()
            again = self.delay(30) if wait is None else wait
            self.after(again, self.spawner(rank, group, client.part))
