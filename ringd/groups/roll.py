"""Who takes part in which group: joins, sessions, and those that went away.

How members meet: a client that attaches is broadcast as :class:`~ringd.wire.link.control.Joined`.
Whoever knows a join of every member that is free forms the session and says so; it goes live
where all members have been heard to be in it, and as messages travel one way round a FIFO ring,
no offer finds a member that does not know its session. In a new generation all joins are
broadcast again, with their sessions. A restarted daemon learns the session of a client that
comes back from the client, which was told before anything was offered, or from others who count
on it. Whoever is counted on in a session without being in it says so.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from ringd.collective.view import View
from ringd.errors import GroupLost
from ringd.groups.actions import Action, Broadcast, Dropped
from ringd.groups.session import Session, session_number, well_formed
from ringd.wire.link.control import Done, Joined, Left

_REMEMBERED_LEAVERS = 1024


@dataclass(slots=True)
class Group:
    """A named communicator: who takes part now, by rank."""

    name: str
    present: list[Joined | None]
    """By rank, as last heard in this generation."""
    local: Session | None = None


@dataclass(slots=True)
class Absent:
    """A client that others count on and that has not come back to this restarted daemon."""

    group: str
    join_ids: tuple[int, ...]
    due: float


@dataclass(slots=True)
class Roll:
    """The groups as the member whose *view* it is sees them."""

    view: View
    reattach: float = 10.0
    """Seconds for which a client that others count on may take to come back."""

    up: bool = False
    groups: dict[str, Group] = field(default_factory=dict)
    joins: dict[int, Session] = field(default_factory=dict)
    """All local sessions by join id, those that are winding up included."""
    by_gid: dict[int, Session] = field(default_factory=dict)
    absent: dict[int, Absent] = field(default_factory=dict)
    _out: list[Action] = field(default_factory=list)
    _leavers: OrderedDict[int, tuple[int, Left]] = field(default_factory=OrderedDict)
    """The last words on clients that left, by join id, with their session."""

    def _group(self, name: str) -> Group:
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = Group(name, [None] * self.view.size)
        return group

    def _introduce(self, session: Session) -> None:
        """Tell everybody that *session*'s client is in the group, or leaves it, and how far it is.

        They need to know how far also where the session can go live no more, as somebody knew
        that all are done, and has forgotten it.
        """
        joined = Joined(session.group, session.join_id, session.join_ids)
        self._out.append(Broadcast(0, 0, joined))
        if session.left is not None:
            self._out.append(Broadcast(session.gid, 0, session.left))
        if session.formed and session.ledger.own:
            session.announce_done()

    def _joined(self, origin: int, message: Joined, now: float) -> None:
        if message.session and not well_formed(message.session, self.view.size):
            self._out.append(Dropped("a session that cannot be"))
            return
        group = self._group(message.group)
        group.present[origin] = message
        if message.session:
            self._check_absent(group, message.session, now)
        self._try_form(group)
        for session in self._sessions(group.name):
            if session.formed and session.join_ids[origin] == message.join_id:
                if message.session == session.join_ids:
                    session.confirm(origin)
                elif not message.session:  # back after a restart: it has to learn where it is
                    self._introduce(session)
                    if session.left is not None and group.local is not None:
                        self._introduce(group.local)  # has the last word on who is here

    def _check_absent(self, group: Group, join_ids: tuple[int, ...], now: float) -> None:
        """Others count on a session; do we have our part in it?"""
        ours = join_ids[self.view.rank]
        if ours in self.joins or ours in self.absent:
            return
        gid = session_number(group.name, join_ids)
        absent = Absent(group.name, join_ids, now + self.reattach)
        left_gid, left = self._leavers.get(ours, (0, None))
        if left is not None and left_gid == gid:
            self._say_gone(gid, left)
        elif left is not None:  # before it had found back into the session
            self._give_up(ours, absent, left.message)
        elif group.local is not None:
            self._replaced(ours, absent, group.local)
        else:
            self.absent[ours] = absent

    def _make_way(self, stay: Session, holder: Session | None) -> None:
        """The client of *stay* takes the place of any other in its group."""
        if holder is not None:
            known = stay.before.loss if stay.before.join_id == holder.join_id else ""
            self._leave(holder, known or self._says("left the group and joined it anew"))
        self.absent.pop(stay.join_id, None)
        for join_id, absent in list(self.absent.items()):
            if absent.group == stay.group:
                self._replaced(join_id, absent, stay)

    def _replaced(self, join_id: int, absent: Absent, successor: Session) -> None:
        """A new client has the place of an absent one, or the same client under a new number."""
        before = successor.before
        if before.join_id == join_id and before.loss:
            self._give_up(join_id, absent, before.loss)
        else:
            self._give_up(join_id, absent, self._says("was replaced by another"))

    def _give_up(self, join_id: int, absent: Absent, why: str) -> None:
        self.absent.pop(join_id, None)
        gid = session_number(absent.group, absent.join_ids)
        left = Left(absent.group, join_id, 0, GroupLost.code, why)
        self._remember(gid, left)
        self._say_gone(gid, left)

    def _say_gone(self, gid: int, left: Left) -> None:
        """A client left and its calls are forgotten here, so we need nobody's input for them."""
        if self.up:
            self._out.append(Broadcast(gid, 0, left))
            self._out.append(Broadcast(gid, 0, Done(left.submitted)))

    def _left(self, origin: int, gid: int, message: Left) -> None:
        group = self._group(message.group)
        there = group.present[origin]
        if there is not None and there.join_id == message.join_id:
            group.present[origin] = None
        for session in self._sessions(group.name):
            if not session.formed or session.join_ids[origin] != message.join_id:
                continue
            submitted = message.submitted if session.gid == gid else 0
            if submitted == 0 and not session.pledged and session.limit is None:
                self._unform(group, session)
            else:
                name = self.view.names[origin]
                session.peer_left(name, submitted, message.code, message.message)
        self._tidy(group)

    def _unform(self, group: Group, session: Session) -> None:
        """Nothing was done in *session* and one of its members is gone: wait for another."""
        for rank, joined in enumerate(group.present):
            if joined is not None and joined.session == session.join_ids:
                group.present[rank] = Joined(group.name, joined.join_id, ())
        self.by_gid.pop(session.gid, None)
        session.unform()
        self._introduce(session)

    def _leave(self, session: Session, message: str) -> None:
        if session.left is None:
            left = session.leave(message)
            if self.up:
                self._out.append(Broadcast(session.gid, 0, left))
            session.answer_early()
        group = self._group(session.group)
        if group.local is session:
            group.local = None
            group.present[self.view.rank] = None
            self._tidy(group)

    def _try_form(self, group: Group) -> None:
        """Form the local client's session, if others count on one or all are free for one."""
        session = group.local
        if not self.up or session is None or session.formed or session.limit is not None:
            return
        others = [joined for rank, joined in enumerate(group.present) if rank != self.view.rank]
        for joined in others:
            if joined and session.may_be(joined.session):
                self._form(session, joined.session)
                return
        if any(joined is None or joined.session for joined in others):
            return
        join_ids = tuple(
            session.join_id if joined is None else joined.join_id for joined in group.present
        )
        self._form(session, join_ids)

    def _form(self, session: Session, join_ids: tuple[int, ...]) -> None:
        session.form(join_ids)
        self.by_gid[session.gid] = session
        if self.up:
            self._introduce(session)
        if len(join_ids) == 1:
            session.go_live()

    def _sessions(self, group: str) -> list[Session]:
        return [session for session in self.joins.values() if session.group == group]

    def _says(self, reason: str) -> str:
        return f"the client on {self.view.name!r} {reason}"

    def _last_words(self, join_id: int) -> Left | None:
        """Return what was said to all when a client left, as far as is known."""
        if join_id in self.joins:
            return self.joins[join_id].left
        return self._leavers[join_id][1] if join_id in self._leavers else None

    def _remember(self, gid: int, left: Left) -> None:
        self._leavers[left.join_id] = (gid, left)
        while len(self._leavers) > _REMEMBERED_LEAVERS:
            self._leavers.popitem(last=False)

    def _bury(self) -> None:
        """Drop sessions that are over and whose client has gone on."""
        for session in list(self.joins.values()):
            if session.left is None or not (session.over or not session.formed):
                continue
            if self.up:
                session.flush()
            session.drop()
            del self.joins[session.join_id]
            self.by_gid.pop(session.gid, None)
            self._remember(session.gid, session.left)

    def _tidy(self, group: Group) -> None:
        """Forget a group in which nobody is."""
        if group.local is None and not any(group.present):
            self.groups.pop(group.name, None)
