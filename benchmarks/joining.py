"""How fast the ring forms and forms again, and what waiting for a neighbour costs.

    python benchmarks/joining.py [--trials 20] [--report FILE]

Real daemons on loopback. Times run from the log line of the last daemon that listens to the log
line "ring ready" of the last member, so they hold no start-up of Python.
"""

from __future__ import annotations

import argparse
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.cluster import Cluster, Node, wait_until

MEMBERS = 5
HELD = 50
"""Silent connections that one stranger holds."""


@contextmanager
def members(size: int, settings: str = "") -> Iterator[Cluster]:
    """Give a ring of *size* members, none of them started."""
    with (
        tempfile.TemporaryDirectory() as place,
        Cluster(Path(place), size, settings=settings) as it,
    ):
        yield it


def moments(node: Node, event: str, after: float = 0.0) -> list[float]:
    """Return when *event* stands in the node's log, as seconds of the wall clock."""
    times = [
        datetime.fromisoformat(entry["timestamp"].replace("Z", "+00:00")).timestamp()
        for entry in node.log()
        if entry["event"] == event
    ]
    return [moment for moment in times if moment >= after]


def settled(cluster: Cluster, beyond: int) -> float:
    """Wait for a ring above generation *beyond*; return the seconds from listening to ready."""
    cluster.wait_ready(beyond)
    listening = max(moments(node, "ringd started")[-1] for node in cluster.nodes)
    ready = max(moments(node, "ring ready")[-1] for node in cluster.nodes)
    return ready - listening


def fresh_starts(trials: int, rng: random.Random) -> list[float]:
    """Start all members in random order, up to a second apart."""
    times = []
    for _ in range(trials):
        with members(MEMBERS) as cluster:
            for rank in rng.sample(range(MEMBERS), MEMBERS):
                cluster.start([rank])
                time.sleep(rng.uniform(0, 1))
            times.append(settled(cluster, 0))
    return times


def restarts(trials: int, rng: random.Random, strangers: int = 0) -> list[float]:
    """Kill a random member and start it again, with *strangers* at everybody's door."""
    times = []
    with members(MEMBERS) as cluster:
        generation = cluster.start().wait_ready()
        stop = threading.Event()
        crowd = [
            threading.Thread(target=disturb, args=(cluster, stop, n)) for n in range(strangers)
        ]
        for stranger in crowd:
            stranger.start()
        for _ in range(trials):
            node = cluster[rng.randrange(MEMBERS)]
            node.kill()
            time.sleep(rng.uniform(0.1, 1.5))
            node.start()
            times.append(settled(cluster, generation))
            generation = cluster.wait_ready(generation)
        stop.set()
        for stranger in crowd:
            stranger.join()
    return times


def disturb(cluster: Cluster, stop: threading.Event, number: int) -> None:
    """Hold silent connections, send garbage on others, scan ports, until *stop*."""
    rng = random.Random(number)  # noqa: S311 - no secret
    silent: list[socket.socket] = []
    while not stop.is_set():
        node = cluster[rng.randrange(MEMBERS)]
        try:
            sock = socket.create_connection(("127.0.0.1", node.port), 1)
            if rng.randrange(2):
                sock.sendall(rng.randbytes(rng.randrange(1, 200)))
                sock.close()
            else:
                silent.append(sock)
        except OSError:
            pass
        if len(silent) > HELD:
            silent.pop(0).close()
        stop.wait(0.02)
    for sock in silent:
        sock.close()


def waiting(seconds: float) -> tuple[float, int, int]:
    """Return the share of a core, and the growth in descriptors and bytes, of waiting alone."""
    with tempfile.TemporaryDirectory() as directory:
        settings = '[join]\nbackoff_first = "1ms"\nbackoff_max = "2s"\n'
        with Cluster(Path(directory), 3, settings=settings) as cluster:
            node = cluster[0]
            node.start()
            wait_until(node.status, "the daemon answers")
            time.sleep(2)
            cpu, files, memory = node.cpu_seconds(), node.open_files(), node.resident_bytes()
            time.sleep(seconds)
            share = (node.cpu_seconds() - cpu) / seconds
            return share, node.open_files() - files, node.resident_bytes() - memory


def attempts(count: int) -> tuple[int, int, int]:
    """Let a daemon fail *count* times; return attempts made, growth in descriptors and bytes."""
    settings = '[join]\nbackoff_first = "1ms"\nbackoff_max = "1ms"\n'
    with ExitStack() as stack:
        cluster = stack.enter_context(members(3, settings))
        address = ("127.0.0.1", cluster[1].port)
        with socket.create_server(address, backlog=64) as server:
            made = 0
            node = cluster[0]
            node.start()
            files = memory = 0
            while made < count:
                server.accept()[0].close()
                made += 1
                if made == count // 10:
                    files, memory = node.open_files(), node.resident_bytes()
            return made, node.open_files() - files, node.resident_bytes() - memory


def row(what: str, times: list[float]) -> str:
    """Return a table row of milliseconds."""
    figures = [min(times), statistics.median(times), max(times)]
    cells = " | ".join(f"{1e3 * figure:.0f}" for figure in figures)
    return f"| {what} | {len(times)} | {cells} |"


def main() -> int:
    """Measure, print, and fail if a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="write the table to this file")
    args = parser.parse_args()
    rng = random.Random(args.seed)  # noqa: S311 - a seed for the order of starts
    started = fresh_starts(args.trials, rng)
    restarted = restarts(args.trials, rng)
    disturbed = restarts(args.trials, rng, strangers=8)
    share, files, memory = waiting(20)
    made, more_files, more_memory = attempts(10_000)
    lines = [
        (
            f"{MEMBERS} daemons on loopback; milliseconds from the last one's listening to "
            "the last one's ready."
        ),
        "",
        "| | trials | least | median | worst |",
        "| --- | --- | --- | --- | --- |",
        row("started in random order, up to 1 s apart", started),
        row("one killed and started again", restarted),
        row("the same among 8 strangers: up to 400 silent connections, garbage, scans", disturbed),
        "",
        (
            f"Waiting for a missing neighbour: {100 * share:.2f} % of a core, "
            f"{files:+d} descriptors, {memory / 1024:+.0f} KiB in 20 s."
        ),
        "",
        (
            f"{made:,} attempts that fail in the handshake, after the first tenth: {more_files:+d} "
            f"descriptors, {more_memory / 1024:+.0f} KiB."
        ),
    ]
    print("\n".join(lines))
    if args.report:
        args.report.write_text("# Joining\n\n" + "\n".join(lines) + "\n")
    good = max(started + restarted) < 0.5 and share < 0.01 and more_files <= 1  # noqa: PLR2004 - the promises
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
