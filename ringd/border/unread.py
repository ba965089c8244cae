"""How much of what a client was sent it has yet to read, as far as it has said.

No socket tells. But messages are read in the order in which they were sent, so whoever says
that it has the outcome of an op has read all that was sent before that; and whoever leaves a stay
needs nothing any more that was sent up to its last message.
"""

from __future__ import annotations

from collections import deque


class Unread:
    """Counts the messages of all stays of one client."""

    __slots__ = ("_last", "_marks", "_sent", "count")

    def __init__(self) -> None:
        self.count = 0
        """The number of messages that may be unread."""
        self._sent = 0
        self._marks: dict[int, deque[tuple[int, int]]] = {}
        """By join id: (number of the op, how many messages had been sent with its outcome)."""
        self._last: dict[int, int] = {}
        """By join id: how many messages had been sent with the last one of that stay."""

    def sent(self, join_id: int, outcome_of: int | None) -> None:
        """One more was sent, be it with the outcome of an op."""
        self.count += 1
        self._sent += 1
        self._last[join_id] = self._sent
        if outcome_of is not None:
            marks = self._marks.get(join_id)
            if marks is None:
                marks = self._marks[join_id] = deque()
            marks.append((outcome_of, self._sent))

    def has(self, join_id: int, acked: int) -> None:
        """The client has the outcomes of all ops below *acked*."""
        marks = self._marks.get(join_id)
        while marks and marks[0][0] < acked:
            self.count = min(self.count, self._sent - marks.popleft()[1])

    def left(self, join_id: int) -> None:
        """The client has left this stay."""
        self.count = min(self.count, self._sent - self._last.get(join_id, 0))
        self.forget(join_id)

    def forget(self, join_id: int) -> None:
        """Nothing more will be said of this stay."""
        self._marks.pop(join_id, None)
        self._last.pop(join_id, None)
