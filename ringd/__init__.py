"""ringd: collectives through a ring of daemons that outlives the programs that use it."""

from typing import TYPE_CHECKING

from ringd.errors import (
    CalledFromHandler,
    ConfigError,
    DaemonUnavailable,
    DeadlineExceeded,
    GroupLost,
    MainThreadFailed,
    Mismatch,
    NotReady,
    PeerLost,
    Refused,
    ResourceExhausted,
    RingError,
)

if TYPE_CHECKING:
    from ringd.client.messages import ANY
    from ringd.client.ring import Ring, connect
    from ringd.client.work import Work
else:

    def __getattr__(name: str) -> object:
        """Import the client library when it is asked for: the daemon starts without it."""
        if name not in {"ANY", "Ring", "Work", "connect"}:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from ringd.client import messages, ring, work  # noqa: PLC0415 - see above

        globals().update(ANY=messages.ANY, Ring=ring.Ring, Work=work.Work, connect=ring.connect)
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "ANY",
    "CalledFromHandler",
    "ConfigError",
    "DaemonUnavailable",
    "DeadlineExceeded",
    "GroupLost",
    "MainThreadFailed",
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
