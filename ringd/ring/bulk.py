"""The large ops under way: which chunk goes out next, where an incoming one belongs.

Knows transfers, not links or clients: the right link pulls chunks from here, the left one asks
where to put what it receives. Groups take turns chunk by chunk, so none waits for another;
within a group the oldest op that can send goes first, so that ops end in order.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from ringd.collective.arrange import Arrangement, arrange
from ringd.collective.call import Call
from ringd.collective.layout import Layout
from ringd.collective.reduction import Array, Reduction
from ringd.collective.transfer import ScratchPool, Transfer, TransferError
from ringd.wire.link import frames
from ringd.wire.link.frames import FrameError, FrameType, Header

_INSTRUCTIONS = 20_000
"""Of all plans that are kept, some 5 MiB: those of 50 all-reduces of 64 MiB by four members."""

Key = tuple[int, int]
"""Of an op: (gid, sequence number)."""


class Bulk:
    """The transfers of one member.

    Args:
        rank: This member's.
        chunk_bytes: The longest chunk, equal on all members.
        checksum: Whether chunks carry a CRC-32, equal on all members.
        by_rank: Whether every sum is taken in the order of the ranks, equal on all members.
        on_finished: Called with an op's key when its result is complete and nothing of it is
            still to be sent; the transfer is forgotten by then.
        defer: Calls its argument soon, after a look at the sockets.
    """

    def __init__(
        self,
        rank: int,
        *,
        chunk_bytes: int,
        checksum: bool,
        by_rank: bool,
        on_finished: Callable[[int, int], None],
        defer: Callable[[Callable[[], None]], None],
    ) -> None:
        self._rank = rank
        self._chunk_bytes = chunk_bytes
        self._checksum = checksum
        self._by_rank = by_rank
        self._on_finished = on_finished
        self._defer = defer
        self._plans: dict[tuple[object, ...], Arrangement] = {}  # programs repeat their shapes
        self._scratch = ScratchPool(chunk_bytes)
        self._transfers: dict[Key, Transfer] = {}
        self._ready: dict[int, list[int]] = {}  # by gid: a heap of ops that may send
        self._turns: deque[int] = deque()  # gids with such ops
        self._working: deque[Key] = deque()  # ops with work that waits for nobody
        self.generation = 0
        """Stamped on every chunk."""
        self.stale = 0
        """Chunks that came for no op of ours and were discarded."""

    def __len__(self) -> int:
        return len(self._transfers)

    def start(  # noqa: PLR0917 - all of them say what the op is
        self,
        key: Key,
        calls: Sequence[Call],
        layout: Layout,
        reduction: Reduction | None,
        sources: Sequence[Array],
        targets: Sequence[Array | None],
    ) -> None:
        """Begin the op; its first chunks can be pulled at once.

        Args:
            key: The op's.
            calls: Everybody's, by rank.
            layout: Where the ranks are.
            reduction: What to compute; None where nothing is reduced.
            sources: The inputs of this member's ranks.
            targets: For their results; None for a rank that needs none.
        """
        dtype = sources[0].dtype
        arrangement = self._arrangement(
            tuple(msgspec.structs.replace(call, name="") for call in calls),
            layout,
            dtype.itemsize,
            (dtype if reduction is None else reduction.accumulator).itemsize,
            self._by_rank and reduction is not None and reduction.order_matters,
        )
        transfer = arrangement.begin(reduction, sources, targets, self._scratch)
        self._transfers[key] = transfer
        transfer.work()  # a root that only sends is then through as soon as the last chunk has left
        if transfer.plan.sends:
            self._queue(*key)
        self._check_finished(key, transfer)

    def stop(self, gid: int, seq: int) -> None:
        """Forget the op; the caller makes the links let go of its memory."""
        self._transfers.pop((gid, seq), None)

    def progress(self, gid: int, seq: int) -> tuple[int, int] | None:
        """Return how many of the op's chunks were received, and of how many; None if not here."""
        transfer = self._transfers.get((gid, seq))
        return None if transfer is None else (transfer.received_chunks, len(transfer.plan.receives))

    # --- the left link ----------------------------------------------------------------

    def buffer(self, header: Header) -> memoryview | None:
        """Return where the chunk goes; None for one that nobody waits for any more.

        Raises:
            FrameError: The neighbour and this member disagree on what comes next.
        """
        transfer = self._transfers.get((header.group, header.seq))
        if transfer is None or header.generation != self.generation:
            self.stale += 1
            return None
        try:
            return transfer.receive_buffer(header.index, header.length)
        except TransferError as error:
            raise FrameError(str(error)) from None

    def received(self, header: Header) -> None:
        """Reduce the chunk that is now complete."""
        key = (header.group, header.seq)
        transfer = self._transfers.get(key)
        if transfer is None:
            return
        transfer.received(header.index)
        self._queue(*key)
        self._check_finished(key, transfer)

    # --- the right link ---------------------------------------------------------------

    def next_chunk(self) -> tuple[Header, memoryview] | None:
        """Return the next chunk to send, of the group whose turn it is."""
        turns = self._turns
        while turns:
            gid = turns[0]
            ready = self._ready[gid]
            seq = ready[0]
            transfer = self._transfers.get((gid, seq))
            chunk = None if transfer is None else transfer.next_send()
            if chunk is not None:
                turns.rotate(-1)
                return self._frame(gid, seq, *chunk)
            heapq.heappop(ready)
            if not ready:
                turns.popleft()
                del self._ready[gid]
        return None

    def sent(self, header: Header) -> None:
        """The chunk has left, its memory is free."""
        key = (header.group, header.seq)
        transfer = self._transfers.get(key)
        if transfer is not None:
            transfer.sent(header.index)
            self._check_finished(key, transfer)

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
        arrangement = self._plans.pop(key, None) or arrange(
            calls,
            layout,
            itemsize=itemsize,
            accumulator_itemsize=accumulator_itemsize,
            chunk_bytes=self._chunk_bytes,
            by_rank=by_rank,
        )
        self._plans[key] = arrangement  # the last one to be used
        while len(self._plans) > 1 and sum(map(len, self._plans.values())) > _INSTRUCTIONS:
            del self._plans[next(iter(self._plans))]
        return arrangement

    def _work(self) -> None:
        """Do a piece of the work of one op, and see to the next one after a look at the sockets."""
        key = self._working[0]
        transfer = self._transfers.get(key)
        if transfer is not None and transfer.work():
            self._working.rotate(-1)
        else:
            self._working.popleft()
        if self._working:
            self._defer(self._work)
        if transfer is not None and transfer.finished:
            self._check_finished(key, transfer)

    def _frame(
        self, gid: int, seq: int, index: int, chunk: memoryview
    ) -> tuple[Header, memoryview]:
        header = Header(
            FrameType.DATA,
            length=len(chunk),
            generation=self.generation,
            group=gid,
            seq=seq,
            index=index,
            origin=self._rank,
            flags=frames.CHECKSUM if self._checksum else 0,
            payload_crc=frames.checksum(chunk) if self._checksum else 0,
        )
        return header, chunk

    def _queue(self, gid: int, seq: int) -> None:
        ready = self._ready.get(gid)
        if ready is None:
            self._ready[gid] = [seq]
            self._turns.append(gid)
        elif seq not in ready:
            heapq.heappush(ready, seq)

    def _check_finished(self, key: Key, transfer: Transfer) -> None:
        if transfer.finished:
            del self._transfers[key]
            self._on_finished(*key)
        elif transfer.idle_work:
            self._working.append(key)
            if len(self._working) == 1:
                self._defer(self._work)


def flat(memory: memoryview | bytes, dtype: np.dtype[np.generic]) -> Array:
    """Return *memory* as a 1-d array of *dtype*, without a copy."""
    return np.frombuffer(memory, dtype) if len(memory) else np.empty(0, dtype)
