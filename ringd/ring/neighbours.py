"""This member's place in the ring: its two links, and the membership machine that they feed.

Turns sockets into events for the pure machine and carries out its actions; passes group
messages on round the ring; hands bulk chunks between the links and :class:`Bulk`. Knows no
client.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from functools import partial
from typing import Protocol

import structlog

from ringd.collective.eager import EagerRule
from ringd.config.settings import Config
from ringd.loop import Loop, Timer
from ringd.membership import machine as membership
from ringd.membership.machine import Machine, Side
from ringd.net.link import Cause, Link
from ringd.net.smallcalls import SmallCalls
from ringd.observe.counters import Counters
from ringd.observe.pacedlog import PacedLog
from ringd.observe.recorder import Recorder
from ringd.ring.blackhole import LITTLE, BlackHole
from ringd.ring.bulk import OPPOSITE, Bulk
from ringd.ring.early import MOST, Early
from ringd.ring.homing import Homing
from ringd.ring.inquiry import Inquiries
from ringd.ring.namesakes import Namesakes
from ringd.ring.pace import AT_EASE, bytes_on_way
from ringd.ring.reach import Reach
from ringd.ring.state import State as Stored
from ringd.ring.state import StateFile
from ringd.ring.statewriter import StateWriter
from ringd.wire.link import control, frames, streams
from ringd.wire.link.bounds import MAX_INSTANCE
from ringd.wire.link.control import Ask, GroupMessage, Inquiry, MembershipMessage, Poll, Told
from ringd.wire.link.frames import FrameError, FrameType, Header
from ringd.wire.link.handshake import Peer
from ringd.wire.link.streams import StreamMessage


class Said(Protocol):
    """A group message that is to be sent."""

    @property
    def gid(self) -> int:
        """The session's number."""

    @property
    def seq(self) -> int:
        """The op's."""

    @property
    def message(self) -> GroupMessage:
        """What is said."""

    @property
    def payload(self) -> bytes | memoryview:
        """The tensor that goes with it."""

    @property
    def rank(self) -> int:
        """In the session: the sender's, or that of whoever asks."""

    @property
    def until(self) -> int:
        """The member at which its way ends."""

    @property
    def side(self) -> Side:
        """The neighbour who gets it."""

    @property
    def origin(self) -> int | None:
        """The member from which it comes, where it is passed on; None for this one."""


class RingUser(Protocol):
    """Who lives on the ring: the groups."""

    def ring_up(self, generation: int) -> None:
        """The ring formed."""

    def quiet(self) -> bool:
        """Whether nobody here would notice a short break."""

    def ring_down(self, reason: str) -> None:
        """The ring broke; nothing sent before will arrive any more."""

    def group_message(  # noqa: PLR0917 - as in a frame
        self,
        origin: int,
        rank: int,
        gid: int,
        seq: int,
        message: GroupMessage,
        payload: bytes | memoryview,
    ) -> None:
        """A message of *rank* in session *gid*, which is on member *origin*, came round."""


class StreamUser(Protocol):
    """Who has ends of streams here. Told after the groups."""

    def ring_up(self) -> None:
        """The ring formed."""

    def ring_down(self) -> None:
        """The ring broke; nothing sent before will arrive any more."""

    def stream_message(
        self, origin: int, number: int, offset: int, message: StreamMessage, data: memoryview
    ) -> None:
        """A message of a stream's other end came; *data* is valid only during the call."""


