"""A member of a cluster that has the right key and says whatever a test wants.

Its links, heartbeats and membership are those of a real member, so the ring forms with it, and what
is between other members passes here as it should. What a test adds goes out as it is given, past
all checks of what a daemon says.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import msgspec

from ringd.config.load import load
from ringd.loop import Loop
from ringd.observe.counters import Counters
from ringd.observe.recorder import Recorder
from ringd.ring.bulk import Bulk
from ringd.ring.neighbours import Neighbours
from ringd.ring.state import StateFile
from ringd.wire.link import frames
from ringd.wire.link.control import Ask, Commit, GroupMessage, Joined, News, Offer, Propose, Told
from ringd.wire.link.frames import FrameType, Header
from ringd.wire.link.streams import Connect, Data, Reset, State
from tests.cluster import Node


class _NoStreams:
    """Has ends of no streams."""

    def ring_up(self) -> None:
        """Nobody waits for that."""

    def ring_down(self) -> None:
        """Nor for that."""

    def stream_message(self, *_: object) -> None:
        """It is for nobody."""


class Liar:
    """The member *node*, in a thread.

    ``heard`` are the joins of other members' programs, by member and group; ``offered`` the last
    offer of each session, with its number and payload.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        config = load(node.cluster.config, node.name)
        self.rank, self.size = config.rank, config.size
        self._store = StateFile(node.state_dir, node.name)
        self._loop = Loop()
        counters = Counters()
        self.neighbours = Neighbours(self._loop, config, self._store, Recorder(node.name), counters)
        self._bulk = Bulk(
            config.rank,
            chunk_bytes=config.ops.chunk,
            checksum=config.ops.checksum,
            by_rank=False,
            on_finished=lambda _gid, _seq: None,
            send=self.neighbours.send_credit,
            defer=self._loop.call_soon,
            on_way=self.neighbours.on_way,
            counters=counters,
        )
        self.neighbours.attach(self, _NoStreams(), self._bulk)
        self.heard: dict[tuple[int, str], Joined] = {}
        self.offered: dict[int, tuple[int, Offer, bytes]] = {}
        self.reasons: list[str] = []
        """Why the others ended links, in their words."""
        lost = self.neighbours.machine.link_down

        def link_down(side: Any, reason: str, now: float) -> Any:
            self.reasons.append(reason)
            return lost(side, reason, now)

        self.neighbours.machine.link_down = link_down  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.neighbours.start()
        self._loop.run()
        self.neighbours.stop("the liar goes")
        self.neighbours.disk.finish()
        self._store.close()
        self._loop.close()

    def close(self) -> None:
        """Leave the ring."""
        self._loop.call_threadsafe(self._loop.stop)
        self._thread.join()

    def __enter__(self) -> Liar:  # noqa: PYI034 - Self is newer than Python 3.10
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- as the user of its place in the ring -------------------------------------------

    def ring_up(self, _generation: int) -> None:
        """A ring has formed."""

    def ring_down(self, _reason: str) -> None:
        """It broke: nothing is known of programs any more."""
        self.heard.clear()

    def quiet(self) -> bool:
        """Nobody minds."""
        return True

    def group_message(
        self, origin: int, _rank: int, gid: int, seq: int, message: GroupMessage, payload: bytes
    ) -> None:
        """Keep who has joined, and what is called."""
        if isinstance(message, Joined):
            self.heard[origin, message.group] = message
        elif isinstance(message, Offer):
            self.offered[gid] = seq, message, payload

    # --- what it says ---------------------------------------------------------------------

    def do(self, action: Callable[[], Any]) -> Any:
        """Have *action* done by the liar's loop; return what it returns."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(action())
            except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
                future.set_exception(error)

        self._loop.call_threadsafe(run)
        return future.result(30)

    @property
    def ready(self) -> bool:
        """Whether it is in a ring."""
        return bool(self.do(lambda: self.neighbours.machine.in_ring))

    def send(self, side: Any, header: Header, payload: bytes = b"") -> bool:
        """Send a frame; return whether there was a link."""
        return bool(self.do(lambda: self._send(side, header, payload)))

    def _send(self, side: Any, header: Header, payload: bytes) -> bool:
        link = self.neighbours.links.get(side)
        if link is not None:
            link.send(header, payload)
        return link is not None

    def say(self, side: Any, message: Any, data: bytes = b"", **header: Any) -> bool:
        """Send *message*, however wrong it is, in a frame of its sort."""
        return self.send(side, *self._frame(message, data, header))

    def say_to_both(self, message: Any) -> bool:
        """Send *message* to both neighbours before either of them can pass it on."""
        frame = self._frame(message, b"", {})
        return bool(self.do(lambda: self._send("left", *frame) and self._send("right", *frame)))

    def _frame(self, message: Any, data: bytes, header: dict[str, Any]) -> tuple[Header, bytes]:
        body = msgspec.msgpack.encode(message)
        fields: dict[str, Any] = {"length": len(body + data), "flags": frames.CHECKSUM}
        fields["payload_crc"] = frames.checksum(body + data)
        if isinstance(message, (News, Propose, Commit)):
            kind = FrameType.MEMBERSHIP
        elif isinstance(message, (Ask, Told)):
            kind = FrameType.INQUIRY
        else:
            of_stream = isinstance(message, (Connect, State, Data, Reset))
            kind = FrameType.STREAM if of_stream else FrameType.GROUP
            generation = self.neighbours.machine.generation
            until = (self.rank - 1) % self.size
            fields |= {"index": len(body), "generation": generation}
            fields |= {"origin": self.rank, "until": until}
        return Header(kind, **(fields | header)), body + data
