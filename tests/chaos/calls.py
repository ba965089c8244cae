"""What the calls of a group are, and what must come of them: a function of the seed.

A tensor is a short random pattern, repeated: so making and checking 64 MiB costs little, and
as the pattern's length is a prime, a chunk in the wrong place shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from chaos.layout import Layout, doubled, every_other, everywhere
from chaos.which import Which
from ringd.collective.codec import WIRES
from ringd.collective.kinds import KINDS
from ringd.collective.reduction import dtype_from_name

Array = npt.NDArray[Any]

PERIOD = 1021
EAGER = 32 * 1024
"""The default of ``ops.eager_limit``: up to here the sum is taken in rank order."""

FLOOD = 8 * EAGER
"""Where each rank is on a machine of its own, also as long as all others' tensors have no more."""

OTHERS = tuple(
    name
    for name, kind in KINDS.items()
    if kind.data and not kind.pair and name not in {"all_reduce", "all_gather_bytes"}
)

PIECES = 5
"""Tensors of which there are several in a call."""

LARGEST = 0.02
"""Share of the calls that are of the group's largest size."""

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
FLOATS = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")


@dataclass(frozen=True, slots=True)
class Style:
    """How the programs of a group call; sizes are in bytes."""

    smallest: int
    largest: int
    window: int
    """Calls in flight; 1 for plain blocking calls."""
    barriers: float
    """Share of the calls that are barriers."""
    vote_every: int
    """Calls between two votes on whether to stop."""
    pause: float
    """Seconds that the program computes between two calls."""
    messages: float = 0.0
    """Share of the calls in whose place ranks send each other something."""
    splits: float = 0.0
    """Share of those in whose place the ring is split, and its parts make some."""
    others: float = 0.0
    """Share of the calls that are of :data:`OTHERS`."""
    deadlines: float = 0.0
    """Share of the calls that have a deadline, which faults may make them miss."""
    on_loss: str = "wait"
    layout: Callable[[int], Layout] = everywhere
    """Where the programs are in a ring of that size."""


STYLES = {
    "steps": Style(4, 256 << 10, 1, 0.05, 16, 0.004, messages=0.3, splits=0.05, others=0.6),
    "flights": Style(4, 1 << 20, 12, 0.02, 32, 0.002, messages=0.3, splits=0.05, others=0.6),
    "layers": Style(32 << 10, 64 << 20, 3, 0.0, 4, 0.004, messages=0.3, others=0.4),
    "ticks": Style(4, 4096, 1, 0.2, 64, 0.004),
    "dues": Style(4, 256 << 10, 4, 0.05, 32, 0.01, messages=0.3, others=0.5, deadlines=0.7),
    "alarms": Style(
        4, 256 << 10, 2, 0.05, 32, 0.01, messages=0.3, splits=0.05, others=0.5, on_loss="fail"
    ),
    "crews": Style(
        4, 1 << 20, 4, 0.05, 32, 0.01, messages=0.3, splits=0.05, others=0.6, layout=doubled
    ),
    "pairs": Style(4, 1 << 20, 4, 0.05, 32, 0.01, messages=0.3, others=0.6, layout=every_other),
}


@dataclass(frozen=True, slots=True)
class Role:
    """Which program one is: a *rank* of a *group*, in a run of a *seed* and so many *members*."""

    seed: int
    group: str
    members: int
    rank: int

    @property
    def style(self) -> Style:
        """Return how the group's programs call."""
        return STYLES[self.group]

    @property
    def layout(self) -> Layout:
        """Return where they are."""
        return self.style.layout(self.members)

    @property
    def key(self) -> str:
        """Return from what the calls of its group follow."""
        return f"{self.seed}/{self.group}"


BURST = 3000
"""Calls that are made before the first wait; three times the default of ``ipc.window``."""

BRIEF = Style(4, 256, BURST, 0.0, BURST, 0.0)
"""How they are."""

FILLERS = 2
"""Calls that fill the daemons' chunk buffers."""

