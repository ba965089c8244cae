"""Virtual time, and in it daemons that find each other over connections that fail.

What a real daemon has around its membership machine: a dialer with backoff for the right
neighbour, a listener, a knock at the left neighbour on start, and FIFO connections whose two
ends learn of their death at different times.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random

from ringd.membership.machine import Action, Machine, Side
from ringd.net.backoff import Backoff
from ringd.wire.link.control import Commit

HOP = 150e-6
CONNECT_TIMEOUT = 2.0
HANDSHAKE_TIMEOUT = 3.0
LOST_AFTER = 3.0


class Violation(AssertionError):
    """Something happened that must never happen."""


class Connection:
    """One TCP connection: *ends* are the dialing process and the accepting one."""

    __slots__ = ("clock", "ends", "lossy", "number")

    def __init__(self, number: int, dialer: Process, acceptor: Process) -> None:
        self.number = number
        self.ends = (dialer, acceptor)
        self.clock = [0.0, 0.0]
        """When the last message towards the acceptor, and towards the dialer, arrives."""
        self.lossy = False
        """Whatever is under way, and whatever is sent from now on, is lost."""


@dataclass(eq=False)
class Process:
    """One life of a member's daemon."""

    rank: int
    boot: int
    machine: Machine
    backoff: Backoff
    alive: bool = True
    paused: bool = False
    clock_offset: float = 0.0
    links: dict[Side, Connection | None] = field(
        default_factory=lambda: {"left": None, "right": None}
    )
    backlog: list[Callable[[], None]] = field(default_factory=list)
    dialing: int = 0
    """Number of the current dial attempt or sleep; others are stale."""
    ticking: float | None = None
    writing: bool = False
    commit: Commit | None = None
    """The last one that it sent."""
    generation: int = 0
    """Of the ring in use; 0 without one."""

    @property
    def instance(self) -> int:
        """Tells this life from the others."""
        return self.boot + 1


