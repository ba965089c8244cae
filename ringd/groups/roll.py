"""Who takes part in which group: seats, their sessions, and those that went away.

How members meet: a client that attaches is announced as :class:`~ringd.wire.link.control.Joined`.
A member that knows a free join of every program that is to take part forms the session and says so;
it goes live where all ranks have been heard to be in it, and as messages travel one way round a
FIFO ring, no offer finds a member that does not know its session. In a new generation all joins are
announced again, with their sessions. A restarted daemon learns the session of a client that
comes back from the client, which was told before anything was offered, or from others who count
on it. A member that is counted on in a session without being in it says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from ringd.collective.call import MAX_TEXT
from ringd.groups.absences import Absences, Notice
from ringd.groups.actions import Broadcast, Dropped
from ringd.groups.channels import Channel
from ringd.groups.mail import Mail
from ringd.groups.op import Op
from ringd.groups.quota import MOST_HEARD, cost
from ringd.groups.seat import Seat
from ringd.groups.session import Part, Peers, Place, expected, peers, session_number
from ringd.groups.words import client_on, shorten, which_of
from ringd.wire.link.bounds import MAX_CHANNELS, MAX_MEMBERS
from ringd.wire.link.control import Closed, Done, Joined, Left, Opened


@dataclass(slots=True)
class Group:
    """A named communicator: who takes part now."""

    name: str
    present: dict[Place, Joined] = field(default_factory=dict)
    """As last heard in this generation."""
    local: dict[int, Seat] = field(default_factory=dict)
    """By local rank."""


@dataclass(slots=True, eq=False)
class Roll:
    """Gives clients their seats, forms their sessions, and ends their stays.

    Invariant: a group has one local seat at most for each local rank; a seat is known by its join
    id until it is finished, and by its gid as long as its session is formed.
    """

    mail: Mail
    absences: Absences
    up: bool = False
    """Whether the ring is."""
    groups: dict[str, Group] = field(default_factory=dict)
    seats: dict[int, Seat] = field(default_factory=dict)
    """All local ones by join id, those that are winding up included."""
    _by_group: dict[str, dict[int, Seat]] = field(default_factory=dict)
    """The same by the group's name: what is said of one group costs nothing for thousands."""
    by_gid: dict[int, dict[int, Seat]] = field(default_factory=dict)
    """Likewise, of formed sessions, by rank."""
    winding_up: dict[int, Seat] = field(default_factory=dict)
    """Those whose client left, by join id."""
    _heard: Counter[int] = field(default_factory=Counter)
    """Bytes that it costs to know of the programs that are present, by member."""

    def full(self, member: int, message: Joined) -> bool:
        """Whether *member* has as many programs in groups as are kept, and no room for another."""
        return self._heard[member] + cost(message) > MOST_HEARD

    def _put(self, group: Group, place: Place, message: Joined) -> None:
        """Keep *message* as the word on the program at *place*."""
        known = group.present.get(place)
        self._heard[place[0]] += cost(message) - (0 if known is None else cost(known))
        group.present[place] = message

    def _drop(self, group: Group, place: Place) -> None:
        known = group.present.pop(place, None)
        if known is not None:
            self._heard[place[0]] -= cost(known)

    def _group(self, name: str) -> Group:
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = Group(name)
        return group

    def of_group(self, name: str) -> list[Seat]:
        """Return the seats in a group, and the ends of its channels."""
        return list(self._by_group.get(name, {}).values())

    def _add(self, seat: Seat) -> None:
        self.seats[seat.join_id] = seat
        self._by_group.setdefault(seat.group, {})[seat.join_id] = seat

    def _remove(self, seat: Seat) -> None:
        del self.seats[seat.join_id], self.winding_up[seat.join_id]
        known = self._by_group[seat.group]
        del known[seat.join_id]
        if not known:
            del self._by_group[seat.group]

    def local(self, group: str, local_rank: int = 0) -> Seat | None:
        """Return the seat of a client here that takes part in *group*."""
        known = self.groups.get(group)
        return None if known is None else known.local.get(local_rank)

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

    def objection(self, group: str, part: Part) -> str:
        """Return why a client here cannot take this part beside those that do; empty if it can."""
        known = self.groups.get(group)
        for seat in () if known is None else known.local.values():
            other = seat.session.part
            if seat.caller.client is None or other.local_rank == part.local_rank:
                continue
            others = (
                f"group {group!r} on {self.mail.ring.name!r}: the program with local rank "
                f"{other.local_rank} says"
            )
            if other.local_size != part.local_size:
                return (
                    f"{others} local_size={other.local_size}, "
                    f"this one says local_size={part.local_size}"
                )
            if other.takes != part.takes:
                return (
                    f"{others} that {self._takers(other)} take part, "
                    f"this one says {self._takers(part)}"
                )
        return ""

    def _takers(self, part: Part) -> str:
        names = self.mail.ring.names
        if not part.members:
            return "all members"
        shown = part.members[:MAX_MEMBERS]  # by rank there may be thousands
        return ", ".join(names[member] for member in shown if member < len(names))

    # --- local clients ----------------------------------------------------------------

    def admit(self, seat: Seat, session: Peers) -> None:
        """Take *seat* in; its client was told by a former daemon that *session* are its peers."""
        self._replace_holder(seat)
        group = self._group(seat.group)
        self._add(seat)
        group.local[seat.session.part.local_rank] = seat
        seat.caller.tell_accepted()
        if self.up:
            seat.introduce()  # as unformed yet, which those who count on it answer
        if seat.session.may_be(session):
            seat.pledged = True
            self._form(seat, session)
        self._note_present(group, seat)
        if not seat.session.formed:
            self._try_form(group, seat)

    def _note_present(self, group: Group, seat: Seat) -> None:
        place = self.mail.ring.rank, seat.session.part.local_rank
        self._put(group, place, seat.session.joined)

    def _replace_holder(self, seat: Seat) -> None:
        """The client of *seat* takes the place of any other with its local rank in its group."""
        local_rank = seat.session.part.local_rank
        holder, before = self.local(seat.group, local_rank), seat.before
        if holder is not None:
            known = before.loss if before.join_id == holder.join_id else ""
            self.leave(holder, known or self.says("left the group and joined it anew", holder))
        for notice in self.absences.taken(seat.group, seat.join_id, local_rank, before):
            self._say_gone(notice)

    def leave(self, seat: Seat, message: str) -> None:
        """The client of *seat* takes part no more."""
        part = seat.session.part
        if seat.left is None:
            left = seat.leave(message)
            if self.up:
                self.mail.announce(left, seat.session.gid, beside=part.local_size > 1)
            for stay in (seat, *seat.channels.values()):
                self.winding_up[stay.join_id] = stay
                stay.polls.answer_early()
        group = self.groups.get(seat.group)
        if group is not None and group.local.get(part.local_rank) is seat:
            del group.local[part.local_rank]
            self._drop(group, (self.mail.ring.rank, part.local_rank))
            self._tidy(group)

    def give_up(self, seat: Seat, message: str) -> None:
        """As :meth:`leave`, of a client that is not there any more to hear how its calls end."""
        self.leave(seat, message)
        for stay in (seat, *seat.channels.values()):
            stay.abandon()

    def says(self, reason: str, seat: Seat | None = None) -> str:
        """Return what the members read of a client here, of *seat* if it has one."""
        return client_on(
            self.mail.ring.name, reason, "" if seat is None else which_of(seat.session)
        )

    def drop_finished(self) -> None:
        """Drop seats whose client left and of which nobody needs anything any more."""
        for seat in list(self.winding_up.values()):
            if seat.left is None or not seat.finished:
                continue
            session = seat.session
            if self.up:
                seat.ledger.flush()
            seat.calls.drop()
            self._remove(seat)
            self._forget_session(seat)
            if isinstance(seat, Channel):
                del seat.parent.channels[seat.key]
                seat.tell_forgotten()
            else:
                self.absences.remember(session.gid, session.view.rank, seat.left)

    def _forget_session(self, seat: Seat) -> None:
        gid = seat.session.gid
        known = self.by_gid.get(gid)
        if known is not None:
            known.pop(seat.session.view.rank, None)
            if not known:
                del self.by_gid[gid]

    def _tidy(self, group: Group) -> None:
        """Forget a group in which nobody is."""
        if not (group.local or group.present):
            self.groups.pop(group.name, None)

    def open(self, channel: Channel) -> None:
        """A client here opens its end of a channel."""
        self._add(channel)
        channel.parent.knocks.pop(channel.session.gid, None)
        channel.parent.channels[channel.key] = channel
        session = channel.session
        self.by_gid.setdefault(session.gid, {})[session.view.rank] = channel
        if self.up:
            channel.introduce()

    def opened(self, origin: int, rank: int, gid: int, message: Opened, now: float) -> None:
        """The other end of a channel is open, whose end here is not, or not any more."""
        ring = self.mail.ring
        if message.place != ring.rank:
            return  # only on its way
        session = peers(
            message.join_ids, (ring.rank, origin) if rank else (origin, ring.rank), ring.size
        )
        if session is None or rank not in {0, 1}:
            self.mail.out.append(Dropped("a channel that cannot be"))
            return
        own = session.join_ids[1 - rank]
        seat = self.seats.get(own)
        if seat is not None and seat.left is None:
            if len(seat.knocks) < MAX_CHANNELS:
                seat.knocks[gid] = 1 - rank, origin  # our client has yet to open it
            self.answer_knocks(seat)
            return
        left = self.absences.last_words(own) if seat is None else seat.left
        if left is not None:
            self._close(gid, 1 - rank, origin, (left.code, left.message))
            return
        # Of a stay that is over elsewhere its channels alone may be left to ask for ours.
        group = self.groups.get(message.group)
        here = () if group is None else group.local.values()
        before = next((local.before for local in here if local.before.join_id == own), None)
        number = session_number(message.group, session.join_ids)
        self._say_gone(
            self.absences.counted_on(message.group, session, number, 1 - rank, None, before, now)
        )

    def answer_knocks(self, seat: Seat) -> None:
        """Tell those who wait for a channel that our client can open no more: its stay is over.

        Calls that were made before go on in that stay, and may wait for whoever waits for us.
        """
        if seat.calls.limit is not None:
            for gid, (rank, origin) in seat.knocks.items():
                self._close(gid, rank, origin, seat.calls.loss)
            seat.knocks.clear()

    def _close(self, gid: int, rank: int, origin: int, loss: tuple[str, str]) -> None:
        """Tell the other end of a channel, on member *origin*, that this one will not be opened."""
        closed = Closed(0, *loss, forgotten=True)
        if origin == self.mail.ring.rank:
            self.mail.say_beside(rank, gid, closed)
        else:
            self.mail.out.append(Broadcast(gid, 0, closed, b"", rank, origin))

    # --- the ring ---------------------------------------------------------------------

    def ring_up(self) -> None:
        """A new generation: introduce our clients again, those that are winding up first."""
        self.up = True
        for seat in sorted(self.seats.values(), key=lambda seat: seat.left is None):
            seat.introduce()
            if seat.session.formed and seat.session.live:  # alone in the ring
                seat.go_live()
        for group, seat in self._free_seats():
            self._try_form(group, seat)

    def _free_seats(self) -> Iterator[tuple[Group, Seat]]:
        for group in list(self.groups.values()):
            for seat in list(group.local.values()):
                yield group, seat

    def ring_down(self) -> None:
        """The ring broke: of the other members nothing is known any more."""
        self.up = False
        self._heard.clear()
        for group in list(self.groups.values()):
            group.present.clear()
            for seat in group.local.values():
                self._note_present(group, seat)
            self._tidy(group)

    def joined(self, origin: int, message: Joined, now: float) -> None:
        """A client of member *origin* joined, or is introduced again.

        The order matters: a local client may form its session with it, and its seat is then
        one of those that count on it.
        """
        session = peers(message.session, message.places, self.mail.ring.size)
        if session is None or not Part.of(message).sound(self.mail.ring.size):
            self.mail.out.append(Dropped("a session that cannot be"))
            return
        if self.full(origin, message):
            self.mail.out.append(Dropped("more programs of one member than are kept"))
            return
        group = self._group(message.group)
        self._put(group, (origin, message.local_rank), message)
        if session:
            self._check_absent(group, session, now)
        for seat in list(group.local.values()):
            self._try_form(group, seat)
        for seat in self.of_group(message.group):
            if (rank := seat.session.peers.rank_of(message.join_id, origin)) is None:
                continue
            if not isinstance(seat, Channel):
                self._meet(group, seat, rank, session)
            elif session and seat.parent.join_id not in session.join_ids:
                seat.peer_is_elsewhere()

    def _meet(self, group: Group, seat: Seat, rank: int, session: Peers) -> None:
        """A client that *seat* counts on says in which session it is."""
        if session == seat.session.peers:
            if seat.session.confirm(rank):
                seat.go_live()
        elif not session:  # back after a restart: it has to learn where it is
            seat.introduce()
            local = group.local.get(seat.session.part.local_rank)
            if seat.left is not None and local is not None:
                local.introduce()  # has the last word on who is here

    def _check_absent(self, group: Group, session: Peers, now: float) -> None:
        """Others count on a session: if we have no part in it, they must hear so in the end.

        They would wait for good otherwise, as only this daemon can tell that its client is gone.
        """
        gid = 0
        for local_rank, rank in enumerate(session.on(self.mail.ring.rank)):
            if session.join_ids[rank] not in self.seats:
                gid = gid or session_number(group.name, session.join_ids)
                local = group.local.get(local_rank)
                before = None if local is None else local.before
                self._say_gone(
                    self.absences.counted_on(
                        group.name, session, gid, rank, local_rank, before, now
                    )
                )

    def give_up_absent(self, now: float, reason: str) -> None:
        """Tell the others of clients that did not come back until *now*."""
        for notice in self.absences.overdue(now, reason):
            self._say_gone(notice)

    def _say_gone(self, notice: Notice | None) -> None:
        """A client left and its calls are forgotten here, so we need nobody's input for them."""
        if self.up and notice is not None:
            mail, left = self.mail, notice.left
            mail.announce(left, notice.gid, beside=True)
            done, ring = Done(left.submitted), mail.ring
            if ring.size > 1:
                mail.out.append(Broadcast(notice.gid, 0, done, b"", notice.rank, ring.until))
            mail.say_beside(notice.rank, notice.gid, done)

    def peer_left(self, origin: int, gid: int, message: Left) -> None:
        """A client of member *origin* takes part no more.

        Only session *gid* had calls of it: any other session that counts on it never went live
        there.
        """
        self.absences.peer_left(origin, message)
        group = self._group(message.group)
        # By key, as there may be tens of thousands.
        submitted_there = {(a, b, tag): number for a, b, tag, number in message.channels}
        for place, there in list(group.present.items()):
            if place[0] == origin and there.join_id == message.join_id:
                self._drop(group, place)
        for seat in self.of_group(message.group):
            rank = seat.session.peers.rank_of(message.join_id, origin)
            if rank is None or rank == seat.session.view.rank:
                continue
            if isinstance(seat, Channel):
                seat.end_with(rank, message, submitted_there.get(seat.key, 0))
            else:
                submitted = message.submitted if seat.session.gid == gid else 0
                self._part(group, seat, rank, submitted, message)
        self._tidy(group)

    def _part(self, group: Group, seat: Seat, rank: int, submitted: int, left: Left) -> None:
        """A client that *seat* counts on left: that ends the session, or it never began."""
        if submitted == 0 and not seat.pledged and seat.calls.limit is None:
            self._unform(group, seat)
        else:
            seat.peer_left(rank, submitted, left.code, left.message)
            self.answer_knocks(seat)

    # --- sessions ---------------------------------------------------------------------

    def _unform(self, group: Group, seat: Seat) -> None:
        """Nothing was done in the session and one of its members is gone: wait for another.

        The other members give it up for the same reason, so they count as free from now on.
        """
        given_up = seat.session.peers
        for place, there in list(group.present.items()):
            if there.session == given_up.join_ids:
                free = msgspec.structs.replace(there, session=(), places=())
                self._put(group, place, free)
        self._forget_session(seat)
        seat.unform()
        seat.introduce()

    def _try_form(self, group: Group, seat: Seat) -> None:
        """Form the session of *seat*, if others count on one or all are free for one."""
        session = seat.session
        if not self.up or session.formed or seat.calls.limit is not None or seat.left is not None:
            return
        ring, part = self.mail.ring, session.part
        own = ring.rank, part.local_rank
        for place, there in group.present.items():
            if place == own or seat.join_id not in there.session:
                continue
            counted = peers(there.session, there.places, ring.size)
            if counted and session.may_be(counted):
                self._form(seat, counted)
                return
        ranks = expected(part, group.present, ring.size)
        there_by_rank = [group.present.get(place) for place in ranks]
        if conflict := self.conflict(seat):
            seat.calls.refuse_open(conflict)
        elif all(there and not there.session for there in there_by_rank) and own in ranks:
            join_ids = tuple(there.join_id for there in there_by_rank if there)
            self._form(seat, Peers(join_ids, tuple(place[0] for place in ranks)))

    def look_for_conflict(self, seat: Seat) -> None:
        """End the calls of *seat* if the programs of its group disagree on who they are."""
        if conflict := self.conflict(seat):
            seat.calls.refuse_open(conflict)

    def conflict(self, seat: Seat) -> str:
        """Return on what the programs of a group disagree, so that it cannot form; empty if not."""
        group = self.groups.get(seat.group)
        if group is None or seat.session.formed or len(group.present) == 1:
            return ""
        ring, part = self.mail.ring, seat.session.part
        for (member, _), there in group.present.items():
            other = Part.of(there)
            if other.takes != part.takes:
                said = sorted([(ring.rank, self._takers(part)), (member, self._takers(other))])
                words = ", ".join(f"{takers} on {ring.names[at]!r}" for at, takers in said)
                return shorten(
                    f"the programs of group {group.name!r} disagree on who takes part: {words}",
                    MAX_TEXT,
                )
        return ""

    def _form(self, seat: Seat, session: Peers) -> None:
        seat.form(session)
        self.by_gid.setdefault(seat.session.gid, {})[seat.session.view.rank] = seat
        if self.up:
            seat.introduce()
        if len(session.join_ids) == 1:
            seat.go_live()


def stay_of(seat: Seat) -> Seat:
    """Return the stay that *seat* belongs to: itself, unless it is an end of a channel."""
    return seat.parent if isinstance(seat, Channel) else seat