FILLER = 48 << 20
"""Bytes of each, in float16: what others have added is kept in chunks of float32 on its way."""

DEADLINES = (0.05, 1.0)
"""Seconds; well above what a call takes in peace, and around what a fault costs."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a group.

    Attributes:
        which: of the group's calls.
        op: a reduction; empty where nothing is reduced.
        exact: whether its result does not depend on the order of the sum.
        patterns: shape (size, period), one row for each rank.
        timeout: its deadline, in seconds; None for the daemon's, which is never met here.
        kind: the name of the method that makes it.
        root: the rank that has, or is given, what others have not or are not.
        orders: those in which ranks are reduced: one for each machine that takes part.
        wire: the format in which it travels, of which all its values and sums are; empty for none.
    """

    which: Which
    op: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    exact: bool
    patterns: Array
    timeout: float | None
    orders: tuple[tuple[int, ...], ...]
    kind: str = "all_reduce"
    root: int = 0
    wire: str = ""

    @property
    def arguments(self) -> dict[str, Any]:
        """Return what the method is given besides the tensor."""
        given: dict[str, Any] = {"op": self.op} if self.op else {}
        given |= {"wire": self.wire} if self.wire else {}
        return given | ({"root": self.root} if KINDS[self.kind].rooted else {})

    def handed(self, array: Array | None) -> Any:
        """Return what the method is given of *array*: that, or the tensors that it is made of."""
        cut = array is not None and KINDS[self.kind].coalesces
        return np.array_split(array, PIECES) if cut else array

    @property
    def name(self) -> str:
        """Return what the members compare."""
        return f"call {self.which}"

    @property
    def count(self) -> int:
        """Return the number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    def fill(self, array: Array, rank: int) -> None:
        """Write what *rank* brings into *array*, which may be of any layout."""
        if array.flags.c_contiguous:
            tile(array.reshape(-1), self.patterns[rank])
        else:
            whole = np.empty(self.shape, self.dtype)
            tile(whole.reshape(-1), self.patterns[rank])
            array[...] = whole

    def wrong(self, result: Array | None, rank: int) -> int:
        """Return how many elements of the *result* of *rank* are not, to the bit, as promised."""
        if self.kind != "all_reduce":
            return differences(result, self.wanted(rank))
        assert result is not None
        if result.shape != self.shape or result.dtype != self.dtype:
            return max(1, self.count)
        flat = np.ascontiguousarray(result).reshape(-1)
        ranks, machines = len(self.patterns), len(self.orders)
        few = ranks == machines and not self.wire and flat.nbytes * (ranks - 1) <= FLOOD
        if self.exact or flat.nbytes <= EAGER or few:
            return _differing(flat, self._reduced(0), 0)
        wrong = 0
        for segment in range(machines):  # its sum begins on the machine of its number
            start, stop = (self.count * s // machines for s in (segment, segment + 1))
            wrong += _differing(flat[start:stop], self._reduced(segment), start)
        return wrong

    def wanted(self, rank: int) -> Array | None:
        """Return the result of *rank* of a call that is none of all_reduce; None for none."""
        if self.kind in {"reduce", "gather"} and rank != self.root:
            return None
        size = len(self.patterns)
        inputs = [np.empty(self.shape, self.dtype) for _ in range(size)]
        for source, array in enumerate(inputs):
            self.fill(array, source)
        whole = np.empty(self.shape, self.dtype)
        if self.op:
            tile(whole.reshape(-1), self._reduced(0))
        return {
            "all_reduce_coalesced": lambda: whole,
            "reduce": lambda: whole,
            "reduce_scatter": lambda: np.split(whole, size)[rank],
            "broadcast": lambda: inputs[self.root],
            "all_gather": lambda: np.concatenate(inputs),
            "gather": lambda: np.concatenate(inputs),
            "scatter": lambda: np.split(inputs[self.root], size)[rank],
            "all_to_all": lambda: np.concatenate([np.split(x, size)[rank] for x in inputs]),
        }[self.kind]()

    @property
    def alike(self) -> bool:
        """Whether all ranks are given the same."""
        return self.kind in {"all_reduce", "all_reduce_coalesced", "broadcast", "all_gather"}

    @property
    def story(self) -> str:
        """Return what it is, for the evidence."""
        what = f"{self.kind} {self.arguments} of {self.dtype}{self.shape}"
        return f"{what}, exact={self.exact}"

    def _reduced(self, first: int) -> Array:
        """Return the patterns reduced in the order that begins on machine *first*."""
        size = len(self.patterns)
        rows = [self.patterns[rank] for rank in self.orders[first]]
        with np.errstate(all="ignore"):
            if self.dtype.kind == "b":
                function = {"sum": np.logical_or, "max": np.logical_or}.get(self.op, np.logical_and)
                return np.asarray(_BITWISE.get(self.op, function).reduce(rows))
            half = self.dtype.name in ("float16", "bfloat16")
            wide = np.dtype(np.float32) if half else self.dtype
            total = rows[0].astype(wide)
            for row in rows[1:]:
                total = _FUNCTIONS[self.op](total, row.astype(wide))
            if self.op == "mean":
                total = _divided(total, size)
            return total.astype(self.dtype)


_BITWISE = {"band": np.bitwise_and, "bor": np.bitwise_or, "bxor": np.bitwise_xor}
_FUNCTIONS = _BITWISE | {
    "sum": np.add,
    "mean": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
}


_KEPT = ("sum", "min", "max")
"""Of small whole numbers these are some again, which each wire carries as they are."""


def make(seed: int, group: str, number: int, members: int, *, burst: bool = False) -> Call:
    """Return call *number* of *group* in a ring of *members*; one of a *burst* is small."""
    style = STYLES[group]
    layout = style.layout(members)
    return compose(f"{seed}/{group}", Which(number), BRIEF if burst else style, layout)


def filler(key: str, number: int, layout: Layout) -> Call:
    """Return a call of which much is on its way at the same time."""
    key, half = f"{key}/{number}/filler", np.dtype(np.float16)
    patterns = values_of(key).integers(-8, 9, (layout.size, PERIOD))
    shape, exact = (FILLER // half.itemsize,), True
    which, rows = Which(number), patterns.astype(half)
    return Call(which, "sum", half, shape, exact, rows, None, layout.orders)


def compose(key: str, which: Which, style: Style, layout: Layout) -> Call:
    """Return a call in that *style* of ranks in that *layout*; *key* and *which* say all else."""
    key = f"{key}/{which}"
    rng, values, size = Random(key), values_of(key), layout.size
    timeout = deadline(key, style)
    if rng.random() < style.barriers:
        nothing = np.empty((size, 0), np.uint8)
        u8, orders = np.dtype(np.uint8), layout.orders
        return Call(which, "", u8, (0,), True, nothing, timeout, orders, "barrier")
    kind, root = "all_reduce", 0
    if rng.random() < style.others:
        kind = rng.choice(OTHERS)
        root = rng.randrange(size) if KINDS[kind].rooted else 0
    row = KINDS[kind]
    name = rng.choice(["bool", *INTEGERS, *FLOATS, *FLOATS])
    dtype = dtype_from_name(name)
    ops = ["sum", "sum", "prod"]
    ops += [] if dtype.kind == "c" else ["min", "max"]
    ops += ["mean", "mean"] if name in FLOATS else ["band", "bor", "bxor"]
    op = rng.choice(ops)
    count = max(1, length(rng, style) // dtype.itemsize)
    if kind in {"all_gather", "gather"}:  # whose result is as large as another call's
        count = max(1, count // size)
    if row.divides:
        count = max(1, count // size) * size
    shape: tuple[int, ...] = (count,)
    if rng.random() < 0.3 and count >= 6:
        shape = (count // (3 * size) * size, 3) if row.divides else (count // 3, 3)
        count = shape[0] * 3
    # How numpy rounds a complex product depends on the processor, and on the array's length.
    exact = (
        name not in FLOATS
        or rng.random() < 0.5
        or (op == "prod" and dtype.kind == "c")
        or kind != "all_reduce"
    )
    period = min(PERIOD, count)
    patterns = _patterns(values, dtype, op, (size, period), exact=exact)
    wires = ["", *WIRES] if exact and row.narrows and name == "float32" and op in _KEPT else [""]
    wire = Random(f"{key}/wire").choice(wires)
    op = op if row.reduces else ""
    return Call(which, op, dtype, shape, exact, patterns, timeout, layout.orders, kind, root, wire)


def values_of(key: str) -> np.random.Generator:
    """Return what makes the values of that *key*."""
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def deadline(key: str, style: Style) -> float | None:
    """Return the seconds that a call of that *key* may take; None for the daemon's default."""
    rng = Random(f"{key}/due")
    if rng.random() >= style.deadlines:
        return None
    return DEADLINES[0] * (DEADLINES[1] / DEADLINES[0]) ** rng.random()


