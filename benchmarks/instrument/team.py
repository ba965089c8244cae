"""A team: the workers of one system and the servers that work for them, measured together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, final

from instrument.batch import Batch, Failure, Outcome
from instrument.counters import cpu_time, sleeps
from instrument.workers import Workers

_LEAD = 2e-3  # seconds from the barrier to the start
_EXIT_TIMEOUT = 20.0
_ANSWER_TIMEOUT = 300.0


@final
class Team:
    """The members of one system, one worker each; a context manager.

    Args:
        name: For the reports of failures.
        workers: As :func:`instrument.workers.start` returns them.
        servers: Processes that work for the members, whose processor time counts as theirs.
    """

    def __init__(self, name: str, workers: Workers, servers: Sequence[int] = ()) -> None:
        self._name = name
        self._workers = workers
        self._servers = servers
        self._before = (0.0, 0.0)

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After a failure the others may wait for a member that is gone.
        self._workers.end(_EXIT_TIMEOUT if error is None else 0.1)

    @property
    def pids(self) -> list[int]:
        """Of the workers and the servers."""
        return [*self._workers.pids, *self._servers]

    @property
    def servers(self) -> Sequence[int]:
        """Of the servers alone."""
        return self._servers

    def wait_ready(self) -> None:
        """Wait until every worker has joined its system.

        Raises:
            Failure: One has not.
        """
        self._answers()

    def measure(self, batch: Batch) -> Outcome:
        """Run *batch*.

        Raises:
            Failure: A worker has failed, or does not answer.
        """
        self.prepare(batch)
        self.go()
        return self.collect()

    def prepare(self, batch: Batch) -> None:
        """Have everything ready for *batch*, warmed up."""
        self._tell(batch)
        self._answers()

    def go(self, after: float = _LEAD) -> None:
        """Let the calls begin so many seconds from now."""
        self._before = self._served()
        self._tell(time.perf_counter() + after)

    def collect(self) -> Outcome:
        """Wait for the end, and return what came of it."""
        seconds, cpu, slept, wrong = zip(*self._answers(), strict=True)
        cpu_before, slept_before = self._before
        cpu_after, slept_after = self._served()
        return Outcome(
            max(seconds),
            sum(cpu) + cpu_after - cpu_before,
            sum(slept) + slept_after - slept_before,
            sum(wrong),
        )

    def _served(self) -> tuple[float, float]:
        return sum(map(cpu_time, self._servers)), sum(map(sleeps, self._servers))

    def _tell(self, message: object) -> None:
        for rank, pipe in enumerate(self._workers.pipes):
            try:
                pipe.send(message)
            except OSError:
                raise Failure(f"{self._name}, rank {rank}: died") from None

    def _answers(self) -> list[Any]:
        deadline = time.monotonic() + _ANSWER_TIMEOUT
        answers = []
        for rank, pipe in enumerate(self._workers.pipes):
            who = f"{self._name}, rank {rank}"
            if not pipe.poll(max(0.0, deadline - time.monotonic())):
                raise Failure(f"{who}: no answer within {_ANSWER_TIMEOUT:g} s")
            try:
                answer = pipe.recv()
            except (EOFError, OSError):
                raise Failure(f"{who}: died") from None
            if isinstance(answer, str):
                raise Failure(f"{who}:\n{answer}")
            answers.append(answer)
        return answers
