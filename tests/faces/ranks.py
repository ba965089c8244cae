"""Programs with torch, each beside a daemon of its own or several beside one, that tests call."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

PATIENCE = 120.0
"""Seconds; importing torch alone takes several on a busy machine."""


class Ranks:
    """Processes that call functions at the same time; one for each of *environs*."""

    def __init__(self, environs: Sequence[Mapping[str, str]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self.processes = []
        for environ in environs:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, dict(environ)))
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self.processes.append(process)

    def begin(self, function: Callable[..., Any], *args: Any, ranks: Sequence[int] = ()) -> None:
        """Have the processes call *function*, a test module's own; all of them by default."""
        for pipe in self._chosen(ranks):
            pipe.send((function, args))

    def outcomes(self, ranks: Sequence[int] = (), timeout: float = PATIENCE) -> list[Any]:
        """Return what they returned, or raised: exceptions as text, which ends with their own."""
        outcomes = []
        for pipe in self._chosen(ranks):
            assert pipe.poll(timeout), f"no answer within {timeout:g} s"
            outcomes.append(pipe.recv())
        return outcomes

    def call(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Have them call *function*; return the results by rank."""
        self.begin(function, *args)
        outcomes = self.outcomes()
        failed = [str(outcome) for outcome in outcomes if isinstance(outcome, Raised)]
        assert not failed, "\n".join(failed)
        return outcomes

    def _chosen(self, ranks: Sequence[int]) -> list[Connection]:
        return [self._pipes[rank] for rank in ranks] if ranks else self._pipes

    def close(self) -> None:
        """End them."""
        for pipe in self._pipes:
            pipe.close()
        for process in self.processes:
            process.kill()
            process.join()

    def __enter__(self) -> Ranks:  # noqa: PYI034 - Self is newer than Python 3.10
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Raised(str):
    """The traceback of what a function raised."""

    __slots__ = ()


def _serve(pipe: Connection, environ: Mapping[str, str]) -> None:
    os.environ.update(environ)
    os.environ["OMP_NUM_THREADS"] = "1"
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(function(*args))
        except BaseException:  # noqa: BLE001 - the test's business
            pipe.send(Raised(traceback.format_exc()))


def beside(sockets: Sequence[str], **more: str) -> list[dict[str, str]]:
    """Return the environments of programs that are beside the daemons at *sockets*."""
    return [{"RINGD_SOCKET": socket, **more} for socket in sockets]
