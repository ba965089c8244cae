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

import numpy as np

import ringd
from chaos.calls import STYLES, Array, Call, make
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
                if self.number % self.style.vote_every == 0 and self.vote():
                    return True
                call = make(self.seed, self.group, self.number, self.ring.size)
                self.number += 1
                self.begin(call)
                while len(self.flights) >= self.style.window:
                    self.finish_first()
                time.sleep(self.style.pause)
        except ENDS:
            self.land()
            if self.style.on_loss == "fail":
                self.ring.wait_ready(READY)
            return False
        return True

    def resume(self) -> None:
        """Agree with the others on the next call: one that nobody has had yet."""
        mine = np.array([self.number], np.int64)
        with self.waiting(-1):
            self.number = int(self.ring.all_reduce(mine, "max", name="resume")[0])
        say("resumed", self.number)

    def vote(self) -> bool:
        """Agree with the others on whether to stop."""
        while self.flights:
            self.finish_first()
        wish = np.array([self.stop.exists()])
        with self.waiting(-1):
            return bool(self.ring.all_reduce(wish, "max", name=f"vote {self.number}")[0])

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

    def begin(self, call: Call) -> None:
        """Make *call*, in one of the ways in which one can."""
        timeout = call.timeout
        if call.op == "barrier":
            say("began", call.number, timeout or 0)
            with contextlib.suppress(ringd.DeadlineExceeded), self.waiting(call.number):
                self.ring.barrier(name=call.name, timeout=timeout)
                say("ok", call.number, 0, 0)
            return
        rng = Random(f"{self.seed}/{self.group}/{call.number}/{self.ring.rank}")
        x, lent = self.prepare(call, rng)
        out = None
        if rng.random() < 0.3:
            out = x if rng.random() < 0.5 else np.empty_like(x)
        say("began", call.number, timeout or 0)
        if self.style.window == 1:
            self.conclude(
                call,
                x if lent else None,
                lambda: self.ring.all_reduce(x, call.op, out=out, name=call.name, timeout=timeout),
            )
            return
        with self.waiting(call.number):
            work = self.ring.all_reduce_async(x, call.op, out=out, name=call.name, timeout=timeout)
        if not lent and out is not x:
            scribble(x)  # it was copied
        self.flights.append(Flight(call, work, x if lent else None))

    def prepare(self, call: Call, rng: Random) -> tuple[Array, bool]:
        """Return the input, and whether the library may read it in place."""
        way = rng.random()
        if way < 0.4:
            x = self.ring.empty(call.shape, call.dtype)
        elif way < 0.5 and len(call.shape) == 1:
            x = np.empty(2 * call.count, call.dtype)[::2]
        elif way < 0.6:
            x = np.empty(call.shape, call.dtype, order="F")
        else:
            x = np.empty(call.shape, call.dtype)
        call.fill(x, self.ring.rank)
        return x, way < 0.4

    def finish_first(self) -> None:
        """Wait for the oldest call under way, and check what came of it."""
        flight = self.flights.popleft()
        self.conclude(flight.call, flight.lent, flight.work.wait)

    def conclude(self, call: Call, lent: Array | None, wait: Callable[[], Array]) -> None:
        """Check what comes of *wait*.

        Raises:
            RingError: the call ended with that, unless it is one that ends this call alone.
        """
        try:
            with self.waiting(call.number):
                result = wait()
        except ringd.RingError as error:
            if lent is not None:
                scribble(lent)  # the call is over, so nobody may need it
            if not isinstance(error, ringd.DeadlineExceeded):
                raise
        else:
            self.check(call, result, lent)

    def check(self, call: Call, result: Array, lent: Array | None) -> None:
        """Look at every value; and again, later, at some results."""
        if lent is not None and not np.shares_memory(lent, result):
            scribble(lent)  # the call is over, so nobody may need it
        wrong = call.wrong(result)
        if wrong:
            say("wrong", call.number, describe(call, result, wrong))
        else:
            digest = zlib.crc32(np.ascontiguousarray(result).reshape(-1).view(np.uint8))
            say("ok", call.number, digest, result.nbytes)
        self.kept.append((call, result))
        if len(self.kept) > KEPT:
            former, kept = self.kept.popleft()
            wrong = former.wrong(kept)
            if wrong:
                text = f"{wrong} elements changed after the call had returned"
                say("wrong", former.number, f"{text}; {describe(former, kept, wrong)}")
            scribble(kept)  # it is ours


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


def describe(call: Call, result: Array, wrong: int) -> str:
    """Return in words what is wrong with *result*."""
    return (
        f"{wrong} of {call.count} elements wrong in {call.op} of {call.dtype}{call.shape}, "
        f"exact={call.exact}: begins with {result.reshape(-1)[:4]}"
    )


def say(what: str, number: int, *details: object) -> None:
    """Report an event."""
    text = " ".join(str(detail) for detail in details).replace("\n", " ")
    os.write(1, f"{what} {number} {time.monotonic():.6f} {text}\n".encode())


def main() -> None:
    """Run one program until it is told to stop."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGTERM, leave)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--group", required=True, choices=sorted(STYLES))
    parser.add_argument("--seed", required=True, type=int)
    parser.add_argument("--stop", required=True, type=Path, help="ends once this file exists")
    args = parser.parse_args()
    on_loss = STYLES[args.group].on_loss
    with ringd.connect(args.socket, args.group, timeout=60.0, on_loss=on_loss) as ring:
        program = Program(ring, args.group, args.seed, args.stop)
        try:
            program.run()
        except ringd.RingError as error:
            say("error", program.number, f"{type(error).__name__}: {error}")
            raise
        finally:
            if leaving:
                say("leaving", program.number)


if __name__ == "__main__":
    main()
