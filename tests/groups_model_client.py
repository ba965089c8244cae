"""Model clients around a real engine, for :mod:`groups_simulation`.

They are as unkind as the real ones may be: what they lent is overwritten as soon as they may.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
from groups_model_calls import Spec, Violation, Work, numbers
from groups_model_channel import End

from ringd.client import group as groups
from ringd.client.splitting import Choice, choices, part_of
from ringd.collective import kinds
from ringd.collective.call import Call
from ringd.groups import actions
from ringd.groups.engine import Engine
from ringd.groups.op import OK
from ringd.groups.seat import Before, Join
from ringd.groups.session import Part, Peers

if TYPE_CHECKING:
    from groups_simulation import Sim


class Client:
    """A program's stay in one group; it runs *specs* once through, again after a loss.

    Those in parts that it made of the group by a split belong to the same program, and end with a
    loss.
    """

    def __init__(  # noqa: PLR0917
        self,
        sim: Sim,
        member: int,
        group: str,
        specs: list[Spec],
        on_loss: str,
        part: Part,
        parent: Client | None = None,
        place: tuple[int, int] | None = None,
    ) -> None:
        self.sim = sim
        self.member = member
        self.group = group
        self.specs = specs
        self.on_loss = on_loss
        self.part = part
        self.parent = parent
        self.place = place
        """Its rank, and the number of ranks, as it was told last."""
        self.root: Client = self if parent is None else parent.root
        """The one that has the connection to the daemon."""
        self.children: list[Client] = []
        """In the parts of the group, as long as they are not over."""
        self.number = next(sim.counter)
        self.alive = True
        self._connection: tuple[int, int] | None = None
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
        self._gathered = b""
        """What it hands over to the second call of an all_gather_bytes."""
        self._split: set[int] = set()
        """Calls of the present stay by which the group was split."""
        if parent is None:
            self.connect()
        else:
            self._join_anew()

    def __str__(self) -> str:
        return f"client {self.number} on {self.member} in {self.group!r}"

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

    @property
    def connection(self) -> tuple[int, int] | None:
        """To its daemon; None while that is away."""
        return self.root._connection

    def stays(self) -> Iterator[Client]:
        """Return this one, and those in the parts of its group, and in parts of these."""
        yield self
        for child in list(self.children):
            yield from child.stays()

    def note_session(self, join_id: int, session: tuple[int, ...], places: tuple[int, ...]) -> None:
        """The kernel has what the daemon says of the peers of one of this program's stays."""
        owner = self.sim.witness.owners[join_id]
        assert isinstance(owner, Client)
        owner.sessions[join_id] = session
        owner.places[join_id] = places
        owner.place = session.index(join_id), len(session)
        self.sim.witness.agreed.add(session)

    # --- the connection ---------------------------------------------------------------

    def connect(self) -> None:
        """Attach to this machine's daemon, anew or as before."""
        node = self.sim.nodes[self.member]
        if not self.alive or self.connection is not None or node.engine is None:
            return
        self._connection = (self.number, next(self.sim.counter))
        node.peers[self._connection] = self
        for stay in list(self.stays()):
            if not stay.lost:
                stay._attach_again()
            elif stay is self:
                self._join_anew()

    def _join_anew(self) -> None:
        code, loss = self.losses.get(self.join_id, ("", ""))
        self.before = Before(self.join_id, loss if code == "group_lost" else "")
        self.join_id = next(self.sim.counter)
        self.works[self.join_id] = {}
        self.released[self.join_id] = 0
        self.lost = self.doomed = False
        self.accepted = False
        self._split.clear()
        for child in list(self.children):
            child.leave()
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
            if sealed and not work.outcome and not work.lent:
                work.end(OK, "", work.result)
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
        self._connection = None
        for stay in list(self.stays()):
            stay.lose_daemon()
        self.sim.after(self.sim.delay(5), self.connect)

    def lose_daemon(self) -> None:
        """End what does not wait for the daemon's return."""
        for join_id, works in self.works.items():
            for work in works.values():
                if work.outcome:
                    continue
                if join_id != self.join_id or self.lost:
                    work.end(*self.losses[join_id], None)
                elif self.on_loss == "fail":
                    self.sim.witness.unkind.add(self.root.group)
                    work.end("peer_lost", "this machine's daemon went away", None)
        if self.on_loss == "fail":
            for end in self.ends.values():
                for work in end.waiting:
                    self.sim.witness.unkind.add(self.root.group)
                    work.end("peer_lost", "this machine's daemon went away", None)
                end.loss = end.loss or ("peer_lost", "this machine's daemon went away")
                self.sim.witness.dead.add(end.join_id)
            self.losses.setdefault(self.join_id, ("peer_lost", "its daemon went away"))
            self.lost = True
            self.sim.witness.dead.add(self.join_id)
            if self.parent is not None:
                self.leave()

    def send(self, request: Callable[[Engine, float], list[actions.Action]]) -> None:
        """Ask the daemon for something."""
        node, connection = self.sim.nodes[self.member], self.connection

        def arrive() -> None:
            if node.engine is not None and connection in node.peers:
                node.carry_out(request(node.engine, self.sim.now))

        self.sim.queue(("up", connection), lambda: node.when_awake(arrive))

    # --- calls ------------------------------------------------------------------------

    def advance(self) -> None:
        """Submit what the program's depth allows."""
        if not self.alive or self.lost or self.connection is None or self.sim.closing:
            return
        while len(self.mine) < len(self.specs) and len(self.open) < self.sim.depth:
            seq = len(self.mine)
            spec = self.sim.spec(self, seq)
            made = self._make(spec, seq)
            if made is None:
                break
            call, given = made
            rank, size = self.place or (0, 1)
            work = Work(self, self.join_id, seq, spec, call, rank, size, given, self.sim.now)
            self.sim.witness.works[self.join_id, seq] = work
            self.mine[seq] = work
            first = self.mine.get(seq - 1)
            if spec.gathers == "bytes" and first is not None and first.outcome != OK:
                work.end(first.outcome, first.message, None)  # it cannot be made
            self._submit(work, again=False)
        self._look_for_splits()
        if self.doomed and self.finished:
            self._rejoin_soon()

    def _make(self, spec: Spec, seq: int) -> tuple[Call, bytes] | None:
        """Return a call and its input; None if it has to wait."""
        if self.place is None and (kinds.KINDS[spec.of].sized or spec.gathers):
            return None
        rank, size = self.place or (0, 1)
        rng = self.sim.rng
        if spec.gathers == "lengths":
            color = spec.colors[rank % len(spec.colors)] if spec.colors else None
            said = Choice(color, -rank if seq % 2 else 0).pack()
            self._gathered = said if spec.colors else rng.randbytes(13 * rank % 40)
            length = np.array([len(self._gathered)], np.int64)
            return Call(spec.of, "", "int64", (1,), ""), length.tobytes()
        if spec.gathers == "bytes":
            first = self.mine[seq - 1]
            if not first.outcome:
                return None
            lengths = np.frombuffer(first.value or b"", np.int64).tolist()
            call = Call(spec.of, "", "uint8", (len(self._gathered),), "", counts=tuple(lengths))
            return call, self._gathered
        call = spec.call(rank, size)
        return call, numbers(rng, call.dtype, kinds.source_count(call, rank, size))

    def _look_for_splits(self) -> None:
        """Join the parts of the group of which all ranks have said what they want."""
        for seq, work in self.mine.items():
            if not (work.spec.inner and work.outcome == OK) or seq in self._split:
                continue
            self._split.add(seq)
            assert self.place is not None
            assert work.value is not None
            ends = accumulate(work.call.counts, initial=0)
            said = [work.value[start:stop] for start, stop in pairwise(ends)]
            session = self.sessions[self.join_id]
            names = [f"m{rank}" for rank in range(self.sim.n)]
            part = part_of(
                choices(said),
                groups.Place(self.place[0], self.places[self.join_id]),
                groups.Wish(self.group, self.on_loss),
                SimpleNamespace(session=SimpleNamespace(members=session), seq=seq),
                names,
            )
            if part is not None:
                self._join_part(list(work.spec.inner), *part)

    def _join_part(self, specs: list[Spec], wish: groups.Wish, place: groups.Place) -> None:
        members = tuple(int(name[1:]) for name in wish.members)
        part = Part(wish.local_rank, wish.local_size, members, wish.ordered)
        where = place.rank, place.size
        child = Client(self.sim, self.member, wish.name, specs, self.on_loss, part, self, where)
        self.children.append(child)
        self.sim.clients.append(child)

    def _submit(self, work: Work, *, again: bool) -> None:
        acked = next((s for s, w in sorted(self.mine.items()) if not w.outcome), len(self.mine))
        self.hand_over(work, again=again, acked=acked)

    def hand_over(self, work: Work, *, again: bool, acked: int) -> None:
        """Send a call to the daemon, for the first time or again."""
        copy = bytes(work.source.bytes) if work.copied else None
        outcome, message = work.outcome, work.message
        lent = work.lent and not work.left
        if again and lent and outcome == OK:
            outcome = "error"  # the program may have changed what it lent by now
        elif again and work.lent and work.seal is not None and not outcome:
            outcome = OK
        hold = lent and work.outcome == ""  # once told, it lends nothing any more
        node, connection = self.sim.nodes[self.member], self.connection

        def submit(engine: Engine, now: float) -> list[actions.Action]:
            submission = node.take(work, copy, hold=hold)
            submission.acked, submission.outcome, submission.message = acked, outcome, message
            if not outcome and (fault := node.known_fault(work)):
                submission.outcome, submission.message = "refused", fault
                work.sure = True  # any daemon here says the same
                refuse = lambda: self.alive and work.end("refused", fault, None)  # noqa: E731
                self.sim.queue(("down", connection), refuse)
            return engine.submit(connection, work.join_id, submission, now)

        self.send(submit)

    # --- what the daemon says ---------------------------------------------------------

    def hear(self, action: actions.ToClient, result: bytes | None) -> None:
        """A message of the daemon for one of the program's stays arrived."""
        owner = self.sim.witness.owners[action.join_id]
        if not self.alive or not owner.alive:
            return
        if isinstance(owner, End):
            owner.hear(action, result)
        else:
            owner.hear_own(action, result)

    def hear_own(self, action: actions.ToClient, result: bytes | None) -> None:
        """A message of the daemon arrived."""
        if isinstance(action, actions.TellSession):
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
            if action.code == OK and work.sealed:
                result = work.result
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
            work.source.spoil()
            if not work.outcome and not work.sealed:
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
        if self.parent is not None:  # a part is over, once and for all
            self.sim.after(self.sim.delay(10), self.leave)
            return
        self.sim.after(self.sim.delay(10), self._again)

    def _again(self) -> None:
        if self.alive and self.lost and self.connection is not None and not self.sim.closing:
            self._join_anew()

    def die(self) -> None:
        """The process is gone; its daemon learns that a little later."""
        self._end()
        node, connection = self.sim.nodes[self.member], self.connection

        def notice() -> None:
            if node.engine is not None and node.peers.pop(connection, None) is not None:
                node.carry_out(node.engine.detach(connection, "died", self.sim.now))

        self.sim.after(self.sim.delay(5), lambda: node.when_awake(notice))

    def close(self) -> None:
        """Leave in good order, and what was lent as it is."""
        node, connection = self.sim.nodes[self.member], self.connection

        def leave() -> None:
            if node.engine is not None and node.peers.pop(connection, None) is not None:
                node.carry_out(node.engine.detach(connection, "left the group", self.sim.now))

        self.sim.queue(("up", connection), lambda: node.when_awake(leave))
        self._end()

    def leave(self) -> None:
        """Leave one part of a group, while the program has other stays."""
        if not self.alive:
            return
        connection, join_id = self.connection, self.join_id
        assert self.parent is not None
        self.send(lambda engine, now: engine.detach(connection, "left the group", now, join_id))
        self.parent.children.remove(self)
        self._end()

    def _end(self) -> None:
        for stay in list(self.stays()):
            stay.alive = False
            self.sim.witness.dead |= {stay.join_id, *stay.ends}
            self.sim.clients.remove(stay)
