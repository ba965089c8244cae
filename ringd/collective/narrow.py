"""A transfer whose chunks travel encoded (:mod:`ringd.collective.codec`).

What stands in scratch buffers is encoded, what stands in the source and the target is not. So what
only passes is passed on as it came; and a partial result is decoded, added to and encoded again.

A result is decoded from the bytes that go out to the others, also at the machine that completed it,
so that all have the same bits; and so is, at its sender, what is only moved.
"""

from __future__ import annotations

import numpy as np

from ringd.collective.codec import STRETCH, stretches
from ringd.collective.plan import Combine, Local, Place, Plan, Receive, Send
from ringd.collective.reduction import Array, Reduction
from ringd.collective.spread import Spread
from ringd.collective.transfer import ScratchPool, Transfer

_KEPT = 16
"""Encoded chunks that wait here to be sent on, at most. Beyond that, where the right neighbour does
not keep pace, they stand in the target, and are encoded from there: that gives the same values."""


class NarrowTransfer(Transfer):
    """A :class:`Transfer` of a plan with a codec, between two machines or more."""

    __slots__ = ("_codec", "_work")

    def __init__(
        self,
        plan: Plan,
        reduction: Reduction | None,
        source: Spread,
        target: Spread,
        scratch: ScratchPool,
    ) -> None:
        super().__init__(plan, reduction, source, target, scratch)
        codec = plan.task.codec
        assert codec is not None  # noqa: S101 - else it is no plan for this
        self._codec = codec
        # No memory of ours holds what is sent or received.
        self._plain = False
        self._source_bytes = self._target_bytes = None
        self._work = np.empty(min(STRETCH, max(len(source), len(target))), np.float32)

    def _assemble(self, index: int, send: Send) -> memoryview:
        encoded = None
        if send.place is Place.TARGET:
            encoded = self._buffers.pop(send.after - 1, None)
        if encoded is None:
            encoded = self._scratch.take(send.nbytes)
            side = self._source if send.place is Place.SOURCE else self._target
            count = send.stop - send.start
            for run, place in stretches(self._codec, count):
                values = self._values(side, send.start + run.start, send.start + run.stop)
                self._codec.encode(values, encoded[place])
        self._outgoing[index] = encoded
        return encoded.data[: send.nbytes]

    def _reduce(self, index: int, receive: Receive) -> None:
        encoded, reduction = self._buffers[index], self.reduction
        assert reduction is not None  # noqa: S101 - else its plan has no such receives
        finish = receive.combine is Combine.FINISH
        keep = receive.into is Place.SCRATCH or len(self._buffers) <= _KEPT
        for run, place in stretches(self._codec, receive.stop - receive.start):
            data, partial = encoded[place], self._work[: run.stop - run.start]
            self._codec.decode(data, partial)
            own = self._source.cut(receive.own + run.start, receive.own + run.stop)
            for at, inputs in own:
                for values in inputs:
                    reduction.combine(partial[at], values, partial[at])
            if finish:
                reduction.finish(partial, partial)
            if finish or keep:
                self._codec.encode(partial, data)
            else:
                for at, results in self._target.cut(*_within(receive, run)):
                    results[0][:] = partial[at]
        if finish and receive.into is Place.TARGET:
            self._deliver(index, receive)
        elif not keep:
            self._let_go(index)

    def _deliver(self, index: int, receive: Receive) -> None:
        encoded = self._buffers[index]
        for run, place in stretches(self._codec, receive.stop - receive.start):
            self._write(encoded[place], *_within(receive, run))
        if index not in self.plan.onward or len(self._buffers) > _KEPT:
            self._let_go(index)

    def _do(self, local: Local) -> None:
        encoded = np.empty(self._codec.nbytes(min(STRETCH, local.count)), np.uint8)
        for run, place in stretches(self._codec, local.count):
            data = encoded[: place.stop - place.start]
            start, stop = local.source + run.start, local.source + run.stop
            self._codec.encode(self._values(self._source, start, stop), data)
            self._write(data, local.target + run.start, local.target + run.stop)

    def _values(self, side: Spread, start: int, stop: int) -> Array:
        """Return up to a stretch of elements in one piece; the inputs here, merged."""
        parts, values = side.cut(start, stop), self._work[: stop - start]
        merges = self._merges and side is self._source
        if len(parts) == 1 and not merges:
            return parts[0][1][0]
        for at, arrays in parts:
            if merges and self.reduction is not None:
                self.reduction.merge(arrays, values[at])
            else:
                values[at] = arrays[0]
        return values

    def _write(self, data: Array, start: int, stop: int) -> None:
        """Decode up to a stretch of results to all their places in the target."""
        parts = self._target.cut(start, stop)
        whole = parts[0][1][0] if len(parts) == 1 else self._work[: stop - start]
        self._codec.decode(data, whole)
        for at, results in parts:
            for result in results:
                if result is not whole:
                    result[:] = whole[at]


def _within(receive: Receive, run: slice) -> tuple[int, int]:
    """Return the elements of a stretch of what is received, where they come to stand."""
    return receive.start + run.start, receive.start + run.stop
