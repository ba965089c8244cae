"""The streams of this member: what its config lets in and out, and who has their ends.

``[[streams]]`` says at which ports this daemon listens, and which of this machine's ports other
members may reach. Programs (:class:`Holder`) may have ends as well, in the place of the daemon;
then it passes on what they and the other ends say, and keeps nothing of it.
"""

from __future__ import annotations

import os
import socket
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial

import structlog

from ringd.border.client import Client
from ringd.config.settings import Config, IpcSettings, StreamRule
from ringd.errors import RingError
from ringd.forward.connection import Target
from ringd.forward.door import Door
from ringd.forward.doorkeeper import Doorkeeper
from ringd.forward.forwarder import Forwarder, port_of, service_of
from ringd.host import limits
from ringd.host.users import group_id, is_in_group
from ringd.loop import Loop, Timer
from ringd.observe.oncelog import OnceLog
from ringd.ring.neighbours import Neighbours
from ringd.streams.end import End
from ringd.streams.table import MOST_ENDS, Refusal
from ringd.wire.border.messages import Carry, Held, Hold, Over, RingState
from ringd.wire.link import streams as wire
from ringd.wire.link.control import DecodeError
from ringd.wire.link.streams import Connect, Data, Reset, State, StreamMessage

_ALLOW = "add it to [[streams]], on all members"
_REMEMBERED = 4096  # ends of a program that are over

LISTEN_AGAIN = 2.0
"""Seconds until a port that another program had is tried again."""


@dataclass(frozen=True, slots=True, eq=False)
class Holder:
    """A program that has ends of streams."""

    client: Client
    serves: tuple[str, ...]
    """The services to which others' streams lead there."""
    ends: dict[int, int] = field(default_factory=dict)
    """By the stream's number, the member of the other end."""
    over: OrderedDict[int, int] = field(default_factory=OrderedDict)
    """Those that ended lately: the other end may not have heard all."""


