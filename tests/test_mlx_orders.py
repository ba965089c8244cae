"""MLX's chain of neighbours, launched in every order: several machines on one loop, without MLX."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from functools import partial
from itertools import permutations
from pathlib import Path

import pytest

from ringd.cli.mlx import LOOK_EVERY, Chain
from ringd.forward.forwarder import Forwarder
from ringd.loop import Loop
from ringd.wire.link.streams import Connect, Reset, StreamMessage
from tests.cluster import PATIENCE
from tests.streamkit import exactly

MESSAGE = 100_000
"""Bytes."""


class Program(threading.Thread):
    """Accepts and connects in the order of MLX's ring backend; then says something, and listens.

    Args:
        environ: What the chain gives it.
        on_in: Called, in this thread, when both neighbours are there: MLX spins from then on.
        on_heard: Likewise, when it has heard what the one on the left has said.
    """

    def __init__(
        self, environ: dict[str, str], on_in: Callable[[], None], on_heard: Callable[[], None]
    ) -> None:
        super().__init__(daemon=True)
        self.rank = int(environ["MLX_RANK"])
        self.heard = b""
        self._places = json.loads(Path(environ["MLX_HOSTFILE"]).read_text())
        self._on_in, self._on_heard = on_in, on_heard

    def run(self) -> None:
        """Come together with the others."""
        last = self.rank == len(self._places) - 1
        if last:
            right, left = self._reach(), self._accept()
        else:
            left, right = self._accept(), self._reach()
        self._on_in()
        with left, right:
            right.sendall(bytes([self.rank]) * MESSAGE)
            self.heard = exactly(left, MESSAGE)
            self._on_heard()
            with contextlib.suppress(OSError):
                left.recv(1)  # until the job is closed: none ends before the others are through

    def _accept(self) -> socket.socket:
        host, port = self._places[self.rank][0].split(":")
        with socket.create_server((host, int(port)), backlog=0) as listener:
            listener.settimeout(PATIENCE)
            return listener.accept()[0]

    def _reach(self) -> socket.socket:
        host, port = self._places[(self.rank + 1) % len(self._places)][0].split(":")
        return socket.create_connection((host, int(port)), PATIENCE)


class Job:
    """The machines of one job, which are launched in this *order*; :meth:`close` it."""

    def __init__(self, loop: Loop, order: tuple[int, ...], on_end: Callable[[], None]) -> None:
        self.order = order
        self.programs: dict[int, Program] = {}
        self.early = False
        """Whether one was let in while another was not there."""
        self._loop = loop
        self._on_end = on_end
        self._chains: dict[int, Chain] = {}
        self._forwarders: dict[int, Forwarder] = {}
        self._through = 0
        loop.call_soon(self._launch)

    def _launch(self) -> None:
        rank = self.order[len(self._chains)]
        chain = self._chains[rank] = Chain(
            self._loop,
            name="".join(map(str, self.order)),
            connections=1,
            first_port=None,
            tell=lambda _text: None,
            on_conflict=pytest.fail,
        )
        forwarder = self._forwarders[rank] = Forwarder(
            self._loop,
            send=partial(self._send, rank),
            accepts=chain.accepts,
            on_reset=lambda _member, _reason: None,
            in_program=True,
        )
        chain.begin(forwarder, tuple(f"n{other}" for other in range(len(self.order))), rank)
        forwarder.table.up()
        self.programs[rank] = Program(
            chain.environ,
            on_in=lambda: self._loop.call_threadsafe(self._in),
            on_heard=lambda: self._loop.call_threadsafe(self._heard),
        )
        self.programs[rank].start()
        if len(self._chains) < len(self.order):
            self._loop.call_later(2 * LOOK_EVERY, self._launch)

    def _send(  # noqa: PLR0917
        self,
        rank: int,
        member: int,
        number: int,
        offset: int,
        message: StreamMessage,
        data: bytes,
    ) -> None:
        """Be the ring, and the daemon of a machine on which nothing was launched yet."""
        if member in self._forwarders:
            to, words = member, (rank, number, offset, message, memoryview(data))
        elif isinstance(message, Connect):
            absent = Reset("nobody serves that yet", absent=True)
            to, words = rank, (member, number, 0, absent, memoryview(b""))
        else:
            return
        self._loop.call_soon(lambda: self._forwarders[to].table.received(*words))

    def _in(self) -> None:
        self.early = self.early or len(self._chains) < len(self.order)

    def _heard(self) -> None:
        self._through += 1
        if self._through == len(self.order):
            self._on_end()

    def close(self) -> None:
        """Leave nothing behind."""
        for chain in self._chains.values():
            chain.close()
        for forwarder in self._forwarders.values():
            forwarder.table.close("the test is over")
        for program in self.programs.values():
            program.join(PATIENCE)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_order(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """None is let in, where it would spin, before all are there; then all hear their left one."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    orders = list(permutations(range(size)))
    ended: list[None] = []

    def on_end() -> None:
        ended.append(None)
        if len(ended) == len(orders):
            loop.stop()

    jobs = [Job(loop, order, on_end) for order in orders]
    loop.call_later(PATIENCE, loop.stop)
    loop.run()
    try:
        for job in jobs:
            assert not job.early, job.order
            for rank, program in job.programs.items():
                assert program.heard == bytes([(rank - 1) % size]) * MESSAGE, job.order
    finally:
        for job in jobs:
            job.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("second", "told"), [(None, 0), (False, 1)])
def test_a_system_that_falls_silent_tells_of_no_stranger(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, second: bool | None, told: int
) -> None:
    """Only where the system says that nobody listens any more has somebody taken the place."""
    looks = iter([True, second])

    def look(_port: int) -> bool | None:
        try:
            return next(looks)
        except StopIteration:
            loop.stop()
            return None

    monkeypatch.setattr("ringd.cli.mlx.is_listened_to", look)
    monkeypatch.setattr("ringd.cli.mlx.SAY_AFTER", 0.01)
    said: list[str] = []
    chain = Chain(
        loop,
        name="silent",
        connections=1,
        first_port=None,
        tell=said.append,
        on_conflict=pytest.fail,
    )
    forwarder = Forwarder(
        loop,
        send=lambda *_words: None,
        accepts=chain.accepts,
        on_reset=lambda _member, _reason: None,
        in_program=True,
    )
    chain.begin(forwarder, ("n0", "n1"), 0)
    loop.call_later(PATIENCE, loop.stop)
    loop.run()
    chain.close()
    forwarder.table.close("the test is over")
    assert next(looks, "all were taken") == "all were taken"
    assert len([text for text in said if "nobody listens" in text]) == told, said
