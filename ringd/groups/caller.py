"""The client that makes the calls of one seat: what it was told, and what it has for sure."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from ringd.groups.actions import Accept, Action, Report, TellLost, TellReleased, TellSession
from ringd.groups.op import OK, Op, Told


@dataclass(slots=True)
class Caller:
    """Tells the client how its calls end, and knows what the client has for sure.

    Invariant: the client is told each outcome once, and again only where it asks; nobody is told
    anything once the client is gone.
    """

    client: Hashable | None
    """None once it is gone."""
    join_id: int
    next_seq: int
    """The number of its next op."""
    expected: int
    """Ops below were handed to a former daemon and are about to be handed over again."""
    out: list[Action]
    group: str = ""
    """In which it makes its calls."""
    acked: int = 0
    """It has received every outcome below."""
    told: int = 0
    """What is released, as it knows."""
    left: bool = False
    """It takes part no more, and acknowledges nothing."""

    def __post_init__(self) -> None:
        self.acked = self.told = self.next_seq

    @property
    def returning(self) -> bool:
        """Whether it has yet to say how some calls ended under a former daemon."""
        return not self.left and self.next_seq < self.expected

    def will_resubmit(self, seq: int) -> bool:
        """Whether it is about to hand op *seq* over again, having come back."""
        return self.next_seq <= seq < self.expected and self.returning

    def has(self, op: Op) -> bool:
        """Whether it is sure to have *op*'s outcome; one that left is not waited for."""
        if not op.ended or op.submission is None:
            return False
        if self.left or op.told is Told.KNEW or op.seq < self.acked:
            return True
        return op.outcome == OK and op.submission.sealed

    def tell_accepted(self) -> None:
        """Tell it that it is in the group."""
        if self.client is not None:
            self.out.append(Accept(self.client, self.join_id))

    def tell_session(self, join_ids: tuple[int, ...], places: tuple[int, ...]) -> None:
        """Tell it who its peers are, and on which members."""
        if self.client is not None:
            self.out.append(TellSession(self.client, self.join_id, join_ids, places))

    def tell_outcome(
        self, op: Op, released: int, *, keep: bool = False, again: bool = False
    ) -> None:
        """Tell it how *op* ended, if it called that and was not told before.

        *again*: if it was, once more, as an interrupt may have lost that.
        """
        submission, before = op.submission, op.told is not Told.NO
        if submission is None or before != again:
            return
        if not again:
            op.told = Told.YES
        if self.client is None:
            return
        self.told = released
        self.out.append(
            Report(
                client=self.client,
                join_id=self.join_id,
                submission=submission,
                code=op.outcome,
                message=op.message,
                released=released,
                ack=op.outcome != OK or (op.prompt and not submission.sealed),
                keep=keep,
                again=again,
                group=self.group,
            )
        )

    def lacks_news(self, released: int) -> bool:
        """Whether it is there, and does not know that every op below is released."""
        return self.client is not None and released > self.told

    def tell_released(self, released: int) -> None:
        """Tell it that every op below is released."""
        if self.client is not None:
            self.told = released
            self.out.append(TellReleased(self.client, self.join_id, released))

    def tell_lost(self, limit: int, code: str, message: str) -> None:
        """Tell it that the session is over from op *limit* on; one that left knows."""
        if self.client is not None and not self.left:
            self.out.append(TellLost(self.client, self.join_id, limit, code, message))
