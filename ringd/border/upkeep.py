"""The sockets' files: looked for now and then, and made anew when somebody has removed them."""

from __future__ import annotations

from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

from ringd import errors
from ringd.acceptor import Acceptor
from ringd.border.endpoint import Endpoint
from ringd.border.roster import Roster
from ringd.border.router import Router
from ringd.loop import Loop

LOOK_EVERY = 10.0
"""Seconds between looks whether the sockets can still be found."""

MAX_REMOVALS = 256
"""Times that the socket may be made anew while programs are attached over the old ones: each costs
a descriptor, as libzmq hangs up on whom a socket has accepted when it is closed."""


class Upkeep:
    """Sees to it that programs find the daemon, from its making to :meth:`close`.

    Args:
        loop: The daemon's.
        endpoint: The files.
        router: Listens behind two of them.
        lifelines: Listens behind the third one.
        roster: Who is left on old sockets.
        on_unreachable: Called when they cannot be made anew, for longer than an instant.
        log: The border's.
    """

    def __init__(
        self,
        loop: Loop,
        endpoint: Endpoint,
        router: Router,
        lifelines: Acceptor,
        roster: Roster,
        *,
        on_unreachable: Callable[[], None],
        log: FilteringBoundLogger,
    ) -> None:
        self._loop = loop
        self._endpoint = endpoint
        self._router = router
        self._lifelines = lifelines
        self._roster = roster
        self._on_unreachable = on_unreachable
        self._log = log
        self._trouble = ""  # why they could not be made anew, the last time
        self._old_sockets = 0
        self._next = loop.call_later(LOOK_EVERY, self._look)

    def close(self) -> None:
        """Look no more."""
        self._next.cancel()

    def _look(self) -> None:
        self._next = self._loop.call_later(LOOK_EVERY, self._look)
        lost = self._endpoint.lost()
        # Old ones cost a descriptor each, and can be closed when nobody is left on them.
        unused = self._old_sockets and not (lost or self._roster)
        old = [self._endpoint.inner_path] if unused else []
        if not lost and not old:
            self._trouble = ""
            return
        try:
            self._renew(*old)
        except errors.RingError as error:
            if self._trouble and isinstance(error, errors.ConfigError):  # not only for an instant
                self._on_unreachable()
            if str(error) != self._trouble:
                self._log.error(
                    "the sockets were removed, no program can attach",
                    reason=str(error),
                    remedy="make it possible, or restart ringd; it is tried again all the time",
                )
            self._trouble = str(error)
        else:
            self._trouble = ""
            if lost:
                self._log.warning(
                    "the sockets were removed; they are made anew",
                    paths=lost,
                    programs=len(self._roster.attached),
                )

    def _renew(self, *replaced: str) -> None:
        endpoint = self._endpoint
        in_use = len(self._roster) > 0
        if endpoint.inner_path in endpoint.lost() and in_use and self._old_sockets >= MAX_REMOVALS:
            raise errors.Refused(
                f"{endpoint.inner_path} was removed {MAX_REMOVALS} times while programs were "
                "attached; find out what removes it; it is made anew when they have ended"
            )
        outer, lifeline, inner = endpoint.socket, endpoint.lifeline_socket, endpoint.inner_socket
        endpoint.renew(*replaced)
        if endpoint.inner_socket is not inner:
            self._old_sockets = self._old_sockets + 1 if in_use else 0
            self._router.listen_at_renewed(keep_old=in_use)
        if endpoint.socket is not outer:
            self._router.let_in_at_renewed()
        if endpoint.lifeline_socket is not lifeline:
            self._lifelines.use(endpoint.lifeline_socket)
