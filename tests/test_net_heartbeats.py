"""Heartbeats: who is alive is heard, who is silent is lost, and nobody else is."""

from __future__ import annotations

import heapq
from functools import partial

import pytest
from netkit import data, every_turn, framed, make_link, run_until, tcp_pair

from ringd.loop import Loop
from ringd.net.pulse import Pulse
from ringd.wire.link.frames import HEADER_SIZE, FrameType, Header


def turn(loop):
    """Let the loop go round once, without sleeping."""
    loop.call_soon(loop.stop)
    loop.run()


def test_heartbeats_keep_an_idle_link(loop):
    """Two idle sides hear each other, know the round trip, and sleep in between."""
    one, other = tcp_pair()
    right, at_right = make_link(loop, one, "right", heartbeat=0.03)
    left, at_left = make_link(loop, other, heartbeat=0.03)
    begun = loop.now()
    turns = []

    def look():
        turns.append(1)
        if min(right.bytes_in, left.bytes_in) > 12 * HEADER_SIZE:
            loop.stop()

    every_turn(loop, look)
    loop.run()
    # About ten heartbeats of three frames; a loop that spins turns thousands of times.
    assert len(turns) < 150
    assert (at_right.lost, at_left.lost) == ([], [])
    for link in (right, left):
        assert link.round_trip is not None
        assert link.round_trip >= 0
        assert link._pulse.heard > begun
        assert not link._blocked
    right.close("over")
    left.close("over")


class VirtualTime(Loop):
    """A loop whose time passes as its timers fire, and not otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 100.0
        self.now = lambda: self.time

    def pass_time(self, seconds: float) -> int:
        """Let so many seconds pass; return how many timers have fired."""
        until, fired = self.time + seconds, 0
        while (due := self._earliest()) is not None and due <= until:
            self.time = due
            timer = heapq.heappop(self._timers)[2]
            callback, timer.callback = timer.callback, None
            callback()
            fired += 1
        self.time = until
        return fired


@pytest.mark.parametrize("apart", [0.001, 0.1])
def test_one_end_of_an_idle_link_begins_each_time(apart):
    """By its timer, and the other end answers without one; also if both began at first."""
    loop, pulses, begun = VirtualTime(), {}, []

    def carry(to, header):
        if header.index == 0:
            begun.append(1 - to)

        def arrive():
            pulses[to].heard = loop.now()
            pulses[to].received(header)

        loop.call_later(0.01, arrive)

    for end in (0, 1):
        send = partial(carry, 1 - end)
        pulses[end] = Pulse(loop, 1.0, 3.0, send=send, insist=send, lost=pytest.fail)
        loop.pass_time(apart)
    loop.pass_time(1.5)
    assert len(begun) == (2 if apart < 0.01 else 1)
    begun.clear()
    fired = loop.pass_time(20.0)
    assert set(begun) == {0}
    assert 18 <= len(begun) <= 20
    assert abs(fired - 4 * len(begun)) < 4  # a timer and three frames each, and no timer in vain
    loop.close()


def test_heartbeats_are_not_for_the_handler(loop, link_pair):
    """Heartbeats and their answers are the link's own business."""
    (right, at_right), (left, at_left) = link_pair
    run_until(loop, lambda: right.round_trip is not None and left.round_trip is not None)
    assert at_right.frames == at_left.frames == []


def test_forged_heartbeats(loop, raw_link):
    """An answer to a heartbeat that was never sent measures nothing."""
    link, _, far = raw_link
    far.sendall(framed(Header(FrameType.HEARTBEAT, seq=2**64 - 1, group=2**64 - 1, index=1)))
    far.sendall(framed(Header(FrameType.HEARTBEAT, seq=5, index=2), number=1))
    far.sendall(framed(Header(FrameType.HEARTBEAT, seq=5, index=99), number=2))
    run_until(loop, lambda: link.bytes_in == 3 * HEADER_SIZE)
    assert link.round_trip is None
    assert link._loss is None


