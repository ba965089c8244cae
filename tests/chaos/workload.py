"""A program of the chaos run: makes the calls of its group, and checks every value.

It meets the others of its group again and again: to begin, after each loss, and to agree on whether
to go on. What it says of all that: :mod:`~chaos.speech`.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import numpy as np

import ringd
from chaos import interrupts
from chaos.caller import ENDS, Caller, struck
from chaos.calls import BURST, FILLERS, STYLES, Array, Role, filler, make
from chaos.courier import Courier
from chaos.divider import Divider
from chaos.division import division
from chaos.interrupts import persist
from chaos.messages import errand
from chaos.pulse import Pulse
from chaos.speech import say
from chaos.which import AGREEING

READY = 60.0
"""Seconds in which a broken ring is back."""


class Program:
    """One member of one group."""

    def __init__(self, ring: ringd.Ring, role: Role, stop: Path) -> None:
        self.ring = ring
        self.role = role
        self.stop = stop
        pulse = Pulse()
        self.caller = Caller(ring, role.rank, role.key, pulse)
        self.courier = Courier(self.caller, role)
        self.divider = Divider(self.caller, role, pulse)
        self.number = 0
        self.departed = False

    def run(self) -> None:
        """Make calls until all agree to stop."""
        while not self.stretch():
            pass
        say("done", self.number)

    def stretch(self) -> bool:
        """Make calls until this stay in the group is over; whether all agreed to stop."""
        style, caller = self.role.style, self.caller
        try:
            self.look_around()
            self.resume()
            while not leaving:
                if self.number % style.vote_every == 0:
                    stops, bursts, fills = self.vote()
                    if stops:
                        return True
                    if bursts:
                        self.burst()
                    if fills:
                        self.fill()
                    self.courier.resume(self.number)
                self.go_on()
                while len(caller.flights) >= style.window:
                    caller.finish_first()
                time.sleep(style.pause)
        except ENDS:
            caller.land()
            if style.on_loss == "fail":
                persist(lambda: self.ring.wait_ready(READY))
            return False
        return True

    def look_around(self) -> None:
        """See that the ring says where everybody is."""
        ring, rank, layout = self.ring, self.role.rank, self.role.layout
        with self.caller.waiting(AGREEING):
            found = persist(lambda: (ring.rank, ring.size, ring.nodes))
        names = tuple(f"n{place}" for place in layout.places)
        local = (ring.local_rank, ring.local_size)
        if found != (rank, layout.size, names) or local != layout.local(rank):
            say("wrong", self.number, f"rank {rank} saw {found}, {local}")

    def resume(self) -> None:
        """Agree with the others on the next call: one that nobody has had yet."""
        self.number = int(self.agree(np.array([self.number], np.int64), "resume")[0])
        self.courier.resume(self.number)
        say("resumed", self.number)

    def vote(self) -> list[bool]:
        """Agree with the others on whether to stop, and to make calls that are wanted besides."""
        self.caller.finish_all()
        wanted = [self.stop.with_name(f"{what}.{self.role.group}") for what in ("burst", "fill")]
        wish = np.array([place.exists() for place in (self.stop, *wanted)])
        return self.agree(wish, f"vote {self.number}").tolist()

    def agree(self, mine: Array, name: str) -> Array:
        """Return the largest of what the members bring, element by element."""
        with self.caller.waiting(AGREEING):
            with interrupts.shielded():  # without its handle nobody could go on
                work = self.ring.all_reduce_async(mine, "max", name=name)
            return persist(work.wait, lambda: struck(AGREEING))

    def go_on(self) -> None:
        """Make the next call, or what stands in its place."""
        role, number = self.role, self.number
        self.number += 1
        size = role.layout.size
        if (messages := errand(role.key, role.style, number, size)) is not None:
            self.courier.run(messages)
        elif (split := division(role.key, role.style, number, size)) is not None:
            self.divider.run(split)
        else:
            call = make(role.seed, role.group, number, role.members)
            self.caller.begin(call, waits=role.style.window == 1)

    def burst(self) -> None:
        """Make more calls than any window holds, and only then wait for the first of them."""
        role = self.role
        say("burst", self.number, BURST)
        for _ in range(BURST):
            call = make(role.seed, role.group, self.number, role.members, burst=True)
            self.number += 1
            self.caller.begin(call, waits=False)
        self.caller.finish_all()

    def fill(self) -> None:
        """Make calls that take all the memory that daemons keep, if their links are slow."""
        for _ in range(FILLERS):
            self.caller.begin(filler(self.role.key, self.number, self.role.layout), waits=False)
            self.number += 1
        self.caller.finish_all()
        say("filled", self.number)

    # --- signals ----------------------------------------------------------------------

    def touch(self, signum: int, frame: FrameType | None) -> None:
        """Use the ring in a signal's handler, whatever the program is doing."""
        del signum
        inside = interrupts.in_library(frame)
        with interrupts.shielded(), contextlib.suppress(ringd.RingError):
            ring = self.ring
            place = (ring.rank, ring.size)
            if place != (self.role.rank, self.role.layout.size) or ring.state not in STATES:
                say("wrong", self.number, f"a handler saw {place}, {ring.state}")
            ring.generation, repr(ring)
            ring.empty(1 << 15)
            for flight in list(self.caller.flights)[:3]:
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
            lingers = interrupts.lingers(self.ring)
            self.ring.close()
            if lingers:  # until what was sent had been received: it leaves the group only now
                say("leaving", self.number)
        sys.exit(0)


STATES = ("forming", "ready", "draining")

leaving: list[int] = []
"""The signal that asked the program to leave; an exception alone may go astray in a finalizer."""


def leave(signum: int, _frame: object) -> None:
    """End the program as an exception does."""
    leaving.append(signum)
    sys.exit(0)


def join(socket: str, role: Role) -> ringd.Ring:
    """Join the group as *role* says."""
    layout = role.layout
    local_rank, local_size = layout.local(role.rank)
    some = layout.members != list(range(role.members))
    return ringd.connect(
        socket,
        role.group,
        timeout=60.0,
        on_loss=role.style.on_loss,
        members=[f"n{member}" for member in layout.members] if some else None,
        local_rank=local_rank,
        local_size=local_size,
    )


def main() -> None:
    """Run one program until it is told to stop."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, interrupts.strike)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--group", required=True, choices=sorted(STYLES))
    parser.add_argument("--rank", required=True, type=int, help="which one it is to be")
    parser.add_argument("--members", required=True, type=int, help="of the ring")
    parser.add_argument("--seed", required=True, type=int)
    parser.add_argument("--stop", required=True, type=Path, help="ends once this file exists")
    args = parser.parse_args()
    role = Role(args.seed, args.group, args.members, args.rank)
    ring = join(args.socket, role)
    program = Program(ring, role, args.stop)
    try:
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
        ended = SystemExit() if leaving else sys.exc_info()[1]
        program.caller.close(AGREEING, ended)


if __name__ == "__main__":
    main()
