"""A daemon without a ring: a border whose handler reduces alone, as if all members were equal.

As a thread of the test (:class:`FakeDaemon`), or as a process of its own that can be killed::

    python tests/fake_daemon.py SOCKET [--size N] [--hold] [--timeout S] \
[--lost-after S] [--die-after N] [--seal-and-die]
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from ringd.border.client import Client
from ringd.border.limits import Limits
from ringd.border.lock import SocketLock
from ringd.border.server import BorderServer
from ringd.collective import kinds
from ringd.collective.reduction import Reduction, dtype_from_name
from ringd.errors import RingError
from ringd.host import memory
from ringd.host.limits import OWN, OpenFiles
from ringd.loop import Loop
from ringd.observe.counters import Counters
from ringd.wire.border import messages as border


@dataclass
class Submitted:
    """A call that the fake daemon holds."""

    client: Client
    message: border.Submit
    payload: memoryview | None

    @property
    def place(self) -> tuple[int, int]:
        """Which call it is."""
        return self.message.join_id, self.message.seq


@dataclass
class Handler:
    """Answers like a ring of *size* members that all submit the same tensor.

    A client learns its session at once, unless it comes with one.
    """

    size: int = 2
    limits: Limits = field(default_factory=Limits)
    hold: bool = False
    """Complete nothing by itself."""
    release: bool = True
    """Say with each completion that it is finished everywhere."""
    state: str = "ready"
    generation: int = 7
    lost_after: float = 0.0
    timeout: float | None = None
    ask_ack: bool = False
    """Ask for each completion to be acknowledged."""
    deny_attach: tuple[str, str] | None = None
    on_submit: Callable[[Submitted], None] | None = None
    on_leave: Callable[[Client], None] = lambda _client: None
    attaches: list[border.Attach] = field(default_factory=list)
    submitted: list[Submitted] = field(default_factory=list)
    replies: dict[tuple[int, int], tuple] = field(default_factory=dict)
    """How calls that were held have ended."""
    acks: list[int] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    detached: int = 0
    hung_up: int = 0
    """So many of these had forgotten their rings."""
    forms: bool = True
    """Tell sessions."""
    waits_for: str = "b is missing"
    groups: dict[str, Client] = field(default_factory=dict)
    stays: dict[int, Client] = field(default_factory=dict)
    """By join id."""
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def joins(self) -> dict[Client, int]:
        """The join id of each client's last stay."""
        return {client: join_id for join_id, client in self.stays.items()}

    def place(self, client: Client, join_id: int) -> tuple[int, int] | None:
        """The rank of its clients, and the number of ranks."""
        return (0, self.size) if self.forms and self.stays.get(join_id) is client else None

    def awaited(self, client: Client, join_id: int) -> border.Awaited:
        """Return whom a session waits for."""
        return border.Awaited(join_id, "" if self.place(client, join_id) else self.waits_for)

    def form(self, client: Client, join_id: int) -> None:
        """Tell a client its session."""
        client.tell_session(join_id, (join_id, *range(1, self.size)))

    def attach(self, client: Client, message: border.Attach) -> None:
        """Take the client in, one per group."""
        self.attaches.append(message)
        holder = self.groups.get(message.group)
        if self.deny_attach is not None:
            client.send(border.Denied(message.join_id, *self.deny_attach))
        elif holder not in (None, client):
            text = f"group {message.group!r} has a client already"
            client.send(border.Denied(message.join_id, "refused", text))
        else:
            self.groups[message.group] = client
            self.stays.pop(message.former, None)
            self.stays[message.join_id] = client
            limits = self.limits
            client.send(
                border.Attached(
                    join_id=message.join_id,
                    node="fake",
                    rank=0,
                    size=self.size,
                    state=self.state,
                    generation=self.generation,
                    inline_limit=limits.inline_limit,
                    max_message=limits.max_message,
                    segment_budget=limits.segment_budget,
                    window=limits.window,
                    lost_after=self.lost_after,
                    timeout=self.timeout,
                    nodes=tuple(f"n{rank}" for rank in range(self.size)),
                )
            )
            if self.forms and not message.session:
                self.form(client, message.join_id)

    def submit(
        self,
        client: Client,
        message: border.Submit,
        payload: memoryview | None,
        _inline: int | None = None,
    ) -> None:
        """Hold the call, or complete it at once; one that is handed over again, as it was."""
        call = Submitted(client, message, payload)
        if self.hold:
            if any(held.place == call.place for held in self.submitted):
                return
            if call.place in self.replies:
                client.send(*self.replies[call.place])
                return
        self.submitted.append(call)
        if self.on_submit is not None:
            self.on_submit(call)
        elif not self.hold:
            self.complete(call)

    def submit_failed(self, client: Client, message: border.Submit, error: RingError) -> None:
        """Fail the call."""
        client.send(border.Failed(message.join_id, message.seq, 0, error.code, str(error)))

    def ack(self, client: Client, message: border.Ack) -> None:
        """Note it."""
        assert self.stays[message.join_id] is client
        self.acks.append(message.acked)

    def complete(self, call: Submitted, released: int | None = None) -> None:
        """Reduce, and tell the client."""
        message, client = call.message, call.client
        if released is None:
            released = message.seq + 1 if self.release else 0
        try:
            result = self.compute(call)
        except RingError as error:
            client.send(
                border.Failed(message.join_id, message.seq, released, error.code, str(error))
            )
            return
        reply = border.Completed(
            message.join_id, message.seq, released, self.generation, self.ask_ack
        )
        if self.hold:
            self.replies[call.place] = (reply, result)
        client.send(reply, result)

    def compute(self, call: Submitted) -> memoryview | None:
        """Write the result where it belongs; return it if that is the message."""
        message = call.message
        what, rank, size = message.call, 0, self.size
        kind = kinds.of(what)
        if not kind.data or message.outcome:
            return None
        dtype = dtype_from_name(what.dtype)
        source: Any = call.payload
        if message.source is not None:
            source = call.client.view(message.source, writable=False)
        values = flat(source, dtype)
        out = np.empty(kinds.target_count(what, rank, size), dtype)
        if message.target is not None:
            out = flat(call.client.view(message.target, writable=True), dtype)
        arithmetic = Reduction(what.reduction, dtype, size) if kind.reduces else None
        kind.compute(kinds.Inputs([values] * size, [what] * size, rank, arithmetic), out)
        if message.target is None:
            given = kind.target(what, rank, size) is not None
            return memoryview(out.view(np.uint8)) if given else None
        self.seal(call)
        return None

    def seal(self, call: Submitted) -> None:
        """Mark the result in shared memory as complete."""
        target = call.message.target
        assert target is not None
        place = border.Ref(target.segment, border.seal_offset(target), border.SEAL.size)
        seal = call.client.view(place, writable=True)
        border.SEAL.pack_into(seal, 0, call.message.join_id, call.message.seq)

    def detach(self, client: Client, message: border.Detach) -> None:
        """Forget the client's stay."""
        self.detached += 1
        self.hung_up += message.hung_up
        self.on_leave(client)
        self._forget(client, message.join_id)

    def client_gone(self, client: Client, reason: str) -> None:
        """Forget the client."""
        self.gone.append(reason)
        self.on_leave(client)
        self._forget(client)

    @property
    def answers(self) -> dict:
        """What questions are answered with."""
        return {
            border.AskStatus: lambda _, answer: answer(b'{"schema_version": 1}'),
            border.AskRejoin: lambda _, answer: answer(b"{}"),
            border.AskReload: lambda _, answer: answer(b'{"refused": null}'),
            border.AskTrace: lambda _, answer: answer(b"[]"),
        }

    def _forget(self, client: Client, join_id: int | None = None) -> None:
        gone = {
            stay
            for stay, holder in self.stays.items()
            if holder is client and join_id in (None, stay)
        }
        for stay in gone:
            del self.stays[stay]
        for group, holder in list(self.groups.items()):
            if holder is client and (join_id is None or group not in client.stays.values()):
                del self.groups[group]
        self.submitted = [call for call in self.submitted if call.message.join_id not in gone]


