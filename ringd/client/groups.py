"""All groups that share a connection: which message is for which, and which have something to send.

As for one group, an interrupt may end any step here, which is then done again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ringd import errors
from ringd.client.channel import Channel, Payload
from ringd.client.daemon import Daemon
from ringd.client.group import Group
from ringd.client.replies import HANDLERS
from ringd.client.session import Op
from ringd.wire.border.messages import Denied, Reply, RingState

_REMEMBERED = 64


class Groups:
    """The groups of one connection, with its *daemon*.

    A group is here from when it is to be joined until it has ended; what costs time for each group
    is done only when the daemon comes or goes, or a group begins or ends.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._all: dict[Group, None] = {}
        self.unsent: dict[Group, None] = {}
        """Those of which the daemon may lack something."""
        self._by_join_id: dict[int, Group] = {}
        """Where each was found last; a group has a new number when it joins anew."""

    def __iter__(self) -> Iterator[Group]:
        return iter(list(self._all))

    def __bool__(self) -> bool:
        return bool(self._all)

    def __contains__(self, group: Group) -> bool:
        return group in self._all

    def add(self, group: Group) -> None:
        """Take *group* in, and join it."""
        self.unsent[group] = None
        self._all[group] = None

    def remove(self, group: Group) -> None:
        """Forget *group*, which has ended; harmless where that is so."""
        self.unsent.pop(group, None)
        self._by_join_id.pop(group.session.join_id, None)
        self._all.pop(group, None)

    def of_name(self, group: Group) -> Group | None:
        """Return the one that has the place which *group* wants, if there is one."""
        wish = group.wish
        place = (wish.name, wish.local_rank)
        others = (other for other in self if other is not group and not other.left)
        return next((o for o in others if (o.name, o.wish.local_rank) == place), None)

    # --- the daemon comes and goes ----------------------------------------------------

    def install(self, channel: Channel) -> None:
        """A daemon is there: take our places in it, and offer what is unfinished."""
        daemon = self._daemon
        for group in self:
            group.install()
            self.unsent[group] = None
        daemon.installed(channel)
        self.push()

    def lose(self, channel: Channel) -> None:
        """The daemon is gone; harmless if that is known."""
        daemon = self._daemon
        if daemon.channel is not channel:
            return
        daemon.ended(channel)
        self._lose_peer(f"this machine's daemon ({channel.path}) went away")
        for group in self:
            group.parted = group.left
        daemon.channel = None  # last: all else is done again until that is so

    def report_absence(self) -> None:
        """The daemon has been away for so long that also calls made since then are lost."""
        self._lose_peer(f"this machine's daemon is away ({self._daemon.trouble})")

    def report_silence(self, channel: Channel, seconds: float) -> None:
        """The daemon has not answered for so long that it counts as lost; it may be back yet.

        What was sent to it would pile up unread until then, shared memory first of all.
        """
        self._daemon.missed()
        text = f"this machine's daemon ({channel.path}) has not answered for {seconds:g} s"
        self._lose_peer(f"{text} (is it stopped?)")

    def _lose_peer(self, text: str) -> None:
        for group in self:
            group.lose_peer(text)

    def refuse(self, error: errors.RingError | None) -> None:
        """No daemon can be had, for those that have waited for their first one."""
        for group in self:
            if not group.accepted:
                group.refusal = error

    # --- what all of them have --------------------------------------------------------

    @property
    def fail_on_loss(self) -> bool:
        """Whether a loss ends the open calls of some of them at once."""
        return any(group.fails_on_loss for group in self)

    @property
    def have_ops(self) -> bool:
        """Whether any has calls that are not finished everywhere."""
        return any(group.session.ops for group in self)

    @property
    def wait_for_room(self) -> bool:
        """Whether something waits here for the daemon, which is there.

        For room, for it to let us in, or to read what it was sent before.
        """
        return self._daemon.channel is not None and (bool(self.unsent) or self._daemon.full)

    @property
    def next_try(self) -> float:
        """When something may be sent that could not be before; infinite where no time is known."""
        times = [group.not_before for group in list(self.unsent)]
        return min((time for time in times if time > 0), default=math.inf)

    def leave_marked_inputs(self) -> bool:
        """Leave the inputs of all calls that nobody can wait for any more; whether it was done."""
        left = [group.leave_inputs(marked=True) for group in self]
        return all(left)

    # --- messages ---------------------------------------------------------------------

    def submit(self, group: Group, op: Op, then: Op | None = None) -> bool | None:
        """Take a call into *group*; return whether it is sent, and None if there can be none now.

        *then*: a second one, which belongs to it.

        Raises:
            RingError: why the call cannot be made; see :meth:`Group.room`.
        """
        session = group.room(0 if op.payload is None else len(op.payload))
        if session is None:
            return None
        self.unsent[group] = None
        sent = group.submit(session, op, then)
        if sent:
            self.unsent.pop(group, None)
        return sent

    def push(self) -> None:
        """Send what the daemon lacks and has room for."""
        for group in list(self.unsent):
            if group.push():
                self.unsent.pop(group, None)

    def meet(
        self, channel: Channel, join_id: int, members: tuple[int, ...], places: tuple[int, ...]
    ) -> None:
        """Take in what the daemon said over the lifeline: who our peers are, or that it lives."""
        if self._daemon.silent:
            self.install(channel)
        group = self._find(join_id)
        if group is not None:
            group.meet(members, places)

    def receive(self, reply: Reply, payload: Payload | None) -> None:
        """Take in a message from the daemon."""
        daemon = self._daemon
        join_id = getattr(reply, "join_id", 0)
        group = self._by_join_id.get(join_id)
        if group is None or group.session.join_id != join_id:
            group = self._find(join_id)
        if group is not None:
            HANDLERS[type(reply)](daemon, group, reply, payload)
            session, channel = group.session, daemon.channel
            let_in = session.taken_in_over is channel and session.answered_over is channel
            if session.sent < session.next_seq or not let_in:
                self.unsent[group] = None
        elif isinstance(reply, RingState):
            daemon.tells_of_the_ring(reply)
        elif isinstance(reply, Denied) and not join_id:
            for one in self:
                HANDLERS[type(reply)](daemon, one, reply, payload)
                self.unsent[one] = None

    def _find(self, join_id: int) -> Group | None:
        """Return the group that has *join_id* now."""
        for group in self._all if join_id else ():
            if group.session.join_id == join_id:
                if len(self._by_join_id) > 2 * len(self._all) + _REMEMBERED:
                    self._by_join_id.clear()  # most of it is out of date
                self._by_join_id[join_id] = group
                return group
        return None
