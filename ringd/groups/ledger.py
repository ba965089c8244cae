"""Who is done with which ops: the floors that decide when inputs may be forgotten.

A member's *done* floor says that its client is sure to have the outcome of every op below,
whatever happens to its daemon: sealed in memory that the client owns, or acknowledged by it. What
all members are done with is *released*: no rerun can need its inputs again, and everybody forgets
it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ringd.groups.actions import Action, Free, Stop
from ringd.groups.caller import Caller
from ringd.groups.mail import News
from ringd.groups.op import Op, Phase
from ringd.groups.session import Session
from ringd.wire.link.control import Done


@dataclass(slots=True, eq=False)
class Ledger:
    """Raises our done floor, tells the others, and forgets what is released.

    Invariant: floors only rise, but for :meth:`forget_peers`; every op below the lowest one is
    forgotten, and its submission freed.
    """

    _session: Session
    _caller: Caller
    ops: dict[int, Op]
    """By number, those that are not released."""
    _out: list[Action]
    released: int
    """Every op below is done on all members."""
    done: list[int] = field(default_factory=list)
    """By rank."""
    announced: int = 0
    """Our own floor as the others know it."""
    _news: dict[News, None] = field(init=False)
    """Who may have something to say that can wait."""

    def __post_init__(self) -> None:
        self._news = self._session.mail.news
        self.forget_peers()

    def forget_peers(self) -> None:
        """Start over with other members, or with none."""
        self.done = [0] * self._session.view.size
        self.announced = 0

    @property
    def own(self) -> int:
        """Our own done floor."""
        return self.done[self._session.view.rank]

    # --- floors rise ------------------------------------------------------------------

    def advance(self) -> None:
        """Raise our own floor over what the client is sure to have."""
        rank, done = self._session.view.rank, self.done
        own = done[rank]
        floor = max(own, self.released)
        while (op := self.ops.get(floor)) is not None and op.ended and self._caller.has(op):
            floor += 1
        if floor > own:
            done[rank] = floor
            self._news[self] = None
            if min(done) > self.released:
                self.release()

    def ack(self, acked: int) -> None:
        """The client has every outcome below *acked*."""
        before, acked = self._caller.acked, min(acked, self._caller.next_seq)
        if acked > before:
            self._caller.acked = acked
            if acked > self.done[self._session.view.rank]:  # below, it was sure to have all anyway
                self.advance()
            for seq in range(before, acked):
                if (op := self.ops.get(seq)) is not None and op.prompt:
                    self.announce(op)

    def release(self) -> None:
        """Forget what all members are done with."""
        if not self._session.formed:
            return
        self._news[self] = None
        floor = min(self.done)
        while self.released < floor:
            op = self.ops.pop(self.released, None)
            self.released += 1
            if op is not None:
                self.forget(op)

    def forget(self, op: Op) -> None:
        """Stop *op*, if it still serves others, and give its submission back."""
        if op.active:
            self.stop(op)
        if op.submission is not None and not op.failed:  # what failed was freed at its end
            self._out.append(Free(op.submission))

    def stop(self, op: Op) -> None:
        """Abandon the computation of *op*, if there is one."""
        if op.active:
            session = self._session
            session.mail.stops = True
            self._out.append(Stop(session.gid, session.view.rank, op.seq))

    # --- the others hear of it --------------------------------------------------------

    def announce(self, op: Op) -> None:
        """Tell those who lend their input of *op* that we need it no more.

        Invariant: it is said only of an outcome that a restart of this daemon cannot undo, and
        once in a generation.
        """
        if op.said_input_read or not self._session.live or not op.prompt:
            return
        held = op.phase in (Phase.HELD, Phase.LENDING)  # and sealed: see Submission.hold
        if held or self._caller.has(op):
            op.said_input_read = True
            self.announce_done(op.seq)

    def announce_done(self, seq: int | None = None) -> None:
        """Tell the others our done floor, and that we need no input of op *seq*."""
        self.announced = self.own
        self._session.broadcast(seq or 0, Done(self.announced, seq))

    def announce_anew(self) -> None:
        """The others may have forgotten our done floor."""
        self.announced = 0
        self._news[self] = None

    @property
    def has_news(self) -> bool:
        """Whether nothing has carried yet what is done or released."""
        return self._others_lack_news or self._caller.lacks_news(self.released)

    @property
    def _others_lack_news(self) -> bool:
        return self._session.formed and self.own > self.announced

    def flush(self) -> None:
        """Send what :attr:`has_news` speaks of, while the ring is up."""
        if self._others_lack_news:
            self.announce_done()
        if self._caller.lacks_news(self.released):
            self._caller.tell_released(self.released)
