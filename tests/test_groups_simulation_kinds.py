"""Every kind of call, at every root, on shared members and parts of a ring, at every fault point.

:class:`groups_witness.Witness` checks each value against numpy, each error's reason and what must
hold after each step, :class:`groups_simulation.Sim` that every call ends and nothing is left over.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from itertools import cycle, permutations, product
from random import Random

import pytest
from exhaustive import usually
from groups_faults import (
    ALL_FAULTS,
    PLAIN,
    faults,
    gathering,
    harmless,
    parts_of,
    programs,
    strike,
    undisturbed,
)
from groups_model_calls import ODD_WAYS, Spec, Violation
from groups_oracle import ALL_REDUCES
from groups_simulation import Sim

from ringd.collective import kinds
from ringd.groups.channels import Key
from ringd.groups.op import OK

LAYOUTS: dict[str, tuple[int, dict[int, int], bool]] = {
    "2": (2, {0: 1, 1: 1}, False),
    "3": (3, {0: 1, 1: 1, 2: 1}, False),
    "4": (4, {0: 1, 1: 1, 2: 1, 3: 1}, False),
    "2: two and one": (2, {0: 2, 1: 1}, False),
    "2: one and three": (2, {0: 1, 1: 3}, True),
    "3: two of the members": (3, {0: 1, 2: 1}, False),
    "3: one, two and three": (3, {0: 1, 1: 2, 2: 3}, False),
    "3: two and one of the members": (3, {1: 2, 2: 1}, True),
    "4: three of the members, one with two": (4, {0: 1, 1: 2, 3: 1}, True),
    "4: two of the members, with three and two": (4, {1: 3, 3: 2}, False),
}
"""Members of the ring, programs on each that takes part, and whether their ranks are shuffled."""

DENSITY = {"2": 4, "2: two and one": 2}
"""How many of all faults strike at each point, by layout; one in the others."""
STEP = {
    "3: one, two and three": 3,
    "4": 2,
    "4: three of the members, one with two": 2,
    "4: two of the members, with three and two": 2,
}
"""Every how many points a fault strikes where all is tried, by layout; at each in the others."""


def messages(size: int) -> list[dict[Key, list[Spec]]]:
    """Return by turns what some pair of ranks sends each other."""
    ways = cycle(["inline", "large", "bare", "eager"])
    return [
        {Key(*pair, tag): [Spec(next(ways), of="message"), Spec(next(ways), of="message")]}
        for tag, pair in enumerate(permutations(range(size), 2))
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kind_at_every_point(layout):
    """A loss before and after each message, chunk and action is survived, whatever is called."""
    n, sizes, shuffled = LAYOUTS[layout]
    size = sum(sizes.values())
    parts = {"g": parts_of(sizes, n, order=Random(8) if shuffled else None)}
    between = cycle(messages(size))
    found = faults(n, ALL_FAULTS)
    density, step = usually(1, DENSITY.get(layout, 1)), usually(257, STEP.get(layout, 1))
    turn = 0
    for number, program in enumerate(programs(size, 3)):
        options = {
            "parts": parts,
            "channels": {"g": next(between)},
            "by_rank": number % 2 == 1,
            "slow": 30.0 if number % 3 == 2 else 1.0,
        }
        points = undisturbed(Sim(n, number, {"g": program}, **options))
        for point in range(1 + number % step, points + 1, step):
            for _ in range(density):
                turn += 1
                fault = found[turn % len(found)]
                sim = Sim(n, number, {"g": program}, **options)
                sim.injections[point] = strike(sim, fault)
                explain(sim, (layout, number, point, fault))
                if harmless(fault):
                    assert set(sim.witness.outcomes) == {OK}, (layout, number, point, fault)


def explain(sim: Sim, what: object) -> None:
    """Run *sim* to its end, and name it if that is not right."""
    try:
        sim.finish()
    except Exception as error:
        raise Violation(f"{what}: {error}") from error


def one_call(of: str, way: str) -> Spec:
    """Return a call of this kind; an uneven one of those that can be."""
    return Spec(way, of=of, root=1, counts=of == "all_to_all")


@pytest.mark.parametrize("way", ["inline", "large"])
def test_who_differs_is_told_with_all(way):
    """A call that differs on one rank fails on all, and the next one is right, through losses."""
    n = 3
    turn = 0
    found = [("cut", 0), *(("daemon", member) for member in range(n))]
    sizes = {0: 1, 1: 2, 2: 1}
    for of, odd in product(PLAIN, ODD_WAYS):
        plain, parts = one_call(of, way), {"g": parts_of(sizes, n)}
        program = [plain, Spec("large"), Spec(of="barrier")]
        if plain.call(0, 4) == dataclasses.replace(plain, odd=odd).call(0, 4):
            continue  # it has no such field
        for odd_one in usually([turn % n], range(n)):

            def spec(client, seq, odd_one=odd_one, odd=odd, program=program):
                differs = seq == 0 and client.member == odd_one and client.part.local_rank == 0
                return dataclasses.replace(program[seq], odd=odd if differs else "")

            options = {"parts": parts, "spec": spec}
            plainly = Sim(n, turn, {"g": program}, **options)
            explain(plainly, (of, odd, odd_one))
            assert dict(plainly.witness.outcomes) == {"mismatch": 4, OK: 8}, (of, odd, odd_one)
            step = usually(151, 3)
            for point in range(1 + turn % step, plainly.points, step):
                turn += 1
                sim = Sim(n, turn, {"g": program}, **options)
                sim.injections[point] = strike(sim, found[turn % len(found)])
                explain(sim, (of, odd, odd_one, point, turn))
                assert set(sim.witness.outcomes) == {"mismatch", OK}


def test_deadlines_at_every_moment():
    """A deadline that passes on one rank ends the call for all, or for none, whatever its kind."""
    turn = 0
    outcomes = set()
    for of, way, n in product(kinds.KINDS, ("inline", "large"), (2, 3)):
        if of in ("message", "all_gather_bytes"):
            continue
        plain = Spec(way, of=of, root=n - 1, hold=way == "large")
        for moment in range(1, 80, usually(13, 1)):
            turn += 1
            hasty = dataclasses.replace(plain, timeout=moment / 1000)

            def spec(client, _seq, hasty=hasty, plain=plain, turn=turn, n=n):
                return hasty if client.member == turn % n else plain

            sim = Sim(n, turn, {"g": [plain, plain]}, spec=spec, slow=10.0)
            loss = Random(turn).uniform(0, moment / 1000)
            if turn % 3 == 1:
                sim.after(loss, sim.cut_link)
            if turn % 3 == 2:  # the ring does not come back in time
                away = partial(sim.crash_daemon, (turn + 1) % n, 8.0)
                sim.after(loss + 0.02, away)
            explain(sim, (of, way, n, moment, turn))
            outcomes |= set(sim.witness.outcomes)
    assert outcomes == {OK, "deadline_exceeded"}


def test_deadlines_hold_while_a_link_is_slow():
    """Nobody has a result long before the data of others comes, whose deadline then passes."""
    turn = 0
    outcomes = set()
    chunked = [of for of in PLAIN if kinds.KINDS[of].data and of not in ALL_REDUCES]
    sizes = {0: 1, 1: 2, 2: 1}
    for of, stalled, hasty in product(chunked, range(3), range(3)):
        plain = Spec("large", of=of, root=1, hold=stalled == hasty)
        for moment in range(20, 40, usually(7, 1)):
            turn += 1

            def spec(client, _seq, plain=plain, hasty=hasty):
                late = client.member == hasty and not client.part.local_rank
                return dataclasses.replace(plain, timeout=0.1) if late else plain

            sim = Sim(3, turn, {"g": [plain]}, parts={"g": parts_of(sizes, 3)}, spec=spec)
            sim.after(moment / 1000, partial(sim.stall, stalled, 7.0))
            explain(sim, (of, stalled, hasty, moment, turn))
            outcomes |= set(sim.witness.outcomes)
    assert outcomes == {OK, "deadline_exceeded"}


def test_a_call_that_cannot_be_made_is_refused_on_all_ranks():
    """One of a root that there is not, and one of a dtype that some daemon does not know."""
    step = usually(23, 1)
    bad = [Spec(of="broadcast", unfit=True), Spec("large", of="gather", unfit=True)]
    unknown = [Spec(way, dtype="bfloat16") for way in ("inline", "large")]
    for number, spoiled in enumerate((*bad, *unknown)):
        program = [spoiled, Spec("large", of="all_gather"), *gathering()]
        parts = {"g": parts_of({0: 2, 1: 1, 2: 1}, 3)}
        options = {"parts": parts, "poor": {1}}
        plainly = Sim(3, number, {"g": program}, **options)
        explain(plainly, number)
        assert dict(plainly.witness.outcomes) == {"refused": 4, OK: 12}
        for point in range(1 + number, plainly.points, step):
            fault = faults(3)[point % 11]
            sim = Sim(3, number, {"g": program}, **options)
            sim.injections[point] = strike(sim, fault)
            explain(sim, (number, point, fault))
