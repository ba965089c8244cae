"""The ways to run the benchmark: which sizes, how often, where. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from instrument.modes import BFLOAT16, ENCRYPT, EVERY, INT8, OFF
from targets import LOOPBACK, NETWORK, UNSEALED, Target

_SIZES = "4B,1KiB,4KiB,16KiB,64KiB,256KiB,1MiB,4MiB,16MiB,64MiB,256MiB"


@dataclass(frozen=True, slots=True)
class Profile:
    """One way to run the benchmark."""

    name: str
    """Of its page."""
    title: str
    targets: Sequence[Target]
    modes: Sequence[str]
    """What single calls are measured with, of which other benchmarks take what they are about."""
    sizes: str
    rounds: int
    budget: float
    """Seconds that a batch may take."""
    rate: float | None = None
    """Bits per second of the links; None: loopback."""
    thorough: bool = False
    """With all that is no comparison of calls, and takes long."""
    unsealed: Sequence[Target] = ()
    """The targets that compare with systems whose links are not sealed, for links as theirs."""


FULL = Profile(
    "loopback",
    "All-reduce over loopback",
    LOOPBACK,
    (*EVERY, *OFF, *ENCRYPT),
    _SIZES,
    rounds=7,
    budget=0.15,
    thorough=True,
    unsealed=UNSEALED,
)
QUICK = Profile(
    "quick",
    "All-reduce over loopback, in three minutes",
    LOOPBACK,
    EVERY,
    "4B,16KiB,1MiB,16MiB",
    rounds=5,
    budget=0.04,
)
SHAPED = Profile(
    "network",
    "All-reduce over links of 1 Gbit/s",
    NETWORK,
    (*EVERY, *ENCRYPT, *BFLOAT16, *INT8),
    "4B,16KiB,256KiB,1MiB,4MiB,16MiB,64MiB",
    rounds=7,
    budget=0.15,
    rate=1e9,
)
