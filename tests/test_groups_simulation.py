"""Every fault point of small rings, and seeded storms of faults on larger ones.

:class:`groups_witness.Witness` checks each value, each error's reason and that nothing is applied
twice, :class:`groups_simulation.Sim` that every call ends and that nothing is left over; a test
here only picks the faults.
"""

from __future__ import annotations

import dataclasses
from random import Random

import pytest
from exhaustive import usually
from groups_model_calls import Spec, Violation
from groups_simulation import Sim

from ringd.errors import GroupLost
from ringd.groups.absences import Absences
from ringd.groups.caller import Caller
from ringd.groups.calls import Calls
from ringd.groups.channels import Key
from ringd.groups.offers import Offers
from ringd.groups.op import OK, Phase
from ringd.groups.polls import Polls
from ringd.groups.roll import Roll
from ringd.groups.seat import Before, Seat
from ringd.groups.session import Part

SMALL = {
    "g": [Spec("inline"), Spec("large", apart=True), Spec("large", hold=True), Spec("bare")],
    "h": [Spec("eager", hold=True), Spec("large", hold=True, apart=True), Spec("inline")],
}
TINY = {"g": [Spec("large"), Spec("eager", hold=True)]}


def strike(sim, fault):
    """Return what does *fault* to *sim*: a kind and, where it has one, a rank."""
    kind, rank = fault

    def act():
        if kind == "cut":
            sim.cut_link()
        if kind == "all":
            for other in range(sim.n):
                sim.crash_daemon(other)
        if kind in ("daemon", "machine"):
            sim.crash_daemon(rank)
        if kind in ("client", "machine"):
            sim.kill_client(rank, "g")

    return act


def faults(n):
    """Return every kind of fault on every rank of a ring of *n*."""
    each = [(kind, rank) for kind in ("daemon", "client", "machine") for rank in range(n)]
    return [("cut", 0), ("all", 0), *each]


def points(n, seed, programs):
    """Return how many messages and actions an undisturbed run has."""
    sim = Sim(n, seed, programs)
    sim.finish()
    assert set(sim.witness.outcomes) == {OK}
    return sim.points


STRIDES = {size: usually(stride, 1) for size, stride in {1: 1, 2: 2, 3: 7, 4: 23}.items()}
"""By ring size: every stride-th point is struck, shifted for each fault, to save time."""


@pytest.mark.parametrize("n", STRIDES)
def test_one_fault_at_every_point(n):
    """A crash, a death or a cut before and after each message and action is survived."""
    stride = STRIDES[n]
    last = points(n, n, SMALL)
    for offset, fault in enumerate(faults(n)):
        for point in range(1 + offset % stride, last + 1, stride):
            sim = Sim(n, n, SMALL)
            sim.injections[point] = strike(sim, fault)
            sim.finish()
            if fault[0] in ("cut", "daemon", "all"):
                assert set(sim.witness.outcomes) == {OK}, (fault, point)


def test_two_faults_at_every_pair_of_points():
    """A second fault strikes while the ring of two still recovers from the first."""
    last = points(2, 5, TINY)
    kinds = faults(2)
    for first in range(1, last + 1, 5):
        for second in range(first + 1, last + 90, 7):
            sim = Sim(2, 5, TINY)
            sim.injections[first] = strike(sim, kinds[(first + second) % len(kinds)])
            sim.injections[second] = strike(sim, kinds[second % len(kinds)])
            sim.finish()


LONG = {"g": [Spec("inline")] * 5}


def faults_after_a_death(cuts=18, crashes=14):
    """Kill a client, and soon after disturb how the others learn of it, at many points.

    Guards: that GroupLost names who left first, and no survivor that left because of that.
    """
    last = points(3, 4, LONG)
    daemons = [("daemon", 0), ("daemon", 2)]
    for every, step, end, kinds in ((cuts, 1, 60, [("cut", 0)]), (crashes, 3, 100, daemons)):
        for first in range(1, last + 1, every):
            for second in range(first + 1, first + end, step):
                sim = Sim(3, 4, LONG)
                sim.injections[first] = strike(sim, ("client", 1))
                sim.injections[second] = strike(sim, kinds[second % len(kinds)])
                sim.finish()


def with_deadline(seed, n, spec, *, rank, timeout, **options):
    """Return a ring in which one op is called, with a deadline in milliseconds on *rank*."""

    def hurried(client, _seq):
        return dataclasses.replace(spec, timeout=timeout / 1000) if client.rank == rank else spec

    return Sim(n, seed, {"g": [spec]}, spec=hurried, **options)


