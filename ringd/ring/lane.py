"""What goes to one neighbour: whose chunk is the next."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable
from typing import Optional, Union

from ringd.wire.link.frames import Header

Chunk = tuple[Header, memoryview]
Key = tuple[int, int]
"""Of an op: (gid, sequence number)."""

EACH = 512
"""Bytes that a chunk costs here beside its own, about."""

NextChunk = Callable[[int, int], tuple[Optional[Chunk], bool]]
"""Given an op, as (gid, sequence number), returns its next chunk, or None for now, and whether it
has another one."""


class _Ops:
    """The ops of a group that may have something to send, the oldest first."""

    __slots__ = ("_gid", "_heap", "_next_chunk")

    def __init__(self, gid: int, next_chunk: NextChunk) -> None:
        self._gid = gid
        self._next_chunk = next_chunk
        self._heap: list[int] = []

    def add(self, seq: int) -> None:
        if seq not in self._heap:
            heapq.heappush(self._heap, seq)

    def next(self) -> Chunk | None:
        heap = self._heap
        while heap:
            chunk, more = self._next_chunk(self._gid, heap[0])
            if not more:
                heapq.heappop(heap)
            if chunk is not None:
                return chunk
        return None

    def __bool__(self) -> bool:
        return bool(self._heap)


class _Passing:
    """Chunks of a group that are for members further on, in their order."""

    __slots__ = ("chunks",)

    def __init__(self) -> None:
        self.chunks: deque[Chunk] = deque()

    def next(self) -> Chunk | None:
        return self.chunks.popleft() if self.chunks else None

    def __bool__(self) -> bool:
        return bool(self.chunks)


class _Streams:
    """Bytes of streams, which take turns among themselves."""

    __slots__ = ("_turns",)

    def __init__(self) -> None:
        self._turns: dict[int, deque[Chunk]] = {}

    def add(self, header: Header, data: memoryview) -> None:
        self._turns.setdefault(header.group, deque()).append((header, data))

    def next(self) -> Chunk | None:
        for number, chunks in self._turns.items():
            chunk = chunks.popleft()
            del self._turns[number]
            if chunks:
                self._turns[number] = chunks  # it is the last one now
            return chunk
        return None

    def __bool__(self) -> bool:
        return bool(self._turns)

    def clear(self) -> None:
        self._turns.clear()


class Lane:
    """Chunks for one neighbour.

    Invariant: groups take turns chunk by chunk, so none waits for another, and all streams together
    have the turn of one group; within a group the oldest op that can send goes first, so that ops
    end in order.

    Args:
        next_chunk: asks an op for what it has to send.
    """

    def __init__(self, next_chunk: NextChunk) -> None:
        self._next_chunk = next_chunk
        self._ops: dict[int, _Ops] = {}  # by gid
        self._passing: dict[int, _Passing] = {}  # by gid
        self._streams = _Streams()
        self._streams_turn = False  # whether they have one
        self.stream_bytes = 0
        """What the bytes of streams cost that wait here."""
        self._turns: deque[tuple[int, Union[_Ops, _Passing, _Streams]]] = deque()
        self.passing: Counter[Key] = Counter()
        """Chunks that are to pass, by their op."""
        self.passing_bytes = 0
        """What these cost."""

    def queue(self, gid: int, seq: int) -> None:
        """Let an op have its turn: it may have something to send."""
        ops = self._ops.get(gid)
        if ops is None:
            ops = self._ops[gid] = _Ops(gid, self._next_chunk)
            self._turns.append((gid, ops))
        ops.add(seq)

    def pass_on(self, header: Header, chunk: memoryview) -> None:
        """Send a chunk that is for a member further on."""
        passing = self._passing.get(header.group)
        if passing is None:
            passing = self._passing[header.group] = _Passing()
            self._turns.append((header.group, passing))
        passing.chunks.append((header, chunk))
        self._count(header, chunk, 1)

    def _count(self, header: Header, chunk: memoryview, change: int) -> None:
        key = header.group, header.seq
        self.passing[key] += change
        if not self.passing[key]:
            del self.passing[key]
        self.passing_bytes += change * (len(chunk) + EACH)

    def carry(self, header: Header, data: memoryview) -> None:
        """Send bytes of a stream."""
        self._streams.add(header, data)
        self.stream_bytes += len(data) + EACH
        if not self._streams_turn:
            self._streams_turn = True
            self._turns.append((0, self._streams))

    def next(self) -> Chunk | None:
        """Return the next chunk, of the group whose turn it is; None if there is none."""
        turns = self._turns
        while turns:
            gid, queue = turn = turns.popleft()
            chunk = queue.next()
            if queue:
                turns.append(turn)
            elif isinstance(queue, _Ops):
                del self._ops[gid]
            elif isinstance(queue, _Passing):
                del self._passing[gid]
            else:
                self._streams_turn = False
            if chunk is not None:
                if isinstance(queue, _Passing):
                    self._count(*chunk, -1)
                elif isinstance(queue, _Streams):
                    self.stream_bytes -= len(chunk[1]) + EACH
                return chunk
        return None

    def clear_passing(self) -> None:
        """Forget what was to pass, and what streams say: the ring broke."""
        for passing in self._passing.values():
            passing.chunks.clear()
        self.passing.clear()
        self.passing_bytes = self.stream_bytes = 0
        self._streams.clear()