def length(rng: Random, style: Style) -> int:
    """Return how many bytes a tensor has."""
    spread = 1.0 if rng.random() < LARGEST else rng.random() ** 2.5
    return int(style.smallest * (style.largest / style.smallest) ** spread)


def _patterns(
    values: np.random.Generator,
    dtype: np.dtype[Any],
    op: str,
    shape: tuple[int, int],
    *,
    exact: bool,
) -> Array:
    if dtype.kind in "biu":
        raw = values.integers(0, 256, (shape[0], shape[1] * dtype.itemsize), np.uint8)
        return (raw & 1).astype(np.bool_) if dtype.kind == "b" else raw.view(dtype)
    if not exact:
        found = values.standard_normal(shape)
        if dtype.kind == "c":
            return (found + 1j * values.standard_normal(shape)).astype(dtype)
        return found.astype(dtype)
    least, beyond = (1, 3) if op == "prod" else (-8, 9)
    found = values.integers(least, beyond, shape).astype(dtype)
    if dtype.kind == "c":
        found.imag = values.integers(least, beyond, shape)
    return found


def _divided(total: Array, size: int) -> Array:
    if total.dtype.kind == "c":
        return _divided(total.view(total.real.dtype), size).view(total.dtype)
    return total / total.dtype.type(size)


