"""Listening for neighbours, from a daemon's start to its end.

Whoever connects gets a handshake with a deadline of its own; nobody waits for anybody else.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ringd.acceptor import Acceptor
from ringd.config.settings import JoinSettings
from ringd.config.units import format_address
from ringd.errors import RingError
from ringd.host.limits import OWN, OpenFiles
from ringd.host.tcp import link_socket
from ringd.loop import Loop
from ringd.net.exchange import Exchange, Reception
from ringd.net.oserrors import describe
from ringd.wire.link.agreement import SECRET_SIZE
from ringd.wire.link.handshake import NONCE_SIZE, Accepting, Identity, Peer

BACKLOG = 512
"""Connections that the kernel holds for us while we are busy."""

MAX_PENDING = 256
"""Handshakes under way; one more, and the oldest is dropped."""

SHARE = 0.25
"""Fraction of the reserve that handshakes may not use: one may be the neighbour's."""

_REMEDIES = {
    errno.EADDRINUSE: "stop the program that listens there (another ringd?), or choose another "
    "port on every machine",
    errno.EADDRNOTAVAIL: "no interface of this machine has that address: correct the member's "
    "address, or set what it is to listen on",
    errno.EACCES: "ports below 1024 need privileges: choose a higher one",
}


_Sockets = dict[tuple[str, int], list[socket.socket]]
"""Listening sockets by (host, port): several for a name, none for a family that is missing."""


class Listener:
    """Accepts, authenticates, and hands over neighbours.

    Args:
        loop: Where it runs.
        bind: (host, port) pairs to listen on; port 0 takes any free one.
        identity: Called for every handshake: what we say about ourselves.
        key: The ring's key, empty for none.
        settings: Timeouts.
        on_link: Takes over the socket of the left neighbour: socket, peer, address, and bytes
            that came behind the handshake.
        on_knock: Learns that the right neighbour is ready to be dialed.
        on_refused: Learns the address of whoever was turned away, why, and the cause in a word.
        judge: Asked about each neighbour and its address, see
            :class:`~ringd.net.exchange.Reception`.
        open_files: Where there is no more room, a stranger makes room for the next one.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        bind: Sequence[tuple[str, int]],
        identity: Callable[[], Identity],
        key: bytes,
        settings: JoinSettings,
        on_link: Callable[[socket.socket, Peer, str, bytes], None],
        on_knock: Callable[[Peer], None],
        on_refused: Callable[[str, str, str], None],
        judge: Callable[[Peer, str, Callable[[str], None]], None],
        open_files: OpenFiles = OWN,
    ) -> None:
        self._loop = loop
        self._bind = bind
        self._identity = identity
        self._key = key
        self._settings = settings
        self._on_link = on_link
        self._on_knock = on_knock
        self._on_refused = on_refused
        self._judge = judge
        self._open_files = open_files
        self._acceptors: dict[tuple[str, int], list[Acceptor]] = {}
        self._pending: dict[Exchange, str] = {}  # with addresses, the oldest first

    def start(self) -> None:
        """Listen.

        Raises:
            RingError: An address cannot be listened on; names it, and a remedy.
        """
        self._accept_on(_listen_on(self._bind, self._settings.congestion))

    def use(self, bind: Sequence[tuple[str, int]], *, key: bytes, settings: JoinSettings) -> None:
        """Listen on *bind* from now on, with another key and other timeouts.

        What is listened on and shall be still is never given up. The handshakes under way, which
        began with the old key, are dropped.

        Raises:
            RingError: An address cannot be listened on; all stays as it was.
            OSError: It cannot even be put back as it was; nothing can be relied on any more.
        """
        new = [where for where in bind if where not in self._acceptors]
        old = [where for where in self._acceptors if where not in bind]
        ports = {port for _, port in new}
        # A wildcard and an address do not share a port: there the old one has to go first.
        in_the_way = {where: self._places(where) for where in old if where[1] in ports}
        beside = any(acceptors for where, acceptors in self._acceptors.items() if where in bind)
        self._close(in_the_way)
        try:
            opened = _listen_on(new, settings.congestion, beside=beside)
        except RingError:
            for where, places in in_the_way.items():  # no name is looked up again
                again = [_open(family, place, settings.congestion) for family, place in places]
                self._accept_on({where: again})
            raise
        self._close([where for where in old if where in self._acceptors])
        self._accept_on(opened)
        self._bind, self._key, self._settings = bind, key, settings
        self._drop_pending()

    def stop(self) -> None:
        """Stop listening and drop the handshakes under way."""
        self._close(list(self._acceptors))
        self._drop_pending()

    def _places(self, where: tuple[str, int]) -> list[tuple[int, Any]]:
        """Return family and address of each socket that listens for *where*."""
        listeners = [acceptor.listener for acceptor in self._acceptors[where]]
        return [(listener.family, listener.getsockname()) for listener in listeners]

    def _accept_on(self, sockets: _Sockets) -> None:
        for where, socks in sockets.items():
            self._acceptors[where] = [
                Acceptor(self._loop, sock, self._greet, make_room=self._make_room) for sock in socks
            ]

    def _close(self, places: Iterable[tuple[str, int]]) -> None:
        for where in places:
            for acceptor in self._acceptors.pop(where):
                acceptor.close()

    def _drop_pending(self) -> None:
        for exchange in self._pending:
            exchange.abort()
        self._pending.clear()

    def _greet(self, sock: socket.socket, origin: Any) -> None:
        address = format_address(origin[0], origin[1])
        reason = self._open_files.refusal(share=SHARE)
        if reason:
            self._drop_oldest(reason)
        if len(self._pending) >= MAX_PENDING:
            self._drop_oldest(f"more than {MAX_PENDING} handshakes under way")
        sock.setblocking(False)

        def succeeded(peer: Peer, leftover: bytes) -> None:
            del self._pending[exchange]
            if peer.purpose == "link":
                self._on_link(sock, peer, address, leftover)
                return
            sock.close()
            if peer.purpose == "knock":
                self._on_knock(peer)

        def failed(reason: str, cause: str) -> None:
            del self._pending[exchange]
            self._on_refused(address, reason, cause)

        exchange = Reception(
            self._loop,
            sock,
            Accepting(self._identity(), self._key, os.urandom(NONCE_SIZE), os.urandom(SECRET_SIZE)),
            timeout=self._settings.handshake_timeout,
            on_peer=succeeded,
            on_failed=failed,
            judge=lambda peer, verdict: self._judge(peer, address, verdict),
        )
        self._pending[exchange] = address

    def _make_room(self, error: OSError) -> bool:
        return self._drop_oldest(describe(error))

    def _drop_oldest(self, reason: str) -> bool:
        for exchange, address in self._pending.items():
            del self._pending[exchange]
            exchange.abort()
            self._on_refused(address, f"dropped: {reason}", "crowded")
            return True
        return False


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why an address cannot be listened on right now.

    Attributes:
        text: The reason, with its remedy.
        in_use: Whether a program listens there, which may be this member's own daemon.
    """

    text: str
    in_use: bool


