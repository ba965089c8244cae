"""Sends what a rank has to send, and receives what comes, in all the ways in which one can."""

from __future__ import annotations

from functools import partial
from random import Random

import numpy as np

import ringd
from chaos import interrupts
from chaos.caller import Caller, Flight, scribble
from chaos.calls import Role
from chaos.messages import ANY_TAG, Errand, Message, to_anyone
from chaos.speech import say
from chaos.which import AGREEING, Which

EARLIER = "an earlier message"
"""What an error says of one that nobody waited for."""

FAR = 64
"""Calls before and after the one of a message that never was due, among which it is looked for."""


class Courier:
    """The messages of one program, which has *caller* and *role*."""

    def __init__(self, caller: Caller, role: Role) -> None:
        self._caller = caller
        self._role = role
        self._next: list[int] = []
        """By sender: beyond the call of the last message that was taken from anyone."""
        self._dropped = 0
        """Messages that were taken from anyone, but by a call that an interrupt has struck."""
        self._wrong = 0
        """Those that nobody had to send."""
        self._due: list[Message] = []
        """Those from anyone that are not known to have been taken, as far as we have come."""

    def resume(self, number: int) -> None:
        """Go on with call *number*: what was sent in the place of a former one has come."""
        self._next = [number] * self._role.layout.size
        self._dropped = self._wrong = 0
        self._due.clear()

    def run(self, errand: Errand) -> None:
        """Send what this rank has to, and ask for what it is to be given."""
        rank = self._caller.rank
        rng = self._caller.ways(errand.messages[0].which)
        wanted = [message for message in errand.messages if message.to == rank]
        if errand.asked:
            for message in wanted:
                self._ask(message, rng, waits=False)
        for message in errand.messages:
            if message.source == rank:
                # Nobody may wait for a receiver that waits to send first.
                self._send(message, rng, may_wait=errand.asked or errand.anyone)
        if errand.anyone:
            # What comes may be of a later errand, whose sender is ahead: the others wait until
            # theirs has been received, and must not be kept waiting until then.
            self._due += wanted
            while self._lacking() > self._dropped + self._wrong:
                self._take_any(wanted[0])
        elif not errand.asked:
            for message in wanted:
                # What waits until its own deadline has no place in the order before.
                free = message.frame.timeout is None or message.which.index > 0
                self._ask(message, rng, waits=free and rng.random() < 0.5)

    def _lacking(self) -> int:
        """Return how many of those that are due have not come, as far as is known."""
        self._due = [one for one in self._due if self._next[one.source] <= one.which.number]
        return len(self._due)

    def _send(self, message: Message, rng: Random, *, may_wait: bool) -> None:
        caller, ring, which = self._caller, self._caller.ring, message.which
        x, lent = caller.prepare(message, rng)
        waits = (may_wait or message.buffered) and rng.random() < 0.5
        # What nobody waits for has no deadline once its ring has formed and there is room for it.
        timeout = None if waits and message.buffered and not which.index else message.frame.timeout
        say("began", which, timeout or 0)
        send = ring.send if waits else ring.send_async
        asks = {"tag": message.frame.tag, "name": message.frame.name, "timeout": timeout}
        made = partial(interrupts.spoken, ways=[(message.source, message.to, message.frame.tag)])

        def attempt() -> ringd.Work | None:
            while True:
                try:
                    return send(x, message.to, **asks)
                except ringd.DeadlineExceeded as error:
                    if EARLIER not in str(error):
                        raise
                    say("refused", which, error)  # and nothing was sent

        def once() -> list[ringd.Work | None]:
            return caller.once(which, attempt, made)

        if waits and not message.buffered:
            caller.conclude(message, x if lent else None, once)
            return
        with caller.waiting(which):
            found = once()
        if waits or not lent:
            scribble(x)  # it was copied
        for work in found:
            if work is None:
                say("handed", which)
            else:
                caller.flights.append(Flight(message, work, x if lent else None))

    def _ask(self, message: Message, rng: Random, *, waits: bool) -> None:
        caller, ring, which = self._caller, self._caller.ring, message.which
        place = np.empty(message.shape, message.dtype, order=rng.choice("CF"))
        has_place = rng.random() < 0.3
        asks = {
            "source": message.source,
            "tag": message.frame.tag,
            "dtype": None if has_place else message.dtype,
            "name": message.frame.name,
            "timeout": message.frame.timeout,
        }
        receive = ring.recv if waits else ring.recv_async
        made = partial(interrupts.spoken, ways=[(message.source, message.to, message.frame.tag)])
        say("began", which, message.frame.timeout or 0)

        def once() -> list:
            return caller.once(
                which, lambda: receive(place if has_place else message.shape, **asks), made
            )

        if waits:
            caller.conclude(message, None, once)
            return
        with caller.waiting(which):
            found = once()
        for work in found:
            caller.flights.append(Flight(message, work, None))

    def _take_any(self, like: Message) -> None:
        """Take the next message from whoever has sent one; all are as large as *like*."""
        caller, ring, role = self._caller, self._caller.ring, self._role
        others = [rank for rank in range(role.layout.size) if rank != role.rank]
        made = partial(interrupts.spoken, ways=[(other, role.rank, ANY_TAG) for other in others])
        with caller.waiting(AGREEING) as since:
            found = caller.once(
                Which(like.which.number),
                lambda: ring.recv(like.shape, ringd.ANY, ANY_TAG, like.dtype),
                made,
            )
        self._dropped += not found
        for result in found:
            message = self._sent(result, like.which.number)
            if message is None:
                self._wrong += 1
                say("wrong", like.which, f"came {self._other(result, like)}: {like.story}")
            else:
                say("took", message.which, f"{since:.6f}")
                caller.check(message, result)

    def _other(self, result: np.ndarray, like: Message) -> str:
        """Return what came in the place of what was due."""
        role, number = self._role, like.which.number
        numbers = range(max(0, number - FAR), number + FAR)
        for message in to_anyone(role.key, role.style, numbers, role.layout.size, role.rank):
            if not message.wrong(result, role.rank):
                return f"{message.which}, beyond {self._next}"
        return f"what nobody has sent, {result.reshape(-1)[:4]}"

    def _sent(self, result: np.ndarray, number: int) -> Message | None:
        """Return which message is *result*: the next one that somebody has sent."""
        role, style = self._role, self._role.style
        size, end = role.layout.size, number - number % style.vote_every + style.vote_every
        for source in range(size):
            numbers = range(self._next[source], end)
            missed = 0
            for message in to_anyone(role.key, style, numbers, size, role.rank):
                if message.source != source:
                    continue
                if not message.wrong(result, role.rank):
                    self._next[source] = message.which.number + 1
                    self._dropped -= missed
                    return message
                missed += 1
                if missed > self._dropped:
                    break
        return None
