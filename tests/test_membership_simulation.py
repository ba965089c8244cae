"""Rings in virtual time: safe at every event under any faults, whole again when they stop."""

from __future__ import annotations

import inspect
import sys
from itertools import product
from types import ModuleType

import pytest
from adversary import Adversary
from exhaustive import usually
from simulation import FSYNC, Simulation
from virtual_network import HOP, LOST_AFTER, Violation

import ringd.membership.flooding
import ringd.membership.machine
from ringd.membership.machine import PATIENCE, Machine

# Silent connections must time out one after the other, paused processes wake up, dialers give
# up on a member that answered no more, and sleep out their last backoff.
RECOVERY = 25.0


def recover(simulation):
    """Let the ring form after the last fault; return the seconds until nothing changed any more."""
    mended = simulation.now
    simulation.run(RECOVERY)
    if not simulation.formed():
        raise Violation(f"not formed {RECOVERY} s after the last fault")
    seen = len(simulation.log)
    simulation.run(10 * RECOVERY)
    if len(simulation.log) != seen or not simulation.formed():
        raise Violation("the ring did not hold")
    return simulation.log[-1][0] - mended


def start_all(simulation, *, within=0.0):
    """Start all members in random order, at random times."""
    for rank in range(simulation.size):
        simulation.at(within * simulation.random.random(), lambda r=rank: simulation.start(r))


def storm(size, seed, *, faults=150, machine=Machine):
    """Run one seeded storm to its good end; return the simulation and its recovery time."""
    simulation = Simulation(size, seed, machine=machine)
    for rank in range(size):
        if simulation.random.random() < 0.9:  # the others come when the faults stop
            simulation.start(rank)
    pace = (0.005, 0.02, 0.1, 0.5)[seed % 4]
    Adversary(simulation, pace).run(faults * pace)
    return simulation, recover(simulation)


@pytest.mark.parametrize(
    ("size", "seeds"), [(1, 20), (2, 60), (3, 100), (4, 50), (5, 40), (8, 24), (16, 12), (64, 4)]
)
def test_storms(size, seeds):
    """No storm of faults makes an unsafe ring, and all members are in one ring after it."""
    rings = 0
    for seed in range(seeds):
        simulation, _ = storm(size, seed)
        rings += simulation.rings
    # The storms did leave room for rings to form in between.
    assert rings > 2 * seeds * size


@pytest.mark.parametrize(("size", "faults"), usually([(256, 60)], [(256, 60), (1000, 6)]))
def test_storms_over_many_members(size, faults):
    """Hundreds of members hold under the same faults."""
    simulation, _ = storm(size, size, faults=faults)
    assert simulation.formed()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 64])
def test_forms_without_waiting_for_a_timer(size):
    """With everybody listening the ring forms in about 2.5 trips and a few fsyncs."""
    simulation = Simulation(size, size, jitter=0.0)
    start_all(simulation)
    assert simulation.run(PATIENCE, until=simulation.formed)
    dial = 8 * HOP
    assert simulation.now <= (2.5 * size + 4) * HOP + 4 * FSYNC + dial


@pytest.mark.parametrize("size", [2, 3, 5, 16])
def test_nobody_sleeps_beside_a_ready_peer(size):
    """Started minutes apart in any order, the ring forms at once when the last one starts."""
    for seed in range(20):
        simulation = Simulation(size, seed)
        start_all(simulation, within=300.0)
        simulation.run(300.0, until=lambda s=simulation: None not in s.processes)
        last = simulation.now
        assert simulation.run(PATIENCE, until=simulation.formed)
        assert simulation.now - last <= 4 * size * HOP + 4 * FSYNC + 20 * HOP


@pytest.mark.parametrize("size", [2, 3, 5, 16])
def test_a_restarted_member_is_back_at_once(size):
    """Each killed member's restart gives a ready ring without anybody's backoff."""
    simulation = Simulation(size, size)
    start_all(simulation)
    simulation.run(RECOVERY)
    for rank in range(size):
        simulation.crash(rank)
        simulation.run(60.0)
        assert not simulation.formed()
        restarted = simulation.now
        simulation.start(rank)
        assert simulation.run(PATIENCE, until=simulation.formed)
        assert simulation.now - restarted <= 4 * size * HOP + 4 * FSYNC + 20 * HOP