class Neighbours:
    """See the module's docstring. ``attach`` the user and the bulk side, then :meth:`start`."""

    def __init__(
        self,
        loop: Loop,
        config: Config,
        store: StateFile,
        recorder: Recorder,
        counters: Counters,
    ) -> None:
        self._loop = loop
        self._config = config
        self._sealed = config.ring.sealed  # asked for every message
        self._longest_eager = EagerRule.of(config.ops.eager_limit).longest
        self._store = store
        self.disk = StateWriter(loop, store, self._disk_lasts)
        """Where the generation is written to."""
        self._recorder = recorder
        self._counters = counters
        self._log = structlog.get_logger("ring")
        self._paced = PacedLog(self._log, loop)
        self.black_hole = BlackHole()
        """What the right links that were lost point to."""
        self._user: RingUser
        self._streams: StreamUser
        self._bulk: Bulk
        self.rank = config.rank
        self.size = config.size
        self.names = tuple(member.name for member in config.ring.members)
        self.machine = Machine(
            self.rank,
            self.size,
            store.state.incarnation,
            store.state.generation,
            names=self.names,
        )
        self.on_state: Callable[[str], None] = lambda _text: None
        """Told in words whenever the ring's state changes."""
        self.links: dict[Side, Link] = {}
        """Those that are up, by side; always the same dictionary."""
        self.inquiries = Inquiries(loop, self.rank, self.names, self._send, recorder.dump)
        """Questions to all members that can be reached."""
        self.namesakes = Namesakes(
            loop,
            self.links,
            rival=self.machine.rival,
            join=lambda: self._config.join,
            give_up=self._silent,
        )
        self._ends: dict[Side, Cause] = {}  # of the links before those that there are
        self._tick: Timer | None = None
        self._unsaved = ""  # why the state was not saved, the last time
        self._early = Early()
        self._small_calls = SmallCalls()
        self._tick_due: float | None = None
        self._reach: Reach | None = None
        if self.size > 1:
            instance = secrets.randbelow(MAX_INSTANCE - 1) + 1
            self._reach = Reach(
                loop,
                config,
                lambda: self.machine.incarnation,
                instance,
                self,
                judge=self.namesakes.judge,
                counters=counters,
            )

    def attach(self, user: RingUser, streams: StreamUser, bulk: Bulk) -> None:
        """Say who uses the ring."""
        self._user = user
        self._streams = streams
        self._bulk = bulk

    # --- life -------------------------------------------------------------------------

    def start(self) -> None:
        """Listen, dial, knock.

        Raises:
            RingError: An address cannot be bound.
        """
        if self._reach is not None:
            self._reach.start()
        self._perform(self.machine.start(self._loop.now()))

    def stop(self, reason: str) -> None:
        """Close everything, telling the neighbours why."""
        if self._reach is not None:
            self._reach.stop()
        if self._tick is not None:
            self._tick.cancel()
        for link in list(self.links.values()):
            link.close(reason, goodbye=True)
        self.links.clear()
        self._paced.stop()

    def drain(self) -> None:
        """Take no part in a new ring."""
        self._perform(self.machine.drain(self._loop.now()))

    def leave(self) -> None:
        """Leave the ring, and take part in none until :meth:`resume`."""
        self._recorder.note("drained")
        self._perform(self.machine.leave(self._loop.now()))

    def resume(self) -> None:
        """Take part again."""
        self._recorder.note("resumed")
        self._perform(self.machine.resume(self._loop.now()))

    def rejoin(self, why: membership.Event = membership.Event.REJOIN) -> None:
        """Drop the links, forget backoff, resolve names afresh and join again."""
        self._perform(self.machine.rejoin(self._loop.now(), why))
        if self._reach is not None:
            self._reach.renew()

    def reload(self, config: Config) -> None:
        """Use *config* from now on; the links are made anew if the key or addresses changed.

        Raises:
            RingError: A new address of this member cannot be bound; the old config stays.
        """
        anew = self._reach is not None and self._reach.reload(config)
        self._config = config
        self._sealed = config.ring.sealed
        if anew:
            self.rejoin(membership.Event.RELOAD)

    # --- links ------------------------------------------------------------------------

    def link_made(
        self, side: Side, sock: socket.socket, peer: Peer, address: str, leftover: bytes
    ) -> None:
        """A neighbour has proved to be one."""
        old = self.links.pop(side, None)
        if old is not None:
            old.close("replaced by a newer connection", "replaced")
            self._ended(old)
        if side in self._ends:
            self._counters.reconnects[side, self._ends.pop(side)] += 1
        join = self._config.join
        link = self.links[side] = Link(
            self._loop,
            sock,
            peer,
            side=side,
            address=address,
            handler=self,
            heartbeat=join.heartbeat,
            lost_after=join.lost_after,
            leftover=leftover,
            small_calls=self._small_calls,
        )
        self._paced.info(
            "link up",
            side=side,
            peer=peer.name,
            address=address,
            incarnation=peer.incarnation,
            protection=link.protection,
        )
        self._recorder.note("link up", side=side, peer=peer.name, address=address)
        if self._reach is not None:
            self._reach.forget_said()
            if side == "right":
                self._reach.linked(address, peer)
        self.namesakes.linked(side)
        self._perform(
            self.machine.link_up(
                side, peer.incarnation, address, self._loop.now(), instance=peer.instance
            )
        )

    def link_lost(self, link: Link, reason: str) -> None:
        """A neighbour is gone."""
        if self.links.get(link.side) is not link:
            return
        del self.links[link.side]
        self._ended(link)
        self._counters.links_lost[link.side, link.cause] += 1
        hint = self._way_lost(link)
        reason = f"{reason}; {hint}" if hint else reason
        self._paced.warning("link lost", side=link.side, peer=link.peer.name, reason=reason)
        self._recorder.note("link lost", side=link.side, peer=link.peer.name, reason=reason)
        self._perform(self.machine.link_down(link.side, reason, self._loop.now()))
        self._redial(link)

    def _ended(self, link: Link) -> None:
        """Count what *link* has carried, and remember why it ended."""
        self._ends[link.side] = link.cause
        self._counters.bytes_in[link.side] += link.bytes_in
        self._counters.bytes_out[link.side] += link.bytes_out

    def _way_lost(self, link: Link) -> str:
        """Return what the way itself may have to do with the loss of *link*, if anything."""
        if link.side == "left":  # it is the other end that sends what may be too large
            return ""
        return self.black_hole.lost(
            link.peer.instance,
            link.address,
            explained=link.explained,
            sent=link.bytes_out,
            undelivered=link.undelivered,
            now=self._loop.now(),
            lost_after=self._config.join.lost_after,
        )

    def _suspect(self, reason: str) -> str:
        """Add to why the ring broke what the way may have to do with that.

        Often the news of the other end, which cannot tell, is here before the link is lost.
        """
        hint = self.suspicion
        return f"{reason}; {hint}" if hint and hint not in reason else reason

    @property
    def suspicion(self) -> str:
        """What is suspected of the way to the right neighbour, until a link there refutes it."""
        link = self.links.get("right")
        refuted = link is not None and link.delivered >= LITTLE
        return "" if refuted else self.black_hole.hint

    def _redial(self, link: Link) -> None:
        if link.side == "right" and self._reach is not None:
            self._reach.redial()

    def quiet(self) -> bool:
        """Whether nobody here would notice a short break of the ring."""
        return self._user.quiet()

    @property
    def homing(self) -> Homing | None:
        """What moves the right link back to its preferred address; None in a ring of one."""
        return None if self._reach is None else self._reach.homing

    def dial_failed(self, address: str, reason: str) -> None:
        """The right neighbour could not be reached."""
        self._perform(self.machine.dial_failed(address, reason, self._loop.now()))

    def _silent(self, link: Link, reason: str) -> None:
        link.close(reason, "silent")
        self.link_lost(link, reason)

    def knocked(self, peer: Peer) -> None:  # noqa: ARG002 - the protocol's
        """The right neighbour is there: dial it, if there is no link to it."""
        if self._reach is not None:
            self._reach.hurry()

    # --- the machine ------------------------------------------------------------------

    def _perform(self, actions: list[membership.Action]) -> None:
        for action in actions:
            if isinstance(action, membership.Send):
                self._send(action.side, action.message)
            elif isinstance(action, membership.Ready):
                self._bulk.generation = action.generation
                self._counters.rings += 1
                self._user.ring_up(action.generation)
                self._streams.ring_up()
                self._catch_up()
            elif isinstance(action, membership.Broken):
                self._bulk.broke()
                self._user.ring_down(self._suspect(action.reason))
                self._streams.ring_down()
            elif isinstance(action, membership.Changed):
                self._paced.info(
                    "ring " + action.new.value,
                    was=action.old.value,
                    reason=action.reason,
                    generation=self.machine.generation,
                )
                self.on_state(f"{action.new.value}: {action.reason}")
            elif isinstance(action, membership.DropLinks):
                self._drop_links(action)
            else:
                self._persist(action)
        self._early.outlive(self.machine.entering)  # whatever broke the round, or the link
        self._arm()

    def _send(self, side: Side, message: MembershipMessage | Inquiry) -> None:
        link = self.links.get(side)
        if link is not None:
            payload = control.encode(message)
            sealed = self._sealed
            header = Header(
                FrameType.INQUIRY if isinstance(message, (Ask, Told)) else FrameType.MEMBERSHIP,
                length=len(payload),
                flags=0 if sealed else frames.CHECKSUM,
                payload_crc=0 if sealed else frames.checksum(payload),
            )
            link.send(header, payload)

    def _drop_links(self, action: membership.DropLinks) -> None:
        for side in action.sides:
            link = self.links.pop(side, None)
            if link is not None:
                link.close(action.reason, goodbye=True)
                self._ended(link)
                self._paced.info(
                    "link dropped", side=side, peer=link.peer.name, reason=action.reason
                )
                self._recorder.note(
                    "link dropped", side=side, peer=link.peer.name, reason=action.reason
                )
                self._redial(link)

    def _persist(self, action: membership.Persist) -> None:
        # 4 ms as a rule, 24 ms the worst of 200 (ext4 on a virtual disk), and seconds where the
        # disk is a bad one: the neighbours hear our heartbeats meanwhile.
        def done(error: OSError | None) -> None:
            now = self._loop.now()
            if error is None:
                self._unsaved = ""
                self._perform(self.machine.persisted(action.generation, now))
                return
            reason = f"{self._store.path}: {error.strerror}"
            if reason != self._unsaved:  # it is tried again every second
                self._log.error("state not saved", reason=reason)
            self._unsaved = reason
            self._perform(self.machine.persist_failed(reason, now))

        self.disk.save(Stored(action.generation, action.incarnation), done)

    def _disk_lasts(self, reason: str) -> None:
        self._perform(self.machine.persist_slow(reason, self._loop.now()))

    def _arm(self) -> None:
        """Let the loop call us at the machine's next deadline."""
        due = self.machine.next_deadline
        if due == self._tick_due:
            return
        self._tick_due = due
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        if due is not None:
            self._tick = self._loop.call_later(max(0.0, due - self._loop.now()), self._ticked)

    def _ticked(self) -> None:
        self._tick = self._tick_due = None
        self._perform(self.machine.tick(self._loop.now()))

    # --- frames -----------------------------------------------------------------------

    def send_group(self, said: Said) -> None:
        """Send a group message to a member, and those between; lost in a broken ring."""
        link, generation = self.links.get(said.side), self.machine.in_use
        if link is None or generation is None:
            return
        head, data = control.encode(said.message), said.payload
        if data:
            self._small_calls.group, self._small_calls.at = said.gid, self._loop.now()
        if self._config.ops.checksum:
            data = bytes(data)  # a program may write to it meanwhile, and spoil the link with that
        flags, crc = self._guard(head, data)
        header = Header(
            FrameType.GROUP,
            length=len(head) + len(data),
            generation=generation,
            group=said.gid,
            seq=said.seq,
            index=len(head),
            origin=self.rank if said.origin is None else said.origin,
            until=said.until,
            rank=said.rank,
            flags=flags,
            payload_crc=crc,
        )
        link.send(header, head, data)

    def send_stream(
        self, until: int, number: int, offset: int, head: bytes, data: bytes | memoryview
    ) -> None:
        """Send a message of a stream's end to the member *until*, the shorter way round.

        One without *data* overtakes those with some. Lost in a broken ring; and bytes also where so
        many wait as only a program here can have sent that ignores what is granted.
        """
        link = self.links.get(side := self._way(until))
        if link is None or not self.machine.in_ring:
            return
        if data and self._bulk.carries_too_much(side):
            return
        payload = head + data if data else head
        flags, crc = self._guard(head, data)
        header = Header(
            FrameType.STREAM,
            length=len(payload),
            generation=self.machine.generation,
            group=number,
            seq=offset,
            index=len(head),
            origin=self.rank,
            until=until,
            flags=flags,
            payload_crc=crc,
        )
        self._carry(side, header, payload)

    def _guard(self, head: bytes, data: bytes | memoryview) -> tuple[int, int]:
        """Return the flags and the checksum of a frame whose payload is *head*, then *data*.

        A garbled message could end an op wrongly; garbled bytes are the setting's business.
        """
        if self._sealed:
            return 0, 0
        crc = frames.checksum(head)
        if not data:
            return frames.CHECKSUM, crc
        if self._config.ops.checksum:
            return frames.CHECKSUM, frames.checksum(data, crc)
        return frames.MESSAGE_CHECKSUM, crc

    def _way(self, member: int) -> Side:
        """Return the shorter way to *member*; if both are as long, the one by which it sends."""
        rightwards = (member - self.rank) % self.size
        shorter = 2 * rightwards < self.size
        return (
            "right" if shorter or (2 * rightwards == self.size and self.rank < member) else "left"
        )

    def _carry(self, side: Side, header: Header, payload: bytes | memoryview) -> None:
        link = self.links.get(side)
        if link is None:
            return
        if header.length > header.index:
            self._bulk.carry(side, header, memoryview(payload))
            link.kick()
        else:
            link.send(header, payload)

    def frame_received(self, link: Link, header: Header, payload: memoryview) -> None:
        """Take a membership, group or stream frame from a neighbour."""
        if header.type is not FrameType.GROUP:
            self._take_other(link, header, payload)
            return
        if header.origin >= self.size or header.until >= self.size:
            raise FrameError("a group message of or to a member that there is not")
        if header.generation != self.machine.in_use and not self._is_of_now(link, header, payload):
            return
        message = control.decode_group(bytes(payload[: header.index]), self.size)
        data: memoryview | bytes = b""
        if header.length > header.index:
            data = payload[header.index :]
            if len(data) > self._longest_eager:
                raise FrameError(f"{len(data)} bytes of tensor in a message")
            self._small_calls.group, self._small_calls.at = header.group, self._loop.now()
        if not isinstance(message, Poll):  # a poll changes on its way and comes back
            if header.origin in (self.rank, header.until):
                raise FrameError("a group message that goes round to its sender")
            if header.until != self.rank and (onward := self.links.get(OPPOSITE[link.side])):
                onward.send(header, payload)
        self._user.group_message(
            header.origin, header.rank, header.group, header.seq, message, data
        )

    def _take_other(self, link: Link, header: Header, payload: memoryview) -> None:
        """Take what comes now and then."""
        try:
            if header.type is FrameType.MEMBERSHIP:
                message = control.decode_membership(payload)
                now = self._loop.now()
                self._perform(self.machine.received(link.side, message, now))
            elif header.type is FrameType.INQUIRY:
                inquiry = control.decode_inquiry(payload, self.size)
                self.inquiries.received(link.side, inquiry)
            elif header.type is FrameType.CREDIT:
                self._credit(link, header)
            else:
                self._stream_frame(link, header, payload)
        except control.DecodeError as error:
            raise FrameError(f"bad message: {error}") from None

    def _is_of_now(self, link: Link, header: Header, payload: memoryview) -> bool:
        """Whether a frame is of the ring's generation; one of the next one is kept for that."""
        if header.generation == self.machine.in_use:
            return True
        if header.generation == self.machine.entering:
            # Others were faster to write it down. What they say now would be kept in any case.
            if not self._early.keep(link, header, payload):
                self._lose(
                    link,
                    f"more than {MOST >> 20} MiB came for generation {header.generation} before "
                    f"it was on the disk ({self._store.path})",
                )
        else:
            self._counters.dropped_frames["of another generation"] += 1
        return False

    def _stream_frame(self, link: Link, header: Header, payload: memoryview) -> None:
        self._check_way(header)
        if not self._is_of_now(link, header, payload):
            return
        message = streams.decode(payload[: header.index])  # what is none goes no further
        if header.until == self.rank:
            data = payload[header.index :]
            self._streams.stream_message(header.origin, header.group, header.seq, message, data)
            return
        side = OPPOSITE[link.side]
        if self._bulk.carries_too_much(side):
            raise FrameError("more bytes of streams are to pass here than their ends may send")
        self._carry(side, header, payload)

    def _catch_up(self) -> None:
        """Take what the others said in this generation before it was on the disk here."""
        for early in self._early.take():
            link, header = early.link, early.header
            if (
                self.links.get(link.side) is not link
                or header.generation != self.machine.generation
            ):
                return
            try:
                self.frame_received(link, header, early.payload)
            except FrameError as error:
                self._lose(link, f"protocol error: {error}")
                return

    def _lose(self, link: Link, reason: str) -> None:
        """Give *link* up, as if it had ended by itself, and tell the neighbour why."""
        # As the link itself would: not from within what the machine has us do, and before whoever
        # asked whether the peer lives hears that it does not.
        self._loop.call_soon(partial(self.link_lost, link, reason))
        link.close(reason, "protocol", goodbye=True)

    def _check_way(self, header: Header) -> None:
        """Object to a frame that no member would take off the ring."""
        if max(header.origin, header.until) >= self.size or header.origin in (
            self.rank,
            header.until,
        ):
            raise FrameError(f"a {header.type.name} frame that no member takes")

    def data_buffer(self, link: Link, header: Header) -> memoryview | None:
        """Say where a chunk goes."""
        self._check_way(header)
        if self.machine.in_use is None:
            self._counters.dropped_frames["chunk while the ring is broken"] += 1
            return None
        return self._bulk.buffer(link.side, header)

    def data_received(self, link: Link, header: Header) -> None:
        """Reduce a chunk, and send on what that made possible."""
        self.kick(self._bulk.received(link.side, header))

    def _credit(self, link: Link, header: Header) -> None:
        """Take a credit, or pass it on."""
        self._check_way(header)
        if header.generation != self.machine.in_use:
            self._counters.dropped_frames["of another generation"] += 1
        elif header.until == self.rank:
            self.kick(self._bulk.credit(header))
        elif (onward := self.links.get(OPPOSITE[link.side])) is not None:
            onward.send(header)

    def on_way(self, side: Side, gid: int) -> float:
        """Return how many bytes of a large call of session *gid* are to be on their way there."""
        link = self.links.get(side)
        if link is None:
            return AT_EASE
        shared = self._small_calls.beside(gid, self._loop.now())
        return bytes_on_way(link.shortest_round_trip, shared=shared)

    def send_credit(self, side: Side, header: Header) -> None:
        """Send a credit to a neighbour."""
        link = self.links.get(side)
        if link is not None:
            link.send(header)

    def next_data(self, link: Link) -> tuple[Header, memoryview] | None:
        """Give a link its next chunk."""
        if self.machine.in_use is None:
            return None
        return self._bulk.next_chunk(link.side)

    def data_sent(self, link: Link, header: Header) -> None:  # noqa: ARG002 - the protocol's
        """A chunk has left."""
        self._bulk.sent(header)

    def kick(self, side: Side | None) -> None:
        """There may be chunks to send to that neighbour."""
        link = None if side is None else self.links.get(side)
        if link is not None:
            link.kick()

    def let_go(self, gid: int, seq: int) -> None:
        """Make the links let go of an aborted op's memory."""
        for link in self.links.values():
            link.divert(gid, seq)
