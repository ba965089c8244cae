"""Shared memory follows what programs use: measured on both sides of the border, real daemons."""

from __future__ import annotations

import json
import os
import select
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ringd
from ringd.client import retention
from tests.cluster import PATIENCE, Cluster, Node, wait_until
from tests.ringkit import connected, everywhere

MIB = 1 << 20
LARGEST = 2 * MIB
WORKING_SET = 2 * LARGEST
"""Of one call at a time: its input and its result."""
SIZES = 400


def nameless() -> dict[int, int]:
    """Return the bytes behind each of this process's nameless files, which segments are."""
    sizes: dict[int, int] = {}  # by file: older Pythons have two descriptors of a segment
    for fd in os.listdir("/dev/fd"):  # noqa: PTH208 - no paths that one could follow
        try:
            status = os.fstat(int(fd))
        except OSError:  # the one that listed them
            continue
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 0:
            sizes[status.st_ino] = status.st_blocks * 512
    return sizes


@pytest.fixture
def held() -> Callable[[], int]:
    """Return what counts the bytes of the segments that this process has made since."""
    before = nameless().keys()
    return lambda: sum(size for file, size in nameless().items() if file not in before)


def mapped(node: Node) -> int:
    """Return the bytes of segments that a daemon maps, as it says itself."""
    status = node.status()
    assert status is not None
    return sum(client["shared_memory"] for client in status["clients"])


def call_with_many_sizes(ring: ringd.Ring) -> int:
    """Make a call of each size, one at a time; return the most that was kept meanwhile."""
    most = 0
    pool = ring._connection.pool
    sizes = np.linspace(65536, LARGEST, SIZES, dtype=int)
    np.random.default_rng(7).shuffle(sizes)
    for size in sizes:
        x = np.full(size // 4, ring.rank + 1, np.float32)
        result = ring.all_reduce(x)
        assert result[0] == result[-1] == 3
        most = max(most, pool.kept)
    return most


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program counts as idle soon, though not as forgotten."""
    monkeypatch.setattr(retention, "QUIET", 0.3)


@pytest.mark.usefixtures("soon")
def test_tensors_of_many_sizes_share_memory(place: Path, held: Callable[[], int]) -> None:
    """400 sizes one by one: at most 2.5 times the largest is kept, and 1.2 times when idle."""
    with Cluster(place, 2) as cluster:
        cluster.start().wait_ready()
        with connected(cluster) as rings:
            for most in everywhere(rings, call_with_many_sizes):
                assert most <= 2.5 * WORKING_SET
            assert held() <= 2 * 2.5 * WORKING_SET  # of two programs
            wait_until(lambda: held() <= 2 * 1.2 * WORKING_SET, "it goes back")
            for node in cluster.nodes:
                wait_until(lambda node=node: mapped(node) <= 1.2 * WORKING_SET, "and over there")


def test_a_call_after_a_pause_needs_no_memory_beside_that_of_the_last_one(
    place: Path, held: Callable[[], int]
) -> None:
    """By then others are done with the last one's input; fresh memory would cost twice the call."""

    def call_and_pause(ring: ringd.Ring) -> None:
        ring.all_reduce(np.zeros(LARGEST, np.int8))
        channel = ring._connection.pump.channel
        assert channel is not None
        heard, _, _ = select.select([channel.calls], [], [], PATIENCE)
        assert heard, "the daemon says that the input is needed no more"

    with Cluster(place, 2) as cluster:
        cluster.start().wait_ready()
        with connected(cluster) as rings:
            everywhere(rings, call_and_pause)
            once = held()
            for _ in range(3):
                everywhere(rings, call_and_pause)
            assert held() == once


def test_program_that_has_gone_quiet_keeps_only_what_it_holds(
    place: Path, held: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After long idleness all goes back but the user's arrays, and these when they are dropped."""
    monkeypatch.setattr(retention, "QUIET", 0.2)
    monkeypatch.setattr(retention, "FORGET", 0.5)
    with Cluster(place, 2) as cluster:
        cluster.start().wait_ready()
        with connected(cluster) as rings:
            everywhere(rings, lambda ring: ring.all_reduce(np.zeros(4 * MIB, np.int8)).size)
            results = everywhere(rings, lambda ring: ring.all_reduce(np.zeros(3 * MIB, np.int8)))
            wait_until(lambda: held() <= 2 * 1.2 * 3 * MIB, "all but the results")
            assert held() >= 2 * 3 * MIB
            assert [result.max() for result in results] == [0, 0]
            results.clear()
            wait_until(lambda: held() <= 2 * retention.ROOM, "the results")
            wait_until(lambda: mapped(cluster[0]) <= retention.ROOM, "and over there")
            everywhere(rings, lambda ring: ring.all_reduce(np.zeros(4 * MIB, np.int8)).size)


def test_a_large_answer_costs_a_daemon_nothing_for_good(tmp_path: Path) -> None:
    """Neither a file nor a thread, which pyzmq keeps for what it does not copy."""
    with Cluster(tmp_path, 1) as cluster:
        cluster.start().wait_ready()
        (node,) = cluster.nodes

        def held() -> tuple[int, int]:
            return node.open_files(), len(list(Path(f"/proc/{node.pid}/task").iterdir()))

        with connected(cluster, "g" * 64) as (ring,):
            for _ in range(4):  # until as many events are recorded as there can be
                works = [ring.barrier_async(name="x" * 256) for _ in range(1024)]
                works[-1].wait()
            before = held()
            assert len(json.dumps(node.trace())) > MIB
            wait_until(lambda: max(np.subtract(held(), before)) <= 0, f"{before} files and threads")
