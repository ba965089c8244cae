"""A program of the chaos run: makes the calls of its group, and checks every value.

It reports on standard output, one line for each event, the first word of which says what::

    resumed NUMBER MOMENT                 agreed with the others on the next call
    began NUMBER MOMENT TIMEOUT           is about to make the call; 0 for no deadline
    ok NUMBER MOMENT DIGEST BYTES         the call ended well and its values are right
    lost NUMBER MOMENT SINCE NOISE MESSAGE    it ended with GroupLost
    peer NUMBER MOMENT SINCE NOISE MESSAGE    it ended with PeerLost
    late NUMBER MOMENT SINCE NOISE MESSAGE    it ended with DeadlineExceeded
    wrong NUMBER MOMENT MESSAGE           it ended with wrong values
    error NUMBER MOMENT MESSAGE           it ended with another error
    leaving NUMBER MOMENT                 was asked to leave, and will now close its ring
    done NUMBER MOMENT                    all agreed to stop
    here NUMBER MOMENT                    may be sent signals from now on
    struck NUMBER MOMENT WHERE            an interrupt left the library: WHERE it had been
    dropped NUMBER MOMENT                 the call goes on, but an interrupt took its handle away
    touched NUMBER MOMENT                 a signal's handler used the ring amid another use of it
    burst NUMBER MOMENT COUNT             is about to make COUNT calls before it waits for any

Moments are on the monotonic clock, which all processes of the machine share. SINCE is when the
program began to wait for that call; NOISE is :meth:`chaos.pulse.Pulse.told`, or ``landed`` for
further calls of a stay in the group that the program knows to be over. NUMBER is -1 for the
calls by which the members agree on something.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import signal
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import numpy as np

import ringd
from chaos import interrupts
from chaos.calls import BURST, STYLES, Array, Call, make
from chaos.interrupts import persist
from chaos.pulse import Pulse

KEPT = 4
"""Results that are looked at again later: nobody may write to them any more."""

SCRIBBLE = 0xA5

READY = 60.0
"""Seconds in which a broken ring is back."""

ENDS = (ringd.GroupLost, ringd.PeerLost)
"""Errors with which a stay in the group is over."""


@dataclass(slots=True)
class Flight:
    """A call under way."""

    call: Call
    work: ringd.Work
    lent: Array | None
    """The input, where the library reads it in place."""


class Program:
    """One member of one group."""

    def __init__(self, ring: ringd.Ring, group: str, seed: int, stop: Path) -> None:
        self.ring = ring
        self.rank, self.size = persist(lambda: (ring.rank, ring.size))
        self.group = group
        self.style = STYLES[group]
        self.seed = seed
        self.stop = stop
        self.flights: deque[Flight] = deque()
        self.kept: deque[tuple[Call, Array]] = deque()
        self.number = 0
        self.pulse = Pulse()
        self.landing = False
        """Whether this stay in the group is known to be over."""
        self.departed = False

    def run(self) -> None:
        """Make calls until all agree to stop."""
        while not self.stretch():
            pass
        say("done", self.number)

    def stretch(self) -> bool:
        """Make calls until this stay in the group is over; whether all agreed to stop."""
        try:
            self.resume()
            while not leaving:
                if self.number % self.style.vote_every == 0:
                    stops, bursts = self.vote()
                    if stops:
                        return True
                    if bursts:
                        self.burst()
                call = make(self.seed, self.group, self.number, self.size)
                self.number += 1
                self.begin(call)
                while len(self.flights) >= self.style.window:
                    self.finish_first()
                time.sleep(self.style.pause)
        except ENDS:
            self.land()
            if self.style.on_loss == "fail":
                persist(lambda: self.ring.wait_ready(READY))
            return False
        return True

    def resume(self) -> None:
        """Agree with the others on the next call: one that nobody has had yet."""
        self.number = int(self.agree(np.array([self.number], np.int64), "resume")[0])
        say("resumed", self.number)

    def vote(self) -> tuple[bool, bool]:
        """Agree with the others on whether to stop, and on whether to make a burst of calls."""
        while self.flights:
            self.finish_first()
        wanted = self.stop.with_name(f"burst.{self.group}").exists()
        wish = np.array([self.stop.exists(), wanted])
        stops, bursts = self.agree(wish, f"vote {self.number}").tolist()
        return stops, bursts

    def agree(self, mine: Array, name: str) -> Array:
        """Return the largest of what the members bring, element by element."""
        with self.waiting(-1):
            with interrupts.shielded():  # without its handle nobody could go on
                work = self.ring.all_reduce_async(mine, "max", name=name)
            return persist(work.wait, self.struck)

    def struck(self) -> None:
        """An interrupt has ended a wait, which is about to go on."""
        say("struck", self.number, "a wait, which went on")

    def burst(self) -> None:
        """Make more calls than any window holds, and only then wait for the first of them."""
        say("burst", self.number, BURST)
        for _ in range(BURST):
            call = make(self.seed, self.group, self.number, self.size, burst=True)
            self.number += 1
            self.begin(call, waits=False)
        while self.flights:
            self.finish_first()

    def land(self) -> None:
        """See how the calls end that are still under way in a stay that is over."""
        self.landing = True
        while self.flights:
            with contextlib.suppress(*ENDS):
                self.finish_first()
        self.landing = False

    @contextlib.contextmanager
    def waiting(self, number: int) -> Iterator[None]:
        """Report how a wait for call *number* ends, if with an error that may be."""
        since = time.monotonic()
        try:
            yield
        except ringd.RingError as error:
            what = {
                ringd.GroupLost: "lost",
                ringd.PeerLost: "peer",
                ringd.DeadlineExceeded: "late",
            }.get(type(error))
            if what is None:
                raise
            noise = "landed" if self.landing else self.pulse.told()
            say(what, number, f"{since:.6f}", noise, error)
            raise

    # --- one call ---------------------------------------------------------------------

    def begin(self, call: Call, *, waits: bool = True) -> None:
        """Make *call*, in one of the ways in which one can; only in one that *waits*, if allowed.

        An interrupt may come at any instant: a call that it kept from being made is made again.
        """
        timeout = call.timeout
        if call.kind == "barrier":
            say("began", call.number, timeout or 0)
            with contextlib.suppress(ringd.DeadlineExceeded), self.waiting(call.number):
                if self.once(call, lambda: self.ring.barrier(name=call.name, timeout=timeout)):
                    say("ok", call.number, 0, 0)
            return
        rng = Random(f"{self.seed}/{self.group}/{call.number}/{self.rank}")
        x, lent = self.prepare(call, rng)
        out = None
        if rng.random() < 0.3:
            out = self.place_for(call, x, in_place=rng.random() < 0.5)
        say("began", call.number, timeout or 0)
        asks = call.arguments | {"out": out, "name": call.name, "timeout": timeout}
        if waits and self.style.window == 1:
            make_it = getattr(self.ring, call.kind)
            self.conclude(
                call,
                x if lent else None,
                lambda: self.once(call, lambda: make_it(x, **asks)),
            )
            return
        begin = getattr(self.ring, f"{call.kind}_async")
        with self.waiting(call.number):
            found = self.once(call, lambda: begin(x, **asks))
        if not lent and out is not x:
            scribble(x)  # it was copied
        for work in found:
            self.flights.append(Flight(call, work, x if lent else None))

    def place_for(self, call: Call, x: Array, *, in_place: bool) -> Array | None:
        """Return an array for the result, if there is one: *x* itself, if it may be that."""
        if call.kind in {"all_reduce", "broadcast"}:
            return x if in_place else np.empty_like(x)
        wanted = call.wanted(self.rank)
        return None if wanted is None else np.empty_like(wanted)

    def once(self, call: Call, make_it: Callable[[], Any]) -> list[Any]:
        """Make *call* once, through any number of interrupts.

        Returns:
            What *make_it* returned; nothing if it is one of which only the others will hear.
        """
        while True:
            before = interrupts.made(self.ring)
            try:
                return [make_it()]
            except KeyboardInterrupt:
                if interrupts.made(self.ring).more_than(before):
                    say("struck", call.number, "the call was made")
                    say("dropped", call.number)
                    return []
                say("struck", call.number, "the call was not made")

    def prepare(self, call: Call, rng: Random) -> tuple[Array, bool]:
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

    def finish_first(self) -> None:
        """Wait for the oldest call under way, and check what came of it."""
        flight = self.flights.popleft()

        def spoil() -> None:
            self.struck()
            if flight.lent is not None:  # the call goes on with what it was given
                scribble(flight.lent)

        self.conclude(flight.call, flight.lent, lambda: [persist(flight.work.wait, spoil)])

    def conclude(
        self, call: Call, lent: Array | None, wait: Callable[[], list[Array | None]]
    ) -> None:
        """Check what comes of *wait*, if anything does.

        Raises:
            RingError: the call ended with that, unless it is one that ends this call alone.
        """
        try:
            with self.waiting(call.number):
                results = wait()
        except ringd.RingError as error:
            if lent is not None:
                scribble(lent)  # the call is over, so nobody may need it
            if not isinstance(error, ringd.DeadlineExceeded):
                raise
        else:
            for result in results:
                self.check(call, result, lent)

    def check(self, call: Call, result: Array | None, lent: Array | None) -> None:
        """Look at every value; and again, later, at some results."""
        if lent is not None and (result is None or not np.shares_memory(lent, result)):
            scribble(lent)  # the call is over, so nobody may need it
        wrong = call.wrong(result, self.rank)
        if wrong:
            say("wrong", call.number, describe(call, result, wrong))
            return
        if result is None:
            say("ok", call.number, 0, 0)
            return
        flat = np.ascontiguousarray(result).reshape(-1)
        say("ok", call.number, zlib.crc32(flat.view(np.uint8)) if call.alike else 0, result.nbytes)
        self.kept.append((call, result))
        if len(self.kept) > KEPT:
            former, kept = self.kept.popleft()
            wrong = former.wrong(kept, self.rank)
            if wrong:
                text = f"{wrong} elements changed after the call had returned"
                say("wrong", former.number, f"{text}; {describe(former, kept, wrong)}")
            scribble(kept)  # it is ours

    def touch(self, signum: int, frame: FrameType | None) -> None:
        """Use the ring in a signal's handler, whatever the program is doing."""
        del signum
        inside = interrupts.in_library(frame)
        with interrupts.shielded(), contextlib.suppress(ringd.RingError):
            ring = self.ring
            place = (ring.rank, ring.size)
            if place != (self.rank, self.size) or ring.state not in STATES:
                say("wrong", self.number, f"a handler saw {place}, {ring.state}")
            ring.generation, repr(ring)
            ring.empty(1 << 15)
            for flight in list(self.flights)[:3]:
                flight.work.done()
        if inside:
            say("touched", self.number)

    def depart(self) -> None:
        """Say, once, that the ring is about to be closed."""
        if not self.departed:
            self.departed = True
            say("leaving", self.number)

    def close_and_leave(self, signum: int, frame: FrameType | None) -> None:
        """End the program from within a signal's handler, in the way that examples show."""
        del frame
        self.depart()
        leaving.append(signum)
        with interrupts.shielded():
            self.ring.close()
        sys.exit(0)


