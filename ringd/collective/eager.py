"""Which tensors travel with the offer of their call, whole, and which follow it in chunks.

What is *eager* goes round to all members at once: each receives the tensors of *n-1* ranks, and a
call takes one trip. In chunks a link carries less, 2(n-1)/n of a tensor for an all-reduce, but what
a member sends next waits for what it receives: 2(n-1) steps, after a trip for the offers.

So one trip is faster as long as what it carries beyond that takes less time than those steps. With
S bytes for a rank, a bandwidth of B and A seconds for a step, of which a daemon needs 0.3 ms::

    ((n-1) - 2(n-1)/n) S / B  <  2(n-1) A        that is        S (n-2) / n  <  2 A B

Two members always gain; on 1 Gbit/s four do up to 150 KB, sixteen up to 86 KB. (Other kinds that do
not divide a tensor are alike; a gather and a reduce tell all ranks what the root alone needs.)
What bounds it before that is the memory that open calls may take of a daemon, which grows with
(n-1) S. Hence :data:`TIMES`. On loopback the longest of them became 1.3 to 2.4 times as fast.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ringd.collective import kinds
from ringd.collective.call import Call
from ringd.collective.view import View

TIMES = 8
"""How many times ``ops.eager_limit`` the tensors of all other ranks may have together."""

LONGEST = 512 << 10
"""Bytes of a tensor that may travel with its offer, as ``ops.eager_limit`` may be no higher."""


class EagerRule(NamedTuple):
    """Says which tensors are eager.

    That follows from the call, the ranks and the settings alone, so a call that runs again takes
    the same way, and its result has the same bits.
    """

    limit: int
    """``ops.eager_limit``: bytes of a tensor, up to which all are."""
    together: int
    """Bytes that those of all other ranks may have together, where they are longer."""

    @classmethod
    def of(cls, limit: int) -> EagerRule:
        """Return the rule of ``ops.eager_limit``."""
        return cls(limit, TIMES * limit)

    @property
    def longest(self) -> int:
        """The bytes of the longest tensor that is eager in any ring."""
        return max(self.limit, min(self.together, LONGEST))

    def is_eager(self, call: Call, nbytes: int, view: View) -> bool:
        """Whether the *nbytes* that a rank hands over are.

        Args:
            call: of a kind that is known here, if there are more than the limit.
            nbytes: as :func:`~ringd.collective.kinds.source_bytes` gives them.
            view: the ranks.
        """
        return _is_eager(self, call, nbytes, view.size, view.apart)

    @lru_cache(maxsize=1024)  # noqa: B019 - a rule is a value, and kept as long as the daemon is
    def fits(self, call: Call, nbytes: int | None, rank: int, size: int, apart: bool) -> bool:
        """Whether *nbytes* may come with a call of *rank*: numpy would believe it.

        None for a tensor that does not come with its offer. What is unknown here of a kind or dtype
        is not computed, as this member refuses such a call.

        Args:
            call: a bare one.
            nbytes: of the payload.
            rank: whose call that is.
            size: the number of ranks.
            apart: whether each rank is on a member of its own.
        """
        try:
            taken = kinds.source_bytes(call, rank, size)
        except ValueError:
            return True
        if taken is None:
            return True
        return nbytes == (taken if _is_eager(self, call, taken, size, apart) else None)


def _is_eager(rule: EagerRule, call: Call, nbytes: int, size: int, apart: bool) -> bool:
    if nbytes <= rule.limit:
        return True
    # Of several ranks on one member, the tensors are reduced there first, so that a link carries
    # them once; that is done in chunks.
    if not apart or call.wire or nbytes > LONGEST or nbytes * (size - 1) > rule.together:
        return False
    return size > 1 and kinds.of(call).undivided