def open_fds() -> int:
    """Return the number of this process's open descriptors."""
    return len(os.listdir("/dev/fd"))  # noqa: PTH208 - a mere count


SEGMENT = "memfd:ringd" if memory.SEALED_MEMORY else f"{tempfile.gettempdir()}/ringd-"
"""How Linux's list of what a process has mapped calls a segment."""


def mapped() -> int:
    """Return how often segments are mapped into this process (Linux tells; else 0)."""
    maps = Path("/proc/self/maps")
    return maps.read_text().count(SEGMENT) if maps.exists() else 0


def eventually(condition: Callable[[], Any], timeout: float = 120.0) -> None:
    """Wait until *condition* holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)


def flat(data: Any, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return *data* as a 1-d array."""
    return np.frombuffer(data, np.uint8).view(dtype) if len(data) else np.empty(0, dtype)


class NoStreams:
    """Lets no program hold ends of streams."""

    def hold(self, _client, _message):
        """Say so."""
        return "a fake daemon carries no streams"


class FakeDaemon:
    """The fake daemon in a thread of this process; everything else goes through :meth:`run`."""

    def __init__(
        self, path: str | os.PathLike[str], *, open_files: OpenFiles = OWN, **options: Any
    ) -> None:
        self.path = str(path)
        self.handler = Handler(**options)
        self.loop = Loop()
        self.server = BorderServer(
            self.loop,
            SocketLock(path, node="fake"),
            handler=self.handler,
            holders=NoStreams(),
            answers=self.handler.answers,
            log=structlog.get_logger(),
            counters=Counters(),
            limits=self.handler.limits,
            open_files=open_files,
        )
        self._died: BaseException | None = None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self.loop.run()
        except BaseException as error:  # noqa: BLE001 - told by stop()
            self._died = error
            self.server.close()  # else its sockets' context would wait for them, for ever

    def run(self, function: Callable[[], Any], timeout: float = 30) -> Any:
        """Run *function* in the daemon's thread and return what it returns.

        What came to its sockets before is read before.
        """
        done = threading.Event()
        box: list[Any] = []

        def call() -> None:
            try:
                box.append(function())
            finally:
                done.set()

        self.loop.call_threadsafe(lambda: self.loop.call_later(0, call))
        assert done.wait(timeout)
        return box[0]

    def broadcast(self, reply: border.Reply) -> None:
        """Send *reply* to every attached client."""
        self.run(lambda: [client.send(reply) for client in self.server.clients])

    def stop(self) -> None:
        """Close everything and end the thread."""
        if self._thread.is_alive():
            self.run(self.server.close)
            self.loop.call_threadsafe(self.loop.stop)
            self._thread.join(60)
            self.loop.close()
        assert not self._thread.is_alive()
        if self._died is not None:
            raise AssertionError("the daemon's loop ended") from self._died

    def __enter__(self) -> FakeDaemon:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def main() -> None:
    """Run as a process until it is told to end, or dies as it was told to."""
    parser = argparse.ArgumentParser()
    parser.add_argument("socket", type=Path)
    parser.add_argument("--size", type=int, default=2)
    parser.add_argument("--hold", action="store_true", help="complete nothing")
    parser.add_argument("--timeout", type=float, help="of calls that name none")
    parser.add_argument("--lost-after", type=float, default=0.0)
    parser.add_argument("--die-after", type=int, default=0, help="calls completed before death")
    parser.add_argument("--never-forms", action="store_true", help="tell no session")
    parser.add_argument("--seal-and-die", action="store_true", help="finish a call, tell nobody")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    handler = Handler(
        size=options.size,
        hold=options.hold,
        timeout=options.timeout,
        lost_after=options.lost_after,
        forms=not options.never_forms,
    )

    def on_submit(call: Submitted) -> None:
        if options.seal_and_die:
            handler.compute(call)
        elif options.die_after == 0 or len(handler.submitted) <= options.die_after:
            handler.complete(call)
            return
        os.kill(os.getpid(), signal.SIGKILL)

    if options.die_after or options.seal_and_die:
        handler.on_submit = on_submit
    loop = Loop()
    server = BorderServer(
        loop,
        SocketLock(options.socket, node="fake"),
        handler=handler,
        holders=NoStreams(),
        answers=handler.answers,
        log=structlog.get_logger(),
        counters=Counters(),
    )
    loop.on_signal(signal.SIGTERM, loop.stop)
    print("listening", flush=True)  # noqa: T201 - the test waits for it
    loop.run()
    server.close()
    loop.close()


if __name__ == "__main__":
    main()
