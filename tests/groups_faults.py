"""What befalls a simulation of groups, and what its programs call meanwhile."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from random import Random

from groups_model_calls import Spec
from groups_simulation import Sim

from ringd.collective import kinds
from ringd.groups.op import OK
from ringd.groups.session import Part

Fault = tuple[str, int]
"""A kind and, where it has one, a member."""

PAUSES = {"pause": 0.01, "long pause": 0.2}
"""Seconds; the others notice the longer one."""


def strike(sim: Sim, fault: Fault, group: str = "g", down: float = 0.03) -> Callable[[], None]:
    """Return what does *fault* to *sim*; daemons that die come back after *down* seconds."""
    kind, member = fault

    def act() -> None:
        if kind == "cut":
            sim.cut_link()
        if kind == "all":
            for other in range(sim.n):
                sim.crash_daemon(other, down * (1 + other) / sim.n)
        if kind in ("daemon", "machine"):
            sim.crash_daemon(member, down)
        if kind in ("client", "machine", "leave"):
            sim.kill_client(member, group, leaves=kind == "leave")
        if kind == "stall":
            sim.stall(member, 7.0)
        if kind in PAUSES:
            sim.freeze(member, PAUSES[kind])

    return act


def harmless(fault: Fault) -> bool:
    """Whether calls are completed in spite of it."""
    return fault[0] in ("cut", "daemon", "all", "stall", *PAUSES)


def faults(n: int, which: Sequence[str] = ("daemon", "client", "machine")) -> list[Fault]:
    """Return a cut, the loss of all daemons, and faults of these kinds on every member of *n*."""
    return [("cut", 0), ("all", 0), *((kind, member) for kind in which for member in range(n))]


ALL_FAULTS = ("daemon", "client", "machine", "leave", "pause", "long pause")


def parts_of(
    sizes: dict[int, int], n: int, *, order: Random | None = None
) -> dict[int, list[Part]]:
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


def gathering(**options: object) -> list[Spec]:
    """Return the two calls of an all_gather_bytes; *options* of the second one."""
    colors = options.get("colors", ())
    first = Spec(of="all_gather_bytes", gathers="lengths", colors=colors)
    return [first, dataclasses.replace(first, gathers="bytes", **options)]


REDUCTIONS = [
    ("sum", "int64"),
    ("sum", "float32"),
    ("max", "float16"),
    ("bxor", "uint8"),
    ("mean", "float32"),
    ("sum", "float16"),
    ("prod", "complex64"),
    ("min", "float64"),
]
NARROW = {"wire": "bfloat16", "op": "sum", "dtype": "float32"}

PLAIN = [name for name, kind in kinds.KINDS.items() if not kind.pair and name != "all_gather_bytes"]
"""Kinds that are one call of all ranks."""


def every_call(size: int, seed: int) -> list[list[Spec]]:
    """Return each kind of call with every root, small and large, in a random order.

    In lists of those that belong together; inputs stand in memory of every kind, and are reduced
    by any op.
    """
    arithmetic = cycle(REDUCTIONS)
    small = cycle([{"way": "inline"}, {"way": "eager", "hold": True}, {"way": "eager"}])
    large = cycle([{"way": "large"}, {"way": "large", "hold": True}, {"way": "bare"}])
    found: list[list[Spec]] = []
    for name in PLAIN:
        kind = kinds.KINDS[name]
        for root in range(size) if kind.rooted else [0]:
            for way in (next(small), next(large)) if kind.data else (next(small),):
                op, dtype = next(arithmetic) if kind.reduces else ("sum", "int64")
                found.append([Spec(of=name, root=root, op=op, dtype=dtype, **way)])
        if kind.narrows:
            found.append([Spec(of=name, root=size - 1, way="large", **NARROW)])
    found += [[Spec(of="all_to_all", counts=True, **next(way))] for way in (small, large)]
    found.append(gathering(way="inline"))
    inner = Spec("large", of="all_gather"), Spec("eager", of="reduce", root=1, hold=True)
    found.append(gathering(colors=(0, 1), inner=inner))
    again = tuple(gathering(colors=(0, 1, None), inner=(Spec(of="scatter"),)))
    found.append(gathering(colors=(None, 0, 0), inner=again))
    Random(seed).shuffle(found)
    return found


def programs(size: int, length: int, seed: int = 1) -> Iterator[list[Spec]]:
    """Yield programs of about *length* calls, with all of :func:`every_call` among them."""
    program: list[Spec] = []
    for calls in every_call(size, seed):
        program += calls
        if len(program) >= length:
            yield program
            program = []
    if program:
        yield program


def undisturbed(sim: Sim) -> int:
    """Return how many points *sim* has in which a fault can strike."""
    sim.finish()
    assert set(sim.witness.outcomes) == {OK}
    return sim.points
