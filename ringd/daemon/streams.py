"""The streams of this member: what its config lets in and out, and the way round the ring.

``[[streams]]`` says at which ports this daemon listens, and which of this machine's ports other
members may reach. The bytes go with everything else over the links.
"""

from __future__ import annotations

import os
import socket
from functools import partial

import structlog

from ringd.config.settings import Config, IpcSettings, StreamRule
from ringd.errors import RingError
from ringd.forward.door import Door
from ringd.forward.forwarder import Forwarder, port_of, service_of
from ringd.host import limits
from ringd.host.users import group_id, is_in_group
from ringd.loop import Loop, Timer
from ringd.observe.oncelog import OnceLog
from ringd.ring.neighbours import Neighbours
from ringd.streams.table import Refusal
from ringd.wire.link import streams as wire
from ringd.wire.link.streams import StreamMessage

LISTEN_AGAIN = 2.0
"""Seconds until a port that another program had is tried again."""


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
            dial=self._dial,
            on_reset=partial(self._say, "stream reset", "a stream"),
            in_program=False,
        )
        self._doors: dict[StreamRule, Door] = {}
        self.trouble: dict[StreamRule, str] = {}
        """Why this daemon does not listen where it should."""
        self._again: Timer | None = None

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
        """End all streams, and listen no more."""
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
        self.trouble.clear()
        for rule in self.rules:
            if rule in self._doors or rule.listen is None:
                continue
            try:
                self._doors[rule] = Door(
                    self._loop,
                    rule.listen,
                    may_enter=partial(may_use, self._config.ipc),
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

    def _say(self, event: str, where: str, reason: str) -> None:
        self._once.warning(event, cause=where, where=where, reason=reason)

    def _dial(self, member: int, service: str) -> int:
        """Return the port that a stream of *member* leads to, if the config allows that."""
        port, name = port_of(service), self._neighbours.names[member]
        if port is None:
            raise Refusal(f"nobody on {self._node!r} serves {service!r} yet", absent=True)
        if not self.allows(name, self._node, port):
            text = f"the config of {self._node!r} does not let {name!r} reach port {port}"
            raise Refusal(f"{text}; add it to [[streams]]")
        if refusal := limits.OWN.refusal():
            raise Refusal(f"{self._node!r} takes no more streams: {refusal}")
        return port

    def allows(self, source: str, to: str, port: int) -> bool:
        """Whether programs on the member *source* may reach *port* on *to*."""
        return any(
            (rule.to, rule.port) == (to, port) and source in rule.sources
            for rule in self._config.streams
        )

    # --- the ring's side --------------------------------------------------------------

    def ring_up(self) -> None:
        """The ring formed."""
        self._forwarder.table.up()

    def ring_down(self) -> None:
        """The ring broke."""
        self._forwarder.table.down()

    def stream_message(
        self, origin: int, number: int, offset: int, head: memoryview, data: memoryview
    ) -> None:
        """A message of a stream's other end came."""
        self._forwarder.table.received(origin, number, offset, wire.decode(head), data)

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
