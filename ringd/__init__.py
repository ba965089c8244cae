"""ringd: all-reduce through a ring of daemons that outlives the programs that use it."""

from ringd.client.ring import Ring, connect
from ringd.client.work import Work
from ringd.errors import (
    ConfigError,
    DaemonUnavailable,
    DeadlineExceeded,
    GroupLost,
    Mismatch,
    NotReady,
    PeerLost,
    Refused,
    ResourceExhausted,
    RingError,
)

__all__ = [
    "ConfigError",
    "DaemonUnavailable",
    "DeadlineExceeded",
    "GroupLost",
    "Mismatch",
    "NotReady",
    "PeerLost",
    "Refused",
    "ResourceExhausted",
    "Ring",
    "RingError",
    "Work",
    "connect",
]

__version__ = "0.1.0"