def deadlines_of_lenders(n, seeds=4):
    """Let a lender's deadline pass at every half millisecond of a call that all lend to.

    Guards: that a poll counts a result that stands, but of which its client was not told yet.
    """
    for seed in range(seeds):
        for half in range(1, 140):
            spec = Spec("large", hold=True)
            with_deadline(seed, n, spec, rank=seed % n, timeout=half / 2).finish()


def late_lenders(seeds=4):
    """Let a lender's deadline pass while the others' results are not safe, and restart daemons.

    Guards: that a lender which is told its result leaves its input as it is.
    """

    def spec(client, _seq):
        if client.rank:
            return Spec("large", told=True)
        return Spec("large", hold=True, timeout=0.05)

    for seed in range(seeds):
        for point in range(1, 170):
            sim = Sim(3, seed, {"g": [Spec("large")]}, spec=spec, survive=0.0, pipe=60.0)
            sim.injections[point] = strike(sim, ("daemon", 1 + point % 2))
            sim.finish()


def test_what_a_late_lender_leaves_serves_the_others():
    """It has its result, and may write to its array; the others get the right sum yet."""
    late_lenders(usually(10, 40))


def late_resubmissions(seeds=4):
    """Restart a daemon during a call, whose deadline passes elsewhere about when it is back.

    Guards: that no poll is answered for a client that has yet to say how its calls ended. The
    clients are slow, so that there is time between their coming back and their saying so.
    """
    spec = Spec("large")
    for seed in range(seeds):
        last = points(2, seed, {"g": [spec]})
        for point in range(1, last + 1, 3):
            for timeout in range(3 * (1 + point % 3), 300, 9):
                sim = with_deadline(seed, 2, spec, rank=0, timeout=timeout, survive=1.0, pipe=60.0)
                sim.injections[point] = strike(sim, ("daemon", 1))
                sim.finish()


def draw_parts(rng, n):
    """Return who takes part in a group on *n* members: some of them, some with several programs."""
    members = tuple(sorted(rng.sample(range(n), rng.randint(1, n))))
    sizes = {member: rng.choice([1, 1, 2, 3]) for member in members}
    return parts_of(sizes, n, order=rng if rng.random() < 0.5 else None)


def parts_of(sizes, n, *, order=None):
    """Return the parts of programs, so many on each member of *n*; in a random *order* of ranks."""
    members, ordered = tuple(sorted(sizes)), False
    if order is not None:
        ranks = [member for member in sizes for _ in range(sizes[member])]
        order.shuffle(ranks)
        members, ordered = tuple(ranks), True
    elif len(members) == n:
        members = ()
    return {
        member: [Part(local_rank, size, members, ordered) for local_rank in range(size)]
        for member, size in sizes.items()
    }


SHARED = {
    "two programs on one member": (1, {0: 2}),
    "two and one": (2, {0: 2, 1: 1}),
    "a part of the members": (3, {0: 1, 2: 1}),
    "a part, with two on one": (3, {1: 2, 2: 1}),
}


@pytest.mark.parametrize("layout", SHARED)
@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
def test_one_fault_at_every_point_of_shared_members(layout, shuffled):
    """As above, where members have several programs of a group, or none."""
    n, sizes = SHARED[layout]
    order = Random(8) if shuffled else None
    parts = {group: parts_of(sizes, n, order=order) for group in SMALL}
    undisturbed = Sim(n, n, SMALL, parts=parts)
    undisturbed.finish()
    assert set(undisturbed.witness.outcomes) == {OK}
    stride = usually({1: 7, 2: 11, 3: 23}[n], 1)
    for offset, fault in enumerate(faults(n)):
        for point in range(1 + offset % stride, undisturbed.points + 1, stride):
            sim = Sim(n, n, SMALL, parts=parts)
            sim.injections[point] = strike(sim, fault)
            sim.finish()
            if fault[0] in ("cut", "daemon", "all"):
                assert set(sim.witness.outcomes) == {OK}, (fault, point)


def draw_channels(rng, size):
    """Return what the ranks of a group of *size* send each other."""
    kinds = ["inline", "eager", "large", "bare"]
    return {
        Key(*rng.sample(range(size), 2), rng.randrange(3)): [
            Spec(rng.choice(kinds), apart=rng.random() < 0.3) for _ in range(rng.randint(1, 5))
        ]
        for _ in range(rng.randint(0, 4))
        if size > 1
    }


MESSAGES = {
    Key(0, 1, 0): [Spec("inline"), Spec("large", hold=True), Spec("eager")],
    Key(1, 0, 0): [Spec("bare", apart=True), Spec("inline")],
    Key(1, 2, 5): [Spec("large"), Spec("inline")],
}
CALLS = {"g": [Spec("inline"), Spec("large")]}


