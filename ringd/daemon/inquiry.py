"""Asking all members that can be reached, also while the ring is broken, for their records.

A question goes out over both links and is passed on from neighbour to neighbour; each answer
goes back the way its question came. In a whole ring everyone is reached twice and answers once.
"""

from __future__ import annotations

import json
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any

from ringd.membership.machine import Side
from ringd.net.loop import Loop, Timer
from ringd.wire.control import Ask, Inquiry, Told

PATIENCE = 1.0
"""Seconds after which the answers that came are all there are."""

_REMEMBERED = 256
_MAX_BODY = 32 << 20
"""Bytes of an answer once it is unpacked."""

Answers = dict[int, Any]
"""By rank, what each member said."""


class Inquiries:
    """The questions of this member and of others.

    Args:
        rank: This member's.
        size: Members of the ring.
        send: Sends a message over the link on a side, if there is one.
        answer: Returns this member's answer, as JSON.
    """

    def __init__(
        self,
        loop: Loop,
        rank: int,
        size: int,
        send: Callable[[Side, Inquiry], None],
        answer: Callable[[], bytes],
    ) -> None:
        self._loop = loop
        self._rank = rank
        self._size = size
        self._send = send
        self._answer = answer
        self._number = int(loop.now() * 1e6)  # not one of a former life
        self._open: dict[int, tuple[Answers, Callable[[Answers], None], Timer]] = {}
        self._seen: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED)

    def ask(self, done: Callable[[Answers], None]) -> None:
        """Ask everybody; call *done* with the answers, this member's included."""
        self._number += 1
        number = self._number
        answers: Answers = {self._rank: json.loads(self._answer())}
        timer = self._loop.call_later(PATIENCE, lambda: self._close(number))
        self._open[number] = (answers, done, timer)
        for side in ("left", "right"):
            self._send(side, Ask(self._rank, number))
        self._check(number)

    def received(self, side: Side, message: Inquiry) -> None:
        """A neighbour asks, passes on a question, or passes back an answer."""
        onward: Side = "left" if side == "right" else "right"
        if isinstance(message, Ask):
            key = (message.origin, message.number)
            if message.origin == self._rank or key in self._seen:
                return
            self._seen.append(key)
            body = zlib.compress(self._answer())
            self._send(side, Told(message.origin, message.number, self._rank, body))
            self._send(onward, message)
        elif message.origin != self._rank:
            self._send(onward, message)
        elif message.number in self._open and 0 <= message.rank < self._size:
            answer = _unpack(message.body)
            if answer is not None:
                self._open[message.number][0][message.rank] = answer
                self._check(message.number)

    def _check(self, number: int) -> None:
        if len(self._open[number][0]) == self._size:
            self._open[number][2].cancel()
            self._close(number)

    def _close(self, number: int) -> None:
        answers, done, _ = self._open.pop(number)
        done(answers)


def _unpack(body: bytes) -> Any:
    try:
        return json.loads(zlib.decompressobj().decompress(body, _MAX_BODY))
    except (zlib.error, ValueError):
        return None
