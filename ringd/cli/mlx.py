"""Both neighbours of an MLX program, on the loopback of its own machine.

MLX's ring backend has no handshake and little patience: a program whose neighbour is not there
within half a minute dies, and one that is let in spins until all are there. So its neighbours are
here. Connections that it makes are taken at once, and led to the machine on the right; those that
come from the left are made when the program listens. Programs accept before they connect, but for
the last rank: so each lets the next one in, when it has come to that itself, and rank 0 is held
back until all have.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import click

from ringd.cli.ask import ask, fail, find_socket, socket_option
from ringd.cli.output import FILE, force_option, write_output
from ringd.cli.ownhostfile import OwnHostfile
from ringd.errors import RingError
from ringd.forward.connection import LOOPBACK, Target
from ringd.forward.door import Door
from ringd.forward.doorkeeper import Doorkeeper
from ringd.forward.forwarder import Forwarder
from ringd.forward.question import Answer
from ringd.host.ports import free_ports
from ringd.host.tcptable import is_listened_to
from ringd.loop import Loop
from ringd.streams.end import End
from ringd.streams.table import Outlet, Refusal
from ringd.wire.border.messages import AskStatus
from ringd.wire.text import printable

FIRST_PORT = 32323
"""MLX's own first port."""

MAX_FIRST_PORT = 60000

LOOK_EVERY = 0.25
"""Seconds between looks whether the program listens."""

_LONGEST_WORD = 40  # characters of what another machine, or the environment, says

SAY_AFTER = 3.0
"""Seconds after which it is said who is missing, and how often that is looked at again."""


def ports_of(rank: int, connections: int, first: int = FIRST_PORT) -> list[int]:
    """Return the ports at which *rank* listens, on the loopback of whichever machine."""
    begin = first + rank * connections
    return list(range(begin, begin + connections))


def hostfile(ports: Sequence[Sequence[int]]) -> str:
    """Return the text of a hostfile for MLX, of the ports of each rank."""
    return json.dumps([[f"{LOOPBACK}:{port}" for port in own] for own in ports])


def check_environment(environ: Mapping[str, str], names: Sequence[str], rank: int) -> None:
    """See that what *environ* has told MLX so far is no other job than the ring's.

    A hostfile of as many ranks may have any addresses: they are not used.

    Raises:
        RingError: It is for another rank, or for another number of them.
    """
    hint = "unset it: `run --mlx` sets it for its program"
    said = environ.get("MLX_RANK", str(rank))
    if said != str(rank):
        said = printable(said, _LONGEST_WORD)
        raise RingError(f"MLX_RANK is {said!r}, and {names[rank]!r} is rank {rank}; {hint}")
    path = environ.get("MLX_HOSTFILE", "")
    try:
        hosts = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return  # what MLX could not read either says nothing
    if isinstance(hosts, list) and len(hosts) != len(names):
        text = f"MLX_HOSTFILE, {path!r}, has {len(hosts)} ranks, and the ring {len(names)} members"
        raise RingError(f"{text}; {hint}")


