"""Whether a daemon is alive, and whether it is of use: ``/livez`` and ``/readyz``.

An answer is proof, not memory: it waits until a message of the daemon's own, sent among those of
programs when the question came, was read. A daemon that hangs gives none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus

from ringd.loop import Loop
from ringd.metrics.http import Response, plain

WITHIN = 1.0
"""Seconds that the proof may take."""

Reply = Callable[[Response], None]
Told = Callable[[], None]
Op = tuple[int, int]
"""By session and number."""


class Stalls:
    """Notices ops that do not get on from one look to the next.

    Each look is given the position of every op, which rises while it gets on.
    """

    def __init__(self) -> None:
        self._seen: dict[Op, tuple[object, float]] = {}
        """By op: its position, and when it was first seen there."""

    def look(self, positions: Mapping[Op, object], now: float) -> float:
        """Return for how many seconds, at least, some op has not moved."""
        old = self._seen
        self._seen = {}
        for op, position in positions.items():
            known = old.get(op)
            stands = known is not None and known[0] == position
            self._seen[op] = known if known is not None and stands else (position, now)
        return max((now - since for _, since in self._seen.values()), default=0.0)


class Probes:
    """Answers them.

    Args:
        loop: The daemon's.
        prove: Calls its argument when a message that was sent after that was read.
        forget: Undoes that.
        obstacle: Says why the ring is of no use just now; empty if it is.
        positions: Of the large ops under way.
        patience: Seconds for which one of these may stand still.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        prove: Callable[[Told], None],
        forget: Callable[[Told], None],
        obstacle: Callable[[], str],
        positions: Callable[[], Mapping[Op, object]],
        patience: float,
    ) -> None:
        self._loop = loop
        self._prove = prove
        self._forget = forget
        self._obstacle = obstacle
        self._positions = positions
        self._patience = patience
        self._stalls = Stalls()

    def live(self, reply: Reply) -> None:
        """Say whether the daemon gets on with what programs send."""
        self._when_proved(reply, lambda: "")

    def ready(self, reply: Reply) -> None:
        """Say whether calls would get on: it is alive, the ring is up, and no call stands still."""
        self._when_proved(reply, lambda: self._obstacle() or self._stall())

    def _when_proved(self, reply: Reply, objection: Callable[[], str]) -> None:
        def proved() -> None:
            timer.cancel()
            text = objection()
            status = HTTPStatus.SERVICE_UNAVAILABLE if text else HTTPStatus.OK
            reply(plain(status, text or "ok"))

        def failed() -> None:
            self._forget(proved)
            text = f"what programs send was not read within {WITHIN:g} s"
            reply(plain(HTTPStatus.SERVICE_UNAVAILABLE, text))

        timer = self._loop.call_later(WITHIN, failed)
        self._prove(proved)

    def _stall(self) -> str:
        seconds = self._stalls.look(self._positions(), self._loop.now())
        if seconds < self._patience:
            return ""
        return f"a call that all members have made has not moved for {seconds:.0f} s"
