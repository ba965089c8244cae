"""Makes calls over a ring, in all the ways in which one can, and checks every value."""

from __future__ import annotations

import contextlib
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

import ringd
from chaos import interrupts
from chaos.calls import Array, Call
from chaos.interrupts import persist
from chaos.messages import Message
from chaos.pulse import Pulse
from chaos.speech import say
from chaos.which import Which

KEPT = 4
"""Results that are looked at again later: nobody may write to them any more."""

SCRIBBLE = 0xA5

Result = Array | list[Array] | None

ENDS = (ringd.GroupLost, ringd.PeerLost)
"""Errors with which a stay in the group is over."""


@dataclass(slots=True)
class Flight:
    """A call under way."""

    call: Call | Message
    work: ringd.Work
    lent: Array | None
    """The input, where the library reads it in place."""


class Caller:
    """What the *rank* of a *ring* has under way; *key* says from what its ways follow."""

    def __init__(self, ring: ringd.Ring, rank: int, key: str, pulse: Pulse) -> None:
        self.ring = ring
        self.rank = rank
        self.flights: deque[Flight] = deque()
        self._key = key
        self._kept: deque[tuple[Call | Message, Array | list[Array]]] = deque()
        self._pulse = pulse
        self._landing = False
        """Whether this stay in the group is known to be over."""

    def ways(self, which: Which) -> Random:
        """Return what decides how this rank makes a call."""
        return Random(f"{self._key}/{which}/{self.rank}")

    def begin(self, call: Call, *, waits: bool) -> None:
        """Make *call*; *waits*: at once for its result.

        An interrupt may come at any instant: a call that it kept from being made is made again.
        """
        which, timeout = call.which, call.timeout
        if call.kind == "barrier":
            say("began", which, timeout or 0)
            with contextlib.suppress(ringd.DeadlineExceeded), self.waiting(which):
                if self.once(which, lambda: self.ring.barrier(name=call.name, timeout=timeout)):
                    say("ok", which, 0, 0)
            return
        rng = self.ways(which)
        x, lent = self.prepare(call, rng)
        given = call.handed(x)
        lent = lent and given is x  # several are copied
        out = None
        if rng.random() < 0.3:
            out = self._place_for(call, x, in_place=rng.random() < 0.5)
        say("began", which, timeout or 0)
        asks = call.arguments | {"out": call.handed(out), "name": call.name, "timeout": timeout}
        if waits:
            make_it = getattr(self.ring, call.kind)
            self.conclude(
                call, x if lent else None, lambda: self.once(which, lambda: make_it(given, **asks))
            )
            return
        begin = getattr(self.ring, f"{call.kind}_async")
        with self.waiting(which):
            found = self.once(which, lambda: begin(given, **asks))
        if not lent and out is not x:
            scribble(x)  # it was copied
        for work in found:
            self.flights.append(Flight(call, work, x if lent else None))

    def _place_for(self, call: Call, x: Array, *, in_place: bool) -> Array | None:
        """Return an array for the result, if there is one: *x* itself, if it may be that."""
        if call.kind in {"all_reduce", "all_reduce_coalesced", "broadcast"}:
            return x if in_place else np.empty_like(x)
        wanted = call.wanted(self.rank)
        return None if wanted is None else np.empty_like(wanted)

    def once(
        self,
        which: Which,
        make_it: Callable[[], Any],
        made: Callable[[ringd.Ring], interrupts.Made] = interrupts.made,
    ) -> list[Any]:
        """Make a call once, through any number of interrupts.

        *made* tells how many such have been made.

        Returns:
            What *make_it* returned; nothing if it is one of which only the others will hear.
        """
        while True:
            before = made(self.ring)
            try:
                return [make_it()]
            except KeyboardInterrupt:
                if made(self.ring).more_than(before):
                    say("struck", which.number, "the call was made")
                    say("dropped", which)
                    return []
                say("struck", which.number, "the call was not made")

    def prepare(self, call: Call | Message, rng: Random) -> tuple[Array, bool]:
        """Return the input, and whether the library may read it in place."""
        way = rng.random()
        if way < 0.4:
            x = persist(lambda: self.ring.empty(call.shape, call.dtype))
        elif way < 0.5 and len(call.shape) == 1:
            x = np.empty(2 * call.count, call.dtype)[::2]
        elif way < 0.6:
            x = np.empty(call.shape, call.dtype, order="F")
        else:
            x = np.empty(call.shape, call.dtype)
        call.fill(x, self.rank)
        return x, way < 0.4

    def close(self, which: Which, ended: BaseException | None = None) -> None:
        """Close the ring as `with` does, because of *ended*; report what was not received."""
        since = time.monotonic()
        kind = None if ended is None else type(ended)
        try:
            persist(lambda: self.ring.__exit__(kind, ended, None))
        except ringd.RingError as error:
            say("unreceived", which, f"{since:.6f}", "-", error)

    # --- how calls end ----------------------------------------------------------------

    def finish_all(self) -> None:
        """Wait for all that is under way."""
        while self.flights:
            self.finish_first()

    def finish_first(self) -> None:
        """Wait for the oldest call under way, and check what came of it."""
        flight = self.flights.popleft()

        def spoil() -> None:
            struck(flight.call.which)
            if flight.lent is not None:  # the call goes on with what it was given
                scribble(flight.lent)

        self.conclude(flight.call, flight.lent, lambda: [persist(flight.work.wait, spoil)])

    def land(self) -> None:
        """See how the calls end that are still under way in a stay that is over."""
        self._landing = True
        while self.flights:
            with contextlib.suppress(*ENDS):
                self.finish_first()
        self._landing = False

    @contextlib.contextmanager
    def waiting(self, which: Which) -> Iterator[float]:
        """Report how a wait for a call ends, if with an error that may be; yields its begin."""
        since = time.monotonic()
        try:
            yield since
        except ringd.RingError as error:
            what = {
                ringd.GroupLost: "lost",
                ringd.PeerLost: "peer",
                ringd.DeadlineExceeded: "late",
            }.get(type(error))
            if what is None:
                raise
            noise = "landed" if self._landing else self._pulse.told()
            say(what, which, f"{since:.6f}", noise, error)
            raise

    def conclude(
        self, call: Call | Message, lent: Array | None, wait: Callable[[], list[Result]]
    ) -> None:
        """Check what comes of *wait*, if anything does.

        Raises:
            RingError: the call ended with that, unless it is one that ends this call alone.
        """
        try:
            with self.waiting(call.which):
                results = wait()
        except ringd.RingError as error:
            if lent is not None:
                scribble(lent)  # the call is over, so nobody may need it
            if not isinstance(error, ringd.DeadlineExceeded):
                raise
        else:
            for result in results:
                self.check(call, result, lent)

    def check(self, call: Call | Message, given: Result, lent: Array | None = None) -> None:
        """Look at every value; and again, later, at some results."""
        result = _whole(given)
        if lent is not None and (result is None or not np.shares_memory(lent, result)):
            scribble(lent)  # the call is over, so nobody may need it
        wrong = call.wrong(result, self.rank)
        if wrong:
            say("wrong", call.which, _describe(call, result, wrong))
            return
        if result is None or given is None:
            say("ok", call.which, 0, 0)
            return
        flat = np.ascontiguousarray(result).reshape(-1)
        say("ok", call.which, zlib.crc32(flat.view(np.uint8)) if call.alike else 0, result.nbytes)
        self._kept.append((call, given))
        if len(self._kept) > KEPT:
            former, kept = self._kept.popleft()
            whole = _whole(kept)
            wrong = former.wrong(whole, self.rank)
            if wrong:
                text = f"{wrong} elements changed after the call had returned"
                say("wrong", former.which, f"{text}; {_describe(former, whole, wrong)}")
            for array in kept if isinstance(kept, list) else [kept]:
                scribble(array)  # it is ours


def struck(which: Which) -> None:
    """An interrupt has ended a wait, which is about to go on."""
    say("struck", which.number, "a wait, which went on")


def scribble(array: Array) -> None:
    """Spoil *array*."""
    if array.flags.c_contiguous:
        array.reshape(-1).view(np.uint8)[:] = SCRIBBLE
    else:
        array[...] = 1


def _whole(given: Result) -> Array | None:
    """Return what a call gave as one array."""
    return np.concatenate(given) if isinstance(given, list) else given


def _describe(call: Call | Message, result: Array | None, wrong: int) -> str:
    """Return in words what is wrong with *result*."""
    begins = None if result is None else result.reshape(-1)[:4]
    return f"{wrong} elements wrong in {call.story}: begins with {begins}"
