"""Signals that come after a given time, into whatever runs then."""

from __future__ import annotations

import gc
import signal
import sys

import pytest

LEAST_HITS = 20

ENDS = (KeyboardInterrupt, SystemExit)
swallowed = []
"""Types of what was raised in finalisers of the current test: Python lets none of that out."""


def instants(count=500, longest=1.5e-3):
    """Return growing delays in seconds: dense where a call begins, and to beyond its end."""
    return [longest * ((i + 1) / count) ** 1.5 + 1e-6 for i in range(count)]


class Signal:
    """Have *act* called as the handler of a signal that comes *delay* seconds from the entry on."""

    def __init__(self, delay, act):
        self.delay = delay
        self.act = act
        self.acted = False

    def __enter__(self):
        signal.signal(signal.SIGALRM, self._handle)
        signal.setitimer(signal.ITIMER_REAL, self.delay)
        return self

    def __exit__(self, *_):
        disarm()

    def _handle(self, *_):
        self.acted = True
        self.act()


def disarm():
    """Let no alarm come any more; one that is on its way does nothing."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0)


def interrupt():
    """Do what Python does on Ctrl-C."""
    raise KeyboardInterrupt


def interrupt_twice(delay):
    """Interrupt, and once more some *delay* (seconds) later."""
    signal.signal(signal.SIGALRM, lambda *_: interrupt())
    signal.setitimer(signal.ITIMER_REAL, delay)
    raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def no_alarm_left(monkeypatch):
    """No alarm is left behind, and nothing but interrupts and exits came out of finalisers."""
    swallowed.clear()
    monkeypatch.setattr(sys, "unraisablehook", lambda what: swallowed.append(what.exc_type))
    old = signal.getsignal(signal.SIGALRM)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)
    gc.collect()
    assert [kind for kind in swallowed if not issubclass(kind, ENDS)] == []


def interrupted(call, delay, act=interrupt):
    """Make *call*, interrupted after *delay*; return whether the interrupt came out of it."""
    caught = False
    try:
        try:
            with Signal(delay, act):
                call()
        except KeyboardInterrupt:
            caught = True
            disarm()
    except KeyboardInterrupt:  # the second one, between the two lines above
        disarm()
    return caught
