"""Dialing a neighbour: for ever (:class:`Dialer`), or once (:class:`Attempt`).

Both go in *rounds*. A round tries each address of the neighbour, and of each name every
address that it resolves to, one after the other, each with a deadline of its own; it ends
with the first that proves to be the neighbour, or when all have failed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from errno import EINPROGRESS

from ringd.config.settings import JoinSettings
from ringd.config.units import format_address, parse_address
from ringd.host.tcp import link_socket
from ringd.loop import EVENT_WRITE, Loop, Timer
from ringd.net.backoff import Backoff
from ringd.net.exchange import Exchange
from ringd.net.oserrors import describe
from ringd.net.resolver import Endpoint, Found, Resolver
from ringd.wire.link.agreement import SECRET_SIZE
from ringd.wire.link.handshake import NONCE_SIZE, Dialing, Identity, Peer, Purpose

OnLink = Callable[[socket.socket, Peer, str, bytes], None]
"""Called with the socket, the peer, its address as text, and bytes behind the handshake."""

OnFailure = Callable[[str, str], None]
"""Called with the address and the reason, for every try that failed."""


class _Round:
    """One pass over all addresses; ends in ``on_link``, ``on_exhausted`` or :meth:`abort`."""

    def __init__(
        self,
        loop: Loop,
        resolver: Resolver,
        addresses: Sequence[str],
        settings: JoinSettings,
        *,
        make_handshake: Callable[[], Dialing],
        on_link: OnLink,
        on_failure: OnFailure,
        on_exhausted: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._resolver = resolver
        self._settings = settings
        self._make_handshake = make_handshake
        self._on_link = on_link
        self._on_failure = on_failure
        self._on_exhausted = on_exhausted
        self._addresses = list(addresses)
        self._configured = ""  # the address now being tried, as configured
        self._address = ""  # the same, with what its name resolved to
        self._endpoints: list[Endpoint] = []  # of that address, still to be tried
        self._sock: socket.socket | None = None  # while connecting
        self._exchange: Exchange | None = None
        self._timer: Timer | None = None
        self._lookup = 0  # tells a late answer from the one awaited
        self._over = False
        loop.call_soon(self._next)

    @property
    def connected(self) -> bool:
        """Whether somebody answered, and the handshake is under way."""
        return self._exchange is not None

    def abort(self) -> None:
        """Give up, whatever is under way; nobody is called any more."""
        self._over = True
        self._cancel_timer()
        self._drop_socket()
        if self._exchange is not None:
            self._exchange.abort()

    def _next(self) -> None:
        if self._over:
            return
        if self._endpoints:
            self._connect(*self._endpoints.pop(0))
        elif self._addresses:
            self._resolve(self._addresses.pop(0))
        else:
            self._over = True
            self._on_exhausted()

    def _failed(self, reason: str) -> None:
        self._cancel_timer()
        self._drop_socket()
        self._exchange = None
        # Not from here: a refusal comes at once, and the next, and the next.
        self._loop.call_soon(self._next)
        self._on_failure(self._address, reason)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drop_socket(self) -> None:
        if self._sock is not None:
            self._loop.remove(self._sock)
            self._sock.close()
            self._sock = None

    # --- names ------------------------------------------------------------------------

    def _resolve(self, address: str) -> None:
        self._configured = self._address = address
        self._lookup += 1
        lookup = self._lookup
        timeout = self._settings.connect_timeout

        def resolved(found: Found) -> None:
            if lookup == self._lookup and not self._over:
                self._lookup += 1
                self._resolved(found)

        def late() -> None:
            self._lookup += 1
            self._failed(f"cannot resolve the name: no answer within {timeout:g} s")

        try:
            host, port = parse_address(address)
        except ValueError as error:
            self._failed(str(error))
            return
        self._timer = self._loop.call_later(timeout, late)
        self._resolver.resolve(host, port, resolved)

    def _resolved(self, found: Found) -> None:
        self._cancel_timer()
        if isinstance(found, OSError):
            self._failed(describe(found))
            return
        self._endpoints = found[:]
        self._next()

    # --- connections ------------------------------------------------------------------

    def _connect(self, family: socket.AddressFamily, endpoint: tuple[str, int]) -> None:
        literal = format_address(endpoint[0], endpoint[1])
        configured = self._configured
        self._address = configured if literal == configured else f"{configured} ({literal})"
        try:
            sock = link_socket(family, self._settings.congestion)
        except OSError as error:
            self._failed(describe(error))
            return
        sock.setblocking(False)
        try:
            error_number = sock.connect_ex(endpoint)
        except (OSError, OverflowError) as error:
            sock.close()
            self._failed(str(error))
            return
        if error_number not in (0, EINPROGRESS):
            sock.close()
            self._failed(describe(OSError(error_number, os.strerror(error_number))))
            return
        self._sock = sock
        self._loop.add(sock, EVENT_WRITE, self._connected)
        timeout = self._settings.connect_timeout
        text = f"no answer within {timeout:g} s"
        self._timer = self._loop.call_later(timeout, lambda: self._failed(text))

    def _connected(self, _events: int) -> None:
        sock = self._sock
        if sock is None:
            return
        error_number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error_number:
            self._failed(describe(OSError(error_number, os.strerror(error_number))))
            return
        try:
            itself = sock.getsockname() == sock.getpeername()
        except OSError as error:
            self._failed(describe(error))
            return
        if itself:
            # A port of the kernel's choosing met a port on this host where nobody listens.
            self._failed("connection refused (it was answered by its own socket)")
            return
        self._cancel_timer()
        self._loop.remove(sock)
        self._sock = None
        self._exchange = Exchange(
            self._loop,
            sock,
            self._make_handshake(),
            timeout=self._settings.handshake_timeout,
            on_peer=lambda peer, leftover: self._succeeded(sock, peer, leftover),
            on_failed=lambda reason, _cause: self._failed(reason),
        )

    def _succeeded(self, sock: socket.socket, peer: Peer, leftover: bytes) -> None:
        self._over = True
        self._on_link(sock, peer, self._address, leftover)


class Dialer:
    """Dials a neighbour until there is a link, as often as :meth:`start` asks for one.

    Args:
        loop: Where it runs.
        identity: Called for every handshake: what we say about ourselves.
        key: The ring's key, empty for none.
        target: The neighbour's name.
        addresses: Called before every round; ``"host:port"``, preferred first.
        settings: Timeouts.
        backoff: How long to sleep after a round that failed, or a link that did not hold. Reset
            by :meth:`wake`, and by a link that did.
        on_link: Takes over the socket; the dialer rests until :meth:`start`.
        on_failure: Learns of every try that failed.
        resolver: Looks names up.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        identity: Callable[[], Identity],
        key: bytes,
        target: str,
        addresses: Callable[[], Sequence[str]],
        settings: JoinSettings,
        backoff: Backoff,
        on_link: OnLink,
        on_failure: OnFailure,
        resolver: Resolver,
    ) -> None:
        self._loop = loop
        self._identity = identity
        self._key = key
        self._target = target
        self._addresses = addresses
        self._settings = settings
        self._backoff = backoff
        self._on_link = on_link
        self._on_failure = on_failure
        self._resolver = resolver
        self._round: _Round | None = None
        self._sleep: Timer | None = None
        self._linked_at: float | None = None
        self._again = False

    @property
    def active(self) -> bool:
        """Whether it is dialing, or sleeping between two rounds."""
        return self._round is not None or self._sleep is not None

    def start(self) -> None:
        """Dial until there is a link; does nothing while active.

        The first round starts at once, with the backoff forgotten. But when the last link did
        not even hold for as long as it takes to notice a silent peer, it is one more failure.
        """
        if self.active:
            return
        linked_at, self._linked_at = self._linked_at, None
        if linked_at is not None:
            if self._loop.now() - linked_at < self._settings.lost_after:
                self._sleep_then_dial()
                return
            self._backoff.reset()
        self._dial()

    def wake(self) -> None:
        """Try now, with the backoff forgotten; does nothing while not active.

        A connection in its handshake goes on: it may be to the very peer that is ready.
        """
        if not self.active:
            return
        self._backoff.reset()
        if self._round is not None and self._round.connected:
            self._again = True
            return
        self._dial()

    def stop(self) -> None:
        """Give up whatever is under way; nobody is called any more."""
        if self._round is not None:
            self._round.abort()
            self._round = None
        if self._sleep is not None:
            self._sleep.cancel()
            self._sleep = None

    def _dial(self) -> None:
        self.stop()
        self._again = False
        self._round = _Round(
            self._loop,
            self._resolver,
            self._addresses(),
            self._settings,
            make_handshake=self._make_handshake,
            on_link=self._succeeded,
            on_failure=self._on_failure,
            on_exhausted=self._exhausted,
        )

    def _make_handshake(self) -> Dialing:
        return _dialing(self._identity(), self._key, self._target)

    def _succeeded(self, sock: socket.socket, peer: Peer, address: str, leftover: bytes) -> None:
        self._round = None
        self._linked_at = self._loop.now()
        self._on_link(sock, peer, address, leftover)

    def _exhausted(self) -> None:
        self._round = None
        if self._again:
            self._dial()
        else:
            self._sleep_then_dial()

    def _sleep_then_dial(self) -> None:
        self._sleep = self._loop.call_later(self._backoff.next(), self._dial)


