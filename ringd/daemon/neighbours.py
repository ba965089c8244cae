"""This member's place in the ring: its two links, and the membership machine that they feed.

Turns sockets into events for the pure machine and carries out its actions; passes group
messages on round the ring; hands bulk chunks between the links and :class:`Bulk`. Knows no
client.
"""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import structlog

from ringd.config.settings import Config
from ringd.daemon.bulk import Bulk
from ringd.daemon.inquiry import Inquiries
from ringd.daemon.state import State as Stored
from ringd.daemon.state import StateFile
from ringd.errors import RingError
from ringd.membership import machine as membership
from ringd.membership.backoff import Backoff
from ringd.membership.machine import Machine, Side
from ringd.net.dialer import Dialer, Knock
from ringd.net.link import Link
from ringd.net.listener import Listener
from ringd.net.loop import Loop, Timer
from ringd.wire import control, frames
from ringd.wire.control import Ask, GroupMessage, Inquiry, MembershipMessage, Poll, Told
from ringd.wire.frames import FrameError, FrameType, Header
from ringd.wire.handshake import Identity, Peer

_SAID = 256

HEALTHY_AFTER = 10.0
"""Seconds that a link must have held before its loss is dialed without a trace of backoff."""


class RingUser(Protocol):
    """Who lives on the ring: the groups."""

    def ring_up(self, generation: int) -> None:
        """The ring formed."""

    def ring_down(self, reason: str) -> None:
        """The ring broke; nothing sent before will arrive any more."""

    def group_message(
        self, origin: int, gid: int, seq: int, message: GroupMessage, payload: bytes
    ) -> None:
        """A message of rank *origin* came round."""