def tile(flat: Array, pattern: Array) -> None:
    """Write *pattern* into *flat*, again and again."""
    if not len(flat):
        return
    period = len(pattern)
    whole = len(flat) // period * period
    flat[:whole].reshape(-1, period)[:] = pattern
    flat[whole:] = pattern[: len(flat) - whole]


def differences(result: Array | None, wanted: Array | None) -> int:
    """Return how many elements of *result* are not those that are *wanted*."""
    if result is None or wanted is None:
        return 0 if result is wanted else 1
    if result.shape != wanted.shape or result.dtype != wanted.dtype:
        return max(1, wanted.size)
    if not wanted.size:
        return 0
    same = _bits(result.reshape(-1)) == _bits(wanted.reshape(-1))
    return int(np.count_nonzero(~same.all(axis=-1)))


def _differing(flat: Array, pattern: Array, start: int) -> int:
    """Return how many elements of *flat*, which begins at *start*, are not the pattern's."""
    if not len(flat):
        return 0
    period = len(pattern)
    got = _bits(flat)
    want = _bits(np.roll(pattern, -(start % period)))
    whole = len(flat) // period * period
    return int(
        np.count_nonzero(np.any(got[:whole].reshape(-1, *want.shape) != want, axis=-1))
        + np.count_nonzero(np.any(got[whole:] != want[: len(flat) - whole], axis=-1))
    )


def _bits(flat: Array) -> Array:
    """Return *flat* as shape (count, words) of unsigned integers."""
    word = min(8, flat.itemsize)
    return np.ascontiguousarray(flat).view(f"u{word}").reshape(len(flat), -1)
