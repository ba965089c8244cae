"""The groups of one daemon: joins, sessions, and the routing of events to them.

Pure: events come in as method calls with the time passed in, and each returns the list of
actions that follow. The daemon carries them out and owns all memory, sockets and clocks.

How members meet: a client that attaches is broadcast as :class:`~ringd.wire.control.Joined`.
Whoever knows a join of every member that is free forms the session and says so; it goes live
where all members have been heard to be in it, and as messages travel one way round a FIFO ring,
no offer finds a member that does not know its session. In a new generation all joins are
broadcast again, with their sessions. A restarted daemon learns the session of a client that
comes back from the others, who count on it, or from the client, which knows its number once it
has seen an outcome. Whoever is counted on in a session without being in it says so.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

from ringd.errors import GroupLost, PeerLost, Refused
from ringd.groups.actions import Accept, Action, Broadcast, Deny, Dropped, Free, Relay, Warn
from ringd.groups.op import Op, Submission
from ringd.groups.session import Session, session_number
from ringd.wire.control import Done, GroupMessage, Joined, Left, Offer, Poll, Verdict

LAZY = 0.02
"""Seconds until news on finished ops is sent by itself when no offer has carried it."""

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
class Engine:
    """All groups, as rank *rank* of the members *names* sees them."""

    rank: int
    names: tuple[str, ...]
    stall_warning: float = 10.0
    reattach: float = 10.0
    window: int = 1024

    up: bool = False
    broken: str = ""
    """Why the ring is down, once it was up."""
    groups: dict[str, Group] = field(default_factory=dict)
    joins: dict[int, Session] = field(default_factory=dict)
    """All local sessions by join id, those that are winding up included."""
    by_gid: dict[int, Session] = field(default_factory=dict)
    absent: dict[int, Absent] = field(default_factory=dict)
    _out: list[Action] = field(default_factory=list)
    _deadlines: list[tuple[float, int, int]] = field(default_factory=list)
    _stalls: list[tuple[float, int, int]] = field(default_factory=list)
    _lazy_due: float | None = None
    _polls: int = 0
    _leavers: OrderedDict[int, tuple[int, Left]] = field(default_factory=OrderedDict)
    """The last words on clients that left, by join id, with their session."""

    # --- the clients' side ------------------------------------------------------------

    def attach(
        self,
        client: Hashable,
        *,
        group: str,
        join_id: int,
        released: int,
        on_loss: str,
        now: float,
        next_seq: int = 0,
        session_number: int = 0,
    ) -> list[Action]:
        """A client joins *group*, anew or (with the same join id) after this daemon restarted.

        *next_seq* is the number of its next new op; *session_number* is what came with the
        outcomes it has seen (:class:`~ringd.groups.actions.Report` and ``Seal``), or 0.
        """
        place = self.groups.get(group)
        holder = place.local if place else None
        if holder is not None and holder.client is not None and holder.client != client:
            text = (
                f"group {group!r} has a client on {self.names[self.rank]!r} already; "
                "close that one first or use another group name"
            )
            return self._deny(client, join_id, Refused.code, text)
        if join_id in self.joins or join_id in self._leavers:
            text = f"join id {join_id} of group {group!r} is used up; join anew"
            return self._deny(client, join_id, GroupLost.code, text)
        if holder is not None:
            self._leave(holder, GroupLost.code, self._says("left the group and joined it anew"))
        self.absent.pop(join_id, None)
        for other, absent in list(self.absent.items()):
            if absent.group == group:
                self._give_up(other, absent, "was replaced by another")
        place = self._group(group)
        session = Session(
            group=group,
            join_id=join_id,
            client=client,
            on_loss=on_loss,
            released=released,
            touched=next_seq > 0,
            expected=session_number,
            rank=self.rank,
            names=self.names,
            out=self._out,
        )
        self.joins[join_id] = session
        place.local = session
        place.present[self.rank] = Joined(group, join_id, ())
        self._out.append(Accept(client, join_id))
        if self.up:
            self._introduce(session)
            self._try_form(place)
        return self._flush(now)

    def submit(
        self,
        client: Hashable,
        join_id: int,
        submission: Submission,
        *,
        acked: int,
        outcome: str,
        message: str,
        now: float,
    ) -> list[Action]:
        """A client hands over its next op, or one again, which is harmless."""
        session = self.joins.get(join_id)
        if session is None or session.client != client or session.left is not None:
            return self._turn_down(client, join_id, submission, "attach to the group first")
        session.ack(acked)
        seq = submission.seq
        objection = self._objection(session, submission, outcome)
        if objection:
            return self._turn_down(client, join_id, submission, objection)
        if seq < session.next_seq:
            self._out += (Dropped("submitted twice"), Free(submission))
            return self._flush(now)
        if session.on_loss == "fail" and self.broken and not self.up and not outcome:
            self._fail(session)
        session.submit(submission, outcome, message, now)
        op = session.ops.get(seq)
        if op is not None and not op.ended:
            if submission.deadline is not None:
                heapq.heappush(self._deadlines, (submission.deadline, join_id, seq))
            heapq.heappush(self._stalls, (now + self.stall_warning, join_id, seq))
        return self._flush(now)

    def _turn_down(
        self, client: Hashable, join_id: int, submission: Submission, text: str
    ) -> list[Action]:
        self._out.append(Free(submission))
        return self._deny(client, join_id, Refused.code, text)

    def _objection(self, session: Session, submission: Submission, outcome: str) -> str:
        """Return what is wrong with *submission*; empty when it is the next op or a known one."""
        seq = submission.seq
        name = f"op {seq} of group {session.group!r}"
        op = session.ops.get(seq)
        known = op.submission if op is not None else None
        if known is not None and known.call != submission.call:
            return f"{name} was submitted as {known.call} and now as {submission.call}"
        if seq > session.next_seq:
            return f"{name} skips op {session.next_seq}"
        if seq - session.floor >= self.window:
            return (
                f"group {session.group!r} has {self.window} open ops already; "
                "wait for some, or raise ipc.window"
            )
        if submission.hold and not submission.sealed and not outcome:
            return f"{name} lends its input, but has no sealed target"
        return ""

    def detach(self, client: Hashable, reason: str, now: float) -> list[Action]:
        """A client left its group in good order, or is gone; *reason* completes a sentence."""
        for session in list(self.joins.values()):
            if session.client == client:
                self._leave(session, GroupLost.code, self._says(reason))
                session.abandon()
        return self._flush(now)

    # --- the ring's side --------------------------------------------------------------

    def ring_up(self, now: float) -> list[Action]:
        """A new generation: introduce our clients again, those that are winding up first."""
        self.up = True
        for session in sorted(self.joins.values(), key=lambda session: session.left is None):
            self._introduce(session)
            if session.formed and session.live:  # alone in the ring
                session.go_live()
        for group in list(self.groups.values()):
            self._try_form(group)
        return self._flush(now)

    def ring_down(self, reason: str, now: float) -> list[Action]:
        """The ring broke: all ops go back to where they can be run again."""
        self.up = False
        self.broken = reason
        for group in list(self.groups.values()):
            group.present = [None] * len(self.names)
            if group.local is not None:
                joined = Joined(group.name, group.local.join_id, group.local.join_ids)
                group.present[self.rank] = joined
            self._tidy(group)
        for session in list(self.joins.values()):
            session.suspend(reason)
            if session.on_loss == "fail" and session.waits:
                self._fail(session)
        return self._flush(now)

    def received(  # noqa: PLR0917 - called for every message, and keywords cost time
        self,
        origin: int,
        gid: int,
        seq: int,
        message: GroupMessage,
        payload: bytes | memoryview,
        now: float,
    ) -> list[Action]:
        """A message of rank *origin* came round."""
        if isinstance(message, Joined):
            self._joined(origin, message, now)
            return self._flush(now)
        if isinstance(message, Left):
            self._left(origin, gid, message)
            return self._flush(now)
        session = self.by_gid.get(gid)
        if session is None:
            self._out.append(Dropped("of a session unknown here"))
            if isinstance(message, Poll) and origin != self.rank:
                self._out.append(Relay(origin, gid, seq, message))
        elif isinstance(message, Offer):
            session.offered(origin, seq, message, payload, now)
        elif isinstance(message, Done):
            session.peer_done(origin, message.floor)
            if message.finished is not None:
                session.peer_finished(origin, message.finished)
        elif isinstance(message, Poll):
            session.polled(origin, seq, message, now)
        else:
            assert isinstance(message, Verdict)  # noqa: S101 - tells mypy that nothing else is left
            session.judged(seq, message, now)
        return self._flush(now)

    def finished(self, gid: int, seq: int, now: float) -> list[Action]:
        """The computation that a Run asked for is through."""
        session = self.by_gid[gid]
        session.finished(seq)
        return self._flush(now)

    # --- time -------------------------------------------------------------------------

    @property
    def next_deadline(self) -> float | None:
        """When :meth:`tick` wants to be called next; None for not at all."""
        times = [heap[0][0] for heap in (self._deadlines, self._stalls) if heap]
        times += [absent.due for absent in self.absent.values()]
        if self._lazy_due is not None:
            times.append(self._lazy_due)
        return min(times, default=None)

    def tick(self, now: float) -> list[Action]:
        """Time has passed: deadlines, stall warnings, lazy news, clients that stayed away."""
        if self._lazy_due is not None and now >= self._lazy_due:
            self._lazy_due = None
            for session in list(self.joins.values()) if self.up else ():
                session.flush()
        for op, session in self._due(self._deadlines, now):
            self._polls += 1
            poll_id = self._polls * len(self.names) + self.rank
            session.expire(op, poll_id, self.waiting_for(session, op))
        for op, session in self._due(self._stalls, now):
            if not op.warned and op.submission is not None:
                op.warned = True
                missing = self.waiting_for(session, op)
                age = now - op.since
                self._out.append(Warn(session.group, op.seq, op.submission.call, age, missing))
        for join_id, absent in list(self.absent.items()):
            if now >= absent.due:
                self._give_up(join_id, absent, "did not come back after its daemon restarted")
        return self._flush(now)

    def _due(self, heap: list[tuple[float, int, int]], now: float) -> list[tuple[Op, Session]]:
        due = []
        while heap and heap[0][0] <= now:
            _, join_id, seq = heapq.heappop(heap)
            session = self.joins.get(join_id)
            op = session.ops.get(seq) if session else None
            if session is not None and op is not None and not op.ended:
                due.append((op, session))
        return due

    def waiting_for(self, session: Session, op: Op) -> str:
        """Return in words for whom *op* waits."""
        if not self.up:
            return f"the ring is not up{': ' + self.broken if self.broken else ''}"
        if not session.formed:
            present = self._group(session.group).present
            absent = [
                name
                for name, joined in zip(self.names, present, strict=True)
                if (joined is None or joined.session) and name != self.names[self.rank]
            ]
            return "no client in the group on: " + ", ".join(absent)
        return session.waiting_for(op)

    # --- joining and leaving ----------------------------------------------------------

    def _group(self, name: str) -> Group:
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = Group(name, [None] * len(self.names))
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
        session.flush()

    def _joined(self, origin: int, message: Joined, now: float) -> None:
        if message.session and len(message.session) != len(self.names):
            self._out.append(Dropped("of a ring of another size"))
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

    def _check_absent(self, group: Group, join_ids: tuple[int, ...], now: float) -> None:
        """Others count on a session; do we have our part in it?"""
        ours = join_ids[self.rank]
        if ours in self.joins or ours in self.absent:
            return
        gid = session_number(group.name, join_ids)
        if ours in self._leavers:
            left_gid, left = self._leavers[ours]
            if left_gid == gid:
                self._say_gone(gid, left)
                return
        absent = Absent(group.name, join_ids, now + self.reattach)
        if group.local is not None or ours in self._leavers:
            self._give_up(ours, absent, "was replaced by another")
        else:
            self.absent[ours] = absent

    def _give_up(self, join_id: int, absent: Absent, reason: str) -> None:
        self.absent.pop(join_id, None)
        gid = session_number(absent.group, absent.join_ids)
        left = Left(absent.group, join_id, 0, GroupLost.code, self._says(reason))
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
            if session.formed and session.join_ids[origin] == message.join_id:
                submitted = message.submitted if session.gid == gid else 0
                if submitted == 0 and not session.touched and session.limit is None:
                    self._unform(group, session)
                else:
                    session.cut(submitted, message.code, message.message)
        self._tidy(group)

    def _unform(self, group: Group, session: Session) -> None:
        """Nothing was done in *session* and one of its members is gone: wait for another."""
        for rank, joined in enumerate(group.present):
            if joined is not None and joined.session == session.join_ids:
                group.present[rank] = Joined(group.name, joined.join_id, ())
        self.by_gid.pop(session.gid, None)
        session.unform()
        self._introduce(session)

    def _fail(self, session: Session) -> None:
        session.fail_all(PeerLost.code, f"the ring broke: {self.broken}")

    def _leave(self, session: Session, code: str, message: str) -> None:
        if session.left is None:
            number = session.number
            left = session.leave(code, message)
            if self.up:
                self._out.append(Broadcast(number, 0, left))
        group = self._group(session.group)
        if group.local is session:
            group.local = None
            group.present[self.rank] = None
            self._tidy(group)

    def _try_form(self, group: Group) -> None:
        """Form the local client's session, if others count on one or all are free for one."""
        session = group.local
        if not self.up or session is None or session.formed or session.limit is not None:
            return
        others = [joined for rank, joined in enumerate(group.present) if rank != self.rank]
        for joined in others:
            if joined and joined.session and joined.session[self.rank] == session.join_id:
                self._form(session, joined.session)
                return
        if any(joined is None or joined.session for joined in others):
            return
        join_ids = tuple(
            session.join_id if joined is None else joined.join_id for joined in group.present
        )
        if session.expected in (0, session_number(group.name, join_ids)):
            self._form(session, join_ids)
        else:
            text = "went on without this one while its daemon was away"
            session.cut(0, GroupLost.code, f"the clients of group {group.name!r} {text}")

    def _form(self, session: Session, join_ids: tuple[int, ...]) -> None:
        session.form(join_ids)
        self.by_gid[session.gid] = session
        self._introduce(session)
        if len(join_ids) == 1:
            session.go_live()

    def _sessions(self, group: str) -> list[Session]:
        return [session for session in self.joins.values() if session.group == group]

    def _says(self, reason: str) -> str:
        return f"the client on {self.names[self.rank]!r} {reason}"

    # --- housekeeping -----------------------------------------------------------------

    def _deny(self, client: Hashable, join_id: int, code: str, text: str) -> list[Action]:
        self._out.append(Deny(client, join_id, code, text))
        return self._take()

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
            self._remember(session.number, session.left)

    def _tidy(self, group: Group) -> None:
        """Forget a group in which nobody is."""
        if group.local is None and not any(group.present):
            self.groups.pop(group.name, None)

    def _flush(self, now: float) -> list[Action]:
        self._bury()
        if self.up and self._lazy_due is None and any(session.lazy for session in self.joins.values()):
            self._lazy_due = now + LAZY
        return self._take()

    def _take(self) -> list[Action]:
        out = list(self._out)
        self._out.clear()
        return out
