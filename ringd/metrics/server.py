"""Answers scrapers and probes, from the daemon's own loop.

Whatever they do costs the ring next to nothing: they are few at a time, come not too often, and
have only so long, whether they are slow to ask or do not read. What they leave unread waits in the
one answer, of some KiB.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Mapping
from http import HTTPStatus

from structlog.typing import FilteringBoundLogger

from ringd.acceptor import Acceptor
from ringd.errors import ConfigError
from ringd.host.limits import OWN, OpenFiles
from ringd.loop import EVENT_READ, EVENT_WRITE, Loop
from ringd.metrics.http import MAX_HEAD, BadRequest, Response, parse, plain
from ringd.metrics.place import Place
from ringd.observe.allowance import Allowance

MOST = 16
"""Connections at a time; one more, and the oldest is hung up on."""

WITHIN = 5.0
"""Seconds that one may last."""

BURST, PAUSE = 32, 0.002
"""So many connections are taken at once, and then one more in each so many seconds."""

LOOK_EVERY = 10.0
"""Seconds until it is tried again to listen where that failed; and between looks for the file."""

SHARE = 0.5
"""Of the reserve of open files, that this leaves alone."""

_BLOCKED = 0.05  # seconds without accepting, when no more may come or open files are scarce

Answerer = Callable[[Callable[[Response], None]], None]
"""Answers by calling its argument, at once or later; once."""


class Server:
    """Listens at *place* from its making to :meth:`close`, as soon as that is possible.

    Args:
        loop: The daemon's.
        place: Where.
        answers: By path.
        refused: Where connections that were hung up on are counted, by why.
        log: Is told once of what is in the way.
        open_files: Of which there must be enough.
    """

    def __init__(
        self,
        loop: Loop,
        place: Place,
        answers: Mapping[str, Answerer],
        *,
        refused: Counter[str],
        log: FilteringBoundLogger,
        open_files: OpenFiles = OWN,
    ) -> None:
        self.answers = answers
        self.loop = loop
        self._place = place
        self._refused = refused
        self._log = log
        self._open_files = open_files
        self._connections: dict[Connection, None] = {}  # the oldest first
        self._allowance = Allowance.full(BURST, PAUSE, loop.now())
        self._acceptor: Acceptor | None = None
        self._trouble = ""
        self._look()

    def close(self) -> None:
        """Hang up on everybody, and remove the socket."""
        self._looking.cancel()
        for connection in list(self._connections):
            connection.end()
        if self._acceptor is not None:
            self._acceptor.close()
            self._place.leave()

    # --- listening --------------------------------------------------------------------

    def _look(self) -> None:
        """Listen, unless that is so."""
        self._looking = self.loop.call_later(LOOK_EVERY, self._look)
        if self._acceptor is not None and not self._place.lost:
            return
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None
        try:
            listener = self._place.listen()
        except (OSError, ConfigError) as error:
            words = error.strerror if isinstance(error, OSError) else None
            reason = words or str(error)
            if reason != self._trouble:
                event = "metrics are not served; it is tried again all the time"
                self._log.error(event, where=self._place.text, reason=reason)
            self._trouble = reason
            return
        self._trouble = ""
        self._log.info("metrics are served", where=self._place.text)
        self._acceptor = Acceptor(
            self.loop, listener, self._admit, per_event=1, rests_for=self._rests_for
        )

    def _rests_for(self) -> float:
        if self._allowance.take(self.loop.now()) and not self._open_files.refusal(share=SHARE):
            return 0.0
        return _BLOCKED

    def _admit(self, sock: socket.socket, _address: object) -> None:
        if len(self._connections) >= MOST:
            next(iter(self._connections)).end("crowded")
        connection = Connection(self, sock)
        self._connections[connection] = None
        connection.begin()

    def ended(self, connection: Connection, cause: str) -> None:
        """Forget *connection*; it ended for that *cause*, if it was hung up on."""
        self._connections.pop(connection, None)
        if cause:
            self._refused[cause] += 1


class Connection:
    """One request and its answer; owns *sock*."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server = server
        self._loop = server.loop
        self._socket = sock
        self._head = b""
        self._method = ""
        self._out: memoryview | None = None
        self._events = 0
        self._open = True
        sock.setblocking(False)
        self._timer = self._loop.call_later(WITHIN, lambda: self.end("slow"))

    def begin(self) -> None:
        """Read what is there already, as a rule all."""
        self._read()
        if self._open and not self._method:
            self._watch(EVENT_READ)

    def end(self, cause: str = "") -> None:
        """Hang up, for that *cause*; empty if all is said."""
        if self._open:
            self._open = False
            self._watch(0)
            self._timer.cancel()
            self._socket.close()
            self._server.ended(self, cause)

    def _read(self) -> None:
        try:
            data = self._socket.recv(MAX_HEAD)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.end()
            return
        self._head += data
        try:
            request = parse(self._head)
        except BadRequest as error:
            self._method = "GET"
            self._answer(plain(error.status))
            return
        if request is None:
            return
        self._method, path = request
        self._watch(0)  # what else comes is of no interest
        answer = self._server.answers.get(path)
        if answer is None:
            paths = ", ".join(self._server.answers)
            self._answer(plain(HTTPStatus.NOT_FOUND, f"nothing here; there are {paths}"))
        else:
            answer(self._answer)

    def _answer(self, response: Response) -> None:
        if self._open:
            self._out = memoryview(response.pack(body=self._method != "HEAD"))
            self._write()

    def _write(self) -> None:
        assert self._out is not None  # noqa: S101 - there is an answer
        try:
            self._out = self._out[self._socket.send(self._out) :]
        except BlockingIOError:
            pass
        except OSError:
            self.end()
            return
        if self._out:
            self._watch(EVENT_WRITE)
        else:
            self.end()

    def _ready(self, events: int) -> None:
        if events & EVENT_WRITE:
            self._write()
        else:
            self._read()

    def _watch(self, events: int) -> None:
        if events == self._events:
            return
        if self._events:
            self._loop.remove(self._socket)
        self._events = events
        if events:
            self._loop.add(self._socket, events, self._ready)
