"""What is to be reached, and what was: each row says how it follows from what was measured. Pure.

A figure that compares is a ratio of medians of the same run, more than 1 where ringd is faster. One
that is about several sizes is that of the size at which it is farthest from its goal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from instrument.markdown import table
from instrument.modes import BFLOAT16, ENCRYPT, INT8, MODES, OFF, RINGD
from instrument.results import Results
from instrument.sizes import human
from measures import (
    apart,
    beside,
    growth,
    halves,
    idle,
    in_flight,
    memory,
    one_machine,
    single_calls,
    token,
)

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured."""

    value: float
    where: str = ""
    """At which size, beside which peer."""


Finder = Callable[[Results, int], list[Found]]
"""Given the results and the members, returns all that a goal is about."""


@dataclass(frozen=True, slots=True)
class Target:
    """One row."""

    what: str
    goals: dict[int, float]
    """By the number of members."""
    find: Finder
    at_least: bool = True
    """Otherwise at most."""

    def farthest(self, results: Results, n: int) -> Found | None:
        """Return what is farthest from the goal; None if nothing of it was measured."""
        worst = min if self.at_least else max
        return worst(self.find(results, n), key=lambda found: found.value, default=None)

    def reached(self, found: Found, n: int) -> bool:
        """Whether *found* is as good as the goal for *n* members."""
        goal = self.goals[n]
        return found.value >= goal if self.at_least else found.value <= goal


def rows(targets: Iterable[Target], results: Results) -> list[tuple[str, ...]]:
    """Return what the table says of all that was measured."""
    found: list[tuple[str, ...]] = []
    for target in targets:
        for n, goal in target.goals.items():
            measured = target.farthest(results, n)
            if measured is not None:
                sign = "≥" if target.at_least else "≤"
                where = f" ({measured.where})" if measured.where else ""
                verdict = "yes" if target.reached(measured, n) else "**no**"
                value = f"{measured.value:.3g}{where}"
                found.append((target.what, str(n), f"{sign} {goal:g}", value, verdict))
    return found


def table_of(targets: Sequence[Target], results: Results) -> str:
    """Return the table in Markdown, and what is not in it as nothing of it was measured."""
    said = table(("what", "n", "target", "measured", "reached"), rows(targets, results))
    left = []
    for target in targets:
        members = [str(n) for n in target.goals if target.farthest(results, n) is None]
        if members:
            left.append(f"* {target.what} (n = {', '.join(members)})\n")
    return f"{said}\nNot measured in this run:\n\n{''.join(left)}" if left else said


def speed(
    mode: str, peers: Iterable[str], least: int, most: int = 1 << 62, what: str = single_calls.WHAT
) -> Finder:
    """Return what finds the speed of *mode* by each peer's, for tensors of *least* to *most*."""

    def find(results: Results, n: int) -> list[Found]:
        return [
            Found(value, f"{human(nbytes)}, {MODES[peer].title}")
            for nbytes in results.sizes(what, n)
            if least <= nbytes <= most
            for peer in peers
            if (value := results.speedup(what, n, nbytes, mode, peer))
        ]

    return find


def cost(mode: str, peer: str, least: int, most: int = 1 << 62) -> Finder:
    """Return what finds the processor time of *mode* by that of *peer*."""

    def find(results: Results, n: int) -> list[Found]:
        found = []
        for nbytes in results.sizes(single_calls.WHAT, n):
            mine, its = (
                results.median_cpu(single_calls.WHAT, n, nbytes, each) for each in (mode, peer)
            )
            if least <= nbytes <= most and mine and its:
                found.append(Found(mine / its, human(nbytes)))
        return found

    return find


def time_by_floor(what: str, floor: str) -> Finder:
    """Return what finds the time of small calls by that of a relay."""

    def find(results: Results, n: int) -> list[Found]:
        return [
            Found(1 / value, human(nbytes))
            for nbytes in apart.SIZES
            if (value := results.speedup(what, n, nbytes, "ringd", floor))
        ]

    return find


def speed_left(modes: Sequence[str]) -> Finder:
    """Return what finds the speed of *modes*, by kind of array, by that without protection."""
    each = [speed(mode, [off], MIB) for mode, off in zip(modes, OFF, strict=True)]
    return lambda results, n: [found for find in each for found in find(results, n)]


