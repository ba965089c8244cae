"""The ways to use a system that are compared. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to use a system."""

    title: str
    """What tables and plots call it."""
    team: str
    """Whose it is."""
    kind: str = "all_reduce"
    """What its calls do."""
    least: int = 0
    """Bytes of the smallest tensor for which it says something; and of the largest."""
    most: int = 1 << 62
    wire: str | None = None
    """The format in which its tensors travel; None: as they are."""
    together: bool = False
    """Whether all tensors of a batch are handed over in one call."""

    def takes(self, nbytes: int) -> bool:
        """Whether it says something for tensors of that size."""
        return self.least <= nbytes <= self.most


_SETTINGS_MOST = 64 << 20
"""Bytes of a tensor with other settings: all programs keep theirs while others are measured."""

MODES = {
    "ringd": Mode("ringd", "ringd"),
    "ringd-empty": Mode("ringd, ring.empty", "ringd"),
    "ringd-coalesced": Mode("ringd, all_reduce_coalesced", "ringd", together=True),
    "ringd-off": Mode("ringd, protect off", "ringd-off", most=_SETTINGS_MOST),
    "ringd-off-empty": Mode("ringd, protect off, ring.empty", "ringd-off", most=_SETTINGS_MOST),
    "ringd-encrypt": Mode("ringd, encrypt", "ringd-encrypt", most=_SETTINGS_MOST),
    "ringd-encrypt-empty": Mode("ringd, encrypt, ring.empty", "ringd-encrypt", most=_SETTINGS_MOST),
    "ringd-bfloat16": Mode("ringd, bfloat16", "ringd", least=1 << 20, wire="bfloat16"),
    "ringd-bfloat16-empty": Mode(
        "ringd, bfloat16, ring.empty", "ringd", least=1 << 20, wire="bfloat16"
    ),
    "ringd-int8": Mode("ringd, int8", "ringd", least=1 << 20, wire="int8"),
    "ringd-int8-empty": Mode("ringd, int8, ring.empty", "ringd", least=1 << 20, wire="int8"),
    "before": Mode("fd44b4d", "before"),
    "before-empty": Mode("fd44b4d, ring.empty", "before"),
    "gloo": Mode("Gloo", "gloo"),
    "gloo-coalesced": Mode("Gloo, all_reduce_coalesced", "gloo", together=True),
    "mlx": Mode("MLX ring", "mlx"),
    "mlx-run": Mode("MLX under run --mlx", "mlx-run"),
    "mpi": Mode("Open MPI, TCP", "mpi"),
    "floor": Mode("floor: bytes over TCP", "floor", "pass_on", 1 << 20, 512 << 20),
    "floor-memory": Mode("floor: memory over TCP", "floor", "pass_on", 1 << 20, 512 << 20),
    "relay": Mode("floor: relay, asleep", "relay", most=64 << 10),
    "relay-spin": Mode("floor: relay, 50 µs spin", "relay-spin", most=64 << 10),
    "nothing": Mode("no calls", "nothing", "nothing"),
}
RINGD = ("ringd", "ringd-empty")
PEERS = ("before", "gloo", "mlx", "mpi")
FLOORS = ("floor", "floor-memory", "relay", "relay-spin")
EVERY = (*RINGD, *PEERS, *FLOORS)
"""What single calls are measured with everywhere, and what plots show."""
OFF = ("ringd-off", "ringd-off-empty")
ENCRYPT = ("ringd-encrypt", "ringd-encrypt-empty")
"""As :data:`RINGD` with another ``ring.protect`` than its default, integrity."""
BFLOAT16 = ("ringd-bfloat16", "ringd-bfloat16-empty")
INT8 = ("ringd-int8", "ringd-int8-empty")
"""As :data:`RINGD` with a ``wire``."""
TOGETHER = {"ringd": "ringd-coalesced", "gloo": "gloo-coalesced"}
"""What hands many tensors over in one call, by what does so with a call for each: others have no
such calls, or one at a time."""
IN_FLIGHT = tuple(TOGETHER)
"""What many calls at a time are measured with."""


def team_names(modes: tuple[str, ...]) -> tuple[str, ...]:
    """Return whose *modes* they are, each once."""
    return tuple(dict.fromkeys(MODES[mode].team for mode in modes))
