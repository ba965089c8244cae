"""One member's part in one large all-reduce: buffers out, buffers in, arithmetic between.

Sans-IO: a :class:`Transfer` says which memory to send next and where to receive to, and
reduces what has come in. It never waits, and knows neither sockets nor clocks.
"""

from __future__ import annotations

import numpy as np

from ringd.collective.plan import ChunkSpec, RingPlan
from ringd.collective.reduction import Array, Reduction


class TransferError(Exception):
    """The other side's chunk does not fit the plan: wrong number, length or moment."""


class ScratchPool:
    """Warm byte buffers of one size, for partial results that have no place of their own.

    Args:
        nbytes: size of every buffer.
        keep: how many free buffers are kept; more are given back to the system.
    """

    __slots__ = ("_free", "_keep", "nbytes")

    def __init__(self, nbytes: int, keep: int = 32) -> None:
        self.nbytes = nbytes
        self._keep = keep
        self._free: list[Array] = []

    @property
    def free(self) -> int:
        """How many buffers lie ready."""
        return len(self._free)

    def take(self) -> Array:
        """Return a buffer of *nbytes* uint8 with any content."""
        return self._free.pop() if self._free else np.empty(self.nbytes, np.uint8)

    def give(self, buffer: Array) -> None:
        """Take back a buffer that nobody reads or writes any more."""
        if len(self._free) < self._keep:
            self._free.append(buffer)


