"""All streams of one process, with the connections at their ends."""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Callable
from typing import Union

from ringd.forward.connection import Connection, Target
from ringd.forward.question import Question
from ringd.loop import Loop
from ringd.streams.end import End
from ringd.streams.table import Outlet, Refusal, Send, Table

RETRY_AFTER = 1.0
"""Seconds, until it is looked again for somebody who was not there."""

Accepts = Callable[[End, str], Union[Target, Outlet]]

_TCP = re.compile(r"tcp:(\d{1,5})", re.ASCII)


def service_of(port: int) -> str:
    """Return the name of the service that is whoever listens on *port*."""
    return f"tcp:{port}"


def port_of(service: str) -> int | None:
    """Return the port that *service* stands for; None if it is something else."""
    found = _TCP.fullmatch(service)
    return None if found is None else int(found[1])


class Forwarder:
    """See the module's docstring.

    Args:
        loop: Where it runs.
        send: Sends a message to another member's end.
        accepts: Returns what another member's stream to a service leads to, given its end and the
            service's name, or raises :class:`~ringd.streams.table.Refusal`.
        on_reset: Told a stream's end here, and why it was ended at the other one.
        in_program: Whether this is in a program, and no daemon.
        on_over: Told the number of each stream that is over here.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        send: Send,
        accepts: Accepts,
        on_reset: Callable[[End, str], None],
        in_program: bool,
        on_over: Callable[[int], None] = lambda _number: None,
    ) -> None:
        self._loop = loop
        self._accepts = accepts
        self._on_reset = on_reset
        self.table = Table(
            send,
            self._accept,
            in_program=in_program,
            wake=self._wake,
            on_over=on_over,
        )
        self._retrying = False
        self._patient = True
        self._asking: set[End] = set()

    def _wake(self, after: float) -> None:
        """Have the table say what it owes, so many seconds from now."""
        if after:
            self._loop.call_later(after, self.table.flush)
        else:
            self._loop.call_soon(self.table.flush)

    def connect(
        self, sock: socket.socket, member: int, service: str, *, patient: bool = False
    ) -> None:
        """Carry what comes through *sock* to *service* on *member*, and back.

        Args:
            sock: Connected; it is the forwarder's from now on.
            member: The other end's.
            service: What is to be reached there.
            patient: Whether to wait for somebody to be there; else the connection is reset.

        Raises:
            Refusal: There are too many streams; *sock* is closed.
        """
        connection = Connection(
            self._loop,
            self.table,
            on_wait=self._retry_later if patient else None,
            on_reset=self._on_reset,
        )
        try:
            end = self.table.connect(secrets.randbits(63), member, service, connection)
        except Refusal:
            sock.close()
            raise
        connection.begin(end, sock)

    def ask(
        self,
        member: int,
        service: str,
        word: bytes,
        on_answer: Callable[[bytes], None],
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        """Have *on_answer* called, once, with what *service* on *member* answers to *word*.

        It is asked until there is an answer: see :class:`~ringd.forward.question.Answer`. *on_wait*
        is called each time that nobody was there to give it.
        """
        if not self._patient:
            return

        def later() -> None:
            on_wait()
            self._loop.call_later(
                RETRY_AFTER, lambda: self.ask(member, service, word, on_answer, on_wait)
            )

        def absent() -> bool:
            on_wait()
            return self._retry_later()

        def unanswered() -> None:
            self._asking.discard(end)
            later()

        def answered(answer: bytes) -> None:
            self._asking.discard(end)
            on_answer(answer)

        question = Question(self.table, word, answered, on_wait=absent, on_reset=unanswered)
        try:
            end = self.table.connect(secrets.randbits(63), member, service, question)
        except Refusal:
            later()
        else:
            self._asking.add(end)
            question.begin(end)

    def wait_no_more(self, reason: str, *, unanswered: bool = False) -> None:
        """Ask nothing more, and give up those connections that nobody is there for.

        Those that are under way to somebody go on: what was said by them has yet to arrive. With
        *unanswered* that holds only where somebody has answered: nothing was said by the others.
        """
        self._patient = False
        for end in self._asking:
            self.table.reset(end, reason)
        self._asking.clear()
        self.table.give_up_waiting(reason, unanswered=unanswered)

    def _accept(self, end: End, service: str) -> Outlet:
        found = self._accepts(end, service)
        if isinstance(found, Target):
            connection = Connection(self._loop, self.table, on_reset=self._on_reset)
            connection.dial(end, found)
            return connection
        return found

    def _retry_later(self) -> bool:
        if self._patient and not self._retrying:
            self._retrying = True
            self._loop.call_later(RETRY_AFTER, self._retry)
        return self._patient

    def _retry(self) -> None:
        self._retrying = False
        self.table.retry()