STATES = ("forming", "ready", "draining")

leaving: list[int] = []
"""The signal that asked the program to leave; an exception alone may go astray in a finalizer."""


def leave(signum: int, _frame: object) -> None:
    """End the program as an exception does."""
    leaving.append(signum)
    sys.exit(0)


def scribble(array: Array) -> None:
    """Spoil *array*."""
    if array.flags.c_contiguous:
        array.reshape(-1).view(np.uint8)[:] = SCRIBBLE
    else:
        array[...] = 1


def describe(call: Call, result: Array | None, wrong: int) -> str:
    """Return in words what is wrong with *result*."""
    return (
        f"{wrong} elements wrong in {call.kind} {call.arguments} of {call.dtype}{call.shape}, "
        f"exact={call.exact}: begins with {None if result is None else result.reshape(-1)[:4]}"
    )


def say(what: str, number: int, *details: object) -> None:
    """Report an event."""
    text = " ".join(str(detail) for detail in details).replace("\n", " ")
    os.write(1, f"{what} {number} {time.monotonic():.6f} {text}\n".encode())


def main() -> None:
    """Run one program until it is told to stop."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, interrupts.strike)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--group", required=True, choices=sorted(STYLES))
    parser.add_argument("--seed", required=True, type=int)
    parser.add_argument("--stop", required=True, type=Path, help="ends once this file exists")
    args = parser.parse_args()
    on_loss = STYLES[args.group].on_loss
    ring = ringd.connect(args.socket, args.group, timeout=60.0, on_loss=on_loss)
    try:
        program = Program(ring, args.group, args.seed, args.stop)
        signal.signal(signal.SIGUSR2, program.touch)
        signal.signal(signal.SIGALRM, program.close_and_leave)
        say("here", -1)
        try:
            program.run()
        except ringd.RingError as error:
            if program.departed:  # a handler has closed the ring, and its exit went astray
                sys.exit(0)
            say("error", program.number, f"{type(error).__name__}: {error}")
            raise
        finally:
            if leaving:
                program.depart()
    finally:
        persist(ring.close)


if __name__ == "__main__":
    main()