def _more_time(results: Results, n: int) -> list[Found]:
    """Return how many microseconds more a small call takes with protection."""
    return [
        Found((mine - its) * 1e6, f"{human(nbytes)}, {MODES[mode].title}")
        for nbytes in results.sizes(single_calls.WHAT, n)
        if nbytes <= SMALL[1]
        for modes in (RINGD, ENCRYPT)
        for mode, off in zip(modes, OFF, strict=True)
        if (mine := results.median(single_calls.WHAT, n, nbytes, mode))
        if (its := results.median(single_calls.WHAT, n, nbytes, off))
    ]


def figure(name: str, factor: float = 1.0) -> Finder:
    """Return what finds a single figure, times *factor*."""

    def find(results: Results, n: int) -> list[Found]:
        value = results.figure(name, n)
        return [] if value is None else [Found(value * factor)]

    return find


def _token(results: Results, n: int) -> list[Found]:
    mine, its = (token.beyond_work(results, n, mode) for mode in ("ringd", "gloo"))
    return [Found(mine / its)] if mine is not None and its else []


def _halves(results: Results, n: int) -> list[Found]:
    found = []
    for dtype in halves.DTYPES[1:]:
        for nbytes in results.sizes(dtype, n):
            half, whole = (results.median(each, n, nbytes, "ringd") for each in (dtype, "float32"))
            if half and whole:
                found.append(Found(whole / half, f"{dtype}, {human(nbytes)}"))
    return found


def _growth(results: Results, n: int) -> list[Found]:  # noqa: ARG001 - it is about two numbers
    value = growth.growth(results)
    return [] if value is None else [Found(value)]


def _one_machine(results: Results, n: int) -> list[Found]:
    return [
        Found(value, human(nbytes))
        for nbytes in results.sizes(one_machine.WHAT, n)
        if (value := one_machine.share_of_bandwidth(results, nbytes))
    ]


SMALL = (4, 64 << 10)
_NONE = 0.99
"""Wake-ups per second that are none, as they are counted over some seconds."""


def against_others(ordinary: str, empty: str) -> tuple[Target, ...]:
    """Return the rows that compare single calls with other systems, and the former build.

    Args:
        ordinary: The mode with ordinary arrays.
        empty: That with `ring.empty`.
    """
    return (
        Target(
            "4 B to 64 KiB, one call at a time, against fd44b4d",
            {2: 3.0, 4: 2.0},
            speed(ordinary, ["before"], *SMALL),
        ),
        Target("4 B, against Gloo", {2: 1.3, 4: 1.0}, speed(ordinary, ["gloo"], 4, 4)),
        Target(
            "above 4 B, to 64 KiB, against Gloo",
            {2: 1.3, 4: 3.0},
            speed(ordinary, ["gloo"], 5, SMALL[1]),
        ),
        Target(
            "256 KiB and 1 MiB, against Gloo",
            {2: 1.3, 4: 1.8},
            speed(ordinary, ["gloo"], 256 << 10, MIB),
        ),
        Target(
            "ordinary arrays, 4 MiB and up, against Gloo and MLX's ring",
            {2: 1.4, 4: 1.1},
            speed(ordinary, ["gloo", "mlx"], 4 * MIB),
        ),
        Target(
            "`ring.empty`, 4 MiB and up, against Gloo",
            {2: 1.7, 4: 1.25},
            speed(empty, ["gloo"], 4 * MIB),
        ),
        Target(
            "ordinary arrays, 16 MiB and up, against Open MPI over TCP",
            {2: 1.1, 4: 1.1},
            speed(ordinary, ["mpi"], 16 * MIB),
        ),
        Target(
            "`ring.empty`, 16 MiB and up, against the floor of bytes over TCP",
            {2: 0.9, 4: 0.9},
            speed(empty, ["floor"], 16 * MIB),
        ),
        Target(
            "processor time of a small call, by that of fd44b4d",
            {2: 0.35, 4: 0.45},
            cost(ordinary, "before", *SMALL),
            at_least=False,
        ),
        Target(
            "processor seconds per GB, 16 MiB and up, by Gloo's",
            {2: 0.8, 4: 0.9},
            cost(ordinary, "gloo", 16 * MIB),
            at_least=False,
        ),
    )