def test_the_shortest_round_trip_is_remembered(loop, link_pair, monkeypatch):
    """Later ones say more of who was busy than of the way."""
    right = link_pair[0][0]
    assert right.shortest_round_trip is None
    took = []
    for _ in range(8):
        monkeypatch.setattr(right._pulse, "round_trip", None)
        right._pulse.ping()
        run_until(loop, lambda: right.round_trip is not None)
        took.append(right.round_trip)
    assert right.shortest_round_trip <= min(took)


def test_a_silent_peer_is_lost(loop):
    """A peer that says nothing is lost after the time that was given to it."""
    sock, far = tcp_pair()
    link, recorder = make_link(loop, sock, heartbeat=0.05, lost_after=0.15)
    run_until(loop, lambda: recorder.lost)
    assert loop.now() - link.since >= 0.15
    assert len(recorder.lost) == 1
    assert recorder.lost[0].startswith("nothing heard for ")
    far.close()


def test_a_peer_that_lives_proves_it(loop, link_pair):
    """Whoever asks whether the peer lives is told at once, and all who ask meanwhile too."""
    (right, _), (left, _) = link_pair
    told = []
    left.prove(60.0, told.append)
    left.prove(60.0, told.append)
    right.prove(60.0, told.append)
    run_until(loop, lambda: len(told) == 3)
    assert told == [True] * 3


def test_a_peer_that_is_gone_proves_nothing(loop, raw_link):
    """Who does not answer in time is dead, whatever it said just before; so is a closed link."""
    link, _, far = raw_link
    told = []
    far.sendall(framed(Header(FrameType.HEARTBEAT, seq=5, index=2)))
    link.prove(0.05, told.append)
    run_until(loop, lambda: told)
    link.prove(60.0, told.append)
    link.close("over")
    link.prove(60.0, told.append)
    run_until(loop, lambda: len(told) == 3)
    assert told == [False] * 3


@pytest.mark.parametrize(("last", "lives"), [(29.0, False), (31.0, True)])
def test_a_peer_that_is_busy_lives(loop, raw_link, monkeypatch, last, lives):
    """A peer that has much to say before it can answer is alive, if it still speaks at the end."""
    link, _, far = raw_link
    now = [loop.now()]
    monkeypatch.setattr(loop, "now", lambda: now[0])
    told = []
    link.prove(60.0, told.append)
    for number, seconds in enumerate((5.0, last)):
        now[0] = link.since + seconds
        before = link.bytes_in
        far.sendall(framed(Header(FrameType.HEARTBEAT, seq=5, index=2), number=number))
        while link.bytes_in == before:
            turn(loop)
    assert told == []
    now[0] = link.since + 60.5
    while not told:
        turn(loop)
    assert told == [lives]


def test_a_side_that_only_receives_is_heard(loop):
    """A side that gets chunk after chunk and has nothing to send still says that it lives."""
    one, other = tcp_pair()
    right, sender = make_link(loop, one, "right", heartbeat=0.03)
    left, receiver = make_link(loop, other, heartbeat=0.03)
    receiver.data_buffer = lambda _link, header: memoryview(bytearray(header.length))
    chunk = memoryview(bytes(1000))
    run_until(loop, lambda: right.round_trip is not None)
    heard = right.bytes_in

    def feed():
        sender.to_send.append(data(0, chunk))
        right.kick()
        loop.call_later(0.005, feed)

    feed()
    run_until(
        loop, lambda: right.bytes_in > heard + 4 * HEADER_SIZE and len(receiver.received) > 10
    )
    right.close("over")
    left.close("over")


def test_our_own_pause_is_not_the_peers_silence(loop, monkeypatch):
    """After this process was asleep, the peer is not blamed for it."""
    sock, far = tcp_pair()
    _, recorder = make_link(loop, sock, heartbeat=1.0, lost_after=3.0)
    run_until(loop, lambda: True)
    real = loop.now
    monkeypatch.setattr(loop, "now", lambda: real() + 100)
    turn(loop)
    turn(loop)
    assert recorder.lost == []
    monkeypatch.setattr(loop, "now", lambda: real() + 104.5)
    run_until(loop, lambda: recorder.lost)
    far.close()
    assert recorder.lost[0].startswith("nothing heard for ")