def obstacles(bind: Iterable[tuple[str, int]]) -> list[Obstacle]:
    """Return what is in the way of listening on *bind*."""
    found = []
    for where in bind:
        try:
            sockets = _listen(*where, "system")
        except RingError as error:
            cause = error.__cause__
            in_use = isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE
            found.append(Obstacle(str(error), in_use))
        else:
            for sock in sockets:
                sock.close()
    return found


def _listen_on(
    bind: Iterable[tuple[str, int]], congestion: str, *, beside: bool = False
) -> _Sockets:
    """Return listening sockets for all of *bind*, to stand *beside* others or alone.

    Raises:
        RingError: For one of them, or as there would be none at all; nothing is left open then.
    """
    sockets: _Sockets = {}
    try:
        for host, port in bind:
            sockets[host, port] = _listen(host, port, congestion)
    except RingError:
        for sock in [sock for socks in sockets.values() for sock in socks]:
            sock.close()
        raise
    if sockets and not (beside or any(sockets.values())):
        raise RingError("cannot listen: this machine has neither IPv4 nor IPv6")
    return sockets


def _listen(host: str, port: int, congestion: str) -> list[socket.socket]:
    """Return listening sockets for every address of *host*; none if its family is missing."""
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                sockets.append(_open(family, address, congestion))
            except OSError as error:
                if error.errno != errno.EAFNOSUPPORT:  # a kernel without IPv6
                    raise
    except OSError as error:
        for sock in sockets:
            sock.close()
        if error.errno == errno.EADDRNOTAVAIL and host == "::":
            return []  # IPv6 is switched off
        remedy = _REMEDIES.get(error.errno or 0)
        text = f"cannot listen on {format_address(host, port)}: {describe(error)}"
        raise RingError(f"{text}; {remedy}" if remedy else text) from error
    return sockets


def _open(family: int, address: Any, congestion: str) -> socket.socket:
    """Return a socket that listens on *address*, as getsockname and getaddrinfo give it."""
    sock = link_socket(family, congestion)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Else the IPv6 wildcard takes the IPv4 one's port.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
