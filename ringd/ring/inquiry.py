"""Asking all members that can be reached, also while the ring is broken, for their records.

A question goes out over both links and is passed on from neighbour to neighbour; each answer
goes back the way its question came. In a whole ring everyone is reached twice and answers once.
Questions that come faster than anybody asks are left alone, and an answer that no recorder could
have given is none.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Sequence

from ringd.loop import Loop, Timer
from ringd.membership.machine import Side
from ringd.observe.allowance import Allowance
from ringd.observe.recorder import can_be_shown
from ringd.wire.link.control import Ask, Inquiry, Told

PATIENCE = 1.0
"""Seconds after which the answers that came are all there are."""

_REMEMBERED = 256
_MAX_BODY = 4 << 20
"""Bytes of an answer once it is unpacked."""

_MAX_TOLD = 900 << 10
"""Bytes of an answer on a link, which takes no frame over 1 MiB."""

BURST, PAUSE = 32, 0.125
"""Questions of others that are taken at once, and seconds until one more is: an answer costs some
10 ms, and who asks waits for all answers, or PATIENCE."""

Answers = dict[int, bytes]
"""By rank, the JSON that each member said."""

Done = Callable[[Answers], None]


class Inquiries:
    """The questions of this member and of others.

    Args:
        rank: This member's.
        names: Of all members, by rank.
        send: Sends a message over the link on a side, if there is one.
        answer: Returns this member's answer, as JSON.
    """

    def __init__(
        self,
        loop: Loop,
        rank: int,
        names: Sequence[str],
        send: Callable[[Side, Inquiry], None],
        answer: Callable[[], bytes],
    ) -> None:
        self._loop = loop
        self._rank = rank
        self._names = names
        self._send = send
        self._answer = answer
        self._number = int(loop.now() * 1e6)  # not one of a former life
        self._answers: Answers = {}  # to the question that is open
        self._waiters: list[Done] = []  # for those; none while no question is open
        self._timer: Timer | None = None
        self._seen: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED)
        self._allowance = Allowance.full(BURST, PAUSE, loop.now())
        """For questions of others."""

    def ask(self, done: Done) -> None:
        """Ask everybody; call *done* with the answers, this member's included.

        Who asks while a question is open gets the answers to that one: members are asked once
        at a time, however many ask here.
        """
        self._waiters.append(done)
        if len(self._waiters) > 1:
            return
        self._number += 1
        self._answers = {self._rank: self._answer()}
        self._timer = self._loop.call_later(PATIENCE, self._close)
        for side in ("left", "right"):
            self._send(side, Ask(self._rank, self._number))
        self._check()

    def received(self, side: Side, message: Inquiry) -> None:
        """A neighbour asks, passes on a question, or passes back an answer.

        Those that are named in it are members of the ring.
        """
        onward: Side = "left" if side == "right" else "right"
        if isinstance(message, Ask):
            key = (message.origin, message.number)
            if message.origin == self._rank or key in self._seen:
                return
            self._seen.append(key)
            if not self._allowance.take(self._loop.now()):
                return
            body = zlib.compress(self._answer(), level=1)
            if len(body) <= _MAX_TOLD:
                self._send(side, Told(message.origin, message.number, self._rank, body))
            self._send(onward, message)
        elif message.origin != self._rank:
            self._send(onward, message)
        elif self._waiters and message.number == self._number:
            body = _unpack(message.body)
            if message.rank not in self._answers and can_be_shown(body, self._names[message.rank]):
                self._answers[message.rank] = body
                self._check()

    def _check(self) -> None:
        if len(self._answers) == len(self._names):
            self._close()

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        waiters, self._waiters = self._waiters, []
        answers, self._answers = self._answers, {}  # megabytes, and nobody's business any more
        for done in waiters:
            done(answers)


def _unpack(body: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(body, _MAX_BODY)
    except zlib.error:
        return b""
