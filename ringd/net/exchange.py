"""Carries a handshake over a socket, with a deadline."""

from __future__ import annotations

import socket
from collections.abc import Callable

from ringd.loop import EVENT_READ, Loop
from ringd.net.oserrors import describe
from ringd.wire.link.handshake import Accepting, Dialing, HandshakeError, Peer

_READ = 4096  # a neighbour's whole part, as a rule

Judge = Callable[[Peer, Callable[[str], None]], None]
"""Called with a peer that has proved to be one; says at any time whether it may come in."""


class Exchange:
    """One handshake under way; ends in exactly one of three ways.

    * ``on_peer(peer, leftover)``: it succeeded and the socket is the caller's again, watched
      by nobody;
    * ``on_failed(reason, cause)``: it failed or its time was up, and the socket is closed. The
      cause is one of a few words, whatever the other side says;
    * :meth:`abort`: the socket is closed and nobody called.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        handshake: Dialing | Accepting,
        *,
        timeout: float,
        on_peer: Callable[[Peer, bytes], None],
        on_failed: Callable[[str, str], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._handshake = handshake
        self._on_peer = on_peer
        self._on_failed = on_failed
        self._over = False
        loop.add(sock, EVENT_READ, self._ready)
        text = f"no handshake within {timeout:g} s"
        self._timer = loop.call_later(timeout, lambda: self._fail(text, "silent"))
        loop.call_soon(self._send)

    def abort(self) -> None:
        """Close the socket and call nobody."""
        if not self._over:
            self._release()
            self._sock.close()

    def _release(self) -> None:
        self._over = True
        self._timer.cancel()
        self._loop.remove(self._sock)
        # They know the exchange, as a rule: without this it would wait for the collector.
        del self._on_peer, self._on_failed

    def _fail(self, reason: str, cause: str) -> None:
        on_failed = self._on_failed
        self.abort()
        on_failed(reason, cause)

    def _ready(self, _events: int) -> None:
        try:
            data = self._sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(describe(error), "closed")
            return
        if not data:
            self._fail("connection closed during the handshake", "closed")
            return
        try:
            self._handshake.receive(data)
        except HandshakeError as error:
            self._refused(error)
            return
        self._go_on()

    def _refused(self, error: HandshakeError) -> None:
        self._push()  # whether or not it learns of it, this is the reason
        reason = f"refused by the other side: {error}" if error.by_peer else str(error)
        self._fail(reason, error.code.name.lower())

    def _go_on(self) -> None:
        self._send()
        if self._over:
            return
        peer = self._handshake.peer
        if peer is not None:
            on_peer = self._on_peer
            self._release()
            on_peer(peer, self._handshake.leftover)

    def _send(self) -> None:
        if not self._over:
            trouble = self._push()
            if trouble:
                self._fail(trouble, "closed")

    def _push(self) -> str:
        """Send what is to be sent; return what went wrong, empty if nothing did."""
        data = self._handshake.outgoing()
        if not data:
            return ""
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            return describe(error)
        # A handshake is far smaller than any socket's buffer.
        return "" if sent == len(data) else "the other side does not read its part of the handshake"


class Reception(Exchange):
    """The same for an acceptor, whose owner is asked about the peer before it is let in.

    Args:
        judge: ``judge(peer, verdict)`` calls *verdict*, now or later, with why the peer is turned
            away, or with nothing to let it in.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        handshake: Accepting,
        *,
        timeout: float,
        judge: Judge,
        on_peer: Callable[[Peer, bytes], None],
        on_failed: Callable[[str, str], None],
    ) -> None:
        super().__init__(
            loop, sock, handshake, timeout=timeout, on_peer=on_peer, on_failed=on_failed
        )
        self._accepting = handshake
        self._judge: Judge | None = judge
        """Until it was asked."""

    def _release(self) -> None:
        super()._release()
        self._judge = None

    def _go_on(self) -> None:
        super()._go_on()
        candidate = self._accepting.candidate
        if candidate is not None:
            self._ask_owner(candidate)

    def _ask_owner(self, candidate: Peer) -> None:
        judge, self._judge = self._judge, None
        if judge is not None:
            judge(candidate, self._on_verdict)

    def _on_verdict(self, objection: str) -> None:
        if self._over:
            return  # it was too slow
        if not objection:
            self._accepting.admit()
            self._go_on()
            return
        try:
            self._accepting.turn_away(objection)
        except HandshakeError as error:
            self._refused(error)