class Chain:
    """See the module's docstring.

    Args:
        loop: Where it runs.
        name: Of the job, the same on all machines.
        connections: Between two ranks, likewise.
        first_port: As for :func:`ports_of`; None for ports that are free.
        tell: Says to the user what they should know.
        on_conflict: Told what makes it impossible.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        name: str,
        connections: int,
        first_port: int | None,
        tell: Callable[[str], None],
        on_conflict: Callable[[str], None],
    ) -> None:
        self.environ: dict[str, str] = {}
        """What the program is to have in its environment, once :meth:`begin` was called."""
        self._loop = loop
        self._prefix = f"mlx:{name}:"
        self._connections = connections
        self._first_port = first_port
        self._tell = tell
        self._on_conflict = on_conflict
        self._rank = 0
        self._names: tuple[str, ...] = ()
        self._own: list[int] = []
        self._doors: list[Door] = []
        self._file: OwnHostfile | None = None
        self._missing: list[str] = []
        self._waited = False  # some of the others were not there when they were asked
        self._all_there = False
        self._said: list[str] = []
        self._came = False  # the program has come to where it wants neighbours
        self._wanted: dict[int, End] = {}  # connections from the left, as they were asked for last
        self._made: set[int] = set()  # those that the program has
        self._let_in = False  # it may be given them
        self._listened = False  # it did so when that was looked at last
        self._turned_away = False  # a stranger was, and that has been said
        self._ended = False
        self._conflict = False  # it has been said

    @property
    def services(self) -> tuple[str, ...]:
        """What it serves: connections from the left, and whether the program is there."""
        return tuple(f"{self._prefix}{i}" for i in (*range(self._connections), "here"))

    def begin(self, forwarder: Forwarder, names: tuple[str, ...], rank: int) -> None:
        """Listen, and look for the others.

        Raises:
            RingError: A port cannot be had, or the environment is of another job.
            OSError: There is no room for the hostfile, or there are no free ports.
        """
        check_environment(os.environ, names, rank)
        size, count = len(names), self._connections
        if size == 1:
            return  # MLX makes a group of one by itself
        self._names, self._rank, right = names, rank, (rank + 1) % size
        ports = [ports_of(other, count, self._first_port or FIRST_PORT) for other in range(size)]
        if self._first_port is None:
            free = free_ports(2 * count)
            ports[rank], ports[right] = free[:count], free[count:]
        self._own = ports[rank]
        keeper = Doorkeeper(self._loop, lambda uid: uid in (0, os.geteuid()))
        for index, port in enumerate(ports[right]):
            door = Door(
                self._loop,
                port,
                keeper=keeper,
                on_connection=partial(self._connected, forwarder, right, index),
                on_refused=self._tell,
            )
            self._doors.append(door)
        self._file = OwnHostfile(hostfile(ports))
        self.environ = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(self._file.path)}
        self._forwarder = forwarder
        self._ask_who_is_there()
        self._look()
        self._loop.call_later(SAY_AFTER, self._say_who_is_missing)

    def close(self) -> None:
        """The program has ended: take no more of it, and leave nothing behind."""
        self._ended = True
        for door in self._doors:
            door.close_behind()
        self._doors.clear()
        if self._file is not None:
            self._file.remove()
            self._file = None
            # One that was not let in has had nothing to say.
            self._forwarder.wait_no_more("the program has ended", unanswered=not self._made)

    # --- from the left ----------------------------------------------------------------

    def accepts(self, end: End, service: str) -> Target | Outlet:
        """Return what a stream from another member leads to."""
        if service not in self.services:
            raise Refusal(f"there is no service {service!r} here")
        what = service.removeprefix(self._prefix)
        former = self._made if what == "here" else int(what) in self._made
        if former or self._ended:
            raise Refusal("its program there is that of an earlier run", absent=True)
        if what == "here":
            if not self._came:
                raise Refusal("its program has not come to mx.distributed.init yet", absent=True)
            name = self._names[end.member]
            return Answer(self._forwarder.table, end, self._word, partial(self._compare, name))
        index = int(what)
        self._wanted[index] = end
        may_dial = partial(self._may_dial, index, end)
        return Target(self._own[index], may_dial, partial(self._made.add, index))

    def _may_dial(self, index: int, end: End) -> bool:
        if self._ended:
            raise Refusal("the program has ended")
        if self._wanted[index] is not end:
            raise Refusal("whoever comes from there has come anew")
        self._let_in = self._rank > 0 or self._all_there
        return self._let_in

    # --- from the program -------------------------------------------------------------

    def _connected(self, forwarder: Forwarder, right: int, index: int, sock: socket.socket) -> None:
        if not (self._let_in or self._is_last):
            sock.close()
            if not self._turned_away:
                self._turned_away = True
                port = self._doors[index].port
                self._tell(f"a stranger at port {port}, which is MLX's alone, was turned away")
            return
        self._came = True
        self._doors[index].close()  # MLX takes one connection at each, too
        try:
            forwarder.connect(sock, right, f"{self._prefix}{index}", patient=True)
        except Refusal as refusal:
            self._tell(str(refusal))

    @property
    def _is_last(self) -> bool:
        """Whether the program connects before it accepts."""
        return self._rank == len(self._names) - 1

    def _look(self) -> None:
        """See whether the program listens; where the system does not tell, believe it."""
        if self._ended or self._let_in:
            return
        port, listens = self._own[0], is_listened_to(self._own[0])
        if self._listened and listens is False:
            self._tell(
                f"nobody listens at port {port} any more: a stranger has connected there in the "
                "place of MLX's left neighbour, or the program has given up"
            )
        elif self._listened and self._is_last and not self._came:
            self._on_conflict(
                f"the program waits at port {port}, and the last of {len(self._names)} ranks "
                "would connect first: it has another MLX_HOSTFILE or MLX_RANK than it was given"
            )
            return
        self._listened = listens is True
        if listens is None or (listens and not self._is_last):
            self._came = True
        waits = self._came or self._listened
        self._loop.call_later(SAY_AFTER if waits else LOOK_EVERY, self._look)

    # --- the others -------------------------------------------------------------------

    @property
    def _word(self) -> bytes:
        """What is said to the others, and must be the same on all machines."""
        return str(self._connections).encode()

    def _compare(self, name: str, word: bytes) -> None:
        """Object to a machine that says another word: who asks and who answers hear of it."""
        if word != self._word and not self._conflict:
            self._conflict = True
            theirs = printable(word.decode(errors="replace"), _LONGEST_WORD)
            self._on_conflict(
                f"{name!r} runs with --connections {theirs}, and this machine with "
                f"{self._connections}; say the same on all"
            )

    def _ask_who_is_there(self) -> None:
        self._missing = [name for name in self._names if name != self._names[self._rank]]
        self._waited = False
        for member, name in enumerate(self._names):
            if member != self._rank:
                there = partial(self._is_there, name)
                service = f"{self._prefix}here"
                self._forwarder.ask(member, service, self._word, there, self._waits)

    def _waits(self) -> None:
        self._waited = True

    def _is_there(self, name: str, answer: bytes) -> None:
        self._compare(name, answer)
        self._missing.remove(name)
        if self._missing:
            return
        if self._waited and self._rank == 0:  # whoever was there first may be gone by now
            self._ask_who_is_there()
            return
        self._all_there = True
        if self._said:
            self._tell("all are there")

    def _say_who_is_missing(self) -> None:
        if self._ended or self._let_in or not self._missing:
            return
        if self._missing != self._said:
            self._said = list(self._missing)
            self._tell(f"waiting for the programs on {', '.join(self._missing)}")
        self._loop.call_later(SAY_AFTER, self._say_who_is_missing)


@click.command("mlx-hostfile")
@socket_option
@click.option("--connections", type=click.IntRange(1, 64), default=1, help="Between two ranks.")
@click.option(
    "--port",
    type=click.IntRange(1, MAX_FIRST_PORT),
    default=FIRST_PORT,
    show_default=True,
    help="The first port.",
)
@click.argument("path", required=False, type=FILE)
@force_option
def mlx_hostfile(
    socket: Path | None, connections: int, port: int, path: Path | None, force: bool
) -> None:
    """Write the hostfile of `run --mlx --port`.

    For MLX programs, to PATH, or to standard output. It is the same on all machines: each rank
    finds its neighbours on its own loopback. `run --mlx` without --port has ports that are free,
    and writes its own.

    \b
    Exit codes: 0 done, 1 error, 2 wrong usage, 3 no daemon.
    Example: ringd-cli mlx-hostfile hosts.json
    """  # noqa: D301  click wants the backspace itself
    try:
        size = ask(find_socket(socket), AskStatus)["size"]
    except RingError as error:
        fail(error)
    text = hostfile([ports_of(rank, connections, port) for rank in range(size)])
    if path is None:
        click.echo(text)
    else:
        write_output(path, f"{text}\n".encode(), force=force)
        click.echo(f"Wrote {path}.", err=True)
