"""One member's part in one large all-reduce: buffers out, buffers in, arithmetic between.

Sans-IO: a :class:`Transfer` says which memory to send next and where to receive to, and
reduces what has come in. It never waits, and knows neither sockets nor clocks.
"""

from __future__ import annotations

import numpy as np

from ringd.collective.plan import Combine, Place, Plan, Receive
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

    def take(self) -> Array:
        """Return a buffer of *nbytes* uint8 with any content."""
        return self._free.pop() if self._free else np.empty(self.nbytes, np.uint8)

    def give(self, buffer: Array) -> None:
        """Take back a buffer that nobody reads or writes any more."""
        if len(self._free) < self._keep:
            self._free.append(buffer)


class Transfer:
    """The run of a :class:`Plan` over a source and a target.

    It carries instructions out and counts them; why they are as they are, the plan knows.
    Received chunks go straight to their place in the target and are reduced there. Only wide
    partial results (float16, bfloat16 on the way) need scratch buffers: one is taken for the
    receive that makes the result, and given back when that has been sent or finished.

    Args:
        plan: this rank's plan.
        reduction: what to compute; its dtype and size are the plan's.
        source: this member's input, 1-d, contiguous; only ever read.
        target: where the result goes, 1-d, contiguous, apart from the source in memory. Its
            content is undefined until :attr:`finished`, and afterwards if the run is given up.
        scratch: for wide partial results; its buffers must hold ``plan.task.chunk_bytes``.
    """

    __slots__ = (
        "_incoming",
        "_itemsize",
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
        plan: Plan,
        reduction: Reduction,
        source: Array,
        target: Array,
        scratch: ScratchPool,
    ) -> None:
        task = plan.task
        for name, array in (("source", source), ("target", target)):
            if array.shape != (task.count,) or not array.flags.c_contiguous:
                raise ValueError(f"the {name} must be 1-d, contiguous, {task.count} elements long")
            if array.dtype != reduction.dtype or array.itemsize != task.itemsize:
                raise ValueError(f"the {name} is {array.dtype}, not {reduction.dtype}")
        if not target.flags.writeable:
            raise ValueError("the target is read-only")
        if task.size != reduction.size:
            raise ValueError(f"a plan for {task.size}, but a reduction over {reduction.size}")
        if task.accumulator_itemsize != reduction.accumulator.itemsize:
            raise ValueError("the plan's accumulator is not the reduction's")
        if np.may_share_memory(source, target):
            raise ValueError("source and target overlap, but a source is never written")
        if reduction.wide and scratch.nbytes < task.chunk_bytes:
            raise ValueError(f"scratch buffers of {scratch.nbytes} B, chunks of {task.chunk_bytes}")
        self.plan = plan
        self.reduction = reduction
        self._source = source
        self._target = target
        # Through uint8, since bfloat16 arrays have no buffer protocol.
        self._source_bytes = source.view(np.uint8).data
        self._target_bytes = target.view(np.uint8).data
        self._itemsize = task.itemsize
        self._scratch = scratch
        self._partials: dict[int, Array] = {}  # scratch buffers, by the receive that fills them
        self._next = 0
        self._sent = 0
        self._received = 0
        self._incoming: Receive | None = None
        if task.size == 1:
            reduction.reduce_all([source], target)

    @property
    def finished(self) -> bool:
        """Whether the target is complete and nothing here is still to be sent."""
        plan = self.plan
        return self._received == len(plan.receives) and self._sent == len(plan.sends)

    @property
    def received_chunks(self) -> int:
        """How many chunks have come in."""
        return self._received

    def next_send(self) -> tuple[int, memoryview] | None:
        """Return the next chunk that may be sent, as its number and bytes, or None for now.

        The bytes stay as they are until :meth:`sent` is called with that number.
        """
        index, sends = self._next, self.plan.sends
        if index == len(sends):
            return None
        send = sends[index]
        if send.after > self._received:
            return None
        self._next = index + 1
        if send.place is Place.SCRATCH:
            return index, self._partials[send.after - 1].data[: send.nbytes]
        whole = self._source_bytes if send.place is Place.SOURCE else self._target_bytes
        itemsize = self._itemsize
        return index, whole[send.start * itemsize : send.stop * itemsize]

    def sent(self, index: int) -> None:
        """Note that chunk *index* has left to its last byte.

        Raises:
            ValueError: it is not the one that must leave next.
        """
        if index != self._sent or index >= self._next:
            raise ValueError(f"chunk {index} cannot have been sent: {self._sent} is the next")
        self._sent = index + 1
        send = self.plan.sends[index]
        if send.place is Place.SCRATCH:
            self._scratch.give(self._partials.pop(send.after - 1))

    def receive_buffer(self, index: int, length: int) -> memoryview:
        """Return the memory that the bytes of chunk *index* must be written to.

        Raises:
            TransferError: the chunk is not the next one, has another length than planned, or
                comes before what it answers has left; the state is unchanged.
        """
        receives = self.plan.receives
        if index != self._received or index >= len(receives) or self._incoming is not None:
            raise TransferError(
                f"chunk {index} of {len(receives)} came, but {self._received} "
                f"is {'expected' if self._incoming is None else 'still being received'}"
            )
        receive = receives[index]
        if length != receive.nbytes:
            raise TransferError(f"chunk {index} has {length} bytes instead of {receive.nbytes}")
        if receive.after > self._sent:  # only a confused peer can be that early
            raise TransferError(f"chunk {index} came before chunk {self._sent} was sent")
        self._incoming = receive
        if receive.place is Place.SCRATCH:
            buffer = self._partials[index] = self._scratch.take()
            return buffer.data[:length]
        itemsize = self._itemsize
        return self._target_bytes[receive.start * itemsize : receive.stop * itemsize]

    def received(self, index: int) -> None:
        """Take the bytes that have been written to the buffer of chunk *index*, and reduce them.

        Raises:
            ValueError: that chunk is not being received.
        """
        receive = self._incoming
        if receive is None or index != self._received:
            raise ValueError(f"chunk {index} is not being received")
        if receive.combine is not Combine.STORE:
            self._reduce(index, receive)
        self._incoming = None
        self._received = index + 1

    def _reduce(self, index: int, receive: Receive) -> None:
        reduction, start, stop = self.reduction, receive.start, receive.stop
        own, place = self._source[start:stop], self._target[start:stop]
        if not reduction.wide:
            reduction.combine(place, own, place)
            if receive.combine is Combine.FINISH:
                reduction.finish(place, place)
            return
        buffer = self._partials.get(index)
        if buffer is None:
            buffer = self._partials[index] = self._scratch.take()
        width = reduction.accumulator.itemsize
        partial = buffer[: (stop - start) * width].view(reduction.accumulator)
        reduction.combine(partial if receive.place is Place.SCRATCH else place, own, partial)
        if receive.combine is Combine.FINISH:
            reduction.finish(partial, place)
            del self._partials[index]
            self._scratch.give(buffer)
