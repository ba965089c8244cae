"""Short streams between processes of the ring: the question is a service's name."""

from __future__ import annotations

from collections.abc import Callable

from ringd.streams.end import End
from ringd.streams.table import Table


class Answer:
    """The outlet of an end that gives an answer, and ends."""

    def __init__(self, table: Table, end: End, answer: bytes) -> None:
        self._table = table
        self._end = end
        self._answer = answer

    def more(self) -> None:
        """Say it, once there is room for it."""
        if not self._end.closed and self._end.room >= len(self._answer):
            self._end.write(self._answer)
            self._end.close()
            self._table.proceed(self._end)

    def reset(self, reason: str) -> None:
        """Nobody wants it any more."""

    def waits(self, reason: str) -> bool:  # noqa: ARG002 - whoever answers began nothing
        """Never."""
        return False


class Question:
    """The outlet of an end that waits for an answer.

    Args:
        table: The end's.
        on_answer: Called with the answer.
        on_wait: Called when nobody is there yet who would answer.
        on_reset: Called when there will be no answer.
    """

    def __init__(
        self,
        table: Table,
        on_answer: Callable[[bytes], None],
        *,
        on_wait: Callable[[], None],
        on_reset: Callable[[], None],
    ) -> None:
        self._end: End
        self._table = table
        self._on_answer = on_answer
        self._on_wait = on_wait
        self._on_reset = on_reset
        self._answered = False

    def begin(self, end: End) -> None:
        """Ask by *end*."""
        self._end = end
        end.close()

    def more(self) -> None:
        """Take the answer when all of it is there."""
        end = self._end
        if end.other_closed and not self._answered:
            self._answered = True
            answer = b"".join(end.inbox)
            end.taken(len(answer))
            self._table.proceed(end)
            self._on_answer(answer)

    def reset(self, reason: str) -> None:  # noqa: ARG002 - it is asked again
        """Whoever was to answer is gone."""
        if not self._answered:
            self._on_reset()

    def waits(self, reason: str) -> bool:  # noqa: ARG002 - it is asked until there is one
        """Wait for somebody to be there."""
        self._on_wait()
        return True
