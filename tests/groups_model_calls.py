"""Calls in the simulation of groups: what a program asks for, in memory that shows wrong use.

Memory is overwritten as soon as its owner may do so; so an input that is read after its time shows
as a wrong result, and a result that is written after its time shows in what stands there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from ringd.collective import kinds
from ringd.collective.call import NO_ROOT, Call
from ringd.collective.coalesced import written
from ringd.collective.eager import EagerRule
from ringd.collective.reduction import dtype_from_name
from ringd.groups.op import OK

if TYPE_CHECKING:
    from groups_model_channel import End
    from groups_model_client import Client

EAGER = 32
"""Bytes of an input that go with the offer; what has more comes in chunks."""

RULE = EagerRule(EAGER, together=0)
"""All of more comes in chunks, also where that takes longer: they are what is to be shown."""

CHUNK = 64
"""Bytes of a chunk at most."""

GARBAGE = 0xBA
"""What each byte of freed or reused memory holds."""

ODD_WAYS = ("rows", "root", "kind", "dtype", "name", "counts")
"""In which a program may differ from the others by mistake, of which counts have some calls alone.
"""


class Violation(AssertionError):
    """The engine broke a promise."""


@dataclass(frozen=True)
class Spec:
    """What one op of a program looks like."""

    way: str = "inline"
    """How tensors travel to the daemon and on: ``inline``, ``eager`` (small, in shared memory),
    ``large``, or ``bare`` (large, without shared memory)."""
    of: str = "all_reduce"
    """The kind of call."""
    op: str = "sum"
    dtype: str = "int64"
    root: int = 0
    counts: bool = False
    """Whether rows are not even, of an all_to_all."""
    wire: str = ""
    hold: bool = False
    """The input is the program's own memory."""
    timeout: float | None = None
    told: bool = False
    """The result travels inside a message, also where there is shared memory."""
    odd: str = ""
    """How this program differs from the others by mistake: one of :data:`ODD_WAYS`."""
    unfit: bool = False
    """It cannot be made by so many ranks as there turn out to be."""
    gathers: str = ""
    """Of an all_gather_bytes, which of its two calls: ``lengths`` or ``bytes``."""
    colors: tuple[int | None, ...] = ()
    """By rank, over and over: by which color the bytes split the group."""
    inner: tuple[Spec, ...] = ()
    """What the programs of each part call then."""

    @property
    def small(self) -> bool:
        """Whether inputs go with the offers."""
        return self.way in ("inline", "eager")

    def rows(self, size: int) -> int:
        """Return the rows of axis 0, of two elements of 8 bytes or as many bytes."""
        rows = (1 if self.small else 3) + (self.odd == "rows")
        return rows * size if kinds.KINDS[self.of].divides else rows

    def call(self, rank: int, size: int) -> Call:
        """Return what *rank* of *size* asks for."""
        of, dtype, root, odd = self.of, self.dtype, self.root % size, self.odd
        kind = kinds.KINDS[of]
        name = f"{of} {odd}" if odd == "name" else of
        if not kind.data or odd == "kind" or (odd == "root" and not kind.rooted):
            return Call("barrier", "", "", (), name)
        if odd == "dtype" and self.op != "bxor":
            dtype = "int32" if dtype == "float64" else "float64"
        if odd == "root":
            root = (root + 1) % size
        if self.unfit:
            root = size
        row = 16 // dtype_from_name(dtype).itemsize
        shape, counts = (self.rows(size), row), self._counts(rank, size)
        tensors = ""
        if kind.coalesces:
            shape = (math.prod(shape),)
            tensors = written([(), (shape[0] - 1,)])
        if counts:
            shape = sum(counts[:size]), row
        return Call(
            of,
            self.op if kind.reduces else "",
            dtype,
            shape,
            name,
            root if kind.rooted else NO_ROOT,
            counts,
            self.wire if kind.narrows and dtype == self.dtype else "",
            tensors,
        )

    def _counts(self, rank: int, size: int) -> tuple[int, ...]:
        """Return how many rows *rank* sends to each, and then how many it expects of each."""
        if not self.counts:
            return ()
        ranks = range(size)
        sent = [self._count(rank, other) for other in ranks]
        expected = [self._count(other, rank) for other in ranks]
        expected[0] += self.odd == "counts"
        return (*sent, *expected)

    def _count(self, sender: int, receiver: int) -> int:
        return (sender + 2 * receiver) % 3 + 2 * (not self.small)


