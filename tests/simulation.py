"""A ring of membership machines in virtual time, with constant checks.

Adds to the :mod:`virtual_network` disks that are slow, full or lost, and processes that crash,
pause and restart; :mod:`adversary` makes all of that happen.

What is checked at every Ready, Send and Persist:

* one generation is one ring: the same processes on the same connections, everywhere;
* rank 0 commits no generation twice, as long as it has its state file;
* the generation is on the member's disk before it is used;
* no member goes back in generations;
* messages are sent only over links that are up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from msgspec.structs import replace
from virtual_network import HOP, LOST_AFTER, Connection, Network, Process, Violation

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
from ringd.net.backoff import Backoff
from ringd.wire.link.control import Commit, MembershipMessage, News

FSYNC = 2e-3


@dataclass
class Disk:
    """What survives a crash."""

    generation: int = 0
    incarnation: int = 0
    lost: int = 0
    """How many times the state file was lost."""
    full: bool = False
    fsync: float = FSYNC


class Simulation(Network):
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
        super().__init__(size, seed, hop, jitter)
        self.machine = machine
        self.disks = [Disk() for _ in range(size)]
        self.log: list[tuple[float, int, str]] = []
        self.messages = 0
        self.rings = 0
        self._boots = 0
        self._members: dict[tuple[int, int], int] = {}
        self._links: dict[tuple[int, int], int] = {}
        self._rings: dict[int, tuple[int, ...]] = {}
        self._commits: set[tuple[int, int]] = set()
        self._used = [0] * size
        self._present: Counter[int] = Counter()
        """How many living members are in which generation."""

    def formed(self) -> bool:
        """Whether all members are in one ring."""
        return max(self._present.values(), default=0) == self.size

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

    def rejoin(self, rank: int) -> None:
        """Ask the member to rejoin, as ``ringd-cli rejoin`` does."""
        process = self.processes[rank]
        if process is not None and process.alive:
            self._when_awake(
                process, lambda: self._act(process, process.machine.rejoin(self._clock(process)))
            )

    def drain(self, rank: int, seconds: float) -> None:
        """Have the member leave the ring for *seconds*: ``ringd-cli drain``, then ``resume``."""

        def order(what: str) -> None:
            process = self.processes[rank]
            if process is not None and process.alive:
                event = getattr(process.machine, what)
                self._when_awake(process, lambda: self._act(process, event(self._clock(process))))

        order("leave")
        self.at(seconds, lambda: order("resume"))

    def misspeak(self, rank: int, about: int, sides: Sequence[Side] = ("left", "right")) -> None:
        """Have the member tell something newer of *about* than that has said, which is not so."""
        process = self.processes[rank]
        if process is None or not process.alive or process.paused:
            return
        known = process.machine._table[about]
        if known is None:
            return
        lie = replace(known, version=known.version + 1000, left_up=False, left_error="a lie")
        for side in sides:
            if process.links[side] is not None:
                self._send(process, side, News((lie,)))

    # --- what machines ask for ---------------------------------------------------------

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
        if isinstance(message, Commit):
            process.commit = message
            if process.rank == 0:
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
        # The whole ring is known from the commit that this member sent, and is that of the others.
        commit = process.commit
        if self.size == 1:
            incarnations = (process.machine.incarnation,)
        elif commit is None or commit.generation != generation:
            raise Violation(f"{rank} uses generation {generation} and has sent no commit of it")
        else:
            incarnations = commit.incarnations
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
