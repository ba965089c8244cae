"""Who takes part in which group: seats, their sessions, and those that went away.

How members meet: a client that attaches is broadcast as :class:`~ringd.wire.link.control.Joined`.
A member that knows a free join of every member forms the session and says so; it goes live where
all members have been heard to be in it, and as messages travel one way round a FIFO ring,
no offer finds a member that does not know its session. In a new generation all joins are
broadcast again, with their sessions. A restarted daemon learns the session of a client that
comes back from the client, which was told before anything was offered, or from others who count
on it. A member that is counted on in a session without being in it says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ringd.collective.view import View
from ringd.groups.absences import Absences, Notice
from ringd.groups.actions import Action, Broadcast, Dropped
from ringd.groups.op import Op
from ringd.groups.seat import Seat
from ringd.groups.session import well_formed
from ringd.groups.words import client_on
from ringd.wire.link.control import Done, Joined, Left


@dataclass(slots=True)
class Group:
    """A named communicator: who takes part now, by rank."""

    name: str
    present: list[Joined | None]
    """By rank, as last heard in this generation."""
    local: Seat | None = None


@dataclass(slots=True, eq=False)
class Roll:
    """Gives clients their seats, forms their sessions, and ends their stays.

    Invariant: a group has one local seat at most; a seat is known by its join id until it is
    finished, and by its gid as long as its session is formed.
    """

    _view: View
    absences: Absences
    _out: list[Action]
    up: bool = False
    """Whether the ring is."""
    groups: dict[str, Group] = field(default_factory=dict)
    seats: dict[int, Seat] = field(default_factory=dict)
    """All local ones by join id, those that are winding up included."""
    by_gid: dict[int, Seat] = field(default_factory=dict)

    def _group(self, name: str) -> Group:
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = Group(name, [None] * self._view.size)
        return group

    def _seats_of(self, group: str) -> list[Seat]:
        return [seat for seat in self.seats.values() if seat.group == group]

    def local(self, group: str) -> Seat | None:
        """Return the seat of the client here that takes part in *group*."""
        known = self.groups.get(group)
        return None if known is None else known.local

    def open_op(self, join_id: int, seq: int) -> tuple[Seat, Op] | None:
        """Return an op that has not ended, and its seat."""
        seat = self.seats.get(join_id)
        op = None if seat is None else seat.calls.ops.get(seq)
        return None if seat is None or op is None or op.ended else (seat, op)

    def used_up(self, join_id: int, group: str) -> str:
        """Return how the stay ended that had this number; empty if none is known."""
        seat = self.seats.get(join_id)
        left = self.absences.last_words(join_id) if seat is None else seat.left
        if left is not None:
            return left.message
        return "" if seat is None else f"join id {join_id} of group {group!r} is used up; join anew"

    # --- local clients ----------------------------------------------------------------

    def admit(self, seat: Seat, join_ids: tuple[int, ...]) -> None:
        """Take *seat* in; its client was told by a former daemon that *join_ids* are its peers."""
        self._replace_holder(seat)
        group = self._group(seat.group)
        self.seats[seat.join_id] = group.local = seat
        group.present[self._view.rank] = Joined(group.name, seat.join_id, join_ids)
        seat.caller.tell_accepted()
        if self.up:
            seat.introduce()  # as unformed yet, which those who count on it answer
        if seat.session.may_be(join_ids):
            seat.pledged = True
            self._form(seat, join_ids)
        else:
            self._try_form(group)

    def _replace_holder(self, seat: Seat) -> None:
        """The client of *seat* takes the place of any other in its group."""
        holder, before = self.local(seat.group), seat.before
        if holder is not None:
            known = before.loss if before.join_id == holder.join_id else ""
            self.leave(holder, known or self.says("left the group and joined it anew"))
        for notice in self.absences.taken(seat.group, seat.join_id, before):
            self._say_gone(notice)

    def leave(self, seat: Seat, message: str) -> None:
        """The client of *seat* takes part no more."""
        if seat.left is None:
            left = seat.leave(message)
            if self.up:
                seat.session.broadcast(0, left)
            seat.polls.answer_early()
        group = self.groups.get(seat.group)
        if group is not None and group.local is seat:
            group.local = group.present[self._view.rank] = None
            self._tidy(group)

    def says(self, reason: str) -> str:
        """Return what the members read of a client here."""
        return client_on(self._view.name, reason)

    def drop_finished(self) -> None:
        """Drop seats whose client left and of which nobody needs anything any more."""
        for seat in list(self.seats.values()):
            if seat.left is None or not seat.finished:
                continue
            if self.up:
                seat.ledger.flush()
            seat.calls.drop()
            del self.seats[seat.join_id]
            self.by_gid.pop(seat.session.gid, None)
            self.absences.remember(seat.session.gid, seat.left)

    def _tidy(self, group: Group) -> None:
        """Forget a group in which nobody is."""
        if group.local is None and not any(group.present):
            self.groups.pop(group.name, None)

    # --- the ring ---------------------------------------------------------------------

    def ring_up(self) -> None:
        """A new generation: introduce our clients again, those that are winding up first."""
        self.up = True
        for seat in sorted(self.seats.values(), key=lambda seat: seat.left is None):
            seat.introduce()
            if seat.session.formed and seat.session.live:  # alone in the ring
                seat.go_live()
        for group in list(self.groups.values()):
            self._try_form(group)

    def ring_down(self) -> None:
        """The ring broke: of the other members nothing is known any more."""
        self.up = False
        for group in list(self.groups.values()):
            group.present = [None] * self._view.size
            if group.local is not None:
                session = group.local.session
                joined = Joined(group.name, session.join_id, session.join_ids)
                group.present[self._view.rank] = joined
            self._tidy(group)

    def joined(self, origin: int, message: Joined, now: float) -> None:
        """A client of rank *origin* joined, or is introduced again.

        The order matters: the local client may form its session with it, and its seat is then
        one of those that count on it.
        """
        if message.session and not well_formed(message.session, self._view.size):
            self._out.append(Dropped("a session that cannot be"))
            return
        group = self._group(message.group)
        group.present[origin] = message
        if message.session:
            self._check_absent(group, message.session, now)
        self._try_form(group)
        for seat in self._seats_of(group.name):
            if seat.session.formed and seat.session.join_ids[origin] == message.join_id:
                self._meet(group, seat, origin, message.session)

    def _meet(self, group: Group, seat: Seat, origin: int, join_ids: tuple[int, ...]) -> None:
        """A client that *seat* counts on says in which session it is."""
        if join_ids == seat.session.join_ids:
            if seat.session.confirm(origin):
                seat.go_live()
        elif not join_ids:  # back after a restart: it has to learn where it is
            seat.introduce()
            if seat.left is not None and group.local is not None:
                group.local.introduce()  # has the last word on who is here

    def _check_absent(self, group: Group, join_ids: tuple[int, ...], now: float) -> None:
        """Others count on a session: if we have no part in it, they must hear so in the end.

        They would wait for good otherwise, as only this daemon can tell that its client is gone.
        """
        if join_ids[self._view.rank] not in self.seats:
            successor = None if group.local is None else group.local.before
            self._say_gone(self.absences.counted_on(group.name, join_ids, successor, now))

    def give_up_absent(self, now: float, reason: str) -> None:
        """Tell the others of clients that did not come back until *now*."""
        for notice in self.absences.overdue(now, reason):
            self._say_gone(notice)

    def _say_gone(self, notice: Notice | None) -> None:
        """A client left and its calls are forgotten here, so we need nobody's input for them."""
        if self.up and notice is not None:
            self._out.append(Broadcast(notice.gid, 0, notice.left))
            self._out.append(Broadcast(notice.gid, 0, Done(notice.left.submitted)))

    def peer_left(self, origin: int, gid: int, message: Left) -> None:
        """A client of rank *origin* takes part no more.

        Only session *gid* had calls of it: any other session that counts on it never went live
        there.
        """
        group = self._group(message.group)
        there = group.present[origin]
        if there is not None and there.join_id == message.join_id:
            group.present[origin] = None
        for seat in self._seats_of(group.name):
            if seat.session.formed and seat.session.join_ids[origin] == message.join_id:
                submitted = message.submitted if seat.session.gid == gid else 0
                self._part(group, seat, origin, submitted, message)
        self._tidy(group)

    def _part(self, group: Group, seat: Seat, origin: int, submitted: int, message: Left) -> None:
        """A client that *seat* counts on left: that ends the session, or it never began."""
        if submitted == 0 and not seat.pledged and seat.calls.limit is None:
            self._unform(group, seat)
        else:
            name = self._view.names[origin]
            seat.peer_left(name, submitted, message.code, message.message)

    # --- sessions ---------------------------------------------------------------------

    def _unform(self, group: Group, seat: Seat) -> None:
        """Nothing was done in the session and one of its members is gone: wait for another.

        The other members give it up for the same reason, so they count as free from now on.
        """
        for rank, joined in enumerate(group.present):
            if joined is not None and joined.session == seat.session.join_ids:
                group.present[rank] = Joined(group.name, joined.join_id, ())
        self.by_gid.pop(seat.session.gid, None)
        seat.unform()
        seat.introduce()

    def _try_form(self, group: Group) -> None:
        """Form the local client's session, if others count on one or all are free for one."""
        seat = group.local
        if not self.up or seat is None or seat.session.formed or seat.calls.limit is not None:
            return
        others = [joined for rank, joined in enumerate(group.present) if rank != self._view.rank]
        for joined in others:
            if joined and seat.session.may_be(joined.session):
                self._form(seat, joined.session)
                return
        if any(joined is None or joined.session for joined in others):
            return
        join_ids = tuple(
            seat.join_id if joined is None else joined.join_id for joined in group.present
        )
        self._form(seat, join_ids)

    def _form(self, seat: Seat, join_ids: tuple[int, ...]) -> None:
        seat.form(join_ids)
        self.by_gid[seat.session.gid] = seat
        if self.up:
            seat.introduce()
        if len(join_ids) == 1:
            seat.go_live()
