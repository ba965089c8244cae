"""What is done here, what is done everywhere, and what the others are told of it.

An op is released when every member's *done* floor has passed it. A member raises its floor only
over outcomes that its client is sure to have: sealed in memory that the client owns, or
acknowledged by it. Inputs stand until then, so an interrupted op can run again from them.
"""

from __future__ import annotations

from ringd.groups.actions import Action, Free, Stop
from ringd.groups.caller import Caller
from ringd.groups.ledger import Ledger
from ringd.groups.op import Op, Phase
from ringd.groups.session import Session
from ringd.wire.link.control import Done


class Releases:
    """Raises our done floor, tells the others, and forgets what is released.

    Invariant: every op below the floor is forgotten, and its submission freed.
    """

    def __init__(self, session: Session, caller: Caller, ledger: Ledger, out: list[Action]) -> None:
        self._session = session
        self._caller = caller
        self._ledger = ledger
        self._out = out
        self.ops: dict[int, Op] = {}
        """By number, those that are not released."""

    @property
    def floor(self) -> int:
        """Every op below is released."""
        return self._ledger.released

    def advance(self) -> None:
        """Raise our own floor over what the client is sure to have."""
        floor = max(self._ledger.own, self.floor)
        while (op := self.ops.get(floor)) is not None and self._caller.has(op):
            floor += 1
        if self._ledger.rise(self._session.view.rank, floor):
            self.release()

    def ack(self, acked: int) -> None:
        """The client has every outcome below *acked*."""
        before, acked = self._caller.acked, min(acked, self._caller.next_seq)
        if acked > before:
            self._caller.acked = acked
            self.advance()
            for seq in range(before, acked):
                if (op := self.ops.get(seq)) is not None:
                    self.announce(op)

    def release(self) -> None:
        """Forget what all members are done with."""
        ledger = self._ledger
        while ledger.released < ledger.releasable:
            op = self.ops.pop(ledger.released, None)
            ledger.released += 1
            if op is not None:
                self.stop(op)  # it served those that have it by now
                self.free(op)

    def stop(self, op: Op) -> None:
        """Abandon the computation of *op*, if there is one."""
        if op.active:
            self._out.append(Stop(self._session.gid, op.seq))

    def free(self, op: Op) -> None:
        """Give back the submission of *op*, which goes; what failed was freed at its end."""
        if op.submission is not None and not op.failed:
            self._out.append(Free(op.submission))

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
        self._session.broadcast(seq or 0, Done(self.announced_floor(), seq))

    def announced_floor(self) -> int:
        """Return our done floor, which the others are about to be sent."""
        self._ledger.announced = self._ledger.own
        return self._ledger.own

    @property
    def has_news(self) -> bool:
        """Whether nothing has carried yet what is done or released."""
        return self._others_lack_news or self._caller.lacks_news(self.floor)

    @property
    def _others_lack_news(self) -> bool:
        return self._session.formed and self._ledger.unannounced

    def flush(self) -> None:
        """Send what :attr:`has_news` speaks of, while the ring is up."""
        if self._others_lack_news:
            self.announce_done()
        if self._caller.lacks_news(self.floor):
            self._caller.tell_released(self.floor)
