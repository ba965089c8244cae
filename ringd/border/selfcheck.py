"""Whether what programs send is still read: a message of the daemon's own stands among it.

ZeroMQ tells only once that there is something to read. A daemon that misses that goes on, with its
timers and its links, and serves nobody.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import zmq

_PLACE = "inproc://selfcheck"


class SelfCheck:
    """Sends to *router*, whose reader calls :meth:`is_ours` with the name of each sender."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], router: zmq.Socket[bytes]) -> None:
        self._name = os.urandom(16)  # nobody else can speak in it
        self._provers: list[Callable[[], None]] = []
        """Those that wait for a message of ours to be read."""
        self._unread = False
        self._expected = False  # when passed() is asked again
        router.bind(_PLACE)
        self._dealer = context.socket(zmq.DEALER)
        self._dealer.setsockopt(zmq.LINGER, 0)
        self._dealer.setsockopt(zmq.ROUTING_ID, self._name)
        self._dealer.connect(_PLACE)

    def passed(self) -> bool:
        """Return whether all was read that was sent by earlier calls; send again if so."""
        if self._expected:
            return False
        self._expected = True
        self._send()
        return True

    def prove(self, told: Callable[[], None]) -> None:
        """Call *told* once a message that is sent now, among those of programs, was read."""
        self._provers.append(told)
        self._send()

    def forget(self, told: Callable[[], None]) -> None:
        """Undo :meth:`prove`; harmless when *told* was called."""
        if told in self._provers:
            self._provers.remove(told)

    def _send(self) -> None:
        if not self._unread:
            self._unread = True
            self._dealer.send(b"", zmq.NOBLOCK)

    def is_ours(self, routing_id: bytes) -> bool:
        """Whether a message of that sender is ours; it counts as read then."""
        if routing_id != self._name:
            return False
        self._unread = self._expected = False
        provers, self._provers = self._provers, []
        for told in provers:
            told()
        return True

    def close(self) -> None:
        """End it, before its context."""
        self._dealer.close()
