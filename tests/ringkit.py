"""What the tests with real daemons share: programs as threads, or as processes to be killed."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import ringd
from tests.cluster import PATIENCE, Cluster, Node, wait_until

BOUNDED = """
[ops]
timeout = "60s"
"""
"""Settings under which a test that would hang fails."""

PATIENT = (
    BOUNDED
    + """
[join]
lost_after = "15s"
"""
)
"""Nobody is lost but by the fault of a test, however long a busy machine holds up a daemon."""

HASTY = (
    BOUNDED
    + """
[join]
heartbeat = "200ms"
lost_after = "600ms"
"""
)
"""Settings under which silence is noticed soon."""


@contextmanager
def connected(cluster: Cluster, group: str = "test", **options: Any) -> Iterator[list[ringd.Ring]]:
    """Give a ring for each rank, all in *group*."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(ringd.connect(socket, group, PATIENCE, **options))
            for socket in cluster.sockets
        ]


class Call:
    """A function under way in a thread of its own."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            self._error = error

    @property
    def running(self) -> bool:
        """Whether it has not returned yet."""
        return self._thread.is_alive()

    def outcome(self, timeout: float = PATIENCE) -> Any:
        """Return the result, or the exception that it raised."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"it hangs for {timeout:g} s already"
        return self._result if self._error is None else self._error

    def result(self, timeout: float = PATIENCE) -> Any:
        """Return the result; raise what it raised."""
        result = self.outcome(timeout)
        if self._error is not None:
            raise self._error
        return result


def begin(rings: Sequence[ringd.Ring], function: Callable[[ringd.Ring], Any]) -> list[Call]:
    """Call *function* with each of *rings*, at the same time."""
    return [Call(lambda ring=ring: function(ring)) for ring in rings]


def everywhere(rings: Sequence[ringd.Ring], function: Callable[[ringd.Ring], Any]) -> list[Any]:
    """Call *function* with each of *rings* at the same time; return the results by rank."""
    return [call.result() for call in begin(rings, function)]


def outcomes(rings: Sequence[ringd.Ring], function: Callable[[ringd.Ring], Any]) -> list[Any]:
    """As :func:`everywhere`, with exceptions as results."""
    return [call.outcome() for call in begin(rings, function)]


def tensor(rank: int, count: int, seed: int = 0) -> np.ndarray:
    """Return the input of *rank*: whole numbers in float32, so that sums are exact."""
    random = np.random.default_rng([seed, rank])
    return random.integers(-1000, 1000, count).astype(np.float32)


def total(size: int, count: int, seed: int = 0) -> np.ndarray:
    """Return the sum of :func:`tensor` over all ranks."""
    return np.sum([tensor(rank, count, seed) for rank in range(size)], axis=0, dtype=np.float32)


def lend(ring: ringd.Ring, x: np.ndarray, *, empty: bool) -> np.ndarray:
    """Return *x*; a copy of it in an array of ``ring.empty`` if that is asked for."""
    if not empty:
        return x
    buffer = ring.empty(x.shape, x.dtype)
    buffer[:] = x
    return buffer


def op_counts(node: Node, group: str = "test") -> dict[str, int]:
    """Return how many calls each member has made in *group*, as the daemon of *node* knows it."""
    counts: dict[str, int] = {}
    for entry in groups(node):
        if entry["name"] == group:
            counts = entry["op_counts"]
    return counts


def groups(node: Node) -> list[dict[str, Any]]:
    """Return the groups that the daemon of *node* knows."""
    status = node.status()
    return [] if status is None else status["groups"]


def wait_counts(node: Node, expected: Sequence[int], group: str = "test") -> None:
    """Wait until *node* knows that each member has made as many calls as *expected*, by rank."""
    wait_until(
        lambda: list(op_counts(node, group).values()) == list(expected),
        f"op counts {list(expected)} on {node.name}",
    )


def wait_state(node: Node, state: str) -> None:
    """Wait until the ring is in *state* for *node*."""
    wait_until(lambda: (node.status() or {}).get("state") == state, f"{node.name} {state}")


PRELUDE = """
import sys
import numpy as np
import ringd
from tests.ringkit import tensor, total

def say(*words):
    print(*words, flush=True)

def hear():
    sys.stdin.readline()

ring = ringd.connect({socket!r}, {group!r}, timeout=100)
say("connected")
"""


class Program:
    """A client in a process of its own, which runs *body*.

    *body* has ``ring``, ``say(...)``, which :meth:`expect` reads, and ``hear()``, which waits for
    :meth:`tell`.
    """

    def __init__(self, node: Node, body: str, group: str = "test") -> None:
        text = PRELUDE.format(socket=str(node.socket), group=group) + body
        self.process = subprocess.Popen(
            [sys.executable, "-c", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=node.cluster.environ,
            cwd=Path(__file__).parent.parent,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.expect("connected")

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip())
        self._lines.put("(ended)")

    def expect(self, line: str) -> None:
        """Wait for the next line that the program says, which must be *line*."""
        try:
            said = self._lines.get(timeout=PATIENCE)
        except queue.Empty:
            said = "(nothing)"
        if said == "(ended)" and self.process.stderr is not None:
            said += self.process.stderr.read()
        assert said == line

    def tell(self) -> None:
        """Let the program's ``hear()`` return."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def end(self) -> int:
        """Wait for its end; return the exit code."""
        return self.process.wait(PATIENCE)

    def __enter__(self) -> Program:  # noqa: PYI034 - Self is newer than Python 3.10
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
