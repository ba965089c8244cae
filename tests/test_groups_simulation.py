"""Every fault point of small rings, and whether the simulation finds what it is there to find.

:class:`groups_witness.Witness` checks each value, each error's reason and that nothing is applied
twice, :class:`groups_simulation.Sim` that every call ends and that nothing is left over; a test
here only picks the faults.
"""

from __future__ import annotations

import dataclasses
from itertools import product
from random import Random

import pytest
from exhaustive import usually
from groups_faults import faults, harmless, parts_of, strike, undisturbed
from groups_model_calls import Spec, Violation
from groups_simulation import Sim
from groups_storms import chaos

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

LENT = Spec("large", hold=True)
SMALL = {
    "g": [Spec("inline"), Spec("large", of="reduce", root=1), LENT, Spec("bare")],
    "h": [
        Spec("eager", hold=True),
        Spec("large", hold=True, of="broadcast", root=1),
        Spec("inline"),
    ],
}
TINY = {"g": [Spec("large"), Spec("eager", hold=True)]}


STRIDES = {size: usually(stride, 1) for size, stride in {1: 7, 2: 41, 3: 131, 4: 401}.items()}
"""By ring size: every stride-th point is struck, shifted for each fault, to save time."""


@pytest.mark.parametrize("n", STRIDES)
def test_one_fault_at_every_point(n):
    """A crash, a death or a cut before and after each message and action is survived."""
    stride = STRIDES[n]
    last = undisturbed(Sim(n, n, SMALL))
    for offset, fault in enumerate(faults(n)):
        for point in range(1 + offset % stride, last + 1, stride):
            sim = Sim(n, n, SMALL)
            sim.injections[point] = strike(sim, fault)
            sim.finish()
            if harmless(fault):
                assert set(sim.witness.outcomes) == {OK}, (fault, point)


def test_two_faults_at_every_pair_of_points():
    """A second fault strikes while the ring of two still recovers from the first."""
    last = undisturbed(Sim(2, 5, TINY))
    kinds = faults(2)
    for first in range(1, last + 1, usually(17, 3)):
        for second in range(first + 1, last + 90, usually(23, 5)):
            sim = Sim(2, 5, TINY)
            sim.injections[first] = strike(sim, kinds[(first + second) % len(kinds)])
            sim.injections[second] = strike(sim, kinds[second % len(kinds)])
            sim.finish()


LONG = {"g": [Spec("inline")] * 5}


def faults_after_a_death():
    """Kill a client, and soon after disturb how the others learn of it, at many points.

    Guards: that GroupLost names who left first, and no survivor that left because of that.
    """
    last = undisturbed(Sim(3, 4, LONG))
    daemons = [("daemon", 0), ("daemon", 2)]
    cuts, crashes = usually((90, 70), (9, 7))
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
        return dataclasses.replace(spec, timeout=timeout / 1000) if client.member == rank else spec

    return Sim(n, seed, {"g": [spec]}, spec=hurried, **options)


def deadlines_of_lenders():
    """Let a lender's deadline pass at every half millisecond of a call that all lend to.

    Guards: that a poll counts a result that stands, but of which its client was not told yet.
    """
    spec = Spec("large", hold=True)
    for seed, n, half in product(range(usually(1, 8)), (2, 3), range(1, 140)):
        with_deadline(seed, n, spec, rank=seed % n, timeout=half / 2).finish()


def late_lenders():
    """Let a lender's deadline pass while the others' results are not safe, and restart daemons.

    Guards: that a lender which is told its result leaves its input as it is.
    """

    def spec(client, _seq):
        if client.member:
            return Spec("large", told=True)
        return Spec("large", hold=True, timeout=0.05)

    for seed in range(usually(1, 40)):
        for point in range(1, 170):
            sim = Sim(3, seed, {"g": [Spec("large")]}, spec=spec, survive=0.0, pipe=60.0)
            sim.injections[point] = strike(sim, ("daemon", 1 + point % 2))
            sim.finish()


def late_resubmissions():
    """Restart a daemon during a call, whose deadline passes elsewhere about when it is back.

    Guards: that no poll is answered for a client that has yet to say how its calls ended. The
    clients are slow, so that there is time between their coming back and their saying so.
    """
    spec = Spec("large")
    for seed in range(usually(1, 8)):
        last = undisturbed(Sim(2, seed, {"g": [spec]}))
        for point in range(last // 2, last + 1):
            for timeout in range(30 + point % 12, 180, 12):
                sim = with_deadline(seed, 2, spec, rank=0, timeout=timeout, survive=1.0, pipe=60.0)
                sim.injections[point] = strike(sim, ("daemon", 1))
                sim.finish()


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
    last = undisturbed(Sim(n, n, SMALL, parts=parts))
    stride = usually({1: 29, 2: 113, 3: 307}[n], 1)
    for offset, fault in enumerate(faults(n)):
        for point in range(1 + offset % stride, last + 1, stride):
            sim = Sim(n, n, SMALL, parts=parts)
            sim.injections[point] = strike(sim, fault)
            sim.finish()
            if harmless(fault):
                assert set(sim.witness.outcomes) == {OK}, (fault, point)


def message(way, **options):
    """Return a message that travels so."""
    return Spec(way, of="message", **options)


MESSAGES = {
    Key(0, 1, 0): [message("inline"), message("large", hold=True), message("eager")],
    Key(1, 0, 0): [message("bare"), message("inline")],
    Key(1, 2, 5): [message("large"), message("inline")],
}
CALLS = {"g": [Spec("inline"), Spec("large")]}


@pytest.mark.parametrize("layout", ["one each", "two and one"])
def test_one_fault_at_every_point_of_messages(layout):
    """Each message arrives once, or both ends hear that it does not."""
    n, sizes = (3, {0: 1, 1: 1, 2: 1}) if layout == "one each" else (2, {0: 2, 1: 1})
    options = {"parts": {"g": parts_of(sizes, n)}, "channels": {"g": MESSAGES}}
    last = undisturbed(Sim(n, n, CALLS, **options))
    stride = usually(79, 1)
    for offset, fault in enumerate(faults(n)):
        for point in range(1 + offset % stride, last + 1, stride):
            sim = Sim(n, n, CALLS, **options)
            sim.injections[point] = strike(sim, fault)
            sim.finish()
            if harmless(fault):
                assert set(sim.witness.outcomes) == {OK}, (fault, point)


# --- the checks themselves ------------------------------------------------------------


def storms():
    """Restart a daemon at every point while clients are slow, and let seeded storms rage."""
    for point in range(1, 200, usually(3, 1)):
        sim = Sim(2, point, SMALL, survive=0.0, pipe=60.0)
        sim.injections[point] = strike(sim, ("daemon", point % 2))
        sim.finish()
    for seed in range(usually(25, 400)):
        chaos(2 + seed % 3, seed)


@pytest.mark.parametrize(
    "trial",
    [storms, late_lenders, deadlines_of_lenders, late_resubmissions, faults_after_a_death],
    ids=lambda trial: trial.__name__,
)
def test_a_sound_engine_passes(trial):
    """What catches the broken ones below finds nothing wrong as it is."""
    trial()


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
        Caller,
        "tell_outcome",
        lambda self, op, released, *, again=False, **_: tell(self, op, released, again=again),
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
        (count_only_what_was_told, deadlines_of_lenders),
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