@pytest.mark.parametrize("layout", ["one each", "two and one"])
def test_one_fault_at_every_point_of_messages(layout):
    """Each message arrives once, or both ends hear that it does not."""
    n, sizes = (3, {0: 1, 1: 1, 2: 1}) if layout == "one each" else (2, {0: 2, 1: 1})
    options = {"parts": {"g": parts_of(sizes, n)}, "channels": {"g": MESSAGES}}
    undisturbed = Sim(n, n, CALLS, **options)
    undisturbed.finish()
    assert set(undisturbed.witness.outcomes) == {OK}
    stride = usually(11, 1)
    for offset, fault in enumerate(faults(n)):
        for point in range(1 + offset % stride, undisturbed.points + 1, stride):
            sim = Sim(n, n, CALLS, **options)
            sim.injections[point] = strike(sim, fault)
            sim.finish()
            if fault[0] in ("cut", "daemon", "all"):
                assert set(sim.witness.outcomes) == {OK}, (fault, point)


def chaos(n, seed, *, most=12, shared=False, messages=False):
    """Run random programs under random faults, all drawn from *seed*.

    *shared*: each group has a random number of programs on each member. *messages*: its ranks send
    each other some.
    """
    rng = Random(seed)
    deadlines, mismatches, failing = seed % 3 == 0, seed % 4 == 1, seed % 5 == 2

    def draw():
        kind = rng.choice(["inline", "eager", "large", "bare"])
        hold = kind in ("eager", "large") and rng.random() < 0.4
        hasty = deadlines and rng.random() < 0.25
        timeout = rng.uniform(0.001, 0.3) if hasty else None
        apart = kind in ("large", "bare") and rng.random() < 0.5
        return Spec(kind, hold=hold, timeout=timeout, apart=apart)

    groups = "gh"[: rng.randint(1, 2)]
    programs = {group: [draw() for _ in range(rng.randint(1, 6))] for group in groups}
    odd = {(rng.randrange(n), rng.choice(groups), rng.randrange(6)) for _ in range(3)}

    def spec(client, seq):
        plain = client.specs[seq]
        other = mismatches and (client.rank, client.group, seq) in odd
        return dataclasses.replace(plain, shape=2) if other else plain

    parts = {group: draw_parts(rng, n) for group in programs} if shared else None
    sizes = {
        group: n if parts is None else sum(map(len, parts[group].values())) for group in programs
    }
    channels = {group: draw_channels(rng, sizes[group]) for group in sizes} if messages else None
    sim = Sim(
        n,
        seed,
        programs,
        parts=parts,
        channels=channels,
        depth=rng.randint(1, 4),
        spec=spec,
        on_loss=lambda rank, group: "fail" if failing and group == "g" and rank % 2 else "wait",
        survive=rng.choice([0.0, 0.5, 1.0]),
        pipe=rng.choice([1.0, 1.0, 60.0]),
    )
    if failing:
        sim.witness.unkind.add("g")
    span = rng.choice([0.05, 0.15, 0.5])
    for _ in range(rng.randint(1, most)):
        sim.after(rng.uniform(0, span), draw_fault(sim, rng, groups))
    sim.run(lambda: sim.now > span, span + 1)
    sim.finish()
    return sim


def draw_fault(sim, rng, groups):
    """Return a random fault."""
    kind = rng.choice(["daemon", "daemon", "cut", "client", "leave", "machine", "all"])
    rank, group, down = rng.randrange(sim.n), rng.choice(groups), rng.choice([0.001, 0.03, 0.2])

    def act():
        if kind == "cut":
            sim.cut_link()
        if kind == "all":
            for other in range(sim.n):
                sim.crash_daemon(other, down * (1 + other) / sim.n)
        if kind in ("daemon", "machine"):
            sim.crash_daemon(rank, down)
        if kind in ("client", "leave", "machine"):
            sim.kill_client(rank, group, leaves=kind == "leave")

    return act


@pytest.mark.parametrize(
    ("n", "seeds"), [(2, 300), (3, 250), (4, 150), (7, 60), (16, 8), (64, 1)], ids=str
)
def test_random_storms(n, seeds):
    """Whatever strikes, every value is right and every call ends."""
    outcomes = set()
    for seed in range(seeds):
        outcomes |= set(chaos(n, seed).witness.outcomes)
    assert OK in outcomes
    if seeds > 50:  # the storms were rough enough to mean something
        errors = {"group_lost", "peer_lost", "deadline_exceeded", "mismatch"}
        assert outcomes == {OK} | errors


@pytest.mark.parametrize(("n", "seeds"), [(1, 60), (2, 200), (3, 150), (5, 60), (16, 6)], ids=str)
def test_random_storms_on_shared_members(n, seeds):
    """Whatever strikes groups with any number of programs on any of the members, the same."""
    outcomes = set()
    for seed in range(seeds):
        outcomes |= set(chaos(n, seed, shared=True).witness.outcomes)
    assert OK in outcomes


