"""The large ops under way: which chunk goes out next, where an incoming one belongs.

Knows transfers, not links or clients: a link pulls chunks from here for its neighbour, and asks
where to put what it receives. A chunk for a member further on is kept until it has left.

Where a chunk may wait on its way, at members that have no part in the op or none yet, the
receiver bounds what its sender may have under way: the sender keeps to a *credit* of chunks, which
the receiver raises. So nobody holds more of an op than :data:`FAR` chunks, or than its plan does.
Between neighbours they keep pace instead (:mod:`ringd.ring.pace`), where their plan lets them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from ringd.collective import kinds
from ringd.collective.arrange import Arrangement, arrange
from ringd.collective.call import Call
from ringd.collective.layout import Layout
from ringd.collective.plan import MAX_PASSING
from ringd.collective.reduction import Array, Reduction
from ringd.collective.transfer import ScratchPool, Transfer, TransferError
from ringd.collective.view import Side, View
from ringd.host.machine import cores, share_of_memory
from ringd.observe.counters import FOR_NO_CALL, Counters
from ringd.ring.crew import ThreadCrew
from ringd.ring.lane import Chunk, Key, Lane
from ringd.wire.link import frames
from ringd.wire.link.frames import FrameError, FrameType, Header

_INSTRUCTIONS = 20_000
"""Of all plans that are kept, some 5 MiB: those of 50 all-reduces of 64 MiB by four members."""

FAR = MAX_PASSING
"""Chunks that may be under way to a member that is no neighbour."""

OPPOSITE: dict[Side, Side] = {"left": "right", "right": "left"}


@dataclass(slots=True, eq=False)
class Flow:
    """A transfer on its way between members."""

    transfer: Transfer
    side: Side
    """To whom it sends."""
    until: int
    """The member that receives what it sends."""
    far: bool
    """Whether members that have no part in it lie between."""
    credited: bool
    """Whether its senders keep to credits."""
    sender: tuple[Side, int]
    """Whose chunks it receives: the neighbour to whom credits for it go, and the member."""
    granted: int = FAR
    """The credit that this one was told."""


class Bulk:
    """The transfers of one member.

    Args:
        member: Its number in the ring.
        chunk_bytes: The longest chunk, equal on all members.
        checksum: Whether chunks carry a CRC-32, equal on all members.
        by_rank: Whether every sum is taken in the order of the ranks, equal on all members.
        on_finished: Called with an op's key when its result is complete and nothing of it is
            still to be sent; the transfer is forgotten by then.
        send: Sends a header without a payload to a neighbour.
        defer: Calls its argument soon, after a look at the sockets.
        on_way: Returns how many bytes are to be on their way to a neighbour, of a session's call.
        counters: Where chunks that come for no op of ours are counted.
    """

    def __init__(
        self,
        member: int,
        *,
        chunk_bytes: int,
        checksum: bool,
        by_rank: bool,
        on_finished: Callable[[int, int], None],
        send: Callable[[Side, Header], None],
        defer: Callable[[Callable[[], None]], None],
        on_way: Callable[[Side, int], float],
        counters: Counters,
    ) -> None:
        self._member = member
        self._chunk_bytes = chunk_bytes
        self._checksum = checksum
        self._by_rank = by_rank
        self._on_finished = on_finished
        self._send = send
        self._defer = defer
        self._on_way = on_way
        self._counters = counters
        self._plans: dict[tuple[object, ...], Arrangement] = {}  # programs repeat their shapes
        self._working: deque[Key] = deque()  # ops with work that waits for nobody
        self._scratch = ScratchPool(chunk_bytes)
        self._crew = ThreadCrew(cores())
        self._flows: dict[Key, Flow] = {}
        self._lanes: dict[Side, Lane] = {"left": Lane(self._next), "right": Lane(self._next)}
        self._passing: dict[Side, memoryview] = {}
        """What is being received from a neighbour for a member further on."""
        self._most_passing = share_of_memory()
        """Bytes that such chunks may cost until they are sent on to one neighbour."""
        self.generation = 0
        """Stamped on every chunk."""

    def __len__(self) -> int:
        return len(self._flows)

    def start(  # noqa: PLR0917
        self,
        key: Key,
        view: View,
        layout: Layout,
        calls: Sequence[Call],
        reduction: Reduction | None,
        sources: Sequence[Array],
        targets: Sequence[Array | None],
    ) -> None:
        """Begin the op; its first chunks can be pulled at once.

        Args:
            key: The op's.
            view: Of a rank here.
            layout: Where the ranks are.
            calls: Everybody's, by rank.
            reduction: What to compute; None where nothing is reduced.
            sources: The inputs of the ranks here.
            targets: For their results; None for a rank that needs none.
        """
        dtype = sources[0].dtype
        arrangement = self._arrangement(
            tuple(map(kinds.bare, calls)),
            layout,
            dtype.itemsize,
            (dtype if reduction is None else reduction.accumulator).itemsize,
            self._by_rank and reduction is not None and _order_matters(reduction, calls[0]),
        )
        transfer = arrangement.begin(reduction, sources, targets, self._scratch, crew=self._crew)
        self._flows[key] = flow = self._flow(transfer, view, kinds.of(calls[0]))
        if flow.credited:
            transfer.credit = FAR
        else:
            transfer.keep_pace(self._ahead(flow.side, key[0]))
        transfer.work()  # a root that only sends is then through as soon as the last chunk has left
        if transfer.plan.sends:
            self._lanes[flow.side].queue(*key)
        self._check_finished(key, flow)

    def _flow(self, transfer: Transfer, view: View, kind: kinds.Kind) -> Flow:
        far = len({*view.places}) != view.ring_size
        # Of a pair each end sends, also credits, by its own shorter way: the one by which the other
        # end's data comes. The longer one may lead over a member that is not in the ring yet.
        back: Side = view.side if kind.pair else OPPOSITE[view.side]
        sender = back, view.until
        return Flow(transfer, view.side, view.next, far, far or kind.passes, sender)

    def _ahead(self, side: Side, gid: int) -> int:
        """Return how many chunks may be ahead of those received, to a neighbour on that side."""
        return 1 + max(1, ceil(self._on_way(side, gid) / self._chunk_bytes))

    def stop(self, gid: int, seq: int) -> None:
        """Forget the op; the caller makes the links let go of its memory."""
        self._flows.pop((gid, seq), None)

    def give_back(self) -> None:
        """Give back the chunk buffers that are kept for the next op: none has come for a while."""
        self._scratch.clear()

    def broke(self) -> None:
        """Forget what was to pass: the ring broke."""
        for lane in self._lanes.values():
            lane.clear_passing()

    def progress(self, gid: int, seq: int) -> tuple[int, int] | None:
        """Return how many of the op's chunks were received, and of how many; None if not here."""
        flow = self._flows.get((gid, seq))
        if flow is None:
            return None
        return flow.transfer.received_chunks, len(flow.transfer.plan.receives)

    def positions(self) -> dict[Key, tuple[int, int]]:
        """Return by op how many chunks were received and sent: what rises while it gets on."""
        return {
            key: (flow.transfer.received_chunks, flow.transfer.sent_chunks)
            for key, flow in self._flows.items()
        }

    # --- from a neighbour -------------------------------------------------------------

    def buffer(self, side: Side, header: Header) -> memoryview | None:
        """Return where the chunk goes; None for one that nobody waits for any more.

        Raises:
            FrameError: The neighbour and this member disagree on what comes next.
        """
        if header.generation != self.generation:
            self._counters.dropped_frames[FOR_NO_CALL] += 1
            return None
        if header.until != self._member:
            self._check_passing(self._lanes[OPPOSITE[side]], header)
            buffer = self._passing[side] = memoryview(bytearray(header.length))
            return buffer
        flow = self._flows.get((header.group, header.seq))
        if flow is None:
            self._counters.dropped_frames[FOR_NO_CALL] += 1
            return None
        try:
            return flow.transfer.receive_buffer(header.index, header.length)
        except TransferError as error:
            raise FrameError(str(error)) from None

    def _check_passing(self, lane: Lane, header: Header) -> None:
        """Object to a chunk that keeps to no credit: its receiver grants FAR of an op at a time."""
        if header.length > self._chunk_bytes:
            raise FrameError(f"a chunk of {header.length} bytes, of {self._chunk_bytes} at most")
        if lane.passing[header.group, header.seq] >= FAR:
            raise FrameError(f"more than {FAR} chunks of one op are to pass here")
        if lane.passing_bytes + header.length > self._most_passing:
            raise FrameError(f"chunks of {self._most_passing >> 20} MiB are to pass here already")

    def received(self, side: Side, header: Header) -> Side | None:
        """Take the chunk that is now complete; return for which neighbour there is more now."""
        if header.until != self._member:
            onward = OPPOSITE[side]
            self._lanes[onward].pass_on(header, self._passing.pop(side))
            return onward
        key = (header.group, header.seq)
        flow = self._flows.get(key)
        if flow is None:
            return None
        transfer = flow.transfer
        transfer.received(header.index)
        if not flow.credited:
            transfer.keep_pace(self._ahead(flow.side, key[0]))
        ready = transfer.ready
        if ready:
            self._lanes[flow.side].queue(*key)
        if flow.credited:
            self._grant(key, flow)
        if transfer.left <= transfer.unworked:
            self._check_finished(key, flow)
        return flow.side if ready else None

    def credit(self, header: Header) -> Side | None:
        """Take a credit that the receiver of an op's chunks grants, as :meth:`received` returns."""
        key = (header.group, header.seq)
        flow = self._flows.get(key)
        if flow is None or header.generation != self.generation or not flow.credited:
            return None
        flow.transfer.credit = max(flow.transfer.credit or 0, header.index)
        self._lanes[flow.side].queue(*key)
        return flow.side

    # --- to a neighbour ---------------------------------------------------------------

    def carry(self, side: Side, header: Header, data: memoryview) -> None:
        """Send bytes of a stream, beside the chunks."""
        self._lanes[side].carry(header, data)

    def carries_too_much(self, side: Side) -> bool:
        """Whether more bytes of streams wait for a neighbour than all of their windows have."""
        return self._lanes[side].stream_bytes > self._most_passing

    def next_chunk(self, side: Side) -> Chunk | None:
        """Return the next chunk to send, of the group whose turn it is."""
        return self._lanes[side].next()

    def sent(self, header: Header) -> None:
        """The chunk has left, its memory is free."""
        if header.type is not FrameType.DATA:  # bytes of a stream, which are nobody else's
            return
        key = (header.group, header.seq)
        flow = self._flows.get(key)
        if flow is not None and header.origin == self._member:
            transfer = flow.transfer
            transfer.sent(header.index)
            if flow.credited:
                self._grant(key, flow)
            if transfer.left <= transfer.unworked:
                self._check_finished(key, flow)

    # --- inside -----------------------------------------------------------------------

    def _arrangement(
        self,
        calls: tuple[Call, ...],
        layout: Layout,
        itemsize: int,
        accumulator_itemsize: int,
        by_rank: bool,
    ) -> Arrangement:
        key = (calls, layout, itemsize, accumulator_itemsize, by_rank)
        plans = self._plans
        arrangement = plans.pop(key, None)
        if arrangement is not None:
            plans[key] = arrangement  # the last one to be used
            return arrangement
        arrangement = plans[key] = arrange(
            calls,
            layout,
            itemsize=itemsize,
            accumulator_itemsize=accumulator_itemsize,
            chunk_bytes=self._chunk_bytes,
            by_rank=by_rank,
        )
        while len(plans) > 1 and sum(map(len, plans.values())) > _INSTRUCTIONS:
            del plans[next(iter(plans))]
        return arrangement

    def _work(self) -> None:
        """Do a piece of the work of one op, and see to the next one after a look at the sockets."""
        key = self._working[0]
        flow = self._flows.get(key)
        if flow is not None and flow.transfer.work():
            self._working.rotate(-1)
        else:
            self._working.popleft()
        if self._working:
            self._defer(self._work)
        if flow is not None and flow.transfer.finished:
            self._check_finished(key, flow)

    def _next(self, gid: int, seq: int) -> tuple[Chunk | None, bool]:
        flow = self._flows.get((gid, seq))
        sending = None if flow is None else flow.transfer.next_send()
        if flow is None or sending is None:
            return None, False
        index, chunk = sending
        if self._checksum:
            chunk = memoryview(bytes(chunk))  # as of a message: a program may write to it
        header = Header(
            FrameType.DATA,
            length=len(chunk),
            generation=self.generation,
            group=gid,
            seq=seq,
            index=index,
            origin=self._member,
            until=flow.until,
            flags=frames.CHECKSUM if self._checksum else 0,
            payload_crc=frames.checksum(chunk) if self._checksum else 0,
        )
        return (header, chunk), flow.transfer.ready

    def _check_finished(self, key: Key, flow: Flow) -> None:
        """See to the end of an op, or to work that is all that is left and waits for nobody."""
        left = flow.transfer.left
        if not left:
            del self._flows[key]
            self._on_finished(*key)
        elif left == flow.transfer.unworked:
            self._working.append(key)
            if len(self._working) == 1:
                self._defer(self._work)

    def _grant(self, key: Key, flow: Flow) -> None:
        """Raise the sender's credit, now and then, and in time.

        Invariant: a sender that has used up its credit is told of any that there is.
        """
        transfer = flow.transfer
        received, granted = transfer.received_chunks, transfer.granted
        if flow.far:
            granted = min(granted, received + FAR)
        granted = min(granted, len(transfer.plan.receives))
        used_up = received >= flow.granted
        # Before its first chunk has come, the sender may have yet to begin, and would not hear it.
        due = received and (used_up or granted - flow.granted >= FAR // 4)
        if granted > flow.granted and due:
            flow.granted = granted
            (gid, seq), (side, sender) = key, flow.sender
            header = Header(
                FrameType.CREDIT,
                generation=self.generation,
                group=gid,
                seq=seq,
                index=granted,
                origin=self._member,
                until=sender,
            )
            self._send(side, header)


def _order_matters(reduction: Reduction, call: Call) -> bool:
    """Whether another order of the inputs can give other bits: also by what is rounded between."""
    return reduction.order_matters or call.wire != ""


def flat(memory: memoryview | bytes, dtype: np.dtype[np.generic]) -> Array:
    """Return *memory* as a 1-d array of *dtype*, without a copy."""
    return np.frombuffer(memory, dtype) if len(memory) else np.empty(0, dtype)
