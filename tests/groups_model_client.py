"""Model clients around a real engine, for :mod:`groups_simulation`.

They are as unkind as the real ones may be: what they lent is overwritten as soon as they may.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from groups_model_calls import GARBAGE, Memory, Spec, Violation, Work
from groups_model_channel import End

from ringd.groups import actions
from ringd.groups.engine import Engine
from ringd.groups.op import OK
from ringd.groups.seat import Before, Join
from ringd.groups.session import Part, Peers

if TYPE_CHECKING:
    from groups_simulation import Sim


class Client:
    """A program of one rank in one group; it runs *specs* once through, again after a loss."""

    def __init__(  # noqa: PLR0917
        self, sim: Sim, rank: int, group: str, specs: list[Spec], on_loss: str, part: Part
    ) -> None:
        self.sim = sim
        self.rank = rank
        self.group = group
        self.specs = specs
        self.on_loss = on_loss
        self.part = part
        self.number = next(sim.counter)
        self.alive = True
        self.connection: tuple[int, int] | None = None
        self.join_id = 0
        self.sessions: dict[int, tuple[int, ...]] = {}
        self.places: dict[int, tuple[int, ...]] = {}
        self.works: dict[int, dict[int, Work]] = {}
        self.released: dict[int, int] = {}
        self.accepted = False
        self.lost = True
        self.doomed = False
        self.retrying = False
        self.owing = False
        """The daemon asked for an acknowledgement."""
        self.before = Before()
        self.ends: dict[int, End] = {}
        """Of channels, by number."""
        self.losses: dict[int, tuple[str, str]] = {}
        """By join id, the code and the text with which a stay ended."""
        self.connect()

    def __str__(self) -> str:
        return f"client {self.number} on {self.rank} in {self.group!r}"

    @property
    def mine(self) -> dict[int, Work]:
        """The works of the present join."""
        return self.works[self.join_id]

    def has_left(self, join_id: int) -> bool:
        """Whether it has joined anew since."""
        return self.join_id != join_id

    def works_of(self, join_id: int) -> dict[int, Work]:
        """Return the works of a join."""
        return self.works.get(join_id, {})

    @property
    def finished(self) -> bool:
        """Whether the program ran through."""
        if self.lost:
            return False
        ends = [end for end in self.ends.values() if end.parent == self.join_id]
        ran = len(self.mine) == len(self.specs) and not self.open
        met = not self.sim.channels.get(self.group) or self.join_id in self.sessions
        return ran and met and all(end.finished for end in ends)

    @property
    def open(self) -> list[Work]:
        """Calls of any join that have not ended."""
        return [w for works in self.works.values() for w in works.values() if not w.outcome]

    # --- the connection ---------------------------------------------------------------

    def connect(self) -> None:
        """Attach to this machine's daemon, anew or as before."""
        node = self.sim.nodes[self.rank]
        if not self.alive or self.connection is not None or node.engine is None:
            return
        self.connection = (self.number, next(self.sim.counter))
        node.peers[self.connection] = self
        if self.lost:
            self._join_anew()
        else:
            self._attach_again()

    def _join_anew(self) -> None:
        code, loss = self.losses.get(self.join_id, ("", ""))
        self.before = Before(self.join_id, loss if code == "group_lost" else "")
        self.join_id = next(self.sim.counter)
        self.works[self.join_id] = {}
        self.released[self.join_id] = 0
        self.lost = self.doomed = False
        self.accepted = False
        self.sim.witness.owners[self.join_id] = self
        self._attach()
        self.advance()

    def _attach(self) -> None:
        join_id, released = self.join_id, self.released[self.join_id]
        connection, group, on_loss = self.connection, self.group, self.on_loss
        session = Peers(self.sessions.get(join_id, ()), self.places.get(join_id, ()))
        expected, before, part = len(self.mine), self.before, self.part

        def attach(engine: Engine, now: float) -> list[actions.Action]:
            join = Join(group, join_id, on_loss, released, expected, session, before, part)
            return engine.attach(connection, join, now)

        self.send(attach)

    def _attach_again(self) -> None:
        """The daemon is another one: look at the seals, then offer again what it needs."""
        for seq, work in sorted(self.mine.items()):
            sealed = work.seal == (self.join_id, seq)
            if sealed and not work.outcome and not work.spec.hold:
                assert work.target is not None
                work.end(OK, "", work.target.value)
        self._attach()
        for seq in range(self.released[self.join_id], len(self.mine)):
            self._submit(self.mine[seq], again=True)
        for end in self.ends.values():
            end.open_again()
        self.meet()
        self.advance()

    def meet(self) -> None:
        """The peers are known: open the channels in which this one has a part."""
        session = self.sessions.get(self.join_id)
        if (
            session is None
            or self.lost
            or any(e.parent == self.join_id for e in self.ends.values())
        ):
            return
        for key, specs in self.sim.channels.get(self.group, {}).items():
            if session.index(self.join_id) in key[:2]:
                end = End(self, key, specs)
                self.ends[end.join_id] = end

    def disconnected(self) -> None:
        """The daemon is gone, and what it said and was not heard."""
        self.sim.cut(("down", self.connection), keep=False)
        self.connection = None
        for join_id, works in self.works.items():
            for work in works.values():
                if work.outcome:
                    continue
                if join_id != self.join_id or self.lost:
                    work.end(*self.losses[join_id], None)
                elif self.on_loss == "fail":
                    self.sim.witness.unkind.add(self.group)
                    work.end("peer_lost", "this machine's daemon went away", None)
        if self.on_loss == "fail":
            for end in self.ends.values():
                for work in end.waiting:
                    self.sim.witness.unkind.add(self.group)
                    work.end("peer_lost", "this machine's daemon went away", None)
                end.loss = end.loss or ("peer_lost", "this machine's daemon went away")
                self.sim.witness.dead.add(end.join_id)
            self.losses.setdefault(self.join_id, ("peer_lost", "its daemon went away"))
            self.lost = True
            self.sim.witness.dead.add(self.join_id)
        self.sim.after(self.sim.delay(5), self.connect)

    def send(self, request: Callable[[Engine, float], list[actions.Action]]) -> None:
        """Ask the daemon for something."""
        node, connection = self.sim.nodes[self.rank], self.connection

        def arrive() -> None:
            if node.engine is not None and connection in node.peers:
                node.carry_out(request(node.engine, self.sim.now))

        self.sim.queue(("up", connection), arrive)

    # --- calls ------------------------------------------------------------------------

    def advance(self) -> None:
        """Submit what the program's depth allows."""
        if not self.alive or self.lost or self.connection is None or self.sim.closing:
            return
        while len(self.mine) < len(self.specs) and len(self.open) < self.sim.depth:
            seq = len(self.mine)
            spec = self.sim.spec(self, seq)
            token = self.sim.rng.getrandbits(60)
            work = Work(
                client=self,
                join_id=self.join_id,
                seq=seq,
                spec=spec,
                token=token,
                born=self.sim.now,
                source=Memory(token),
                target=Memory(0) if spec.sealed else None,
            )
            self.sim.witness.works[self.join_id, seq] = work
            self.mine[seq] = work
            self._submit(work, again=False)
        if self.doomed and self.finished:
            self._rejoin_soon()

    def _submit(self, work: Work, *, again: bool) -> None:
        acked = next((s for s, w in sorted(self.mine.items()) if not w.outcome), len(self.mine))
        self.hand_over(work, again=again, acked=acked)

    def hand_over(self, work: Work, *, again: bool, acked: int) -> None:
        """Send a call to the daemon, for the first time or again."""
        copied = work.spec.kind in ("inline", "bare")
        copy = work.source.value if copied else None
        outcome, message = work.outcome, work.message
        lent = work.spec.hold and not work.left
        if again and lent and outcome == OK:
            outcome = "error"  # the program may have changed what it lent by now
        elif again and work.spec.hold and work.seal is not None and not outcome:
            outcome = OK
        hold = lent and work.outcome == ""  # once told, it lends nothing any more

        def submit(engine: Engine, now: float) -> list[actions.Action]:
            submission = self.sim.nodes[self.rank].take(work, copy, hold=hold)
            submission.acked, submission.outcome, submission.message = acked, outcome, message
            return engine.submit(self.connection, work.join_id, submission, now)

        self.send(submit)

    # --- what the daemon says ---------------------------------------------------------

    def hear(self, action: actions.Action, result: int | None) -> None:  # noqa: C901 - one branch each
        """A message of the daemon arrived."""
        if not self.alive:
            return
        end = self.ends.get(action.join_id) if isinstance(action, actions.ToClient) else None
        if end is not None:
            end.hear(action, result)
        elif isinstance(action, actions.TellSession):
            self.meet()
        elif isinstance(action, actions.Accept):
            self.accepted = action.join_id == self.join_id or self.accepted
        elif isinstance(action, actions.Deny):
            self._denied(action)
        elif isinstance(action, actions.Report):
            self._release(action.join_id, action.released)
            work = self.works[action.join_id][action.submission.seq]
            if action.keep:
                work.leave_input()
            if action.code == OK and work.target is not None:
                result = work.target.value
            work.end(action.code, action.message, result)
            self.owing |= action.ack
            if self.owing and not self.open:
                self.owing = False
                self._ack(action.join_id)
        elif isinstance(action, actions.TellReleased):
            self._release(action.join_id, action.released)
        elif isinstance(action, actions.TellLost):
            self._lost(action.join_id, action.floor, action.code, action.message)
        self.advance()

    def _ack(self, join_id: int) -> None:
        connection, works = self.connection, self.works[join_id]
        acked = next((s for s, w in sorted(works.items()) if not w.outcome), len(works))
        self.send(lambda engine, now: engine.ack(connection, join_id, acked, now))

    def _release(self, join_id: int, released: int) -> None:
        for seq in range(self.released[join_id], released):
            work = self.works[join_id][seq]
            work.released = True
            work.source.write(GARBAGE)
            if not work.outcome and not work.spec.sealed:
                raise Violation(f"{work} is released before its client has the outcome")
        self.released[join_id] = max(released, self.released[join_id])

    def _denied(self, action: actions.Deny) -> None:
        if action.join_id != self.join_id or self.lost:
            return
        if action.code == "group_lost":
            for work in self.works[action.join_id].values():
                work.leave_input()
            self._lost(action.join_id, 0, action.code, action.message)
        elif self.accepted or "join" in action.message:
            raise Violation(f"{self} is denied: {action.message}")
        elif not self.retrying:  # the one before us is not known to be dead yet
            self.retrying = True
            self.sim.after(self.sim.delay(20), self._retry)

    def _retry(self) -> None:
        self.retrying = False
        if self.alive and self.connection is not None and not self.accepted:
            self._attach_again()

    def _lost(self, join_id: int, floor: int, code: str, message: str) -> None:
        works = self.works[join_id]
        if code == "peer_lost":
            self.sim.witness.dead.add(join_id)
        for seq, work in works.items():
            if seq >= floor and not work.outcome:
                work.end(code, message, None)
        self.losses.setdefault(join_id, (code, message))
        if join_id != self.join_id or self.lost:
            return
        if floor < len(self.specs) or self.sim.channels.get(self.group):
            self._rejoin_soon()
        else:
            self.doomed = True  # the program makes no call that fails, but others start over

    def _rejoin_soon(self) -> None:
        self.lost = True
        self.sim.after(self.sim.delay(10), self._again)

    def _again(self) -> None:
        if self.alive and self.lost and self.connection is not None and not self.sim.closing:
            self._join_anew()

    def die(self) -> None:
        """The process is gone; its daemon learns that a little later."""
        self.alive = False
        self.sim.witness.dead |= {self.join_id, *self.ends}
        self.sim.clients.remove(self)
        node, connection = self.sim.nodes[self.rank], self.connection

        def notice() -> None:
            if node.engine is not None and node.peers.pop(connection, None) is not None:
                node.carry_out(node.engine.detach(connection, "died", self.sim.now))

        self.sim.after(self.sim.delay(5), notice)

    def close(self) -> None:
        """Leave in good order, and what was lent as it is."""
        node, connection = self.sim.nodes[self.rank], self.connection

        def leave() -> None:
            if node.engine is not None and node.peers.pop(connection, None) is not None:
                node.carry_out(node.engine.detach(connection, "left the group", self.sim.now))

        self.sim.queue(("up", connection), leave)
        self.alive = False
        self.sim.witness.dead |= {self.join_id, *self.ends}
        self.sim.clients.remove(self)
