"""Waiting for many files at once: alike with what any system has, and with what is faster here."""

from __future__ import annotations

import socket

import pytest

from ringd.host.polling import EVENT_READ, EVENT_WRITE, EVENTS, SelectorPoller, poller


@pytest.fixture(params=[poller, SelectorPoller])
def polls(request):
    """Return a poller, and both ends of a stream."""
    made = request.param()
    ends = socket.socketpair()
    yield made, *ends
    made.close()
    for end in ends:
        end.close()


def test_it_says_which_file_is_ready_for_what(polls):
    """Of what it is watched for, as that is now."""
    made, one, other = polls
    made.register(one.fileno(), EVENT_READ)
    assert made.poll(0.0) == []
    made.modify(one.fileno(), EVENTS)
    assert made.poll(0.0) == [(one.fileno(), EVENT_WRITE)]
    other.send(b"x")
    assert made.poll(None) == [(one.fileno(), EVENTS)]
    made.modify(one.fileno(), EVENT_READ)
    assert made.poll(60.0) == [(one.fileno(), EVENT_READ)]
    made.unregister(one.fileno())
    assert made.poll(0.0) == []


@pytest.mark.parametrize("events", [EVENT_READ, EVENT_WRITE])
def test_an_end_is_told_whatever_a_file_is_watched_for(polls, events):
    """Be it as an event that has other bits."""
    made, one, other = polls
    made.register(one.fileno(), events)
    other.close()
    ((fd, told),) = made.poll(60.0)
    assert fd == one.fileno()
    assert told & events or told > EVENTS
