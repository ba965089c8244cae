"""A link: frames over one authenticated TCP connection to a neighbour.

Nothing here knows what the bytes mean. The payload of a DATA frame is received straight into
the memory that the handler names (see :mod:`ringd.net.incoming`), and sent straight from the
memory that the handler gives; over a sealed link, by way of a buffer. Nothing blocks:

* A frame that was begun is finished before anything else; then control frames go, then data.
* Data is *pulled* from the handler when the socket takes it, never queued.
* Control frames queued during one iteration of the loop leave together in one system call; those
  that somebody waits for, by :meth:`Link.hurry`, before anything here that takes time.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal, Protocol, Union

from ringd.host.tcp import keep_little_unsent, unacknowledged
from ringd.loop import EVENT_READ, EVENT_WRITE, Loop
from ringd.net.incoming import Incoming
from ringd.net.oserrors import describe
from ringd.net.pulse import Pulse
from ringd.net.smallcalls import LATELY, SmallCalls
from ringd.wire.link import frames
from ringd.wire.link.frames import FrameError, FrameType, Header
from ringd.wire.link.handshake import Peer
from ringd.wire.link.sealing import framing
from ringd.wire.text import capped, printable

Side = Literal["left", "right"]
Cause = Literal["silent", "broken", "closed", "goodbye", "protocol", "replaced", "dropped"]
"""Why a link ended: nothing was heard for too long; the system says that it broke; the peer closed
it without a word, or said why; one of the two did not keep to the protocol; there is a newer
connection; this member let go of it, to join anew."""
Payload = Union[bytes, bytearray, memoryview]

TURN = 1 << 20
"""Bytes read or written before the loop gets a chance to serve others."""
SHORT_TURN = 256 << 10
"""The same while small calls go by: no second chunk of the default size begins. With such turns
always, four members on two cores spent some 4 % more processor time on 64 MiB."""
TURN_SECONDS = 0.004
"""The same in time: a megabyte of small calls' messages takes half a second."""

UNSENT = 512 << 10
"""Bytes that the system takes beyond those that are on their way: what it has, nothing overtakes.
On a link of 1 Gbit/s that is 4 ms, as is a chunk that was begun."""

GATHER = 32
"""Control frames in one system call at most."""

MAX_WAITING = 256 << 20
"""Bytes of control frames that wait for a peer that reads too slowly; beyond, it is given up."""

EACH = 64
"""Bytes that one of them costs beside its own, about."""

MAX_GOODBYE = 1 << 20
"""Bytes of control frames that may go before a last word."""

JOIN_BELOW = 16 * 1024
"""Payloads below this are copied next to their header; larger ones are written at once."""


class LinkHandler(Protocol):
    """What a link asks and tells. It may call any method of the link meanwhile.

    ``frame_received``, ``data_buffer`` and ``data_received`` may raise
    :class:`~ringd.wire.link.frames.FrameError` when the peer broke the protocol: the link is lost.
    """

    def frame_received(self, link: Link, header: Header, payload: memoryview) -> None:
        """Take a frame other than DATA; *payload* stays as it is."""

    def data_buffer(self, link: Link, header: Header) -> memoryview | None:
        """Return where this payload goes (bytes, exactly ``header.length``); None: discard."""

    def data_received(self, link: Link, header: Header) -> None:
        """Learn that the buffer holds what was sent: seal or checksum, if any, is right."""

    def next_data(self, link: Link) -> tuple[Header, memoryview] | None:
        """Return the next chunk to send, whose memory stays untouched until ``data_sent``."""

    def data_sent(self, link: Link, header: Header) -> None:
        """Learn that the last byte of a chunk was handed to the kernel: its memory is free."""

    def link_lost(self, link: Link, reason: str) -> None:
        """Learn, once, that the link is gone; not called after our own ``close``."""