def faults_at(size):
    """Return every single fault on a ring of *size*, by name."""
    kinds = {}
    for rank in range(size):
        kinds[f"crash {rank}"] = lambda s, r=rank: (
            s.crash(r),
            s.at(0.01, lambda: s.start(r)),
        )
        kinds[f"cut {rank}"] = lambda s, r=rank: s.cut(r, silent=False, lossy=True)
        kinds[f"late cut {rank}"] = lambda s, r=rank: s.cut(r, silent=False, lossy=False)
        kinds[f"rejoin {rank}"] = lambda s, r=rank: s.rejoin(r)
        kinds[f"drain {rank}"] = lambda s, r=rank: s.drain(r, 0.05)
        kinds[f"pause {rank}"] = lambda s, r=rank: s.pause(r, 1.5 * PATIENCE)
        kinds[f"full disk {rank}"] = lambda s, r=rank: (
            setattr(s.disks[r], "full", True),
            s.at(0.5, lambda: setattr(s.disks[r], "full", False)),
        )
        kinds[f"lie of {rank} about itself"] = lambda s, r=rank: s.misspeak(r, r)
    return kinds


def step(simulation, events):
    """Let as many events happen."""
    left = events

    def count():
        nonlocal left
        left -= 1
        return left <= 0

    if events:
        simulation.run(RECOVERY, until=count)


def sweep(size, *, machine=Machine):
    """Put every fault behind every event of a ring that forms; return the number of runs."""
    calm = Simulation(size, jitter=0.0, machine=machine)
    start_all(calm)
    events = 0
    while not calm.formed():
        step(calm, 1)
        events += 1
    for position, fault in product(range(events + 1), faults_at(size).values()):
        simulation = Simulation(size, jitter=0.0, machine=machine)
        start_all(simulation)
        step(simulation, position)
        fault(simulation)
        recover(simulation)
    return events * len(faults_at(size))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_fault_at_every_event(size):
    """Whatever happens at whichever point of forming, the ring is safe, and forms after all."""
    assert sweep(size) > 100 * size


def test_pairs_of_faults():
    """Two faults, one behind any event of forming, the other soon after it, do no harm either."""
    size = 3
    runs = 0
    kinds = sorted(faults_at(size).items())
    for position in range(12, 40, 3):
        for (_, first), (_, second) in product(kinds, kinds):
            simulation = Simulation(size, jitter=0.0)
            start_all(simulation)
            step(simulation, position)
            first(simulation)
            step(simulation, 1 + runs % 9)
            second(simulation)
            recover(simulation)
            runs += 1
    assert runs == 10 * len(kinds) ** 2


def stall_and_recover(machine=Machine):
    """Pause a member while a commit goes round, so that rank 0 starts over."""
    simulation = Simulation(5, 1, machine=machine)
    start_all(simulation)
    simulation.run(RECOVERY)
    simulation.rejoin(2)
    first = max(p.generation for p in simulation.processes)
    assert simulation.run(1.0, until=lambda: simulation.disks[0].generation > first)
    simulation.pause(3, 2.5 * PATIENCE)
    simulation.run(LOST_AFTER)
    recover(simulation)
    return simulation


def test_a_paused_member_does_not_split_the_ring():
    """Members that used a generation leave it when rank 0, not hearing back, starts over."""
    simulation = stall_and_recover()
    assert any("another round" in text for _, _, text in simulation.log)


def forget_and_recover(machine=Machine):
    """Have the two members that know the newest ring lose their state files."""
    simulation = Simulation(3, 1, machine=machine)
    start_all(simulation)
    simulation.run(RECOVERY)
    newest = simulation.processes[1].generation + 1
    simulation.disks[2].fsync = RECOVERY
    simulation.rejoin(1)
    assert simulation.run(LOST_AFTER, until=lambda: simulation.processes[1].generation == newest)
    simulation.disks[2].fsync = FSYNC
    for rank in (2, 1, 0):
        simulation.crash(rank, lose_state=rank != 2)
    assert [disk.generation for disk in simulation.disks] == [0, 0, newest - 1]
    start_all(simulation)
    recover(simulation)
    return simulation.processes[0].generation - newest


def test_a_generation_that_nobody_remembers_is_not_used_again():
    """A rank 0 without its state file leaves out more than may have been forgotten."""
    assert forget_and_recover() > 1


def lie_and_recover(machine=Machine):
    """Have each member tell what is not so of each one, to one neighbour or both; count them."""
    lies = list(product(range(3), range(3), (("left",), ("right",), ("left", "right"))))
    for rank, about, sides in lies:
        simulation = Simulation(3, 1, machine=machine)
        start_all(simulation)
        simulation.run(RECOVERY)
        simulation.misspeak(rank, about, sides)
        simulation.run(1.0)
        simulation.drain(0, 0.05)  # the ring forms anew over the same links
        recover(simulation)
    return len(lies)


def test_what_a_member_never_said_is_outbid():
    """Whoever told it, of whom, and to whom: the ring forms, and no link has to change for it."""
    assert lie_and_recover() == 3 * 3 * 3