def numbers(rng: Random, dtype: str, count: int) -> bytes:
    """Return the bytes of random numbers, of which no two are likely to be alike."""
    if not count:
        return b""
    kind = dtype_from_name(dtype)
    if kind.kind in "iub":
        return rng.randbytes(count * kind.itemsize)
    values = [rng.uniform(0.5, 1.5) for _ in range(count)]
    return np.array(values).astype(kind).tobytes()


class Memory:
    """A tensor in memory that client and daemon share."""

    def __init__(self, data: bytes) -> None:
        self.bytes = bytearray(data)

    def spoil(self) -> None:
        """Overwrite it."""
        self.bytes[:] = bytes([GARBAGE]) * len(self.bytes)

    @property
    def spoiled(self) -> bool:
        """Whether nobody has written to it since."""
        return self.bytes.count(GARBAGE) == len(self.bytes)


@dataclass(eq=False)
class Work:
    """A call as its client sees it."""

    client: Client | End
    join_id: int
    seq: int
    spec: Spec
    call: Call
    rank: int
    size: int
    given: bytes
    """What its program handed over."""
    born: float
    source: Memory = field(init=False)
    target: Memory | None = None
    sealed: bool = field(init=False)
    """Whether the result goes to shared memory, or the seal alone."""
    lent: bool = field(init=False)
    """Whether the input is the program's own memory."""
    copied: bool = field(init=False)
    """Whether the input travels inside the message."""
    generations: int = field(init=False)
    """How many rings had formed when it was made."""
    seal: tuple[int, int] | None = None
    outcome: str = ""
    message: str = ""
    value: bytes | None = None
    released: bool = False
    sure: bool = False
    """How it ends is certain before the client hears of it."""
    left: bool = False
    """The daemon may count on the input as it is; the user's writes go elsewhere."""

    def __post_init__(self) -> None:
        self.source = Memory(self.given)
        self.generations = self.client.sim.generations
        shared = self.spec.way in ("eager", "large")
        taken = kinds.nbytes(self.call, self.rank, self.size)[1] or 0
        self.sealed = shared and not self.spec.told and bool(self.given or taken)
        self.copied = not (shared and self.given)
        self.lent = self.spec.hold and self.sealed and not self.copied
        if self.sealed:
            self.target = Memory(bytes(taken))

    @property
    def result(self) -> bytes:
        """What stands in shared memory."""
        return b"" if self.target is None else bytes(self.target.bytes)

    def leave_input(self) -> None:
        """What the user writes to what it has lent does not reach the daemon from now on."""
        self.left |= not self.outcome

    def end(self, code: str, message: str, value: bytes | None) -> None:
        """The client learns how the call ended."""
        if self.outcome:
            if OK in {self.outcome, code} and self.outcome != code:
                raise Violation(f"{self} ended twice: {self.outcome}, then {code} {message}")
            return
        self.outcome, self.message = code, message
        witness = self.client.sim.witness
        witness.check_time(self)
        if code == OK:
            self.value = value or b""
            witness.check_value(self)
        else:
            witness.check_error(self)
        if not self.left and (code != OK or self.lent):
            self.source.spoil()
        if self.target is not None:
            self.target.spoil()

    def counts_on(self, join_ids: tuple[int, ...]) -> bool:
        """Whether its client is still there and knows that it is in this session."""
        return self.client.alive and self.client.sessions.get(self.join_id) == join_ids

    def __str__(self) -> str:
        return f"{self.client}: op {self.seq} of join {self.join_id} ({self.call}, {self.spec})"


@dataclass(eq=False)
class Buffers:
    """What the daemon keeps of a submission."""

    work: Work
    copy: bytearray | None
    """The input, where it came inside the message."""
    freed: bool = False
    result: bytearray | None = None

    @property
    def source(self) -> memoryview:
        """The input's memory."""
        if self.freed:
            raise Violation(f"{self.work}: its input is read after it was freed")
        return memoryview(self.work.source.bytes if self.copy is None else self.copy)

    def free(self) -> None:
        """Use it for something else."""
        if self.freed:
            raise Violation(f"{self.work} is freed twice")
        self.freed = True
        if self.copy is not None:
            self.copy[:] = bytes([GARBAGE]) * len(self.copy)
