"""Model ends of channels, for :mod:`groups_simulation`: as unkind as the model clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from groups_model_calls import Spec, Violation, Work, numbers

from ringd.collective import kinds
from ringd.groups import actions
from ringd.groups.channels import Key, Opening
from ringd.groups.engine import Engine
from ringd.groups.op import OK

if TYPE_CHECKING:
    from groups_model_client import Client


class End:
    """One end of a channel of one stay; it runs *specs* through, as the other end does."""

    def __init__(self, client: Client, key: Key, specs: list[Spec]) -> None:
        self.client = client
        self.sim = client.sim
        self.member = client.member
        self.group = client.group
        self.key = key
        self.specs = specs
        self.parent = client.join_id
        session = client.sessions[self.parent]
        self.pair = self.sim.ends_of(session, key)
        self.rank = key[:2].index(session.index(self.parent))
        self.join_id = self.pair[self.rank]
        self.sessions = {self.join_id: self.pair}
        self.works: dict[int, Work] = {}
        self.released = 0
        self.loss: tuple[str, str] | None = None
        self.arrived = 0
        self.sim.witness.owners[self.join_id] = self
        self.sim.witness.agreed.add(self.pair)
        self.open(expected=0)
        self.advance()

    def __str__(self) -> str:
        return f"end {self.join_id} of {tuple(self.key)} of {self.client}"

    @property
    def alive(self) -> bool:
        """Whether its program lives."""
        return self.client.alive

    @property
    def waiting(self) -> list[Work]:
        """Calls that have not ended."""
        return [work for work in self.works.values() if not work.outcome]

    def has_left(self, _join_id: int) -> bool:
        """Whether its client has joined anew since."""
        return self.client.join_id != self.parent

    def works_of(self, _join_id: int) -> dict[int, Work]:
        """Return the works of a join, of which it has one."""
        return self.works

    @property
    def finished(self) -> bool:
        """Whether it ran through."""
        return len(self.works) == len(self.specs) and not self.waiting

    def open(self, *, expected: int) -> None:
        """Open it at the daemon, anew or as before."""
        connection, released, number = self.client.connection, self.released, self.join_id
        parent, key = self.parent, self.key

        def opening(engine: Engine, now: float) -> list[actions.Action]:
            asked = Opening(parent, number, key, released, expected, watch=True)
            return engine.open(connection, asked, now)

        self.client.send(opening)

    def open_again(self) -> None:
        """The daemon is another one: look at the seals, then hand over again what it needs."""
        if self.loss is not None and not self.waiting:
            return
        for seq, work in sorted(self.works.items()):
            sealed = work.seal == (self.join_id, seq)
            if sealed and not work.outcome and not work.lent:
                work.end(OK, "", work.result)
        self.open(expected=len(self.works))
        for seq in range(self.released, len(self.works)):
            self.client.hand_over(self.works[seq], again=True, acked=self._acked())
        self.advance()

    def advance(self) -> None:
        """Hand over what the program's depth allows."""
        if not self.alive or self.loss or self.client.connection is None or self.sim.closing:
            return
        if self.client.join_id != self.parent or self.client.lost:
            return
        while len(self.works) < len(self.specs) and len(self.waiting) < self.sim.depth:
            seq = len(self.works)
            spec = self.specs[seq]
            call = spec.call(self.rank, kinds.PAIR)
            given = numbers(self.sim.rng, call.dtype, kinds.source_count(call, self.rank, 2))
            work = Work(self, self.join_id, seq, spec, call, self.rank, 2, given, self.sim.now)
            self.sim.witness.works[self.join_id, seq] = work
            self.works[seq] = work
            self.client.hand_over(work, again=False, acked=self._acked())

    def _acked(self) -> int:
        return next((s for s, w in sorted(self.works.items()) if not w.outcome), len(self.works))

    def hear(self, action: actions.Action, result: bytes | None) -> None:  # noqa: C901 - one branch each
        """A message of the daemon arrived."""
        if isinstance(action, actions.Report):
            self._release(action.released)
            work = self.works[action.submission.seq]
            if action.keep:
                work.leave_input()
            if action.code == OK and work.sealed:
                result = work.result
            work.end(action.code, action.message, result)
            if action.ack and not self.waiting:
                connection, number, acked = self.client.connection, self.join_id, self._acked()
                self.client.send(lambda engine, now: engine.ack(connection, number, acked, now))
        elif isinstance(action, actions.TellReleased):
            self._release(action.released)
        elif isinstance(action, actions.TellLost):
            self._end_from(action.floor, action.code, action.message)
        elif isinstance(action, actions.Deny):
            if action.code not in ("group_lost", "peer_lost") and self.loss is None:
                raise Violation(f"{self} is denied: {action.message}")
            for work in self.works.values():
                work.leave_input()
            if self.loss is None:  # where its client's stay is over, that knows why
                known = self.client.losses.get(self.parent, (action.code, action.message))
                self._end_from(0, *known)
        elif isinstance(action, actions.TellArrived):
            self._count(action.count)
        self.advance()

    def _end_from(self, floor: int, code: str, message: str) -> None:
        self.loss = code, message
        for seq, work in self.works.items():
            if seq >= floor and not work.outcome:
                work.end(code, message, None)

    def _count(self, arrived: int) -> None:
        """So many messages have come, of all that were ever sent."""
        if arrived and (self.pair[0], arrived - 1) not in self.sim.witness.works:
            raise Violation(f"{self} is told of {arrived} messages, which were not all sent")
        self.arrived = max(arrived, self.arrived)

    def _release(self, released: int) -> None:
        for seq in range(self.released, released):
            work = self.works[seq]
            work.released = True
            if not work.outcome and not work.sealed:
                raise Violation(f"{work} is released before its client has the outcome")
        self.released = max(released, self.released)
