"""A ring of membership machines in virtual time, with seeded faults and constant checks.

Around the machines it models what a real daemon has: a dialer with backoff for the right
neighbour, a listener, a knock at the left neighbour on start, FIFO connections whose two ends
learn of their death at different times, disks that are slow, full or lost, and processes that
crash, pause and restart.

What is checked at every Ready, Send and Persist:

* one generation is one ring: the same processes on the same connections, everywhere;
* rank 0 commits no generation twice, as long as it has its state file;
* the generation is on the member's disk before it is used;
* no member goes back in generations;
* messages are sent only over links that are up.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from ringd.membership.backoff import Backoff
from ringd.membership.machine import (
    Action,
    Broken,
    Changed,
    DropLinks,
    Machine,
    Persist,
    Ready,
    Send,
    Side,
    State,
)
from ringd.wire.control import Commit, MembershipMessage

HOP = 150e-6
FSYNC = 2e-3
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
    generation: int = 0
    """Of the ring in use; 0 without one."""


@dataclass
class Disk:
    """What survives a crash."""

    generation: int = 0
    incarnation: int = 0
    lost: int = 0
    """How many times the state file was lost."""
    full: bool = False
    fsync: float = FSYNC


class Simulation:
    """A ring of *size* members, none of them started yet."""

    def __init__(
        self,
        size: int,
        seed: int = 0,
        *,
        hop: float = HOP,
        jitter: float = 0.3,
        machine: type[Machine] = Machine,
    ) -> None:
        self.size = size
        self.random = Random(seed)
        self.now = 0.0
        self.hop = hop
        self.jitter = jitter
        self.machine = machine
        self.processes: list[Process | None] = [None] * size
        self.disks = [Disk() for _ in range(size)]
        self.blocked: set[int] = set()
        """Ranks r whose link to r + 1 carries nothing."""
        self.log: list[tuple[float, int, str]] = []
        self.messages = 0
        self.rings = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = 0
        self._boots = 0
        self._busy = 0
        self._members: dict[tuple[int, int], int] = {}
        self._links: dict[tuple[int, int], int] = {}
        self._rings: dict[int, tuple[int, ...]] = {}
        self._commits: set[tuple[int, int]] = set()
        self._used = [0] * size
        self._present: Counter[int] = Counter()
        """How many living members are in which generation."""

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

    def formed(self) -> bool:
        """Whether all members are in one ring."""
        return max(self._present.values(), default=0) == self.size

    def delay(self) -> float:
        """Return how long the next message takes."""
        return self.hop * (1 + self.jitter * self.random.random())

    # --- lives ------------------------------------------------------------------------

    def start(self, rank: int) -> None:
        """Start the daemon of *rank* unless it runs, as its service manager would."""
        running = self.processes[rank]
        if running is not None and running.alive:
            return
        disk = self.disks[rank]
        disk.incarnation += 1
        self._boots += 1
        process = Process(
            rank,
            self._boots,
            self.machine(rank, self.size, disk.incarnation, disk.generation),
            Backoff(0.1, 2.0, Random(self.random.random())),
        )
        self.processes[rank] = process
        self._act(process, process.machine.start(self.now))
        self._dial(process)
        self.at(4 * self.delay(), lambda: self._knock(process))

    def crash(self, rank: int, *, lose_state: bool = False, silent: bool = False) -> None:
        """Kill the daemon of *rank*; *silent*: its machine as well, so no socket is closed."""
        process = self.processes[rank]
        if process is None or not process.alive:
            return
        process.alive = False
        self._leave(process)
        for side, connection in process.links.items():
            if connection is not None:
                self._abandon(connection, process, silent=silent)
                process.links[side] = None
        if lose_state and self.remembered_without(rank):
            disk = self.disks[rank]
            disk.generation = disk.incarnation = 0
            disk.lost += 1

    def remembered_without(self, rank: int) -> bool:
        """Whether the members may lose the state file of *rank*.

        What nobody has on disk any more, nobody can avoid using again: another member must have
        taken part in the newest ring, or the one before.
        """
        others = max((d.generation for r, d in enumerate(self.disks) if r != rank), default=0)
        return others >= max(1, max(self._used) - 1)

    def pause(self, rank: int, seconds: float, *, jump: bool = False) -> None:
        """Stop the process for a while; *jump*: its clock goes on a day at its end."""
        process = self.processes[rank]
        if process is None or not process.alive or process.paused:
            return
        process.paused = True
        for side in ("left", "right"):
            connection = process.links[side]
            if connection is not None and seconds > LOST_AFTER:
                other = connection.ends[connection.ends[0] is process]
                silence = LOST_AFTER + self.random.random() / 4
                self.at(silence, partial(self._hang_up, connection, other, process))

        def resume() -> None:
            process.paused = False
            process.clock_offset += 86400.0 if jump else 0.0
            backlog, process.backlog = process.backlog, []
            for action in backlog:
                self._when_awake(process, action)
            self._when_awake(process, lambda: self._tick(process))

        self.at(seconds, resume)

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

    def rejoin(self, rank: int) -> None:
        """Ask the member to rejoin, as ``ringd-cli rejoin`` does."""
        process = self.processes[rank]
        if process is not None and process.alive:
            self._when_awake(
                process, lambda: self._act(process, process.machine.rejoin(self._clock(process)))
            )

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
            process, process.machine.link_up(side, incarnation, address, self._clock(process))
        )

    def _side(self, connection: Connection, process: Process) -> Side:
        return "right" if connection.ends[0] is process else "left"

    # --- what machines ask for ---------------------------------------------------------

    def _clock(self, process: Process) -> float:
        return self.now + process.clock_offset

    def _when_awake(self, process: Process, action: Callable[[], None]) -> None:
        """Do it now, or when the paused process goes on, or never when it is dead."""
        if process.paused:
            process.backlog.append(action)
        elif process.alive:
            action()

    def _act(self, process: Process, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._send(process, action.side, action.message)
            elif isinstance(action, Persist):
                if action is not actions[-1]:
                    raise Violation("a Persist is not the last action")
                self._persist(process, action)
            elif isinstance(action, Ready):
                self._ready(process, action.generation)
            elif isinstance(action, Broken):
                self._broken(process, action.reason)
            elif isinstance(action, DropLinks):
                self._drop_links(process, action)
            elif isinstance(action, Changed):
                self._note(process, f"{action.old.value} -> {action.new.value}: {action.reason}")
        state = process.machine.state
        if state is not State.DRAINING and (state is State.READY) != (process.generation > 0):
            raise Violation(f"{process.rank} is {state} in generation {process.generation}")
        self._schedule_tick(process)

    def _broken(self, process: Process, reason: str) -> None:
        if not process.generation:
            raise Violation(f"{process.rank} breaks a ring that it was not in")
        self._leave(process)
        self._note(process, f"broken: {reason}")

    def _leave(self, process: Process) -> None:
        if process.generation:
            self._present[process.generation] -= 1
            process.generation = 0

    def _drop_links(self, process: Process, action: DropLinks) -> None:
        for side in action.sides:
            connection = process.links[side]
            if connection is not None:
                process.links[side] = None
                self._abandon(connection, process)
        process.backoff.reset()
        self._dial(process)

    def _schedule_tick(self, process: Process) -> None:
        deadline = process.machine.next_deadline
        if deadline is None or deadline == process.ticking:
            return
        process.ticking = deadline
        wait = max(0.0, deadline - self._clock(process))
        self.at(wait, lambda: self._when_awake(process, lambda: self._tick(process)))

    def _tick(self, process: Process) -> None:
        process.ticking = None
        self._act(process, process.machine.tick(self._clock(process)))

    def _send(self, process: Process, side: Side, message: MembershipMessage) -> None:
        connection = process.links[side]
        if connection is None:
            raise Violation(f"{process.rank} sends over its {side} link, which is down")
        if isinstance(message, Commit) and process.rank == 0:
            key = (self.disks[0].lost, message.generation)
            if key in self._commits:
                raise Violation(f"generation {message.generation} is committed twice")
            self._commits.add(key)
        self.messages += 1
        towards = 0 if side == "right" else 1
        other = connection.ends[1 - towards]
        arrival = max(connection.clock[towards], self.now + self.delay())
        connection.clock[towards] = arrival
        self.at(arrival - self.now, lambda: self._deliver(connection, other, message))

    def _deliver(
        self, connection: Connection, process: Process, message: MembershipMessage
    ) -> None:
        if connection.lossy:
            return

        def receive() -> None:
            side = self._side(connection, process)
            if process.links[side] is connection:
                self._act(process, process.machine.received(side, message, self._clock(process)))

        self._when_awake(process, receive)

    def _persist(self, process: Process, persist: Persist) -> None:
        disk = self.disks[process.rank]
        if process.writing:
            raise Violation(f"{process.rank} writes its state twice at once")
        process.writing = True

        def done() -> None:
            process.writing = False
            if disk.full:
                actions = process.machine.persist_failed("disk full", self._clock(process))
            else:
                disk.generation = persist.generation
                disk.incarnation = persist.incarnation
                actions = process.machine.persisted(persist.generation, self._clock(process))
            self._act(process, actions)

        def finish() -> None:
            # A crash in the middle of it leaves either the old state or the new one. The
            # service manager starts a daemon only when the old one is gone, and so is this.
            if process.alive:
                self._when_awake(process, done)
            elif self.processes[process.rank] is process and self.random.random() < 0.5:
                disk.generation = max(disk.generation, persist.generation)
                disk.incarnation = max(disk.incarnation, persist.incarnation)

        self.at(disk.fsync * (1 + self.random.random()), finish)

    def _ready(self, process: Process, generation: int) -> None:
        rank = process.rank
        if self.disks[rank].generation != generation:
            raise Violation(f"{rank} uses generation {generation} without having it on disk")
        if generation <= self._used[rank]:
            raise Violation(f"{rank} goes from generation {self._used[rank]} to {generation}")
        self._used[rank] = generation
        # The whole ring is known from this member's word, and must be what others said.
        ring = process.machine._ring
        assert ring is not None
        incarnations = ring.incarnations
        if self._rings.setdefault(generation, incarnations) != incarnations:
            raise Violation(f"two rings of generation {generation}")
        if self._members.setdefault((generation, rank), process.boot) != process.boot:
            raise Violation(f"two lives of {rank} in generation {generation}")
        for side, link in (("left", (rank - 1) % self.size), ("right", rank)):
            connection = process.links[side]  # type: ignore[index]  # a Side in all but type
            number = connection.number if connection is not None else 0
            if self.size > 1 and not number:
                raise Violation(f"{rank} is in generation {generation} without a {side} link")
            if self._links.setdefault((generation, link), number) != number:
                raise Violation(f"ends of link {link} differ in generation {generation}")
        process.generation = generation
        self._present[generation] += 1
        self.rings += 1
        self._note(process, f"ready in generation {generation}")

    def _note(self, process: Process, text: str) -> None:
        self.log.append((self.now, process.rank, text))


class Adversary:
    """Breaks things at random for a while, then lets everybody recover.

    Args:
        simulation: What to break.
        pace: Mean seconds between two faults.
        forgetful: Whether crashes may take state files with them.
    """

    def __init__(self, simulation: Simulation, pace: float, *, forgetful: bool = True) -> None:
        self.simulation = simulation
        self.pace = pace
        self.forgetful = forgetful
        self.faults: dict[str, int] = {}
        self._stopped = False
        self._kinds: list[tuple[str, Callable[[int], Any]]] = [
            ("cut", self._cut),
            ("crash", self._crash),
            ("crash of many", self._crash_many),
            ("pause", self._pause),
            ("partition", self._partition),
            ("slow disk", self._slow_disk),
            ("full disk", self._full_disk),
            ("rejoin", simulation.rejoin),
            ("flap", self._flap),
        ]

    def run(self, seconds: float) -> None:
        """Break things for *seconds*, then mend everything."""
        simulation = self.simulation
        self._next()
        simulation.run(seconds)
        self._stopped = True
        simulation.blocked.clear()
        for rank, disk in enumerate(simulation.disks):
            disk.full = False
            disk.fsync = FSYNC
            simulation.start(rank)

    def _next(self) -> None:
        if self._stopped:
            return
        random = self.simulation.random
        name, fault = random.choice(self._kinds)
        self.faults[name] = self.faults.get(name, 0) + 1
        fault(random.randrange(self.simulation.size))
        self.simulation.at(random.expovariate(1 / self.pace), self._next)

    def _brief(self) -> float:
        """Return a time that is often of the order of a hop, sometimes of seconds."""
        random = self.simulation.random
        return float(
            random.choice((HOP, 10 * HOP, 10 * HOP, 0.02, 0.1, 1.0)) * random.uniform(0.1, 3.0)
        )

    def _cut(self, rank: int) -> None:
        random = self.simulation.random
        self.simulation.cut(rank, silent=random.random() < 0.2, lossy=random.random() < 0.5)

    def _flap(self, rank: int) -> None:
        for _ in range(3):
            self.simulation.at(self._brief(), lambda: self._cut(rank))

    def _crash(self, rank: int) -> None:
        random = self.simulation.random
        self.simulation.crash(
            rank,
            lose_state=self.forgetful and random.random() < 0.2,
            silent=random.random() < 0.2,
        )
        self.simulation.at(self._brief(), lambda: self.simulation.start(rank))

    def _crash_many(self, rank: int) -> None:
        size = self.simulation.size
        for step in range(self.simulation.random.randint(2, max(2, size // 2))):
            self._crash((rank + step) % size)

    def _pause(self, rank: int) -> None:
        random = self.simulation.random
        self.simulation.pause(rank, 3 * self._brief(), jump=random.random() < 0.3)

    def _partition(self, rank: int) -> None:
        other = self.simulation.random.randrange(self.simulation.size)
        for link in (rank, other):
            self.simulation.block(link)
            self.simulation.at(2 * self._brief(), partial(self.simulation.unblock, link))

    def _slow_disk(self, rank: int) -> None:
        disk = self.simulation.disks[rank]
        disk.fsync = self._brief()
        self.simulation.at(self._brief(), lambda: setattr(disk, "fsync", FSYNC))

    def _full_disk(self, rank: int) -> None:
        disk = self.simulation.disks[rank]
        disk.full = True
        self.simulation.at(self._brief(), lambda: setattr(disk, "full", False))
