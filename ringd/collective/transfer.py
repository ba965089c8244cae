"""One machine's part in one large call: buffers out, buffers in, arithmetic between.

Sans-IO: a :class:`Transfer` says which memory to send next and where to receive to, and
reduces what has come in. It never waits, and knows neither sockets nor clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from ringd.collective.aligned import aligned
from ringd.collective.plan import MAX_PASSING, Combine, Local, Place, Plan, Receive, Send
from ringd.collective.reduction import Array, Reduction
from ringd.collective.spread import Spread


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
        return self._free.pop() if self._free else aligned(self.nbytes)

    def give(self, buffer: Array) -> None:
        """Take back a buffer that nobody reads or writes any more."""
        if len(self._free) < self._keep:
            self._free.append(buffer)

    def clear(self) -> None:
        """Give all free buffers back to the system."""
        self._free.clear()


class Crew(Protocol):
    """Who carries out work that needs no other machine."""

    @property
    def at_once(self) -> int:
        """Pieces that are worth handing over together."""

    def carry_out(self, pieces: Sequence[Callable[[], None]]) -> None:
        """Do all of them, and return when all are done."""


class Transfer:
    """The run of a :class:`Plan` over a source and a target.

    It carries instructions out and counts them; why they are as they are, the plan knows.
    Chunks that belong in the target go straight to their place there, and are reduced there. What
    has no place in it (what is for others, and float16 and bfloat16 on the way) stands in scratch
    buffers: one is taken for the receive that fills it, and given back when that has been sent or
    finished. A buffer also holds what no array has in one piece: a chunk of several segments, and
    the reduction of the inputs that are here.

    Args:
        plan: this machine's plan.
        reduction: what to compute, over all inputs; None where nothing is reduced.
        source: this machine's input, contiguous; only ever read.
        target: where the result goes, contiguous, of the source's dtype and apart from it in
            memory. Its content is undefined until :attr:`finished`, and afterwards if the run is
            given up.
        scratch: its buffers must hold ``plan.task.chunk_bytes``.
        crew: for work that is all local; None: it is done one piece at a time.
    """

    __slots__ = (
        "_ahead",
        "_allowed",
        "_at_once",
        "_buffers",
        "_credit",
        "_crew",
        "_incoming",
        "_input",
        "_itemsize",
        "_limit",
        "_merges",
        "_next",
        "_outgoing",
        "_passed",
        "_plain",
        "_received",
        "_result",
        "_scratch",
        "_sent",
        "_source",
        "_source_bytes",
        "_target",
        "_target_bytes",
        "left",
        "plan",
        "reduction",
        "unworked",
    )

    def __init__(
        self,
        plan: Plan,
        reduction: Reduction | None,
        source: Spread,
        target: Spread,
        scratch: ScratchPool,
        *,
        crew: Crew | None = None,
    ) -> None:
        _check(plan, reduction, source, target)
        self.plan = plan
        self.reduction = reduction
        self._source = source
        self._target = target
        self._merges = reduction is not None and plan.task.merges
        # The shortest ways, where a chunk stands in one array and is nowhere else.
        self._input = source.whole if source.alike == 1 else None
        self._result = target.whole
        self._plain = target.whole is not None and target.alike == 1
        straight = not self._merges or not (reduction and reduction.wide)
        # Through uint8, since bfloat16 arrays have no buffer protocol.
        self._source_bytes = _bytes(self._input) if straight else None
        self._target_bytes = _bytes(self._result)
        self._itemsize = plan.task.itemsize
        self._scratch = scratch
        self._crew = crew
        # Beside chunks that come and go, work is what a loop does between them, and the cores are
        # busy. Arithmetic in a wider dtype has memory between that is one thread's.
        shared = plan.task.size == 1 and not (reduction and reduction.wide)
        self._at_once = crew.at_once if crew is not None and shared else 1
        self._buffers: dict[int, Array] = {}  # of the scratch, by the receive that fills them
        self._outgoing: dict[int, Array] = {}  # likewise, by the send that they were filled for
        self._next = 0
        self._sent = 0
        self._received = 0
        self.unworked = len(plan.local)
        """Instructions of :attr:`left` that wait for nobody, which :meth:`work` carries out."""
        self.left = len(plan)
        """Instructions that are still to be carried out."""
        self._passed = 0  # chunks for others that have left
        self._incoming: Receive | None = None
        # How many chunks may have been sent by now is the least of what there is, what the receiver
        # allows, and so many more than have come in.
        self._ahead = len(plan.sends)
        self.credit = None

    @property
    def finished(self) -> bool:
        """Whether the target is complete and nothing here is still to be sent."""
        return not self.left

    @property
    def sent_chunks(self) -> int:
        """How many chunks have been sent."""
        return self._sent

    @property
    def received_chunks(self) -> int:
        """How many chunks have come in."""
        return self._received

    # --- for others -------------------------------------------------------------------

    @property
    def granted(self) -> int:
        """How many chunks the left neighbour may have sent by now.

        It rises as chunks for others leave, such that at most ``MAX_PASSING`` of them are here. So
        it begins at that or more, unless there are fewer chunks.
        """
        passing, beyond = self.plan.passing, self._passed + MAX_PASSING
        return passing[beyond] if beyond < len(passing) else len(self.plan.receives)

    @property
    def credit(self) -> int | None:
        """How many chunks may have been sent by now; None for all."""
        return self._credit

    @credit.setter
    def credit(self, credit: int | None) -> None:
        self._credit = credit
        most = len(self.plan.sends)
        self._allowed = most if credit is None else min(credit, most)
        self._limit = min(self._allowed, self._received + self._ahead)

    def keep_pace(self, ahead: int) -> None:
        """Send at most *ahead* chunks, one or more, beyond those that have been received.

        Where all machines send as they receive, so many of each wait at the next one, or on their
        way there. Of other plans nothing is changed.
        """
        if self.plan.even:
            self._ahead = ahead
            self._limit = min(self._allowed, self._received + ahead)

    # --- to the right -----------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether a chunk may be sent now."""
        index = self._next
        return index < self._limit and self.plan.sends[index].after <= self._received

    def next_send(self) -> tuple[int, memoryview] | None:
        """Return the next chunk that may be sent, as its number and bytes, or None for now.

        The bytes stay as they are until :meth:`sent` is called with that number.
        """
        index = self._next
        if index >= self._limit:
            return None
        send = self.plan.sends[index]
        if send.after > self._received:
            return None
        self._next = index + 1
        if send.place is Place.SCRATCH:
            return index, self._buffers[send.after - 1].data[: send.nbytes]
        whole = self._source_bytes if send.place is Place.SOURCE else self._target_bytes
        if whole is None:
            return index, self._assemble(index, send)
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
        self.left -= 1
        send = self.plan.sends[index]
        if send.place is Place.SCRATCH:
            self._let_go(send.after - 1)
            self._passed += 1
        elif self._outgoing:
            buffer = self._outgoing.pop(index, None)
            if buffer is not None:
                self._scratch.give(buffer)
        if self.unworked:
            self.work()

    # --- from the left ----------------------------------------------------------------

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
        if receive.place is Place.TARGET:
            if self._target_bytes is not None:
                itemsize = self._itemsize
                return self._target_bytes[receive.start * itemsize : receive.stop * itemsize]
            parts = self._target.cut(receive.start, receive.stop)
            if len(parts) == 1:
                return parts[0][1][0].view(np.uint8).data
        buffer = self._buffers[index] = self._scratch.take(length)
        return buffer.data[:length]

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
        elif not self._plain and receive.into is Place.TARGET:
            self._deliver(index, receive)
        self._incoming = None
        self._received = index + 1
        self._limit = min(self._allowed, index + 1 + self._ahead)
        self.left -= 1
        if self.unworked:
            self.work()

    # --- here -------------------------------------------------------------------------

    def work(self) -> bool:
        """Do a chunk's worth of what needs no other machine; return whether more is left.

        With a crew, several of them at once. So does each chunk that has come or left, as the loop
        looks at its sockets after that.
        """
        if self.unworked:
            local = self.plan.local
            first = len(local) - self.unworked
            pieces = local[first : first + self._at_once]
            if self._crew is None or len(pieces) == 1:
                self._do(pieces[0])
            else:
                self._crew.carry_out([partial(self._do, piece) for piece in pieces])
            self.unworked -= len(pieces)
            self.left -= len(pieces)
        return self.unworked > 0

    def _do(self, local: Local) -> None:
        count = local.count
        if self.reduction is None and self._plain and self._input is not None:
            own = self._input[local.source : local.source + count]
            self._target.parts[0][0][local.target : local.target + count] = own
            return
        for here, inputs in self._source.cut(local.source, local.source + count):
            start = local.target + here.start
            for at, results in self._target.cut(start, start + here.stop - here.start):
                first = results[0]
                if self.reduction is None:
                    first[:] = inputs[0][at]
                else:
                    self.reduction.reduce_all([values[at] for values in inputs], first)
                _copy_to_others(results)

    # --- chunks -----------------------------------------------------------------------

    def _assemble(self, index: int, send: Send) -> memoryview:
        """Return a chunk of the source or the target that does not stand in one array as it is."""
        merges = self._merges and send.place is Place.SOURCE
        side = self._source if send.place is Place.SOURCE else self._target
        parts = side.cut(send.start, send.stop)
        if len(parts) == 1 and not merges:
            return parts[0][1][0].view(np.uint8).data
        buffer = self._outgoing[index] = self._scratch.take(send.nbytes)
        reduction = self.reduction
        if merges and reduction is not None:
            chunk = buffer[: send.nbytes].view(reduction.accumulator)
            for at, inputs in parts:
                reduction.merge(inputs, chunk[at])
        else:
            chunk = buffer[: send.nbytes].view(side.dtype)
            for at, arrays in parts:
                chunk[at] = arrays[0]
        return buffer.data[: send.nbytes]

    def _reduce(self, index: int, receive: Receive) -> None:
        """Reduce what came in with the own input.

        What came has the tensor's dtype, or the accumulator's: that is reduced in place. Else a
        partial result takes a buffer. Where this input is the last one, there is none.
        """
        reduction = self.reduction
        assert reduction is not None  # noqa: S101 - else its plan has no such receives
        count = receive.stop - receive.start
        is_partial = receive.nbytes != count * self._itemsize
        came = self._came(index, receive, reduction.accumulator if is_partial else reduction.dtype)
        if receive.combine is Combine.FINISH and not self._merges:
            self._complete(index, receive, came, reduction)
            return
        partial = came
        if reduction.wide and not is_partial:
            partial = self._hold(index, count, reduction.accumulator)
        if self._input is not None:
            own = self._input[receive.own : receive.own + count]
            reduction.combine(came, own, partial)
        else:
            for at, inputs in self._source.cut(receive.own, receive.own + count):
                into = partial[at]
                reduction.combine(came[at], inputs[0], into)
                for values in inputs[1:]:
                    reduction.combine(into, values, into)
        if receive.into is Place.TARGET:
            self._place(index, receive, partial)
        elif receive.combine is Combine.FINISH:
            result = self._hold(index, count, reduction.dtype) if reduction.wide else partial
            reduction.finish(partial, result)

    def _complete(self, index: int, receive: Receive, came: Array, reduction: Reduction) -> None:
        """Reduce what came in with the only input that is here, the last one, to results."""
        own, count = receive.own, receive.stop - receive.start
        if receive.into is Place.SCRATCH:
            result = self._hold(index, count, reduction.dtype) if reduction.wide else came
            for at, inputs in self._source.cut(own, own + count):
                reduction.complete(came[at], inputs[0], result[at])
            return
        if self._plain and self._input is not None and self._result is not None:
            mine = self._input[own : own + count]
            reduction.complete(came, mine, self._result[receive.start : receive.stop])
        else:
            for at, results in self._target.cut(receive.start, receive.stop):
                for here, inputs in self._source.cut(own + at.start, own + at.stop):
                    reduction.complete(came[at][here], inputs[0], results[0][here])
                _copy_to_others(results)
        self._let_go(index)

    def _place(self, index: int, receive: Receive, partial: Array) -> None:
        """Bring what was combined to its place in the target; if it is a result, to all places."""
        finish = None
        if receive.combine is Combine.FINISH and self.reduction is not None:
            finish = self.reduction.finish
        if index not in self._buffers:  # it stands there
            if finish is not None:
                finish(partial, partial)
                if not self._plain:
                    self._deliver(index, receive)
            return
        for at, results in self._target.cut(receive.start, receive.stop):
            if finish is None:
                results[0][:] = partial[at]
            else:
                finish(partial[at], results[0])
                _copy_to_others(results)
        self._let_go(index)

    def _deliver(self, index: int, receive: Receive) -> None:
        """Bring a result that came in to all its places in the target."""
        buffer = self._buffers.get(index)
        for at, results in self._target.cut(receive.start, receive.stop):
            if buffer is not None:
                results[0][:] = buffer[: receive.nbytes].view(results[0].dtype)[at]
            _copy_to_others(results)
        self._let_go(index)

    def _came(self, index: int, receive: Receive, dtype: np.dtype[Any]) -> Array:
        """Return what came in."""
        buffer = self._buffers.get(index)
        if buffer is not None:
            return buffer[: receive.nbytes].view(dtype)
        if self._result is not None:
            return self._result[receive.start : receive.stop]
        return self._target.cut(receive.start, receive.stop)[0][1][0]

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


