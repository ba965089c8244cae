"""How a daemon waits: when it looks for a moment, when it sleeps at once."""

from __future__ import annotations

from collections.abc import Callable

from ringd.loop import SPIN, AdaptiveWait

LOOK = SPIN / 10  # seconds that a look takes here, and what is yielded meanwhile
READY = [(None, 1)]


class Machine:
    """A clock, and events that come at its times."""

    def __init__(self) -> None:
        self.now = 100.0
        self.comes = float("inf")
        self.looks = 0
        self.sleeps = 0
        self.taken: Callable[[], float] = lambda: 0.0
        """Seconds for which others have the core once it is yielded."""
        self.wait = AdaptiveWait(self._select, lambda: self.now, self._yield)

    @classmethod
    def busy(cls) -> Machine:
        """Return one whose events have followed each other closely."""
        machine = cls()
        for _ in range(2):
            machine.event_after(SPIN / 2)
        return machine

    def event_after(self, seconds: float) -> bool:
        """Wait for an event that comes then; return whether that took a sleep."""
        self.comes, slept = self.now + seconds, self.sleeps
        assert self.wait(None) == READY
        assert self.now >= self.comes
        return self.sleeps > slept

    def _select(self, timeout: float | None):
        if timeout == 0.0:
            self.looks += 1
            return READY if self.now >= self.comes else []
        self.sleeps += 1
        until = float("inf") if timeout is None else self.now + timeout
        ready = READY if self.comes <= until else []
        self.now = max(self.now, min(self.comes, until))
        return ready

    def _yield(self) -> None:
        self.now += LOOK + self.taken()


def test_it_sleeps_where_nothing_happens():
    """A heartbeat a second costs no look, though its frames follow each other."""
    machine = Machine()
    for _ in range(20):
        assert machine.event_after(1.0)
        assert machine.event_after(SPIN / 2)
    assert machine.looks == 0


def test_it_looks_while_events_follow_each_other_closely():
    """Two are slept for; and what takes long now and then changes nothing."""
    machine = Machine()
    assert machine.event_after(SPIN / 2)
    assert machine.event_after(SPIN / 2)
    for _ in range(20):
        assert not machine.event_after(SPIN / 2)
        assert machine.event_after(5 * SPIN)


def test_it_looks_in_vain_a_few_times_only():
    """Then it costs nothing again; at once, where nothing has come for long."""
    for apart, most in (5 * SPIN, 100), (1.0, 12):
        machine = Machine.busy()
        for _ in range(20):
            machine.event_after(apart)
        looks = machine.looks
        assert 0 < looks < most
        machine.event_after(apart)
        assert machine.looks == looks


def test_it_sleeps_for_a_while_once_another_has_had_the_core():
    """A program that computes has it for milliseconds; a sleeper is woken before that is over."""
    machine = Machine.busy()
    machine.taken = lambda: 3e-3
    assert not machine.event_after(SPIN / 2)  # but 3 ms late
    machine.taken = lambda: 0.0
    assert machine.event_after(SPIN / 2)
    machine.now += 60.0
    assert not machine.event_after(SPIN / 2)


def test_a_timer_is_no_later_for_it():
    """It looks no longer than it may wait."""
    machine = Machine.busy()
    machine.comes, began = float("inf"), machine.now
    assert machine.wait(SPIN / 4) == []
    assert machine.now - began <= SPIN / 4 + LOOK + SPIN / 4


def test_no_time_to_wait_is_one_look():
    """As a loop has work of its own."""
    machine = Machine.busy()
    machine.comes = float("inf")
    assert machine.wait(0.0) == []
    assert (machine.looks, machine.sleeps) == (1, 2)