class Link:
    """One connection that has passed the handshake; owns *sock* from now on.

    Args:
        loop: Where it runs.
        sock: The connected socket.
        peer: Who proved to be at the other end, and what was agreed with it.
        side: The neighbour's side: ``"right"`` for a link we dialed, ``"left"`` for one we took.
        address: The peer's address, for people.
        handler: Who is asked and told. It is first called from the loop, never from here.
        heartbeat: Seconds of our own silence after which a heartbeat is sent.
        lost_after: Seconds of the peer's silence after which the link is lost.
        leftover: Bytes that arrived behind the handshake.
        small_calls: Those that go by here, which its owner notes; None for none.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        peer: Peer,
        *,
        side: Side,
        address: str,
        handler: LinkHandler,
        heartbeat: float,
        lost_after: float,
        leftover: bytes = b"",
        small_calls: SmallCalls | None = None,
    ) -> None:
        self.side = side
        self.peer = replace(peer, secrets=None)  # keys that are over are nowhere any more
        self.protection = str(peer.secrets or "off")
        """What is done to its frames, and by which cipher, for people."""
        self.address = address
        self.bytes_in = len(leftover)
        """Bytes received, headers included."""
        self.bytes_out = 0
        """Bytes handed to the kernel, headers included."""
        self.since = loop.now()
        """When the link came up, on the loop's clock."""
        self.undelivered = 0
        """Once it is gone: of the bytes out, those that the peer's system never acknowledged."""
        self.cause: Cause = "broken"
        """Once it is gone: why."""
        self._loop = loop
        self._sock = sock
        self._handler = handler
        self._small_calls = small_calls or SmallCalls()
        self._pulse = Pulse(
            loop, heartbeat, lost_after, send=self._beat, insist=self.send, lost=self._silent
        )
        self._closed = False

        self._writer, reader = framing(peer.secrets)
        others = dict.fromkeys(FrameType, partial(handler.frame_received, self))
        own = {FrameType.HEARTBEAT: self._take_heartbeat, FrameType.BYE: self._take_goodbye}
        self._incoming = Incoming(
            leftover,
            reader,
            destination=self._destination,
            complete=self._complete,
            deliver={**others, **own},
        )
        self._control: deque[bytes] = deque()
        self._waiting = 0  # bytes that these cost
        self._out: list[Payload] = []  # begun, exactly the bytes still to go
        self._out_size = 0
        self._out_data: Header | None = None  # of the DATA frame at the end of _out
        self._pull = True  # the handler may have data
        self._writing = False
        self._blocked = False  # the loop tells us when to write on
        self._mute = False  # writing failed; what the peer said before is still read
        self._flush_queued = False
        self._hurried = False  # since that was queued
        self._loss: str | None = None  # the handler is still to be told

        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        keep_little_unsent(sock, UNSENT)
        loop.add(sock, EVENT_READ, self._ready, bulky=True)
        loop.call_soon(self._begin)

    def __repr__(self) -> str:
        return f"<Link {self.side} {self.peer.name} {self.address}>"

    @property
    def round_trip(self) -> float | None:
        """Seconds there and back at the last heartbeat; None before the first."""
        return self._pulse.round_trip

    @property
    def shortest_round_trip(self) -> float | None:
        """Seconds there and back at the fastest heartbeat; None before the first."""
        return self._pulse.shortest

    # --- what the owner does ----------------------------------------------------------

    @property
    def delivered(self) -> int:
        """Of the bytes out, those that the peer's system has acknowledged."""
        waiting = self.undelivered if self._closed else unacknowledged(self._sock)
        return self.bytes_out - waiting

    def prove(self, within: float, told: Callable[[bool], None]) -> None:
        """Find out *within* so many seconds whether the peer still lives; call *told* with that."""
        if self._closed:
            self._loop.call_soon(lambda: told(False))
        else:
            self._pulse.prove(within, told)

    def send(self, header: Header, *payload: Payload) -> None:
        """Send a control frame, in order with others; does nothing once the link is gone.

        The pieces of *payload* (bytes, ``header.length`` of them) may be reused when this returns:
        a large one goes to the kernel at once, and only what the kernel did not take is copied.
        """
        if self._closed or self._mute:
            return
        if sum(map(len, payload)) != header.length:
            raise ValueError(f"{sum(map(len, payload))} bytes, {header.length} announced")
        if header.length < JOIN_BELOW or self._out or self._writing or self._control:
            frame = self._writer.whole(header, *payload)
            self._control.append(frame)
            self._waiting += len(frame) + EACH
            if self._waiting > MAX_WAITING:
                text = f"it does not read, and {MAX_WAITING >> 20} MiB of messages wait for it"
                self._lost(text, "silent")
            elif not (self._flush_queued or self._blocked):
                self._flush_queued = True
                self._loop.call_soon(self._write)
            return
        self._out = self._writer.parts(header, *payload)
        self._out_size = sum(map(len, self._out))
        self._write()
        if self._out and self._out_data is None:
            self._out = [bytes(part) for part in self._out]

    def hurry(self) -> None:
        """Write now what would leave at the end of this iteration of the loop; once in each.

        Where the peer waits for it, what is to be done here meanwhile costs the peer no time. In a
        batch of calls only the first has this: the others' frames leave together. Chunks follow at
        the end, as ever: they would hold up what is to be done here.
        """
        if self._flush_queued and not (self._hurried or self._writing):
            pull, self._pull = self._pull, False
            self._write()
            self._pull = self._pull or pull
            self._hurried = True

    def kick(self) -> None:
        """Pull data from the handler and write until the socket is full or nothing is left.

        Where there was nothing, the handler is asked again only when it calls this.
        """
        self._pull = True
        if not self._blocked:
            self._write()

    def divert(self, group: int, seq: int) -> None:
        """Let go of the memory of the op ``(group, seq)``, which was aborted.

        The rest of a DATA payload now being received for it is discarded, the rest of one now
        being sent is copied; neither ``data_received`` nor ``data_sent`` is called for them.
        """
        self._incoming.divert(group, seq)
        header = self._out_data
        if header is not None and (header.group, header.seq) == (group, seq):
            self._out = [bytes(part) for part in self._out]
            self._out_data = None

    @property
    def explained(self) -> bool:
        """Once it is gone: whether one of the two ended it, and said why; else it was cut off."""
        return self.cause in {"goodbye", "protocol"}

    def close(self, reason: str, cause: Cause = "dropped", *, goodbye: bool = False) -> None:
        """Close the link; ``link_lost`` is not called any more.

        With *goodbye* the peer is told *reason* first, if the socket takes it at once.
        """
        self._loss = None
        if self._closed:
            return
        self.cause = cause
        if goodbye:
            self._say_goodbye(reason)
        self._shut()

    def _say_goodbye(self, reason: str) -> None:
        """Tell the peer why, if the socket takes that at once."""
        if self._mute or self._waiting > MAX_GOODBYE:  # it would not come to read it
            return
        text = capped(reason, frames.MAX_LENGTH[FrameType.BYE])
        bye = self._writer.whole(Header(FrameType.BYE, len(text)), text)
        with contextlib.suppress(OSError):
            self._sock.sendmsg([*self._out, b"".join(self._control), bye])

    # --- life -------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._closed:
            return
        if self.side == "right":
            self._pulse.ping()  # so that the round trip is known from the start
        try:
            self._incoming.advance(0)  # what came behind the handshake
        except FrameError as error:
            self._broken(error)

    def _beat(self, header: Header) -> None:
        if not (self._blocked or self._mute):  # else the peer has bytes of ours to read
            self.send(header)

    def _silent(self, reason: str) -> None:
        self._lost(reason, "silent")

    def _broken(self, error: FrameError) -> None:
        """The peer broke the protocol: tell it how, and end the link."""
        if not self._closed:
            reason = f"protocol error: {error}"
            self._say_goodbye(reason)
            self._lost(reason, "protocol")

    def _lost(self, reason: str, cause: Cause) -> None:
        if self._closed:
            return
        self._loss, self.cause = reason, cause
        # Never from inside a call that the handler makes, such as send. But before the pulse tells
        # that the peer proved nothing: that would pass for an answer that did not come in time.
        self._loop.call_soon(self._tell_lost)
        self._shut()

    def _tell_lost(self) -> None:
        if self._loss is not None:
            self._handler.link_lost(self, self._loss)

    def _shut(self) -> None:
        self._closed = True
        self._loop.remove(self._sock)
        self._pulse.stop()
        self.undelivered = unacknowledged(self._sock)
        self._sock.close()
        self._control.clear()
        self._out.clear()
        self._out_data = None
        self._incoming.close()

    # --- reading ----------------------------------------------------------------------

    def _ready(self, events: int) -> None:
        if events & EVENT_READ:
            self._read()
        if events & EVENT_WRITE:
            self._write()

    def _read(self) -> None:
        """Take what has come, for a turn."""
        incoming = self._incoming
        now = self._loop.now()
        lately = now - self._small_calls.at < LATELY
        budget = SHORT_TURN if lately else TURN
        until = now + TURN_SECONDS
        try:
            while budget > 0 and now < until and not self._closed:
                try:
                    got = incoming.receive(self._sock)
                except BlockingIOError:
                    return
                except OSError as error:
                    self._lost(describe(error), "broken")
                    return
                if not got:
                    self._lost("connection closed by peer", "closed")
                    return
                self.bytes_in += got
                now = self._pulse.heard = self._loop.now()
                if not incoming.advance(got):
                    return  # the socket is drained: no need to be told so
                budget -= got
        except FrameError as error:
            self._broken(error)

    def _destination(self, header: Header) -> memoryview | None:
        body = self._handler.data_buffer(self, header)
        if body is not None and len(body) != header.length:
            raise ValueError(f"a buffer of {len(body)} for a payload of {header.length} bytes")
        return body

    def _complete(self, header: Header) -> None:
        self._handler.data_received(self, header)

    def _take_heartbeat(self, header: Header, _payload: memoryview) -> None:
        self._pulse.received(header)

    def _take_goodbye(self, _header: Header, payload: memoryview) -> None:
        text = printable(bytes(payload).decode(errors="replace"), len(payload))
        self._lost(f"closed by peer: {text}", "goodbye")

    # --- writing ----------------------------------------------------------------------

    def _write(self) -> None:
        self._flush_queued = self._hurried = False
        # A callback below asks for what is under way; or it has left in a hurry.
        if self._writing or not (self._control or self._out or self._pull):
            return
        self._writing = True
        lately = self._loop.now() - self._small_calls.at < LATELY
        budget = SHORT_TURN if lately else TURN
        blocked, last = True, False
        while not (self._closed or self._mute):
            last = not self._out and self._gather()
            if not self._out:
                blocked = False
                break
            sent = self._push()
            if sent < self._out_size:
                if sent:
                    self._advance(sent)
                break
            budget -= sent
            self._out.clear()
            header = self._out_data
            if header is not None:
                self._out_data = None
                self._handler.data_sent(self, header)
            if last or budget <= 0:
                blocked = False
                break
        self._writing = False
        # Rather than to ask whether there is room, as there nearly always is.
        if budget <= 0 and not (last or self._closed or self._flush_queued):
            self._flush_queued = True
            self._loop.call_soon(self._write)
        if not self._closed and blocked != self._blocked:
            self._blocked = blocked
            self._loop.modify(self._sock, EVENT_READ | EVENT_WRITE if blocked else EVENT_READ)

    def _push(self) -> int:
        """Write once; return the number of bytes, 0 when the socket is full or writing failed."""
        try:
            sent = self._sock.sendmsg(self._out)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._write_failed(describe(error))
            return 0
        self.bytes_out += sent
        self._pulse.spoke = self._loop.now()
        return sent

    def _gather(self) -> bool:
        """Begin the control frames that wait or, when they are few, also a DATA frame.

        Returns:
            Whether there is nothing else to send: these frames are the last ones.
        """
        control, out = self._control, self._out
        size = 0
        while control and len(out) < GATHER:
            frame = control.popleft()
            out.append(frame)
            size += len(frame)
            self._waiting -= len(frame) + EACH
        if self._pull and not control:
            self._pull = False
            pulled = self._handler.next_data(self)
            if pulled is not None and not self._closed:
                self._pull = True
                header, payload = pulled
                if len(payload) != header.length:
                    raise ValueError(f"{len(payload)} bytes, {header.length} announced")
                parts = self._writer.parts(header, payload)
                out += parts
                size += sum(map(len, parts))
                self._out_data = header
        self._out_size = size
        return not (control or self._pull)

    def _advance(self, sent: int) -> None:
        self._out_size -= sent
        out = self._out
        whole = 0
        while sent >= len(out[whole]):  # never beyond: something is left
            sent -= len(out[whole])
            whole += 1
        del out[:whole]
        if sent:
            out[0] = memoryview(out[0])[sent:]

    def _write_failed(self, reason: str) -> None:
        # The peer may have said why it closes: read that before the link is given up.
        self._mute = True

        def give_up() -> None:
            self._read()
            self._lost(reason, "broken")

        self._loop.call_soon(give_up)
