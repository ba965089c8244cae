"""A link's pulse: when we must speak, when the peer is lost, how long a round trip takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ringd.loop import Loop, Timer
from ringd.wire.link.frames import FrameType, Header

_PING, _PONG, _ACK = 0, 1, 2  # a heartbeat's index

_FOLLOWS = 1.25
"""Heartbeats of silence after which an end begins that has let the other one begin so far."""


@dataclass(slots=True)
class _Proof:
    stamp: int
    late: float
    """Whoever speaks after this lives."""
    timer: Timer
    told: list[Callable[[bool], None]]


class Pulse:
    """Heartbeats of one link.

    There is one timer for both directions, and it is set for the earliest moment at which
    something could be due; traffic in between only moves :attr:`heard` and :attr:`spoke`. On an
    idle link that would be found too early each time, so heartbeats set the timer anew.

    Either end may begin. One that is asked leaves it to the other from then on, unless that falls
    silent; if both have asked at once, the later one does, as they say by their stamps. So an idle
    end wakes up twice for each heartbeat.

    Args:
        loop: Where it runs.
        heartbeat: Seconds of our own silence after which a heartbeat is sent.
        lost_after: Seconds of the peer's silence after which it is lost.
        send: Sends a heartbeat, unless the peer has enough of ours to read.
        insist: Sends one in any case.
        lost: Called once with the reason when the peer is lost; the pulse has ended by then.
    """

    def __init__(
        self,
        loop: Loop,
        heartbeat: float,
        lost_after: float,
        *,
        send: Callable[[Header], None],
        insist: Callable[[Header], None],
        lost: Callable[[str], None],
    ) -> None:
        self.heard = self.spoke = loop.now()
        """When bytes last came, and last went, on the loop's clock."""
        self.round_trip: float | None = None
        """Seconds there and back."""
        self.shortest: float | None = None
        """The fewest of these: what the way takes, where others were busy."""
        self._loop = loop
        self._heartbeat = heartbeat
        self._lost_after = lost_after
        self._send = send
        self._insist = insist
        self._lost = lost
        self._silence = heartbeat  # of ours, after which we begin
        self._stamp = -1  # what was last sent to be echoed, in microseconds of our clock
        self._asked = -1  # likewise, with which we began, as long as there is no answer
        self._proof: _Proof | None = None
        self._timer: Timer = loop.call_later(min(heartbeat, lost_after), self._tick)
        loop.on_pause(self._paused)

    def ping(self) -> None:
        """Send a heartbeat that the peer will echo."""
        self._silence = self._heartbeat
        self._stamp = self._asked = self._now()
        self._send(Header(FrameType.HEARTBEAT, seq=self._stamp, index=_PING))

    def prove(self, within: float, told: Callable[[bool], None]) -> None:
        """Find out *within* so many seconds whether the peer lives, and tell.

        It does if it echoes; or, as a busy one may have much to say first, if it still speaks when
        the time is over. A pulse that ends meanwhile has no peer.
        """
        if self._proof is not None:  # the answer under way is new enough
            self._proof.told.append(told)
            return
        timer = self._loop.call_later(within, self._prove_in_the_end)
        self._proof = _Proof(self._now(), self._loop.now() + within / 2, timer, [told])
        self._insist(Header(FrameType.HEARTBEAT, seq=self._proof.stamp, index=_PING))

    def _prove_in_the_end(self) -> None:
        if self._proof is not None:
            self._proven(alive=self.heard > self._proof.late)

    def _proven(self, *, alive: bool) -> None:
        proof, self._proof = self._proof, None
        if proof is not None:
            proof.timer.cancel()
            for told in proof.told:
                self._loop.call_soon(partial(told, alive))

    def received(self, header: Header) -> None:
        """Take a heartbeat.

        Three frames go there, back, and there again, so that one heartbeat tells both sides
        the round trip.
        """
        if header.index == _PING:
            if not 0 <= self._asked < header.seq:
                self._silence = self._heartbeat * _FOLLOWS
            self._stamp = self._now()
            self._answer(
                Header(FrameType.HEARTBEAT, group=self._stamp, seq=header.seq, index=_PONG)
            )
            return
        if self._proof is not None and header.seq == self._proof.stamp:
            self._proven(alive=True)
        if header.seq == self._stamp:
            took = self.round_trip = (self._now() - header.seq) / 1e6
            if self.shortest is None or took < self.shortest:
                self.shortest = took
        if header.index == _PONG:
            self._asked = -1
            self._answer(Header(FrameType.HEARTBEAT, seq=header.group, index=_ACK))

    def _answer(self, header: Header) -> None:
        self.spoke = self._loop.now()
        self._send(header)
        if self._timer.callback is not None:  # else it has ended
            self._timer.cancel()
            self._set_timer()

    def stop(self) -> None:
        """End; nobody is called any more."""
        self._timer.cancel()
        self._loop.forget_pause(self._paused)
        self._proven(alive=False)

    def _now(self) -> int:
        return int(self._loop.now() * 1e6)

    def _paused(self, gap: float) -> None:
        self.heard = min(self.heard + gap, self._loop.now())

    def _tick(self) -> None:
        now = self._loop.now()
        silence = now - self.heard
        if silence >= self._lost_after:
            self._lost(f"nothing heard for {silence:.1f} s")
            return
        if now - self.spoke >= self._silence:
            self.spoke = now
            self.ping()
        self._set_timer()

    def _set_timer(self) -> None:
        due = min(self.spoke + self._silence, self.heard + self._lost_after)
        self._timer = self._loop.call_later(due - self._loop.now(), self._tick)
