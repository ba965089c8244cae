"""Random programs under random faults, all drawn from one number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from random import Random

from groups_faults import NARROW, PLAIN, REDUCTIONS, gathering, parts_of, strike
from groups_model_calls import ODD_WAYS, Spec, Violation
from groups_model_client import Client
from groups_simulation import Sim

from ringd.collective import kinds
from ringd.groups.channels import Key
from ringd.groups.session import Part

WAYS = ("inline", "eager", "large", "bare")
FAULTS = (
    "daemon",
    "daemon",
    "cut",
    "client",
    "leave",
    "machine",
    "all",
    "pause",
    "long pause",
    "stall",
)


def draw_call(rng: Random, size: int, *, hasty: bool) -> Spec:
    """Return a call of any kind; if *hasty*, perhaps with a deadline."""
    of, way = rng.choice(PLAIN), rng.choice(WAYS)
    op, dtype = rng.choice(REDUCTIONS) if kinds.KINDS[of].reduces else ("sum", "int64")
    plain = Spec(
        way,
        of=of,
        op=op,
        dtype=dtype,
        root=rng.randrange(size),
        counts=of == "all_to_all" and rng.random() < 0.5,
        hold=rng.random() < 0.4,
        told=rng.random() < 0.1,
        timeout=rng.uniform(0.001, 0.3) if hasty and rng.random() < 0.25 else None,
    )
    narrow = kinds.KINDS[of].narrows and rng.random() < 0.2
    return dataclasses.replace(plain, **NARROW) if narrow else plain


def draw_program(rng: Random, size: int, *, hasty: bool, depth: int = 2) -> list[Spec]:
    """Return some calls, and splits with calls of the parts."""
    program = []
    for _ in range(rng.randint(1, 5)):
        if rng.random() < 0.8:
            program.append(draw_call(rng, size, hasty=hasty))
        elif depth and rng.random() < 0.6:
            inner = draw_program(rng, size, hasty=hasty, depth=depth - 1)[:3]
            colors = tuple(rng.choice([None, 0, 1]) for _ in range(rng.randint(1, 4)))
            program += gathering(colors=colors, inner=tuple(inner))
        else:
            program += gathering(way=rng.choice(WAYS))
    return program


def draw_parts(rng: Random, n: int) -> dict[int, list[Part]]:
    """Return who takes part in a group on *n* members: some of them, some with several programs."""
    members = tuple(sorted(rng.sample(range(n), rng.randint(1, n))))
    sizes = {member: rng.choice([1, 1, 2, 3]) for member in members}
    return parts_of(sizes, n, order=rng if rng.random() < 0.5 else None)


def draw_channels(rng: Random, size: int) -> dict[Key, list[Spec]]:
    """Return what the ranks of a group of *size* send each other."""
    return {
        Key(*rng.sample(range(size), 2), rng.randrange(3)): [
            Spec(rng.choice(WAYS), of="message", hold=rng.random() < 0.3)
            for _ in range(rng.randint(1, 5))
        ]
        for _ in range(rng.randint(0, 4))
        if size > 1
    }


def draw_mistakes(rng: Random, n: int) -> Callable[[Client, int], Spec]:
    """Return what programs call of which some make mistakes."""
    ways = (*ODD_WAYS, "unfit")
    odd = {(rng.randrange(n), rng.choice("gh"), rng.randrange(6)): rng.choice(ways) for _ in "abc"}

    def spec(client: Client, seq: int) -> Spec:
        plain = client.specs[seq]
        way = odd.get((client.member, client.group, seq), "")
        if plain.gathers or not way:
            return plain
        if way == "unfit":
            return dataclasses.replace(plain, unfit=True)
        counted = way != "counts" or plain.counts
        return dataclasses.replace(plain, odd=way if counted else "")

    return spec


def chaos(n: int, seed: int, *, shared: bool = False, messages: bool = False) -> Sim:
    """Run random programs under random faults, all drawn from *seed*.

    *shared*: each group has a random number of programs on each of some members. *messages*: its
    ranks send each other some.
    """
    rng = Random(seed)
    hasty, mistaken, failing = seed % 3 == 0, seed % 4 == 1, seed % 5 == 2
    groups = "gh"[: rng.randint(1, 2)]
    parts = {group: draw_parts(rng, n) for group in groups} if shared else None
    sizes = {g: n if parts is None else sum(map(len, parts[g].values())) for g in groups}
    programs = {group: draw_program(rng, sizes[group], hasty=hasty) for group in groups}
    options = {"spec": draw_mistakes(rng, n)} if mistaken else {}
    sim = Sim(
        n,
        seed,
        programs,
        parts=parts,
        channels={group: draw_channels(rng, sizes[group]) for group in sizes} if messages else None,
        depth=rng.randint(1, 4),
        on_loss=lambda member, group: "fail" if failing and group == "g" and member % 2 else "wait",
        survive=rng.choice([0.0, 0.5, 1.0]),
        pipe=rng.choice([1.0, 1.0, 60.0]),
        slow=rng.choice([1.0, 1.0, 40.0]),
        by_rank=rng.random() < 0.3,
        **options,
    )
    if failing:
        sim.witness.unkind.add("g")
    span = rng.choice([0.05, 0.15, 0.5])
    for _ in range(rng.randint(1, 12)):
        fault = rng.choice(FAULTS), rng.randrange(n)
        down = rng.choice([0.001, 0.03, 0.2])
        sim.after(rng.uniform(0, span), strike(sim, fault, rng.choice(groups), down))
    try:
        sim.run(lambda: sim.now > span, span + 1)
        sim.finish()
    except Exception as error:
        what = f"chaos({n}, {seed}, shared={shared}, messages={messages})"
        raise Violation(f"{what}: {error}") from error
    return sim