class Streams:
    """See the module's docstring."""

    def __init__(self, loop: Loop, config: Config, neighbours: Neighbours) -> None:
        self._loop = loop
        self._neighbours = neighbours
        self._log = structlog.get_logger("streams")
        self._once = OnceLog(self._log, loop.now)
        self._node = config.node
        self._config = config
        self._forwarder = Forwarder(
            loop,
            send=self._send,
            accepts=self._accepts,
            on_reset=self._was_reset,
            in_program=False,
        )
        self._doorkeeper = Doorkeeper(loop, lambda uid: may_use(self._config.ipc, uid))
        self._doors: dict[StreamRule, Door] = {}
        self.trouble: dict[StreamRule, str] = {}
        """Why this daemon does not listen where it should."""
        self._again: Timer | None = None
        self._closed = False
        self._holders: dict[Client, Holder] = {}
        self._held: dict[int, Holder] = {}
        """By the stream's number, who has the end here."""
        self._missed: set[int] = set()
        """Streams of which an end is missed here, and may come back with its program."""
        self._asked: dict[int, Carry] = {}
        """What the other end of such a stream asked last: a program that comes back answers."""

    def __len__(self) -> int:
        return len(self._forwarder.table)

    # --- life -------------------------------------------------------------------------

    def start(self) -> None:
        """Listen where the config says so."""
        self._open_doors()

    def reload(self, config: Config) -> None:
        """Use *config* from now on; streams that there are go on."""
        self._config = config
        for rule in self._doors.keys() - set(self.rules):
            self._doors.pop(rule).close()
        self._open_doors()

    def close(self, reason: str) -> None:
        """End all streams, and listen no more, whatever is reloaded."""
        self._closed = True
        if self._again is not None:
            self._again.cancel()
        self._forwarder.table.close(reason)
        for door in self._doors.values():
            door.close()
        self._doors.clear()

    @property
    def rules(self) -> list[StreamRule]:
        """Those by which this daemon listens."""
        rules = self._config.streams
        return [rule for rule in rules if rule.listen is not None and self._node in rule.sources]

    # --- in and out -------------------------------------------------------------------

    def _open_doors(self) -> None:
        if self._closed:
            return
        self.trouble.clear()
        for rule in self.rules:
            if rule in self._doors or rule.listen is None:
                continue
            try:
                self._doors[rule] = Door(
                    self._loop,
                    rule.listen,
                    keeper=self._doorkeeper,
                    on_connection=partial(self._entered, rule),
                    on_refused=partial(self._say, "stream refused", f"port {rule.listen}"),
                )
            except RingError as error:
                self.trouble[rule] = str(error)
                self._say("no streams", f"port {rule.listen}", str(error))
        if self.trouble and self._again is None:
            self._again = self._loop.call_later(LISTEN_AGAIN, self._listen_again)

    def _listen_again(self) -> None:
        self._again = None
        self._open_doors()

    def _entered(self, rule: StreamRule, sock: socket.socket) -> None:
        if refusal := limits.OWN.refusal():
            sock.close()
            self._say("stream refused", f"port {rule.listen}", refusal)
            return
        member = self._neighbours.names.index(rule.to)
        try:
            self._forwarder.connect(sock, member, service_of(rule.port))
        except Refusal as refused:
            self._say("stream refused", f"port {rule.listen}", str(refused))

    def _was_reset(self, end: End, reason: str) -> None:
        self._say("stream reset", self._neighbours.names[end.member], reason)

    def _say(self, event: str, where: str, reason: str) -> None:
        self._once.warning(event, cause=where, where=where, reason=reason)

    def _accepts(self, end: End, service: str) -> Target:
        """Return the port that a stream leads to, if the config allows that."""
        port, name = port_of(service), self._neighbours.names[end.member]
        if port is None:
            raise Refusal(f"nobody on {self._node!r} serves {service!r} yet", absent=True)
        if not self.allows(name, self._node, port):
            text = f"the config of {self._node!r} does not let {name!r} reach port {port}"
            raise Refusal(f"{text}; {_ALLOW}")
        if refusal := limits.OWN.refusal():
            raise Refusal(f"{self._node!r} takes no more streams: {refusal}")
        return Target(port)

    def allows(self, source: str, to: str, port: int) -> bool:
        """Whether programs on the member *source* may reach *port* on *to*."""
        return any(
            (rule.to, rule.port) == (to, port) and source in rule.sources
            for rule in self._config.streams
        )

    # --- programs that have ends ------------------------------------------------------

    @property
    def holders(self) -> list[Holder]:
        """They, the oldest first."""
        return list(self._holders.values())

    def hold(self, client: Client, message: Hold) -> str:
        """A program wants to have ends; return why it may not, empty if it may."""
        own, names = self._node, self._neighbours.names
        services = (*message.serves, *(service for _, service in message.reaches))
        if max(map(len, services), default=0) > wire.MAX_SERVICE:  # the links carry no longer one
            return f"a service's name has up to {wire.MAX_SERVICE} characters"
        for service in message.serves:
            port = port_of(service)
            if port is not None and not any(self.allows(name, own, port) for name in names):
                return f"the config lets nobody reach port {port} of {own!r}; {_ALLOW}"
            if (holder := self._server(service)) is not None:
                other = f"{holder.client.program} (pid {holder.client.pid})"
                return f"{service!r} is served on {own!r} already, by {other}; end that first"
        for name, service in message.reaches:
            port = port_of(service)
            if name == own:
                return f"{name!r} is this machine, whose ports need no stream"
            if name not in names:
                return f"no member is named {name!r}; there are {', '.join(names)}"
            if port is not None and not self.allows(own, name, port):
                return f"the config does not let {own!r} reach port {port} of {name!r}; {_ALLOW}"
        self._holders[client] = Holder(client, message.serves)
        client.tell(Held(self._neighbours.rank, names))
        client.tell(self._ring_state())
        for asked in self._asked.values():  # of what is over, a program need not ask by itself
            client.tell(asked)
        return ""

    def carried(self, client: Client, message: Carry, payload: memoryview | None) -> None:
        """A program says something to another end."""
        machine, neighbours = self._neighbours.machine, self._neighbours
        holder, number, member = self._holders[client], message.number, message.member
        if message.generation != machine.in_use:
            return  # it is told, or about to be, that the way is a new one
        known = self._held.get(number, holder)
        if member >= neighbours.size or member == neighbours.rank or known is not holder:
            return
        try:
            said = wire.decode(message.body)
        except DecodeError:
            return
        if isinstance(said, Connect):
            port, name = port_of(said.service), neighbours.names[member]
            if port is not None and not self.allows(self._node, name, port):
                text = f"the config does not let {self._node!r} reach port {port} of {name!r}"
                body = wire.encode(Reset(f"{text}; {_ALLOW}"))
                client.tell(Carry(number, member, message.generation, 0, body))
                return
        if isinstance(said, Reset):
            self._held.pop(number, None)
            holder.ends.pop(number, None)
            holder.over.pop(number, None)
        elif not self._claim(holder, number, member):
            body = wire.encode(Reset(f"a program has up to {2 * MOST_ENDS} ends of streams"))
            client.tell(Carry(number, member, message.generation, 0, body))
            return
        data = b"" if payload is None or not isinstance(said, Data) else payload
        neighbours.send_stream(member, number, message.offset, message.body, data)

    def over(self, client: Client, message: Over) -> None:
        """An end of a program is over; only its last word may be asked for again."""
        holder, number = self._holders[client], message.number
        if number in holder.ends:
            holder.over[number] = holder.ends.pop(number)
            if len(holder.over) > _REMEMBERED:
                forgotten, _ = holder.over.popitem(last=False)
                del self._held[forgotten]

    def holder_gone(self, client: Client) -> None:
        """A program is gone, with its ends; unless it has only lost its connection."""
        holder = self._holders.pop(client)
        patience = 0.0 if client.died or client.parted else self._config.ops.reattach
        for number in (*holder.ends, *holder.over):
            del self._held[number]
        for number, member in holder.ends.items():
            self._asked.pop(number, None)
            self._reset_unless_held(number, member, patience)

    def _claim(self, holder: Holder, number: int, member: int) -> bool:
        """Have *holder* hold the end of that number, unless another does; False if it is full."""
        if number not in self._held:
            if len(holder.ends) >= 2 * MOST_ENDS:
                return False
            self._held[number] = holder
            holder.ends[number] = member
        return True

    def _server(self, service: str) -> Holder | None:
        """Return the program to which streams to *service* lead, if there is one."""
        return next((holder for holder in self.holders if service in holder.serves), None)

    def _server_for(self, member: int, service: str) -> Holder | None:
        """Return the same for a stream of *member*; None also if the config does not allow that."""
        port = port_of(service)
        if port is None or self.allows(self._neighbours.names[member], self._node, port):
            return self._server(service)
        return None

    def _reset_unless_held(self, number: int, member: int, patience: float) -> None:
        """Reset the other end of a stream whose end here is not back within *patience* seconds."""

        def decide() -> None:
            self._missed.discard(number)
            self._asked.pop(number, None)
            if number not in self._held:
                reason = f"the program on {self._node!r} that had the other end is gone"
                # Of one that the program had yet to answer nobody was there for it, as before.
                self._send(member, number, 0, Reset(reason, absent=True), b"")

        if number not in self._missed:
            if len(self._missed) >= 2 * MOST_ENDS:  # nobody has so many to come back to
                patience = 0.0
            self._missed.add(number)
            self._loop.call_later(patience, decide)

    def _ring_state(self) -> RingState:
        machine = self._neighbours.machine
        return RingState("ready" if machine.in_ring else "forming", machine.generation)

    # --- the ring's side --------------------------------------------------------------

    def ring_up(self) -> None:
        """The ring formed."""
        self._forwarder.table.up()
        for holder in self.holders:
            holder.client.tell(self._ring_state())

    def ring_down(self) -> None:
        """The ring broke."""
        self._forwarder.table.down()
        for holder in self.holders:
            holder.client.tell(self._ring_state())

    def stream_message(
        self, origin: int, number: int, offset: int, message: StreamMessage, data: memoryview
    ) -> None:
        """A message of a stream's other end came."""
        table = self._forwarder.table
        holder = self._held.get(number)
        if isinstance(message, Connect) and not table.knows(number):
            # Each one, also of a number that is known: no member gets to what it may not name.
            holder = self._server_for(origin, message.service)
            if holder is not None and not self._claim(holder, number, origin):
                full = f"the program that serves it on {self._node!r} has all the ends it may have"
                self._send(origin, number, 0, Reset(full), b"")
                return
        generation = self._neighbours.machine.generation
        if holder is not None:
            carry = Carry(number, origin, generation, offset, wire.encode(message))
            holder.client.tell(carry, data or None)
        elif isinstance(message, State) and message.to_program and not table.knows(number):
            if message.ask:
                carry = Carry(number, origin, generation, offset, wire.encode(message))
                self._asked[number] = carry
                self._reset_unless_held(number, origin, self._config.ops.reattach)
        else:
            table.received(origin, number, offset, message, data)

    def _send(
        self, member: int, number: int, offset: int, message: StreamMessage, data: bytes
    ) -> None:
        self._neighbours.send_stream(member, number, offset, wire.encode(message), data)


def may_use(ipc: IpcSettings, uid: int) -> bool:
    """Whether the user of this number may use this daemon: as with its socket."""
    if uid in (0, os.geteuid()):
        return True
    try:
        gid = group_id(ipc.group) if ipc.group else os.getegid()
    except KeyError:
        return False
    return bool(ipc.mode & 0o060) and is_in_group(uid, gid)
