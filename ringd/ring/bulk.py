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

from ringd.collective import kinds
from ringd.collective.call import Call
from ringd.collective.plan import Plan
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
    """

    def __init__(
        self,
        rank: int,
        *,
        chunk_bytes: int,
        checksum: bool,
        by_rank: bool,
        on_finished: Callable[[int, int], None],
    ) -> None:
        self._rank = rank
        self._chunk_bytes = chunk_bytes
        self._checksum = checksum
        self._by_rank = by_rank
        self._on_finished = on_finished
        self._plans: dict[tuple[object, ...], Plan] = {}  # programs repeat their shapes
        self._scratch = ScratchPool(chunk_bytes)
        self._transfers: dict[Key, Transfer] = {}
        self._ready: dict[int, list[int]] = {}  # by gid: a heap of ops that may send
        self._turns: deque[int] = deque()  # gids with such ops
        self.generation = 0
        """Stamped on every chunk."""
        self.stale = 0
        """Chunks that came for no op of ours and were discarded."""

    def __len__(self) -> int:
        return len(self._transfers)

    def start(
        self,
        key: Key,
        calls: Sequence[Call],
        reduction: Reduction | None,
        source: Array,
        target: Array,
    ) -> None:
        """Begin the op; its first chunks can be pulled at once.

        Args:
            key: The op's.
            calls: Everybody's, by rank.
            reduction: What to compute; None where nothing is reduced.
            source: This member's input.
            target: For its result.
        """
        accumulator = target.dtype if reduction is None else reduction.accumulator
        plan = self._plan(
            tuple(msgspec.structs.replace(call, name="") for call in calls),
            target.itemsize,
            accumulator.itemsize,
            self._by_rank and reduction is not None and reduction.order_matters,
        )
        transfer = Transfer(plan, reduction, source, target, self._scratch)
        if transfer.finished:  # alone in the ring
            self._on_finished(*key)
            return
        self._transfers[key] = transfer
        self._queue(*key)

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

    def _plan(
        self, calls: tuple[Call, ...], itemsize: int, accumulator_itemsize: int, by_rank: bool
    ) -> Plan:
        key = (calls, itemsize, accumulator_itemsize, by_rank)
        plan = self._plans.pop(key, None) or self._make_plan(*key)
        self._plans[key] = plan  # the last one to be used
        while len(self._plans) > 1 and sum(map(len, self._plans.values())) > _INSTRUCTIONS:
            del self._plans[next(iter(self._plans))]
        return plan

    def _make_plan(
        self, calls: tuple[Call, ...], itemsize: int, accumulator_itemsize: int, by_rank: bool
    ) -> Plan:
        task = kinds.task(
            calls,
            self._rank,
            itemsize=itemsize,
            accumulator_itemsize=accumulator_itemsize,
            chunk_bytes=self._chunk_bytes,
            by_rank=by_rank,
        )
        return kinds.of(calls[0]).plan(task)

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


def flat(memory: memoryview | bytes, dtype: np.dtype[np.generic]) -> Array:
    """Return *memory* as a 1-d array of *dtype*, without a copy."""
    return np.frombuffer(memory, dtype) if len(memory) else np.empty(0, dtype)