@pytest.mark.parametrize(("n", "seeds"), [(1, 40), (2, 150), (3, 150), (5, 60), (9, 10)], ids=str)
@pytest.mark.parametrize("shared", [False, True], ids=["one each", "shared"])
def test_random_storms_with_messages(n, seeds, shared):
    """Whatever strikes, each message arrives once, or both ends hear that it does not."""
    outcomes = set()
    for seed in range(seeds):
        outcomes |= set(chaos(n, seed, shared=shared, messages=True).witness.outcomes)
    assert OK in outcomes


# --- the checks themselves ------------------------------------------------------------


def storms():
    """Run enough to catch an engine that breaks a promise."""
    for point in range(1, 200):
        sim = Sim(2, point, SMALL, survive=0.0, pipe=60.0)
        sim.injections[point] = strike(sim, ("daemon", point % 2))
        sim.finish()
    for seed in range(120):
        chaos(2 + seed % 3, seed)
    faults_after_a_death()
    deadlines_of_lenders(2)
    deadlines_of_lenders(3)
    late_resubmissions()


def test_a_sound_engine_passes():
    """What catches the broken ones below finds nothing wrong as it is."""
    storms()


def forget_lenders(monkeypatch):
    """Tell lenders as soon as their own result stands."""
    monkeypatch.setattr(Calls, "ranks_that_may_need_input", lambda *_: [])


def trust_the_messenger(monkeypatch):
    """Take an unsealed, unacknowledged result for safe."""
    monkeypatch.setattr(Caller, "has", lambda _self, op: bool(op.ended and op.submission))


def serve_nobody(monkeypatch):
    """Never serve those that missed the end."""
    start = Offers._start

    def mutant(self, op, calls, *, eager):
        if op.phase is not Phase.ENDED:
            start(self, op, calls, eager=eager)

    monkeypatch.setattr(Offers, "_start", mutant)


def keep_quiet_about_the_absent(monkeypatch):
    """Let others wait for a client that is gone for good."""
    monkeypatch.setattr(Roll, "_check_absent", lambda *_: None)


def leak(monkeypatch):
    """Do not free what failed."""

    def mutant(self, op):
        self._caller.tell_outcome(op, self._ledger.released)

    monkeypatch.setattr(Calls, "tell_failure", mutant)


def count_only_what_was_told(monkeypatch):
    """Say in a poll that a result which is held back is none."""
    answer = Polls._answer

    def mutant(self, origin, seq, poll, now):
        op = self._calls.ops.get(seq)
        if op is not None and not op.ended and op.has_result:
            op.polls.add(poll.poll_id)
            self._relay(origin, seq, poll)
        else:
            answer(self, origin, seq, poll, now)

    monkeypatch.setattr(Polls, "_answer", mutant)


def answer_for_the_silent(monkeypatch):
    """Answer polls for a client that is back and has not said yet how its calls ended."""
    monkeypatch.setattr(Caller, "returning", False)


def blame_survivors(monkeypatch):
    """Say of one that leaves because of a loss only that it leaves."""
    admit = Roll.admit

    def mutant(self, seat, join_ids):
        seat.before = Before()
        admit(self, seat, join_ids)

    monkeypatch.setattr(Roll, "admit", mutant)
    monkeypatch.setattr(Seat, "_cause", lambda _self, message: (GroupLost.code, message))


def forget_why_survivors_came(monkeypatch):
    """Take a survivor that joins anew at its restarted daemon for a stranger."""
    replaced = Absences._replaced

    def mutant(self, join_id, absent, _successor):
        return replaced(self, join_id, absent, Before())

    monkeypatch.setattr(Absences, "_replaced", mutant)


def let_lenders_write(monkeypatch):
    """Do not say that others may need what a call had lent which its deadline has ended."""
    tell = Caller.tell_outcome
    monkeypatch.setattr(
        Caller, "tell_outcome", lambda self, op, released, **_: tell(self, op, released)
    )


@pytest.mark.parametrize(
    ("mutate", "trial"),
    [
        (forget_lenders, storms),
        (trust_the_messenger, storms),
        (serve_nobody, storms),
        (keep_quiet_about_the_absent, storms),
        (leak, storms),
        (let_lenders_write, late_lenders),
        (count_only_what_was_told, lambda: deadlines_of_lenders(2)),
        (answer_for_the_silent, late_resubmissions),
        (blame_survivors, faults_after_a_death),
        (forget_why_survivors_came, faults_after_a_death),
    ],
)
def test_a_broken_engine_is_caught(monkeypatch, mutate, trial):
    """These trials find what they are there to find."""
    mutate(monkeypatch)
    with pytest.raises(Violation):
        trial()
