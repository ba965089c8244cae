"""Every error that a user of ringd can meet, in one place.

All derive from :class:`RingError`. Each one carries a stable ``code``, under which it
travels from daemon to daemon and to the client, and a message that says what happened,
where, and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class RingError(Exception):
    """Base of all errors that ringd raises on purpose."""

    code: ClassVar[str] = "error"


class ConfigError(RingError):
    """The configuration cannot be used; the message names file, key, value and remedy."""

    code = "config"


class DaemonUnavailable(RingError):
    """No daemon answers on the socket, or it went away and did not return in time."""

    code = "daemon_unavailable"


class NotReady(RingError):
    """The daemon runs but takes no calls now: the ring is still forming, or it is draining."""

    code = "not_ready"


class Refused(RingError):
    """The daemon turned the request down, for instance because the group has a client already."""

    code = "refused"


class DeadlineExceeded(RingError, TimeoutError):
    """The call's deadline passed; the message says which members had not submitted."""

    code = "deadline_exceeded"


class Mismatch(RingError):
    """The members submitted different calls; the message shows what each of them sent."""

    code = "mismatch"


class PeerLost(RingError):
    """A member of the ring was lost and the client asked to be told (``on_loss="fail"``)."""

    code = "peer_lost"


class GroupLost(RingError):
    """A client of the group died or left; the next call joins the group anew."""

    code = "group_lost"


class ResourceExhausted(RingError):
    """Shared memory, the segment budget or a size limit is used up; names the setting to raise."""

    code = "resource_exhausted"


class CalledFromHandler(RingError):
    """A signal handler or finaliser made a call while its own thread was in the midst of one."""

    code = "called_from_handler"

    def __init__(
        self,
        message: str = (
            "a signal handler or finaliser cannot do this now: it interrupted its own thread "
            "within a call of ringd; set a flag there, and call when the thread goes on"
        ),
    ) -> None:
        super().__init__(message)


class MainThreadFailed(RingError):
    """The main thread has ended, not by returning, and a call of another thread kept it alive."""

    code = "main_thread_failed"

    def __init__(
        self,
        message: str = (
            "the program's main thread has ended, or is about to, by an exception or sys.exit(), "
            "and this call of another thread kept the program alive; the ring was left, so that "
            "the other members are told; let this end the thread"
        ),
    ) -> None:
        super().__init__(message)


_BY_CODE: dict[str, type[RingError]] = {
    cls.code: cls
    for cls in (
        RingError,
        ConfigError,
        DaemonUnavailable,
        NotReady,
        Refused,
        DeadlineExceeded,
        Mismatch,
        PeerLost,
        GroupLost,
        ResourceExhausted,
        CalledFromHandler,
        MainThreadFailed,
    )
}


def open_here(program: str, pid: int) -> str:
    """Return who has a group's place, and what to do, where that is the process that wants it."""
    return (
        f"it is this very process ({program}, pid {pid}), in which an earlier ring is still open; "
        "call close() on that one before (`with ringd.connect() as ring:` does so by itself), or "
        "connect with another group="
    )


def from_code(code: str, message: str) -> RingError:
    """Return the error that travelled as *code*; an unknown code becomes a plain RingError."""
    return _BY_CODE.get(code, RingError)(message)
