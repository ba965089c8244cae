"""Saving beside the loop: what comes of a write reaches the loop, whatever comes of it."""

from __future__ import annotations

import errno
import threading

import pytest
from netkit import run_until

from ringd.ring import statewriter
from ringd.ring.state import State, StateFile
from ringd.ring.statewriter import StateWriter


@pytest.fixture
def store(tmp_path):
    """Give a state file."""
    with StateFile(tmp_path, "mini") as file:
        yield file


def test_write_ends_in_the_loop(loop, store):
    """The outcome is told from the loop's thread, with the state on the disk."""
    told = []
    writer = StateWriter(loop, store, told.append)
    writer.save(State(3, 4), lambda error: told.append((error, threading.current_thread())))
    assert writer.writing_for is not None
    run_until(loop, lambda: told)
    assert told == [(None, threading.main_thread())]
    assert store.state == State(3, 4)
    assert writer.writing_for is None


@pytest.mark.parametrize("what", ["disk", "thread"])
def test_write_that_fails_is_told(loop, store, monkeypatch, what):
    """A full disk, and a system without another thread, are errors for the loop, not the end."""
    told = []
    writer = StateWriter(loop, store, told.append)

    def refuse(*_args):
        raise RuntimeError("can't start new thread")

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if what == "thread":
            patch.setattr(threading.Thread, "start", refuse)
        else:
            patch.setattr(store, "save", full)
        writer.save(State(1, 1), told.append)
        run_until(loop, lambda: told)
    texts = {"thread": "can't start new thread", "disk": "No space left on device"}
    assert told[0].strerror == texts[what]
    assert writer.finish()
    writer.save(State(2, 2), told.append)
    run_until(loop, lambda: len(told) > 1)
    assert told[1] is None


def test_a_slow_write_is_not_held_against_the_disk_for_long(loop, store, monkeypatch):
    """Slow is a write under way that lasts, or one that ended lately; its age is known."""
    now = [loop.now()]
    monkeypatch.setattr(loop, "now", lambda: now[0])
    writer = StateWriter(loop, store, lambda _text: None)
    answer = threading.Event()
    monkeypatch.setattr(store, "save", lambda _state: answer.wait(30))
    writer.save(State(1, 1), lambda _error: loop.stop())
    assert not writer.slow
    now[0] += statewriter.SLOW
    assert writer.slow
    answer.set()
    loop.run()
    assert (writer.slow, writer.last_write, writer.last_write_age) == (True, statewriter.SLOW, 0)
    now[0] += statewriter.LATELY - 1
    assert (writer.slow, writer.last_write_age) == (True, statewriter.LATELY - 1)
    now[0] += 1
    assert not writer.slow


def test_a_fault_of_our_own_ends_the_daemon(loop, store, monkeypatch):
    """What is no error of the disk is raised in the loop: nobody waits for an outcome for ever."""
    writer = StateWriter(loop, store, lambda _text: None)

    def broken(_state):
        raise ValueError("a fault")

    monkeypatch.setattr(store, "save", broken)
    told = []
    writer.save(State(1, 1), told.append)
    loop.call_later(10, loop.stop)
    with pytest.raises(ValueError, match="a fault"):
        loop.run()
    assert told == []
    assert writer.writing_for is None


def test_stopping_waits_for_a_hanging_disk_only_so_long(loop, store, monkeypatch):
    """A disk that never answers does not keep the daemon; its directory stays locked."""
    monkeypatch.setattr(statewriter, "AT_STOP", 0.01)
    answer = threading.Event()
    monkeypatch.setattr(store, "save", lambda _state: answer.wait(30))
    writer = StateWriter(loop, store, lambda _text: None)
    writer.save(State(1, 1), lambda _error: None)
    assert not writer.finish()
    answer.set()
    monkeypatch.setattr(statewriter, "AT_STOP", 30)
    assert writer.finish()
