"""Logging once: bounded, whatever others make up, and never silent for good."""

from __future__ import annotations

from ringd.observe.oncelog import BURST, PAUSE, OnceLog


class Lines:
    """A log that keeps what it is told."""

    def __init__(self):
        self.lines = []
        self.now = 0.0
        self.once = OnceLog(self, lambda: self.now)

    def warning(self, event, **details):
        """Keep it."""
        self.lines.append((event, details))

    def say(self, reason, cause="key", where="10.0.0.1"):
        """Log a refusal; return whether it was logged."""
        before = len(self.lines)
        self.once.warning("refused", cause=cause, where=where, reason=reason)
        return len(self.lines) > before


def test_the_same_words_once():
    """What repeats is logged the first time, however much later it repeats, until it is news."""
    log = Lines()
    assert log.say("other key")
    log.now = 10 * PAUSE
    assert not log.say("other key")
    assert log.say("other key", where="10.0.0.2")
    log.once.forget()
    assert log.say("other key")


def test_made_up_words_are_bounded():
    """Words of one cause that differ have a burst and then a rate; other causes are not touched."""
    log = Lines()
    assert [log.say(f"text {n}") for n in range(100)] == [True] * BURST + [False] * (100 - BURST)
    assert log.say("silent", cause="silent")
    log.now = 1000 * PAUSE
    assert sum(log.say(f"more {n}") for n in range(100)) == BURST


def test_what_was_held_back_comes_later():
    """What repeats is logged when the allowance lets it, with the number held back meanwhile."""
    log = Lines()
    for number in range(BURST):
        log.say(f"made up {number}")
    assert not log.say("the real one")
    log.now = PAUSE / 2
    assert not log.say("the real one")
    log.now = PAUSE
    assert log.say("the real one")
    details = {"address": "10.0.0.1", "reason": "the real one", "held_back": 2}
    assert log.lines[-1] == ("refused", details)
    log.now = 2 * PAUSE
    assert log.say("another")
    assert "held_back" not in log.lines[-1][1]


def test_memory_is_bounded():
    """However long strangers go on, what is remembered does not grow without end."""
    log = Lines()
    for number in range(2000):
        log.now = number * PAUSE
        log.say(f"text {number}")
    assert len(log.once._said) <= 256
