"""The second call of an all_gather_bytes, which the first one, of the lengths, tells the shape of.

Both have their numbers from the beginning, so that all members make them, whatever interrupts one,
and at the same place among their other calls. The second one is completed by whoever
takes in the end of the first: it follows from the state, as all that is sent
(:meth:`ringd.client.group.Group.push`), and until then it waits as what the daemon has no room for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from ringd import errors
from ringd.client.daemon import Daemon
from ringd.client.handover import make_op
from ringd.client.pool import Block
from ringd.client.session import Op
from ringd.collective import kinds

LENGTH = np.dtype(np.int64)
"""Of what the first call gathers."""


class _NotNow(Exception):
    """Some memory has to come back first."""


@dataclass(frozen=True, slots=True)
class Gathering:
    """Completes the second call."""

    first: Op
    waits: bool
    """Whether the caller waits for both, and so makes no other call before that."""
    data: npt.NDArray[np.uint8]
    daemon: Daemon
    timeout: float | None
    """In seconds, 0 for none, as the daemon is told."""
    grace: float
    """Seconds beyond the deadline until the client decides by itself that it has passed."""

    @property
    def in_vain(self) -> bool:
        """Whether the second call is not made, as the first one has failed.

        On the others it has failed too, and whoever of them made another call by mistake has no
        such number either. Where they could complete it, which a deadline alone may leave open,
        their second call meets our next one: a mismatch, after which all are in step. What was
        called behind it has its number, though.
        """
        return self.waits and self.first.error is not None

    def complete(self, op: Op) -> bool:
        """Make *op* what it is to be, if that is known by now; once more is harmless.

        Where it turns out that it cannot be made, it ends here, and the others are told.
        """
        first = self.first
        if op.ended:
            return True
        if not first.ended:
            return False
        if first.error is not None:
            op.fail(type(first.error)(*first.error.args))
            return True
        lengths = np.frombuffer(first.result_bytes(), LENGTH).tolist()
        try:
            call = msgspec.structs.replace(op.call, shape=(len(self.data),), counts=tuple(lengths))
            kinds.check(call, len(lengths))
            here = self.daemon.info
            assert here is not None  # noqa: S101 - it has completed the first one
            made = make_op(
                call,
                self.data,
                sum(lengths),
                here=here,
                find=_lent_nowhere,
                reserve=self._reserve,
            )
        except _NotNow:
            return False
        except (errors.RingError, TypeError, ValueError) as error:
            op.fail(error if isinstance(error, errors.RingError) else errors.RingError(str(error)))
            return True
        if self.timeout:
            op.timeout = time.monotonic() + self.timeout
            op.give_up = op.timeout + self.grace
        op.become(made)
        return True

    def _reserve(self, lengths: Sequence[int]) -> list[Block] | None:
        """Return blocks, without waiting for some."""
        pool = self.daemon.pool
        try:
            blocks = pool.take_all(lengths)
            if blocks is None and pool.surplus:
                pool.surplus.give_back_at_once()
                blocks = pool.take_all(lengths)
        except errors.ResourceExhausted:
            if not pool.usable:
                return None
            raise
        if blocks is None:
            raise _NotNow
        return blocks


def _lent_nowhere(_array: object) -> None:
    """The data is a copy of our own."""