class Transfer:
    """The run of a :class:`RingPlan` over a source and a target.

    Where a chunk lives: received chunks go straight to their place in the target and are
    reduced there; a partial result is overwritten later by the all-gather, but not before it
    has left. Only wide partial results (float16, bfloat16 on the way) need scratch buffers.

    Args:
        plan: this rank's plan.
        reduction: what to compute; its dtype and size are the plan's.
        source: this member's input, 1-d, contiguous; only ever read.
        target: where the result goes, 1-d, contiguous, apart from the source in memory. Its
            content is undefined until :attr:`finished`, and afterwards if the run is given up.
        scratch: for wide partial results; its buffers must hold ``plan.chunk_bytes``.
    """

    __slots__ = (
        "_gather_lag",
        "_incoming",
        "_last_reduced",
        "_next",
        "_partials",
        "_received",
        "_scratch",
        "_sent",
        "_source",
        "_source_bytes",
        "_target",
        "_target_bytes",
        "plan",
        "reduction",
    )

    def __init__(
        self,
        plan: RingPlan,
        reduction: Reduction,
        source: Array,
        target: Array,
        scratch: ScratchPool,
    ) -> None:
        for name, array in (("source", source), ("target", target)):
            if array.shape != (plan.count,) or not array.flags.c_contiguous:
                raise ValueError(f"the {name} must be 1-d, contiguous, {plan.count} elements long")
            if array.dtype != reduction.dtype or array.itemsize != plan.itemsize:
                raise ValueError(f"the {name} is {array.dtype}, not {reduction.dtype}")
        if not target.flags.writeable:
            raise ValueError("the target is read-only")
        if plan.size != reduction.size:
            raise ValueError(f"a plan for {plan.size}, but a reduction over {reduction.size}")
        if plan.accumulator_itemsize != reduction.accumulator.itemsize:
            raise ValueError("the plan's accumulator is not the reduction's")
        if np.may_share_memory(source, target):
            raise ValueError("source and target overlap, but a source is never written")
        if reduction.wide and scratch.nbytes < plan.chunk_bytes:
            raise ValueError(f"scratch buffers of {scratch.nbytes} B, chunks of {plan.chunk_bytes}")
        self.plan = plan
        self.reduction = reduction
        self._source = source
        self._target = target
        # Through uint8, since bfloat16 arrays have no buffer protocol.
        self._source_bytes = source.view(np.uint8).data
        self._target_bytes = target.view(np.uint8).data
        self._scratch = scratch
        self._partials: dict[int, Array] = {}  # scratch buffers, by the number they are sent under
        self._next = 0
        self._sent = 0
        self._received = 0
        self._incoming: ChunkSpec | None = None
        self._last_reduced = plan.size - 2
        self._gather_lag = (plan.size - 1) * plan.chunks_per_segment
        if plan.size == 1:
            reduction.reduce_all([source], target)

    @property
    def finished(self) -> bool:
        """Whether the target is complete and nothing here is still to be sent."""
        return self._received == self._sent == self.plan.chunks

    @property
    def received_chunks(self) -> int:
        """How many chunks have come in."""
        return self._received

    def next_send(self) -> tuple[int, memoryview] | None:
        """Return the next chunk that may be sent, as its number and bytes, or None for now.

        The bytes stay as they are until :meth:`sent` is called with that number.
        """
        index, k = self._next, self.plan.chunks_per_segment
        if index >= self._received + k or index == self.plan.chunks:
            return None
        self._next = index + 1
        chunk = self.plan.sends[index]
        if chunk.wide:
            return index, self._partials[index].data[: chunk.nbytes]
        whole = self._source_bytes if chunk.step == 0 else self._target_bytes
        itemsize = self.plan.itemsize
        return index, whole[chunk.start * itemsize : chunk.stop * itemsize]

    def sent(self, index: int) -> None:
        """Note that chunk *index* has left to its last byte.

        Raises:
            ValueError: it is not the one that must leave next.
        """
        if index != self._sent or index >= self._next:
            raise ValueError(f"chunk {index} cannot have been sent: {self._sent} is the next")
        self._sent = index + 1
        if self._partials:
            buffer = self._partials.pop(index, None)
            if buffer is not None:
                self._scratch.give(buffer)

    def receive_buffer(self, index: int, length: int) -> memoryview:
        """Return the memory that the bytes of chunk *index* must be written to.

        Raises:
            TransferError: the chunk is not the next one, has another length than planned, or
                comes before what it answers has left; the state is unchanged.
        """
        if index != self._received or index >= self.plan.chunks or self._incoming is not None:
            raise TransferError(
                f"chunk {index} of {self.plan.chunks} came, but {self._received} "
                f"is {'expected' if self._incoming is None else 'still being received'}"
            )
        chunk = self.plan.receives[index]
        if length != chunk.nbytes:
            raise TransferError(f"chunk {index} has {length} bytes instead of {chunk.nbytes}")
        # A complete segment overwrites the partial one, which must have left by then: it is part
        # of what has been completed, so only a confused peer can be that early.
        if index - self._gather_lag >= self._sent:
            raise TransferError(f"chunk {index} came before chunk {self._sent} was sent")
        self._incoming = chunk
        if chunk.wide:
            # Reduced in place, it is what leaves k chunks later.
            buffer = self._scratch.take()
            self._partials[index + self.plan.chunks_per_segment] = buffer
            return buffer.data[:length]
        itemsize = self.plan.itemsize
        return self._target_bytes[chunk.start * itemsize : chunk.stop * itemsize]

    def received(self, index: int) -> None:
        """Take the bytes that have been written to the buffer of chunk *index*, and reduce them.

        Raises:
            ValueError: that chunk is not being received.
        """
        chunk = self._incoming
        if chunk is None or index != self._received:
            raise ValueError(f"chunk {index} is not being received")
        if chunk.step <= self._last_reduced:
            self._reduce(index, chunk)
        self._incoming = None
        self._received = index + 1

    def _reduce(self, index: int, chunk: ChunkSpec) -> None:
        own = self._source[chunk.start : chunk.stop]
        place = self._target[chunk.start : chunk.stop]
        last = chunk.step == self._last_reduced
        if not self.reduction.wide:
            self.reduction.combine(place, own, place)
            if last:
                self.reduction.finish(place, place)
            return
        onward = index + self.plan.chunks_per_segment
        buffer = self._partials.get(onward)
        if buffer is None:
            buffer = self._partials[onward] = self._scratch.take()
        width = self.reduction.accumulator.itemsize
        partial = buffer[: (chunk.stop - chunk.start) * width].view(self.reduction.accumulator)
        self.reduction.combine(partial if chunk.wide else place, own, partial)
        if last:
            self.reduction.finish(partial, place)
            del self._partials[onward]
            self._scratch.give(buffer)
