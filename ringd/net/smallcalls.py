"""Whether small calls go by: then what is large takes short turns, and keeps little on its way."""

from __future__ import annotations

import math
from dataclasses import dataclass

LATELY = 0.05
"""Seconds after a small call in which another one may follow."""


@dataclass(slots=True)
class SmallCalls:
    """Those whose tensors come in messages, as far as a member has sent, taken or passed them on.

    All its links have the same one.
    """

    group: int = 0
    """The session of the last one."""
    at: float = -math.inf
    """When that was, on the loop's clock."""

    def beside(self, group: int, now: float) -> bool:
        """Whether there have been some lately, of another session than *group*."""
        return self.group != group and now - self.at < LATELY