def _check(plan: Plan, reduction: Reduction | None, source: Spread, target: Spread) -> None:
    """Make sure that the plan, the reduction and the memory fit each other; raises ValueError."""
    task = plan.task
    dtype = source.dtype if reduction is None else reduction.dtype
    if dtype.itemsize != task.itemsize:
        raise ValueError(f"a plan for elements of {task.itemsize} B, but they are {dtype}")
    _check_side("source", source, plan.source_count, dtype)
    _check_side("target", target, plan.target_count, dtype)
    if reduction is not None and (task.inputs or task.size) != reduction.size:
        inputs = task.inputs or task.size
        raise ValueError(f"a plan for {inputs}, but a reduction over {reduction.size}")
    accumulator = dtype if reduction is None else reduction.accumulator
    if task.accumulator_itemsize != accumulator.itemsize:
        raise ValueError("the plan's accumulator is not the reduction's")
    for given in source.arrays:
        for array in target.arrays:
            if np.may_share_memory(given, array):
                raise ValueError("source and target overlap, but a source is never written")


def _check_side(name: str, spread: Spread, count: int, dtype: np.dtype[Any]) -> None:
    fits = len(spread) == count
    for part in spread.parts:
        for array in part:
            flags = array.flags
            if not fits or array.ndim != 1 or not flags.c_contiguous:
                raise ValueError(f"the {name} must be 1-d, contiguous, {count} elements long")
            if array.dtype != dtype:
                raise ValueError(f"the {name} is {array.dtype}, not {dtype}")
            if name == "target" and not flags.writeable:
                raise ValueError("the target is read-only")


def _bytes(array: Array | None) -> memoryview | None:
    return None if array is None else array.view(np.uint8).data


def _copy_to_others(results: list[Array]) -> None:
    """Copy a result to the other ranks here, while it is warm in the cache."""
    for other in results[1:]:
        other[:] = results[0]