def test_a_clock_that_jumps_does_no_harm():
    """A day that passes in a sleep ends no ring and starts no round."""
    simulation = Simulation(3, 1)
    start_all(simulation)
    simulation.run(RECOVERY)
    seen = len(simulation.log)
    simulation.pause(0, LOST_AFTER / 2, jump=True)
    simulation.run(RECOVERY)
    assert len(simulation.log) == seen


def test_a_lost_state_file_reuses_nothing():
    """A member without its state file takes a new incarnation and no old generation."""
    for rank in range(3):
        simulation = Simulation(3, rank)
        start_all(simulation)
        simulation.run(RECOVERY)
        before = simulation.processes[0].generation
        simulation.crash(rank, lose_state=True)
        simulation.run(1.0)
        simulation.start(rank)
        recover(simulation)
        assert simulation.processes[0].generation > before
        assert simulation.disks[rank].incarnation == 2


def test_a_full_disk_where_the_state_file_was_lost_is_told():
    """Not what the member said in its former life, which it cannot outbid as yet."""
    for rank in range(3):
        simulation = Simulation(3, rank)
        start_all(simulation)
        simulation.run(RECOVERY)
        former = simulation.processes[rank]
        simulation._act(former, former.machine.leave(simulation.now))
        simulation.run(1.0)
        simulation.crash(rank, lose_state=True)
        simulation.run(1.0)
        simulation.disks[rank].full = True
        simulation.start(rank)
        simulation.run(RECOVERY)
        for process in simulation.processes:
            assert process.machine.missing() == {rank: "state file: disk full"}
        simulation.disks[rank].full = False
        recover(simulation)
        assert simulation.disks[rank].incarnation == 2


MUTANTS = {
    "ready before it is on disk": (
        '            self._out.append(Send("right", commit))\n',
        """\
            self._out.append(Send("right", commit))
            self._enter(commit.generation)
""",
    ),
    "sent before it is on disk": (
        "        self._storage.want(generation=self._seen)\n",
        """\
        self._storage.want(generation=self._seen)
        self._out.append(Send("right", current.commit))
""",
    ),
    "a commit outlives a lost link": (
        "        self._proposal = self._commit = self._round = None\n        if self.in_ring",
        "        self._proposal = self._round = None\n        if self.in_ring",
    ),
    "a round outlives a lost link": (
        "        self._proposal = self._commit = self._round = None\n        if self.in_ring",
        "        self._proposal = self._commit = None\n        if self.in_ring",
    ),
    "a rank 0 without memory leaves no gap": (
        "1 if self._seen <= self._storage.wanted.generation else GAP",
        "1",
    ),
    "proposals pass whatever is missing": (
        "        if self._able() and propose.incarnations",
        "        if propose.incarnations",
    ),
    "news ends no ring": ("        if moved is not None:", "        if False:"),
    "news goes no further": ("sends = self._tell(other, merge.changed)", "sends = []"),
    "nobody hears what is believed of it": (
        "            sends += self._tell(side, of_itself)\n",
        "            pass\n",
    ),
    "a new neighbour hears no old news": ("News(self.table.known())", "News(())"),
    "another round ends no ring": ("        self._interrupt(Event.ROUND)\n", ""),
    "what the others believe is ignored": (
        "state.rank == self.rank and is_newer(state, own)",
        "False",
    ),
    "disks are not tried again": ("        self._storage.tick(now)\n", ""),
}
"""Machines with one rule less."""


def mutant(old, new):
    """Return a Machine whose source, of one module or the other, has *new* in place of *old*."""
    found = 0
    with pytest.MonkeyPatch.context() as patch:
        for original in (ringd.membership.flooding, ringd.membership.machine):
            source = inspect.getsource(original)
            found += source.count(old)
            module = ModuleType(original.__name__)
            patch.setitem(sys.modules, module.__name__, module)  # for dataclasses and imports
            code = compile(source.replace(old, new), module.__name__, "exec")
            exec(code, module.__dict__)  # noqa: S102 - what a mutant is
    assert found == 1
    return module.Machine


def find_fault(machine):
    """Put *machine* through storms and scenes until a check fails."""
    stall_and_recover(machine)
    forget_and_recover(machine)
    lie_and_recover(machine)
    for seed in range(120):
        storm(3 + 2 * (seed % 2), seed, machine=machine)


@pytest.mark.parametrize("name", MUTANTS)
def test_checks_notice_a_broken_machine(name):
    """The checks can fail: each machine with one rule less is found out."""
    machine = mutant(*MUTANTS[name])
    with pytest.raises((AssertionError, KeyError)):
        find_fault(machine)