class Network:
    """Time, processes and connections; who inherits says what the machines' actions do."""

    def __init__(self, size: int, seed: int, hop: float, jitter: float) -> None:
        self.size = size
        self.random = Random(seed)
        self.now = 0.0
        self.hop = hop
        self.jitter = jitter
        self.processes: list[Process | None] = [None] * size
        self.blocked: set[int] = set()
        """Ranks r whose link to r + 1 carries nothing."""
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = 0
        self._busy = 0

    def _act(self, process: Process, actions: Sequence[Action]) -> None:
        """Do what the machine of *process* asks for."""
        raise NotImplementedError

    # --- time -------------------------------------------------------------------------

    def at(self, delay: float, action: Callable[[], None]) -> None:
        """Have *action* happen after *delay* seconds."""
        self._numbers += 1
        heapq.heappush(self._queue, (self.now + delay, self._numbers, action))

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let *seconds* pass, or fewer if *until* comes true after some event."""
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            then = self.now
            self.now, _, action = heapq.heappop(self._queue)
            self._busy = self._busy + 1 if self.now == then else 0
            if self._busy > 100_000:
                raise Violation("the members are busy without end")
            action()
            if until():
                return True
        self.now = end
        return False

    def delay(self) -> float:
        """Return how long the next message takes."""
        return self.hop * (1 + self.jitter * self.random.random())

    def _clock(self, process: Process) -> float:
        return self.now + process.clock_offset

    def _when_awake(self, process: Process, action: Callable[[], None]) -> None:
        """Do it now, or when the paused process goes on, or never when it is dead."""
        if process.paused:
            process.backlog.append(action)
        elif process.alive:
            action()

    # --- links ------------------------------------------------------------------------

    def cut(self, rank: int, *, silent: bool, lossy: bool) -> None:
        """Break the connection from *rank* to its right neighbour, if there is one."""
        process = self.processes[rank]
        connection = process.links["right"] if process is not None else None
        if connection is None:
            return
        connection.lossy = connection.lossy or lossy or silent
        for end in connection.ends:
            wait = LOST_AFTER + self.random.random() / 4 if silent else self.random.random() * 5e-3
            self.at(wait, partial(self._noticed, connection, end, "cut"))

    def block(self, rank: int) -> None:
        """Let the link from *rank* to its right neighbour carry nothing from now on."""
        self.blocked.add(rank)
        self.cut(rank, silent=True, lossy=True)

    def unblock(self, rank: int) -> None:
        """Undo :meth:`block`."""
        self.blocked.discard(rank)

    def _abandon(self, connection: Connection, process: Process, *, silent: bool = False) -> None:
        """Close this end; the other learns of it behind all data, or after silence."""
        towards = int(connection.ends[0] is process)
        other = connection.ends[towards]
        if silent or connection.lossy:
            connection.lossy = True
            wait = LOST_AFTER + self.random.random() / 4
        else:
            # What the process had sent is still delivered, or some of it is not.
            connection.lossy = self.random.random() < 0.3
            towards = 0 if towards else 1
            wait = max(connection.clock[1 - towards] - self.now, 0.0) + self.delay()
        self.at(wait, lambda: self._noticed(connection, other, "closed by the other side"))

    def _hang_up(self, connection: Connection, process: Process, silent_one: Process) -> None:
        """Give up a peer that has been silent for too long."""
        if silent_one.paused:
            self._noticed(connection, process, "silent")
            self._abandon(connection, process)

    def _noticed(self, connection: Connection, process: Process, reason: str) -> None:
        """Tell *process* that its connection is gone."""

        def notice() -> None:
            side = self._side(connection, process)
            if process.links[side] is not connection:
                return
            process.links[side] = None
            self._act(process, process.machine.link_down(side, reason, self._clock(process)))
            self._dial(process)

        self._when_awake(process, notice)

    def _dial(self, process: Process) -> None:
        """Try to reach the right neighbour, unless linked to it."""
        if not process.alive or process.links["right"] is not None or self.size == 1:
            return
        process.dialing += 1
        attempt = process.dialing
        self.at(self.delay(), lambda: self._syn(process, attempt))

    def _syn(self, process: Process, attempt: int) -> None:
        target = self.processes[(process.rank + 1) % self.size]
        if process.rank in self.blocked:
            self.at(
                CONNECT_TIMEOUT,
                lambda: self._dial_failed(process, attempt, "timed out (errno 110)"),
            )
        elif target is None or not target.alive:
            self.at(
                self.delay(), lambda: self._dial_failed(process, attempt, "refused (errno 111)")
            )
        elif target.paused:
            self.at(
                HANDSHAKE_TIMEOUT, lambda: self._dial_failed(process, attempt, "no answer in time")
            )
        else:
            self.at(4 * self.delay(), lambda: self._accept(process, attempt, target))

    def _dial_failed(self, process: Process, attempt: int, reason: str) -> None:
        def fail() -> None:
            if process.dialing != attempt or process.links["right"] is not None:
                return
            address = f"member-{(process.rank + 1) % self.size}:5680"
            self._act(process, process.machine.dial_failed(address, reason, self._clock(process)))
            process.dialing += 1
            asleep = process.dialing
            self.at(process.backoff.next(), lambda: self._wake(process, asleep))

        self._when_awake(process, fail)

    def _wake(self, process: Process, asleep: int) -> None:
        if process.dialing == asleep:
            self._when_awake(process, lambda: self._dial(process))

    def _knock(self, process: Process) -> None:
        """Tell the left neighbour that it need not sleep out its backoff."""
        left = self.processes[(process.rank - 1) % self.size]
        if left is None or not left.alive or left.paused or left.rank in self.blocked:
            return
        left.backoff.reset()
        self._dial(left)

    def _accept(self, dialer: Process, attempt: int, target: Process) -> None:
        """Finish the handshake: the acceptor is linked first, the dialer one hop later."""
        if (
            not (dialer.alive and target.alive)
            or dialer.paused
            or target.paused
            or dialer.dialing != attempt
            or dialer.links["right"] is not None
            or dialer.rank in self.blocked
        ):
            self.at(self.delay(), lambda: self._dial_failed(dialer, attempt, "reset (errno 104)"))
            return
        if reason := target.machine.rival(dialer.instance):
            self.at(self.delay(), lambda: self._dial_failed(dialer, attempt, reason))
            return
        self._numbers += 1
        connection = Connection(self._numbers, dialer, target)
        hop = self.delay()
        connection.clock[1] = self.now + hop
        self.at(hop, lambda: self._when_awake(dialer, lambda: self._connected(connection, attempt)))
        old = target.links["left"]
        if old is not None and self.random.random() < 0.5:
            target.links["left"] = None
            self._act(target, target.machine.link_down("left", "replaced", self._clock(target)))
        target.links["left"] = connection
        self._link_up(target, "left", dialer)

    def _connected(self, connection: Connection, attempt: int) -> None:
        dialer, _target = connection.ends
        if dialer.dialing != attempt or dialer.links["right"] is not None:
            self._abandon(connection, dialer)
            return
        dialer.links["right"] = connection
        dialer.backoff.reset()
        self._link_up(dialer, "right", connection.ends[1])

    def _link_up(self, process: Process, side: Side, peer: Process) -> None:
        incarnation = peer.machine.incarnation
        address = f"member-{peer.rank}:5680"
        self._act(
            process,
            process.machine.link_up(
                side, incarnation, address, self._clock(process), instance=peer.instance
            ),
        )

    def _side(self, connection: Connection, process: Process) -> Side:
        return "right" if connection.ends[0] is process else "left"
