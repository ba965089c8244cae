"""Calls in the simulation of groups: what a program asks for, in memory that shows wrong use.

Memory is overwritten as soon as its owner may do so; so an input that is read after its time shows
as a wrong sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ringd.collective.call import Call
from ringd.groups.op import OK

if TYPE_CHECKING:
    from groups_model_channel import End
    from groups_model_client import Client

GARBAGE = 0xBAD << 70
"""What freed or reused memory holds; far outside of any sum of inputs."""


class Violation(AssertionError):
    """The engine broke a promise."""


@dataclass(frozen=True)
class Spec:
    """What one op of a program looks like."""

    kind: str = "inline"
    """``inline``, ``eager`` (small, in shared memory), ``large``, or ``bare`` (large, without
    shared memory)."""
    hold: bool = False
    timeout: float | None = None
    shape: int = 1
    told: bool = False
    """The result travels inside a message, also where there is shared memory."""
    apart: bool = False
    """One member's part may be through long before another's."""

    @property
    def sealed(self) -> bool:
        """Whether the result goes to shared memory."""
        return self.kind in ("eager", "large") and not self.told

    @property
    def call(self) -> Call:
        """What the members have to agree on."""
        name = f"{self.kind} apart" if self.apart else self.kind
        return Call("all_reduce", "sum", "int64", (self.shape,), name)


class Memory:
    """A tensor of one element in memory that client and daemon share."""

    def __init__(self, value: int) -> None:
        self.bytes = bytearray(16)
        self.write(value)

    def write(self, value: int) -> None:
        """Overwrite it."""
        self.bytes[:] = value.to_bytes(16, "little")

    @property
    def value(self) -> int:
        """What it holds."""
        return int.from_bytes(self.bytes, "little")


@dataclass(eq=False)
class Work:
    """A call as its client sees it."""

    client: Client | End
    join_id: int
    seq: int
    spec: Spec
    token: int
    born: float
    source: Memory
    target: Memory | None
    seal: tuple[int, int] | None = None
    outcome: str = ""
    message: str = ""
    value: int | None = None
    released: bool = False
    left: bool = False
    """The daemon may count on the input as it is; the user's writes go elsewhere."""

    def leave_input(self) -> None:
        """What the user writes to what it has lent does not reach the daemon from now on."""
        self.left |= not self.outcome

    def end(self, code: str, message: str, value: int | None) -> None:
        """The client learns how the call ended."""
        if self.outcome:
            if OK in {self.outcome, code} and self.outcome != code:
                raise Violation(f"{self} ended twice: {self.outcome}, then {code} {message}")
            return
        self.outcome, self.message = code, message
        sim = self.client.sim
        if code == OK:
            self.value = value
            sim.witness.check_value(self)
            if self.spec.hold and not self.left:
                self.source.write(GARBAGE)
            if self.target is not None:
                self.target.write(GARBAGE)
        else:
            sim.witness.check_error(self)
            if not self.left:
                self.source.write(GARBAGE)

    def counts_on(self, join_ids: tuple[int, ...]) -> bool:
        """Whether its client is still there and knows that it is in this session."""
        return self.client.alive and self.client.sessions.get(self.join_id) == join_ids

    def __str__(self) -> str:
        return f"{self.client}: op {self.seq} of join {self.join_id} ({self.spec})"


@dataclass(eq=False)
class Buffers:
    """What the daemon keeps of a submission."""

    work: Work
    copy: int | None
    """The input, where it came inside the message."""
    freed: bool = False
    result: int | None = None

    def read(self) -> int:
        """Return the input as it stands now."""
        if self.freed:
            raise Violation(f"{self.work}: its input is read after it was freed")
        return self.work.source.value if self.copy is None else self.copy
