"""Ends of streams in a command, in the place of the daemon: for ``forward`` and ``run``."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from ringd.cli.mlx import Chain
from ringd.errors import Refused, RingError
from ringd.forward.attachment import Attachment
from ringd.forward.connection import Target
from ringd.forward.door import Door
from ringd.forward.doorkeeper import Doorkeeper
from ringd.forward.forwarder import port_of, service_of
from ringd.loop import Loop
from ringd.streams.end import End
from ringd.streams.table import Outlet, Refusal

MAX_PORT = 65535

GO_ON_FOR = 3.0
"""Seconds for which a program runs on, until a reset behind the other one's last word is told."""

_FORWARD = re.compile(r"(?:(\d{1,5})=)?([^=]+):(\d{1,5})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Forward:
    """A port of this machine's loopback that leads to one on another member."""

    listen: int
    to: str
    port: int

    def __str__(self) -> str:
        return f"127.0.0.1:{self.listen} leads to port {self.port} of {self.to!r}"


def forwards(
    _context: click.Context, _option: click.Parameter, values: tuple[str, ...]
) -> tuple[Forward, ...]:
    """Read ``[PORT=]MEMBER:PORT``, as often as it is there."""
    found = []
    for value in values:
        match = _FORWARD.fullmatch(value)
        listen, to, port = ("0", "", "0") if match is None else match.groups()
        forward = Forward(int(listen or port), to, int(port))
        if not (0 < forward.listen <= MAX_PORT and 0 < forward.port <= MAX_PORT):
            raise click.BadParameter(f'"{value}" is not like 15000=studio:5000, or studio:5000')
        found.append(forward)
    return tuple(found)


def say(text: str) -> None:
    """Print a line for the user, beside what a program prints."""
    click.echo(f"ringd-cli: {text}", err=True)


class Holding:
    """The streams of one command.

    Args:
        loop: Where it runs; stopped when there is an :attr:`error`.
        path: Of the daemon's socket.
        program: Its name, for people.
        forwards: The ports at which it listens.
        serves: The ports of this machine to which other members' streams are to lead through it.
        chain: Both neighbours of an MLX program, if it is one.
        on_ready: Called once, when it listens and the daemon has taken it in.
        tell: Says to the user what they should know.
    """

    def __init__(
        self,
        loop: Loop,
        path: Path,
        program: str,
        *,
        forwards: Sequence[Forward],
        serves: Sequence[int],
        chain: Chain | None = None,
        on_ready: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        self.error: RingError | None = None
        """Why it cannot be done."""
        self._loop = loop
        self._forwards = forwards
        self._chain = chain
        self._on_ready = on_ready
        self._tell = tell
        self._doorkeeper = Doorkeeper(loop, lambda uid: uid in (0, os.geteuid()))
        self._doors: list[Door] = []
        self._ready = False
        self._resets = False  # streams, by itself
        self._said = ""
        self._withheld: list[str] = []  # of connections that nobody may miss
        self._ended = False  # the program that it is for
        self._names: tuple[str, ...] = ()
        self._attachment = Attachment(
            loop,
            path,
            program,
            serves=(*map(service_of, serves), *(() if chain is None else chain.services)),
            reaches=tuple((forward.to, service_of(forward.port)) for forward in forwards),
            accepts=self._accepts,
            on_held=self._held,
            on_trouble=self._trouble,
            on_reset=self._was_reset,
        )

    @property
    def unsaid(self) -> int:
        """How many streams there are of which something may have yet to arrive."""
        return self._attachment.forwarder.table.unsaid

    def start(self) -> None:
        """Attach to the daemon, and listen when that has taken it in."""
        self._attachment.start()

    def listen_no_more(self) -> None:
        """Begin no more streams from here."""
        for door in self._doors:
            door.close_behind()
        self._doors.clear()
        if self._chain is not None:
            former, self._resets = self._resets, True
            self._chain.close()
            self._resets = former

    def program_ended(self, *, well: bool) -> None:
        """Begin no more streams from here, as the program that they are for has ended."""
        if well:
            self._withheld.clear()
        self._ended = True
        self._say_withheld()
        self.listen_no_more()

    def close(self, reason: str) -> None:
        """End what is open, and part with the daemon."""
        self.listen_no_more()
        self._resets = True
        self._attachment.forwarder.table.close(reason)
        self._attachment.close()

    def _held(self, names: tuple[str, ...], rank: int) -> None:
        self._names = names
        if self._said:
            self._tell("the daemon is there again")
            self._said = ""
        if self._ready:
            return
        try:
            for forward in self._forwards:
                member = names.index(forward.to)
                self._doors.append(
                    Door(
                        self._loop,
                        forward.listen,
                        keeper=self._doorkeeper,
                        on_connection=partial(self._entered, member, service_of(forward.port)),
                        on_refused=self._tell,
                    )
                )
            if self._chain is not None:
                self._chain.begin(self._attachment.forwarder, names, rank)
        except RingError as error:
            self._fail(error)
            return
        except OSError as error:  # no ports, or no room for the hostfile
            self._fail(RingError(f"cannot begin: {error}"))
            return
        self._ready = True
        self._on_ready()

    def _was_reset(self, end: End, reason: str) -> None:
        if self._resets:
            return
        text = f"a connection with {self._names[end.member]!r} was reset: {reason}"
        if self._chain is not None and not end.used:
            text += "; a program that is started again there needs a new one here, too"
        if end.other_closed and not self._ended:
            # Of programs that end together, and well, one is the first: nobody misses anything.
            # It matters where the program here fails, or goes on.
            self._withheld.append(text)
            self._loop.call_later(GO_ON_FOR, self._say_withheld)
        else:
            self._tell(text)

    def _say_withheld(self) -> None:
        withheld, self._withheld = self._withheld, []
        for text in withheld:
            self._tell(text)

    def _entered(self, member: int, service: str, sock: socket.socket) -> None:
        try:
            self._attachment.forwarder.connect(sock, member, service)
        except Refusal as refusal:
            self._tell(str(refusal))

    def _trouble(self, reason: str, *, denied: bool) -> None:
        if denied and not self._ready:
            self._fail(Refused(reason))
        elif denied or not self._said:
            if reason != self._said:
                self._tell(f"{reason}; what is open goes on when it is back")
            self._said = reason

    def _fail(self, error: RingError) -> None:
        self.error = error
        self.listen_no_more()
        self._attachment.close()
        self._loop.stop()

    def _accepts(self, end: End, service: str) -> Target | Outlet:
        """Return what a service leads to; the daemon has seen to it that it is one of ours."""
        port = port_of(service)
        if port is not None:
            return Target(port)
        if self._chain is None:
            raise Refusal(f"there is no service {service!r} here")
        return self._chain.accepts(end, service)
