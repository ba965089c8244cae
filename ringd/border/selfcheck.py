"""Whether what programs send is still read: a message of the daemon's own stands among it.

ZeroMQ tells only once that there is something to read. A daemon that misses that goes on, with its
timers and its links, and serves nobody.
"""

from __future__ import annotations

import os

import zmq

_PLACE = "inproc://selfcheck"


class SelfCheck:
    """Sends to *router*, whose reader calls :meth:`is_ours` with the name of each sender."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], router: zmq.Socket[bytes]) -> None:
        self._name = os.urandom(16)  # nobody else can speak in it
        self._unread = False
        router.bind(_PLACE)
        self._dealer = context.socket(zmq.DEALER)
        self._dealer.setsockopt(zmq.LINGER, 0)
        self._dealer.setsockopt(zmq.ROUTING_ID, self._name)
        self._dealer.connect(_PLACE)

    def passed(self) -> bool:
        """Return whether all was read that was sent by earlier calls; send again if so."""
        if self._unread:
            return False
        self._unread = True
        self._dealer.send(b"", zmq.NOBLOCK)
        return True

    def is_ours(self, routing_id: bytes) -> bool:
        """Whether a message of that sender is ours; it counts as read then."""
        if routing_id != self._name:
            return False
        self._unread = False
        return True

    def close(self) -> None:
        """End it, before its context."""
        self._dealer.close()
