"""Back to the preferred address: for a link that had to be made over another one.

The addresses that are preferred to the one in use are dialed from time to time. One that has
answered for ``join.prefer_after``, whenever it was tried, gets the link, as soon as a try meets a
quiet moment. Moving it breaks the ring for some milliseconds: calls survive that, but when none is
open it costs nobody any time. An address under which the link is lost again has to answer for twice
as long next time.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

import structlog

from ringd.config.settings import Config
from ringd.loop import Loop, Timer
from ringd.net.dialer import Attempt, OnLink, configured
from ringd.wire.link.handshake import Peer, Purpose

PROBES = 3
"""Times that an address is tried in ``join.prefer_after``, after the first."""

_MOST = 64  # times join.prefer_after


class MakeAttempt(Protocol):
    """Makes an attempt to reach the neighbour."""

    def __call__(
        self,
        addresses: tuple[str, ...],
        purpose: Purpose,
        on_link: OnLink,
        on_failed: Callable[[dict[str, str]], None],
    ) -> Attempt:
        """Dial *addresses* for *purpose*."""


class Homing:
    """See the module's docstring.

    Args:
        loop: Where it runs.
        config: Asked each time.
        addresses: The neighbour's, preferred first.
        attempt: Dials some of them.
        quiet: Whether nobody would notice a short break.
        on_link: Takes over the socket of the new link, while the old one stands.
        on_stay: Learns that an attempt to move has failed.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        config: Callable[[], Config],
        addresses: Callable[[], tuple[str, ...]],
        attempt: MakeAttempt,
        quiet: Callable[[], bool],
        on_link: OnLink,
        on_stay: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._config = config
        self._addresses = addresses
        self._attempt = attempt
        self._quiet = quiet
        self._on_link = on_link
        self._on_stay = on_stay
        self._log = structlog.get_logger("ring")
        self._timer: Timer | None = None
        self._trying: Attempt | None = None
        self._address = ""  # that the link runs over
        self._instance = 0  # the process that it leads to
        self._streak = ("", 0)  # the address that answers, and how often in a row it has
        self._patience = 1
        self._moved_at: float | None = None
        self._said_waiting = False
        self._errors: dict[str, str] = {}
        self.moving = False
        """Whether a new link is being made, in the place of one that is or was there."""
        self.probes = 0
        """How often a preferred address was tried since the link is there."""

    def error(self) -> str | None:
        """Return why the preferred address could not be reached the last time; None if it was."""
        return self._errors.get(self._addresses()[0])

    def failed(self, address: str, reason: str) -> None:
        """Take note of an address that could not be reached, and why."""
        self._errors[configured(address)] = f"{address}: {reason}"

    def linked(self, address: str, peer: Peer) -> None:
        """There is a link to *peer* over *address*: look for a better one, if there may be."""
        self.stop()
        self._address, self._instance = address, peer.instance
        self._errors.pop(configured(address), None)
        self.probes = 0
        better = self._better(address)
        if better:
            self._judge_the_last()
        self._said_waiting = False
        self._next(better)

    def reload(self) -> None:
        """The config has changed, and the link stands: begin again with that."""
        if not self.moving:
            self.stop()
            self._next(self._better(self._address))

    def stop(self) -> None:
        """Give up whatever is under way; nobody is called any more."""
        self.moving = False
        self._streak = ("", 0)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._trying is not None:
            self._trying.stop()
            self._trying = None

    def _better(self, address: str) -> tuple[str, ...]:
        addresses = self._addresses()
        used = configured(address)
        return addresses[: addresses.index(used)] if used in addresses else ()

    def _judge_the_last(self) -> None:
        """The link is away from the preferred address: had it moved there just now?"""
        moved_at, self._moved_at = self._moved_at, None
        after = self._after()
        if moved_at is None or after is None:
            return
        held = self._loop.now() - moved_at
        self._patience = min(_MOST, 2 * self._patience) if held < 10 * after else 1

    def _after(self) -> float | None:
        """Return for how long an address must have answered; None if it is never taken."""
        after = self._config().join.prefer_after
        return None if after is None else after * self._patience

    def _next(self, better: tuple[str, ...]) -> None:
        after = self._after()
        if better and after is not None:
            self._timer = self._loop.call_later(after / PROBES, lambda: self._probe(better))

    def _probe(self, better: tuple[str, ...]) -> None:
        self.probes += 1

        def reached(sock: socket.socket, peer: Peer, address: str, _leftover: bytes) -> None:
            sock.close()
            self._trying = None
            if self._is_neighbour(peer, address):
                self._answered(better, configured(address))
            else:
                self._no_answer(better)

        def failed(failures: dict[str, str]) -> None:
            self._errors |= failures
            self._trying = None
            self._no_answer(better)

        self._trying = self._attempt(better, "probe", reached, failed)

    def _is_neighbour(self, peer: Peer, address: str) -> bool:
        if peer.instance != self._instance:
            self.failed(address, f"it leads to another machine with the name {peer.name!r}")
            return False
        self._errors.pop(configured(address), None)
        return True

    def _no_answer(self, better: tuple[str, ...]) -> None:
        self._streak = ("", 0)
        self._next(better)

    def _answered(self, better: tuple[str, ...], address: str) -> None:
        before, count = self._streak
        count = count + 1 if before == address else 1
        self._streak = (address, count)
        if count > PROBES:
            if self._quiet():
                self._move(better, address)
                return
            self._say_waiting(address)
        # Also while it waits for quiet only: an address that fails meanwhile must not get the link.
        self._next(better)

    def _say_waiting(self, address: str) -> None:
        if not self._said_waiting:
            self._said_waiting = True
            self._log.info(
                "link waits for open calls",
                reason="it moves to a preferred address when no call is open, and no program is "
                'here that connected with on_loss="fail"',
                address=address,
            )

    def _move(self, better: tuple[str, ...], address: str) -> None:
        def reached(sock: socket.socket, peer: Peer, where: str, leftover: bytes) -> None:
            self._trying = None
            if not self._is_neighbour(peer, where):
                sock.close()
                stay()
                return
            self.moving = False
            self._moved_at = self._loop.now()
            self._log.info("link moves to a preferred address", address=where, after=self._after())
            self._on_link(sock, peer, where, leftover)

        def failed(failures: dict[str, str]) -> None:
            self._errors |= failures
            self._trying = None
            stay()

        def stay() -> None:
            self.moving = False
            self._no_answer(better)
            self._on_stay()

        self.moving = True
        self._trying = self._attempt((address,), "link", reached, failed)