class Neighbours:
    """See the module's docstring. ``attach`` the user and the bulk side, then :meth:`start`."""

    def __init__(
        self, loop: Loop, config: Config, store: StateFile, answer: Callable[[], bytes]
    ) -> None:
        self._loop = loop
        self._config = config
        self._store = store
        self._log = structlog.get_logger("ring")
        self._user: RingUser
        self._bulk: Bulk
        self.rank = config.rank
        self.size = config.size
        self.names = tuple(member.name for member in config.ring.members)
        self._right_rank = (self.rank + 1) % self.size
        self._left_rank = (self.rank - 1) % self.size
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
        self.inquiries = Inquiries(loop, self.rank, self.size, self._send, answer)
        """Questions to all members that can be reached."""
        self.dropped: Counter[str] = Counter()
        """Frames that were of no use, by reason."""
        self.losses: Counter[str] = Counter()
        """Links lost, by side."""
        self.refused = 0
        """Connections that were turned away."""
        self._said: set[tuple[str, str]] = set()
        self._tick: Timer | None = None
        self._listener: Listener | None = None
        self._knock: Knock | None = None
        self._backoff = Backoff(
            config.join.backoff_first,
            config.join.backoff_max,
            random.Random(),  # noqa: S311 - jitter
        )
        self._dialer: Dialer | None = None

    def attach(self, user: RingUser, bulk: Bulk) -> None:
        """Say who uses the ring."""
        self._user = user
        self._bulk = bulk

    # --- life -------------------------------------------------------------------------

    def start(self) -> None:
        """Listen, dial, knock.

        Raises:
            RingError: An address cannot be bound.
        """
        if self.size > 1:
            self._listener = self._make_listener()
            self._listener.start()
            self._dialer = self._make_dialer()
            self._dialer.start()
            self._knock = self._make_knock()
        self._perform(self.machine.start(self._loop.now()))

    def stop(self, reason: str) -> None:
        """Close everything, telling the neighbours why."""
        for closable in (self._dialer, self._knock):
            if closable is not None:
                closable.stop()
        if self._listener is not None:
            self._listener.stop()
        if self._tick is not None:
            self._tick.cancel()
        for link in list(self.links.values()):
            link.close(reason, goodbye=True)
        self.links.clear()

    def drain(self) -> None:
        """Take no part in a new ring."""
        self._perform(self.machine.drain(self._loop.now()))

    def rejoin(self) -> None:
        """Drop the links, forget backoff, resolve names afresh and join again."""
        self._perform(self.machine.rejoin(self._loop.now()))
        if self._dialer is not None:
            self._dialer.wake()
        if self.size > 1:
            if self._knock is not None:
                self._knock.stop()
            self._knock = self._make_knock()

    def reload(self, config: Config) -> None:
        """Use *config* from now on; links whose addresses changed are made anew.

        Raises:
            RingError: A new address of this member cannot be bound; the old ones stay in use.
        """
        old, self._config = self._config, config
        if self.size == 1:
            return
        if config.listen_addresses(config.node) != old.listen_addresses(config.node):
            self._listen_anew(old)
        if self._dialer is not None:
            self._dialer.stop()
        self._dialer = self._make_dialer()
        changed = [m.addresses for m in config.ring.members] != [
            m.addresses for m in old.ring.members
        ]
        if changed:
            self.rejoin()
        if changed or "right" not in self.links:
            self._dialer.start()

    def _listen_anew(self, old: Config) -> None:
        former, self._listener = self._listener, self._make_listener()
        if former is not None:
            former.stop()
        try:
            self._listener.start()
        except RingError:
            self._config, self._listener = old, former
            if former is not None:
                former.start()
            raise

    def _identity(self) -> Identity:
        return Identity(
            ring=self._config.ring.name,
            members=self.names,
            rank=self.rank,
            incarnation=self.machine.incarnation,
            settings=self._config.shared_settings(),
        )

    def _make_listener(self) -> Listener:
        return Listener(
            self._loop,
            bind=self._config.listen_addresses(self._config.node),
            identity=self._identity,
            key=self._config.ring.key,
            settings=self._config.join,
            on_link=self._accepted,
            on_knock=self._knocked,
            on_refused=self._refused,
        )

    def _make_dialer(self) -> Dialer:
        target = self._config.ring.members[self._right_rank]
        return Dialer(
            self._loop,
            identity=self._identity,
            key=self._config.ring.key,
            target=target.name,
            addresses=lambda: target.addresses,
            settings=self._config.join,
            backoff=self._backoff,
            on_link=self._dialed,
            on_failure=self._dial_failed,
        )

    def _make_knock(self) -> Knock:
        target = self._config.ring.members[self._left_rank]
        knock = Knock(
            self._loop,
            identity=self._identity,
            key=self._config.ring.key,
            target=target.name,
            addresses=lambda: target.addresses,
            settings=self._config.join,
        )
        knock.start()
        return knock

    # --- links ------------------------------------------------------------------------

    def _dialed(self, sock: socket.socket, peer: Peer, address: str, leftover: bytes) -> None:
        self._link_up("right", sock, peer, address, leftover)

    def _accepted(self, sock: socket.socket, peer: Peer, address: str, leftover: bytes) -> None:
        self._link_up("left", sock, peer, address, leftover)

    def _link_up(
        self, side: Side, sock: socket.socket, peer: Peer, address: str, leftover: bytes
    ) -> None:
        old = self.links.pop(side, None)
        if old is not None:
            old.close("replaced by a newer connection")
        join = self._config.join
        self.links[side] = Link(
            self._loop,
            sock,
            peer,
            side=side,
            address=address,
            handler=self,
            heartbeat=join.heartbeat,
            lost_after=join.lost_after,
            leftover=leftover,
        )
        self._log.info(
            "link up", side=side, peer=peer.name, address=address, incarnation=peer.incarnation
        )
        self._said.clear()
        self._perform(self.machine.link_up(side, peer.incarnation, address, self._loop.now()))

    def link_lost(self, link: Link, reason: str) -> None:
        """A neighbour is gone."""
        if self.links.get(link.side) is not link:
            return
        del self.links[link.side]
        self.losses[link.side] += 1
        self._log.warning("link lost", side=link.side, peer=link.peer.name, reason=reason)
        self._perform(self.machine.link_down(link.side, reason, self._loop.now()))
        self._redial(link)

    def _redial(self, link: Link) -> None:
        if link.side == "right" and self._dialer is not None:
            if self._loop.now() - link.since >= HEALTHY_AFTER:
                self._backoff.reset()
            self._dialer.start()

    def _dial_failed(self, address: str, reason: str) -> None:
        self._say_once("cannot reach the right neighbour yet", address, reason)
        self._perform(self.machine.dial_failed(address, reason, self._loop.now()))

    def _knocked(self, peer: Peer) -> None:
        self._log.debug("knock", peer=peer.name)
        if self._dialer is not None and "right" not in self.links:
            self._dialer.wake()

    def _refused(self, address: str, reason: str) -> None:
        self.refused += 1
        self._say_once("connection refused", address.rpartition(":")[0], reason)

    def _say_once(self, event: str, where: str, reason: str) -> None:
        """Log what may repeat for ever, such as a stranger's visits, the first time only."""
        if (where, reason) in self._said:
            return
        if len(self._said) >= _SAID:
            self._said.clear()
        self._said.add((where, reason))
        self._log.warning(event, address=where, reason=reason)

    # --- the machine ------------------------------------------------------------------

    def _perform(self, actions: list[membership.Action]) -> None:
        for action in actions:
            if isinstance(action, membership.Send):
                self._send(action.side, action.message)
            elif isinstance(action, membership.Ready):
                self._bulk.generation = action.generation
                self._user.ring_up(action.generation)
            elif isinstance(action, membership.Broken):
                self._user.ring_down(action.reason)
            elif isinstance(action, membership.Changed):
                self._log.info(
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
        self._arm()

    def _send(self, side: Side, message: MembershipMessage | Inquiry) -> None:
        link = self.links.get(side)
        if link is not None:
            payload = control.encode(message)
            header = Header(
                FrameType.INQUIRY if isinstance(message, (Ask, Told)) else FrameType.MEMBERSHIP,
                length=len(payload),
                flags=frames.CHECKSUM,
                payload_crc=frames.checksum(payload),
            )
            link.send(header, payload)

    def _drop_links(self, action: membership.DropLinks) -> None:
        for side in action.sides:
            link = self.links.pop(side, None)
            if link is not None:
                link.close(action.reason, goodbye=True)
                self._log.info("link dropped", side=side, peer=link.peer.name, reason=action.reason)
                self._redial(link)

    def _persist(self, action: membership.Persist) -> None:
        now = self._loop.now
        try:
            self._store.save(Stored(action.generation, action.incarnation))
        except OSError as error:
            reason = f"{self._store.path}: {error.strerror}"
            self._log.error("state not saved", reason=reason)
            self._perform(self.machine.persist_failed(reason, now()))
        else:
            self._perform(self.machine.persisted(action.generation, now()))

    def _arm(self) -> None:
        due = self.machine.next_deadline
        if self._tick is not None:
            if due is not None and self._tick.callback is not None and self._tick.when == due:
                return
            self._tick.cancel()
            self._tick = None
        if due is not None:
            self._tick = self._loop.call_later(max(0.0, due - self._loop.now()), self._ticked)
            self._tick.when = due

    def _ticked(self) -> None:
        self._tick = None
        self._perform(self.machine.tick(self._loop.now()))

    # --- frames -----------------------------------------------------------------------

    def broadcast(
        self, gid: int, seq: int, message: GroupMessage, payload: bytes | memoryview
    ) -> None:
        """Send a group message from here to all others; lost if the ring is broken."""
        self._send_group(self.rank, gid, seq, message, payload)

    def relay(self, origin: int, gid: int, seq: int, message: Poll) -> None:
        """Pass a poll on; it goes on to its origin."""
        self._send_group(origin, gid, seq, message, b"")

    def _send_group(
        self, origin: int, gid: int, seq: int, message: GroupMessage, data: bytes | memoryview
    ) -> None:
        link = self.links.get("right")
        if link is None or not self.machine.in_ring:
            return
        head = control.encode(message)
        payload = head + data if data else head
        # A garbled message could end an op wrongly; a garbled tensor is the setting's business.
        whole = self._config.ops.checksum or not data
        header = Header(
            FrameType.GROUP,
            length=len(payload),
            generation=self.machine.generation,
            group=gid,
            seq=seq,
            index=len(head),
            origin=origin,
            flags=frames.CHECKSUM if whole else frames.MESSAGE_CHECKSUM,
            payload_crc=frames.checksum(payload if whole else head),
        )
        link.send(header, payload)

    def frame_received(self, link: Link, header: Header, payload: memoryview) -> None:
        """Take a membership or group frame from a neighbour."""
        try:
            if header.type is FrameType.MEMBERSHIP:
                message = control.decode_membership(payload)
                now = self._loop.now()
                self._perform(self.machine.received(link.side, message, now))
            elif header.type is FrameType.INQUIRY:
                self.inquiries.received(link.side, control.decode_inquiry(payload))
            else:
                self._group_frame(link, header, payload)
        except control.DecodeError as error:
            raise FrameError(f"bad message: {error}") from None

    def _group_frame(self, link: Link, header: Header, payload: memoryview) -> None:
        if link.side != "left" or header.origin >= self.size:
            raise FrameError("a group message from the wrong side")
        if not self.machine.in_ring or header.generation != self.machine.generation:
            self.dropped["of another generation"] += 1
            return
        message = control.decode_group(payload[: header.index])
        own = header.origin == self.rank
        if not isinstance(message, Poll):  # a poll changes on its way and comes back
            if own:
                raise FrameError("a group message of our own came back")
            right = self.links.get("right")
            if right is not None and header.origin != self._right_rank:
                right.send(header, payload)
        data = bytes(payload[header.index :])
        self._user.group_message(header.origin, header.group, header.seq, message, data)

    def data_buffer(self, link: Link, header: Header) -> memoryview | None:
        """Say where a chunk goes."""
        if link.side != "left":
            raise FrameError("a chunk from the wrong side")
        if not self.machine.in_ring:
            self.dropped["chunk while the ring is broken"] += 1
            return None
        return self._bulk.buffer(header)

    def data_received(self, link: Link, header: Header) -> None:  # noqa: ARG002 - the protocol's
        """Reduce a chunk, and send on what that made possible."""
        self._bulk.received(header)
        self.kick()

    def next_data(self, link: Link) -> tuple[Header, memoryview] | None:
        """Give the right link its next chunk."""
        if link.side != "right" or not self.machine.in_ring:
            return None
        return self._bulk.next_chunk()

    def data_sent(self, link: Link, header: Header) -> None:  # noqa: ARG002 - the protocol's
        """A chunk has left."""
        self._bulk.sent(header)

    def kick(self) -> None:
        """There may be chunks to send."""
        right = self.links.get("right")
        if right is not None:
            right.kick()

    def let_go(self, gid: int, seq: int) -> None:
        """Make the links let go of an aborted op's memory."""
        for link in self.links.values():
            link.divert(gid, seq)