class Attempt:
    """Dials *addresses* once, for a purpose of its own; ends in one call of those given.

    Args:
        loop: Where it runs.
        identity: As for a :class:`Dialer`, and so are *key*, *target*, *settings*, *resolver*.
        addresses: Where, preferred first.
        purpose: A link; or a probe or a knock, whose connection the other side closes.
        on_link: As for a dialer.
        on_failed: Learns that nobody was reached, and by address why.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        identity: Callable[[], Identity],
        key: bytes,
        target: str,
        addresses: Sequence[str],
        settings: JoinSettings,
        resolver: Resolver,
        purpose: Purpose,
        on_link: OnLink,
        on_failed: Callable[[dict[str, str]], None],
    ) -> None:
        failures: dict[str, str] = {}

        def failed(address: str, reason: str) -> None:
            failures[configured(address)] = f"{address}: {reason}"

        self._round = _Round(
            loop,
            resolver,
            addresses,
            settings,
            make_handshake=lambda: _dialing(identity(), key, target, purpose),
            on_link=on_link,
            on_failure=failed,
            on_exhausted=lambda: on_failed(failures),
        )

    def stop(self) -> None:
        """Give up; nobody is called any more."""
        self._round.abort()


def _dialing(identity: Identity, key: bytes, target: str, purpose: Purpose = "link") -> Dialing:
    nonce, private = os.urandom(NONCE_SIZE), os.urandom(SECRET_SIZE)
    return Dialing(identity, key, target, nonce, private, purpose=purpose)


def configured(address: str) -> str:
    """Return *address*, as dialers tell it, in the words of the config."""
    return address.partition(" (")[0]