LOOPBACK = (
    *against_others(*RINGD),
    Target(
        "4 B and 16 KiB, calls apart, time by that of the relay asleep",
        {2: 2.0},
        time_by_floor(apart.WHAT, "relay"),
        at_least=False,
    ),
    Target(
        "4 B and 16 KiB, calls that follow each other, time by that of the relay with its spin",
        {2: 2.5},
        time_by_floor(single_calls.WHAT, "relay-spin"),
        at_least=False,
    ),
    Target(
        "processor time per member and 4 B call, n = 16 by n = 2",
        {16: 2.0},
        _growth,
        at_least=False,
    ),
    Target(
        "1,000 tensors of 4 KiB submitted together (`all_reduce_coalesced`), against Gloo's calls "
        "with async_op",
        {2: 10.0, 4: 15.0},
        speed("ringd-coalesced", ["gloo"], 4, what=in_flight.WHAT),
    ),
    Target(
        "1,000 calls of 4 KiB in flight, each of one tensor, against Gloo with async_op",
        {2: 10.0, 4: 15.0},
        speed("ringd", ["gloo"], 4, what=in_flight.WHAT),
    ),
    Target(
        "a token (48 calls of 16 KiB with work between), time beyond the work, by Gloo's",
        {2: 0.6, 4: 0.25},
        _token,
        at_least=False,
    ),
    Target(
        "float16 and bfloat16, 16 MiB and up, bytes per second by float32's",
        {2: 0.7, 4: 0.7},
        _halves,
    ),
    Target(
        "idle ready ring: percent of a core of a daemon",
        {2: 0.1, 4: 0.1},
        figure(idle.SHARE, 100),
        at_least=False,
    ),
    Target(
        "idle ready ring: wake-ups of a daemon per second beyond heartbeats",
        {2: _NONE, 4: _NONE},
        figure(idle.BEYOND),
        at_least=False,
    ),
    Target(
        "memory of a daemon beside its segments while 256 MiB is reduced, MiB",
        {2: 32, 4: 32},
        figure(memory.HIGHEST, 1 / MIB),
        at_least=False,
    ),
    Target(
        "a 4 B call beside a 1 GiB call of another group, by its quiet time and a chunk's",
        {2: 2.0, 4: 2.0},
        figure(beside.RATIO),
        at_least=False,
    ),
    Target(
        "four programs on one machine, 1 MiB and up, share of the memory's bandwidth",
        {1: 0.6},
        _one_machine,
    ),
    Target(
        '`protect = "integrity"`, 1 MiB and up, against "off"',
        {2: 0.97, 4: 0.97},
        speed_left(RINGD),
    ),
    Target(
        '`protect = "encrypt"`, 1 MiB and up, against "off"',
        {2: 0.85, 4: 0.85},
        speed_left(ENCRYPT),
    ),
    Target(
        "a small call with protection, µs more than without",
        {2: 15.0, 4: 15.0},
        _more_time,
        at_least=False,
    ),
)
"""What `make bench` measures."""

UNSEALED = against_others(*OFF)
"""The same without seals, which none of the others has."""

WIRE = "bytes of tensors that a link carries in a second"


def by_wire_limit(modes: Sequence[str], least: int) -> Finder:
    """Return what finds the wire limit's time by that of *modes*, for tensors of *least* and up.

    The limit is the time in which a link carries each byte once, uncompressed: 2(n-1)/n S/B.
    """

    def find(results: Results, n: int) -> list[Found]:
        payload = results.figure(WIRE, n)
        if payload is None:
            return []
        return [
            Found(
                2 * (n - 1) / n * nbytes / payload / seconds,
                f"{human(nbytes)}, {MODES[mode].title}",
            )
            for nbytes in results.sizes(single_calls.WHAT, n)
            if nbytes >= least
            for mode in modes
            if (seconds := results.median(single_calls.WHAT, n, nbytes, mode))
        ]

    return find


NETWORK = (
    Target(
        "shaped links, 4 MiB and up, against the wire limit 2(n-1)/n S/B",
        {2: 0.98, 4: 0.98},
        by_wire_limit(["ringd"], 4 * MIB),
    ),
    Target(
        '`wire="bfloat16"`, shaped links, 16 MiB and up, against the uncompressed wire limit',
        {2: 1.9, 4: 1.9},
        by_wire_limit(BFLOAT16, 16 * MIB),
    ),
    Target(
        '`wire="int8"`, shaped links, 16 MiB and up, against the uncompressed wire limit',
        {2: 3.5, 4: 3.5},
        by_wire_limit(INT8, 16 * MIB),
    ),
    Target(
        '`protect = "encrypt"`, shaped links, 4 MiB and up, against the wire limit',
        {2: 0.97, 4: 0.97},
        by_wire_limit(ENCRYPT, 4 * MIB),
    ),
    Target(
        "16 KiB at n = 8, one network namespace each, shaped links, against fd44b4d",
        {8: 2.0},
        speed("ringd", ["before"], 16 << 10, 16 << 10),
    ),
)
"""What `make bench-net` measures."""
