"""Short streams between processes of the ring: one says a word to a service, and is answered."""

from __future__ import annotations

from collections.abc import Callable

from ringd.streams.end import End
from ringd.streams.table import Table


class Answer:
    """The outlet of an end that hears a word, gives an answer, and ends.

    Args:
        table: The end's.
        end: Where the word comes.
        answer: What is said to it, by which time the word has been heard.
        on_word: Called with it.
    """

    ready = True
    """As any outlet that waits for nobody on this machine."""

    def __init__(
        self, table: Table, end: End, answer: bytes, on_word: Callable[[bytes], None]
    ) -> None:
        self._table = table
        self._end = end
        self._answer = answer
        self._on_word = on_word

    def more(self) -> None:
        """Take the word when all of it is there, and answer once there is room for that."""
        end = self._end
        if not end.other_closed or end.closed or end.room < len(self._answer):
            return
        word = b"".join(end.inbox)
        end.taken(len(word))
        end.write(self._answer)
        end.close()
        self._table.proceed(end)
        self._on_word(word)

    def reset(self, reason: str) -> None:
        """Nobody wants it any more."""

    def waits(self) -> bool:
        """Never: whoever answers began nothing."""
        return False


class Question:
    """The outlet of an end that says a word, and waits for an answer.

    Args:
        table: The end's.
        word: What is said.
        on_answer: Called with the answer.
        on_wait: Called when nobody is there yet who would answer; returns whether to wait for that.
        on_reset: Called when there will be no answer.
    """

    ready = True
    """Likewise."""

    def __init__(
        self,
        table: Table,
        word: bytes,
        on_answer: Callable[[bytes], None],
        *,
        on_wait: Callable[[], bool],
        on_reset: Callable[[], None],
    ) -> None:
        self._end: End
        self._table = table
        self._word = word
        self._on_answer = on_answer
        self._on_wait = on_wait
        self._on_reset = on_reset
        self._answered = False

    def begin(self, end: End) -> None:
        """Ask by *end*."""
        self._end = end

    def more(self) -> None:
        """Say the word, once there is room for it; take the answer when all of it is there."""
        end = self._end
        if not end.closed and end.room >= len(self._word):
            end.write(self._word)
            end.close()
            self._table.proceed(end)
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

    def waits(self) -> bool:
        """Whether to wait for somebody to be there."""
        return self._on_wait()
