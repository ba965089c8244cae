"""One member's part in one large call: buffers out, buffers in, arithmetic between.

Sans-IO: a :class:`Transfer` says which memory to send next and where to receive to, and
reduces what has come in. It never waits, and knows neither sockets nor clocks.
"""

from __future__ import annotations

from typing import Any

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

    def take(self, length: int) -> Array:
        """Return a buffer for *length* bytes: uint8, with any content, and maybe longer.

        Raises:
            ValueError: the buffers are not as long as that.
        """
        if length > self.nbytes:
            raise ValueError(f"scratch buffers of {self.nbytes} B, a chunk of {length} B")
        return self._free.pop() if self._free else np.empty(self.nbytes, np.uint8)

    def give(self, buffer: Array) -> None:
        """Take back a buffer that nobody reads or writes any more."""
        if len(self._free) < self._keep:
            self._free.append(buffer)


class Transfer:
    """The run of a :class:`Plan` over a source and a target.

    It carries instructions out and counts them; why they are as they are, the plan knows.
    Chunks that belong in the target go straight to their place there, and are reduced there. What
    has no place in it (what is for others, and float16 and bfloat16 on the way) stands in scratch
    buffers: one is taken for the receive that fills it, and given back when that has been sent or
    finished.

    Args:
        plan: this rank's plan.
        reduction: what to compute, with the plan's size; None where nothing is reduced.
        source: this member's input, 1-d, contiguous; only ever read.
        target: where the result goes, 1-d, contiguous, of the source's dtype and apart from it in
            memory. Its content is undefined until :attr:`finished`, and afterwards if the run is
            given up.
        scratch: its buffers must hold ``plan.task.chunk_bytes``.
    """

    __slots__ = (
        "_buffers",
        "_copied",
        "_incoming",
        "_itemsize",
        "_next",
        "_received",
        "_scratch",
        "_sent",
        "_source",
        "_source_bytes",
        "_target",
        "_target_bytes",
        "credit",
        "plan",
        "reduction",
    )

    def __init__(
        self,
        plan: Plan,
        reduction: Reduction | None,
        source: Array,
        target: Array,
        scratch: ScratchPool,
    ) -> None:
        task = plan.task
        dtype = source.dtype if reduction is None else reduction.dtype
        for name, array, count in (
            ("source", source, plan.source_count),
            ("target", target, plan.target_count),
        ):
            if array.shape != (count,) or not array.flags.c_contiguous:
                raise ValueError(f"the {name} must be 1-d, contiguous, {count} elements long")
            if array.dtype != dtype or array.itemsize != task.itemsize:
                raise ValueError(f"the {name} is {array.dtype}, not {dtype}")
        if not target.flags.writeable:
            raise ValueError("the target is read-only")
        if reduction is not None and task.size != reduction.size:
            raise ValueError(f"a plan for {task.size}, but a reduction over {reduction.size}")
        accumulator = dtype if reduction is None else reduction.accumulator
        if task.accumulator_itemsize != accumulator.itemsize:
            raise ValueError("the plan's accumulator is not the reduction's")
        if np.may_share_memory(source, target):
            raise ValueError("source and target overlap, but a source is never written")
        self.plan = plan
        self.credit: int | None = None
        self.reduction = reduction
        self._source = source
        self._target = target
        # Through uint8, since bfloat16 arrays have no buffer protocol.
        self._source_bytes = source.view(np.uint8).data
        self._target_bytes = target.view(np.uint8).data
        self._itemsize = task.itemsize
        self._scratch = scratch
        self._buffers: dict[int, Array] = {}  # of the scratch, by the receive that fills them
        self._next = 0
        self._sent = 0
        self._received = 0
        self._incoming: Receive | None = None
        self._copied = 0
        if task.size == 1 and reduction is not None:
            reduction.reduce_all([source], target)
        self._copy()

    @property
    def finished(self) -> bool:
        """Whether the target is complete and nothing here is still to be sent."""
        plan = self.plan
        return self._received == len(plan.receives) and self._sent == len(plan.sends)

    @property
    def granted(self) -> int:
        """How many chunks may have been sent to it by now."""
        return len(self.plan.receives)

    @property
    def received_chunks(self) -> int:
        """How many chunks have come in."""
        return self._received

    def next_send(self) -> tuple[int, memoryview] | None:
        """Return the next chunk that may be sent, as its number and bytes, or None for now.

        The bytes stay as they are until :meth:`sent` is called with that number.
        """
        index, sends = self._next, self.plan.sends
        if index == len(sends) or (self.credit is not None and index >= self.credit):
            return None
        send = sends[index]
        if send.after > self._received:
            return None
        self._next = index + 1
        if send.place is Place.SCRATCH:
            return index, self._buffers[send.after - 1].data[: send.nbytes]
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
            self._let_go(send.after - 1)
        self._copy()

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
            buffer = self._buffers[index] = self._scratch.take(length)
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
        self._copy()

    def _reduce(self, index: int, receive: Receive) -> None:
        """Reduce what came in with the own input.

        What came has the tensor's dtype, or the accumulator's: that is reduced in place. Else the
        partial result takes a buffer, which a result in TARGET gives back.
        """
        reduction = self.reduction
        assert reduction is not None  # noqa: S101 - else its plan has no such receives
        count = receive.stop - receive.start
        own = self._source[receive.own : receive.own + count]
        in_target = self._target[receive.start : receive.stop]
        is_partial = receive.nbytes != count * self._itemsize
        if receive.place is Place.TARGET:
            came = in_target
        else:
            dtype = reduction.accumulator if is_partial else reduction.dtype
            came = self._buffers[index][: receive.nbytes].view(dtype)
        partial = came
        if reduction.wide and not is_partial:
            partial = self._hold(index, count, reduction.accumulator)
        reduction.combine(came, own, partial)
        if receive.combine is Combine.ADD:
            return
        if receive.into is Place.TARGET:
            reduction.finish(partial, in_target)
            self._let_go(index)
        else:
            result = self._hold(index, count, reduction.dtype) if reduction.wide else partial
            reduction.finish(partial, result)

    def _hold(self, index: int, count: int, dtype: np.dtype[Any]) -> Array:
        """Return *count* elements of a new buffer, the one of receive *index* from now on.

        The former one may still be read until a buffer is taken again.
        """
        length = count * dtype.itemsize
        buffer = self._scratch.take(length)
        self._let_go(index)
        self._buffers[index] = buffer
        return buffer[:length].view(dtype)

    def _let_go(self, index: int) -> None:
        """Give back the buffer of receive *index*, if it has one."""
        buffer = self._buffers.pop(index, None)
        if buffer is not None:
            self._scratch.give(buffer)

    def _copy(self) -> None:
        """Copy a part of the own input to its place in the result; at the end, all that is left.

        One for each chunk that has gone or come, so that the loop is not held up for long.
        """
        copies = self.plan.copies
        most = len(copies) if self.finished else self._copied + 1
        for copy in copies[self._copied : most]:
            self._target[copy.target : copy.target + copy.count] = self._source[
                copy.source : copy.source + copy.count
            ]
        self._copied = min(most, len(copies))
