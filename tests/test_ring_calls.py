"""Calls over three real daemons: many at once, in several groups, and those that go wrong."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest

import ringd
from tests.cluster import Cluster
from tests.ringkit import Call, begin, connected, everywhere, outcomes, tensor, total, wait_counts

SIZES = [1, 100, 9000, 12_000, 70_000, 300_000]


def test_many_in_flight(calm: list[ringd.Ring]) -> None:
    """Dozens of open calls of all sizes each get their own result, waited for in any order."""

    def call(ring: ringd.Ring) -> None:
        works = [
            ring.all_reduce_async(tensor(ring.rank, SIZES[i % 6], i), name=f"layer{i}")
            for i in range(60)
        ]
        order = np.random.default_rng(ring.rank).permutation(60)
        for i in order:
            np.testing.assert_array_equal(works[i].wait(), total(3, SIZES[i % 6], i))

    everywhere(calm, call)


def test_work(calm: list[ringd.Ring]) -> None:
    """``done`` turns true by itself, ``wait`` gives the same array each time, or its error."""
    first = calm[0].all_reduce_async(np.ones(3))
    assert not first.done()
    with pytest.raises(ringd.DeadlineExceeded, match="it goes on"):
        first.wait(timeout=0.01)
    others = begin(calm[1:], lambda ring: ring.all_reduce(np.ones(3)))
    assert first.wait() is first.wait()
    assert first.done()
    assert [call.result().tolist() for call in others] == [[3.0] * 3] * 2


def test_dropped_works_take_place(calm: list[ringd.Ring]) -> None:
    """A call whose handle nobody keeps still serves the others."""
    for ring in calm[1:]:
        ring.all_reduce_async(tensor(ring.rank, 70_000))
    result = calm[0].all_reduce(tensor(0, 70_000))
    np.testing.assert_array_equal(result, total(3, 70_000))


def test_several_threads(calm: list[ringd.Ring]) -> None:
    """Threads may share a ring; names keep apart what they do at the same time."""

    # All ranks must make the calls in one order, so the threads share one kind of call.
    def call(ring: ringd.Ring) -> None:
        threads = [
            Call(lambda: [ring.all_reduce(np.ones(n)).sum() for n in (5, 5, 5)]) for _ in range(4)
        ]
        for thread in threads:
            assert thread.result() == [15.0] * 3

    everywhere(calm, call)


def test_barrier(calm: list[ringd.Ring]) -> None:
    """Nobody passes a barrier before all have come to it."""
    early = begin(calm[:2], lambda ring: ring.barrier(name="epoch"))
    marker = everywhere(calm[:1], repr)  # the calls above are under way
    assert "(n0)" in marker[0]
    assert all(call.running for call in early)
    calm[2].barrier(name="epoch")
    assert [call.result() for call in early] == [None, None]


def test_groups_do_not_wait_for_each_other(calm_cluster: Cluster) -> None:
    """While one group waits for a member, small and large calls of another go through."""
    with connected(calm_cluster, "stuck") as stuck, connected(calm_cluster, "lively") as lively:
        works = [ring.all_reduce_async(tensor(ring.rank, 300_000)) for ring in stuck[:2]]
        for seed in range(3):
            for count in SIZES:
                for result in everywhere(
                    lively, lambda ring, c=count, s=seed: ring.all_reduce(tensor(ring.rank, c, s))
                ):
                    np.testing.assert_array_equal(result, total(3, count, seed))
        assert not any(work.done() for work in works)
        works.append(stuck[2].all_reduce_async(tensor(2, 300_000)))
        for work in works:
            np.testing.assert_array_equal(work.wait(), total(3, 300_000))


def test_groups_side_by_side(calm_cluster: Cluster) -> None:
    """Several groups of one process, and several threads, keep their values apart."""

    def use(number: int) -> None:
        with connected(calm_cluster, f"side {number}") as rings:

            def call(ring: ringd.Ring) -> None:
                for i, count in enumerate(SIZES * 2):
                    seed = 100 * number + i
                    result = ring.all_reduce(tensor(ring.rank, count, seed))
                    np.testing.assert_array_equal(result, total(3, count, seed))

            everywhere(rings, call)

    for thread in [Call(lambda n=n: use(n)) for n in range(4)]:
        thread.result()


DIFFERENT = {
    "shape": lambda ring: ring.all_reduce(np.ones(3 + ring.rank, np.float32)),
    "large shape": lambda ring: ring.all_reduce(np.ones(300_000 + ring.rank, np.float32)),
    "dtype": lambda ring: ring.all_reduce(np.ones(3, ["f4", "f8", "i4"][ring.rank])),
    "op": lambda ring: ring.all_reduce(np.ones(3, "f4"), ["sum", "min", "max"][ring.rank]),
    "name": lambda ring: ring.all_reduce(np.ones(3, "f4"), name=f"name{ring.rank}"),
    "kind": lambda ring: ring.barrier() if ring.rank else ring.all_reduce(np.ones(3, "f4")),
    "one large": lambda ring: ring.all_reduce(np.ones(300_000 if ring.rank == 1 else 3, "f4")),
}
SENT = {
    "shape": ["float32[3]", "float32[4]", "float32[5]"],
    "large shape": ["float32[300000]", "float32[300001]", "float32[300002]"],
    "dtype": ["float32[3]", "float64[3]", "int32[3]"],
    "op": ["all_reduce sum", "all_reduce min", "all_reduce max"],
    "name": ["'name0'", "'name1'", "'name2'"],
    "kind": ["n0: all_reduce sum float32[3]", "n1, n2: barrier"],
    "one large": ["n0, n2: all_reduce sum float32[3]", "n1: all_reduce sum float32[300000]"],
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_mismatch(calm: list[ringd.Ring], what: str) -> None:
    """Every rank reads what each member sent; the ring and the next call are unharmed."""
    generation = calm[0].generation
    found = outcomes(calm, DIFFERENT[what])
    assert [type(error) for error in found] == [ringd.Mismatch] * 3
    assert len({str(error) for error in found}) == 1
    for text in [*SENT[what], "n0", "n1", "n2"]:
        assert text in str(found[0])
    for result in everywhere(calm, lambda ring: ring.all_reduce(tensor(ring.rank, 300_000))):
        np.testing.assert_array_equal(result, total(3, 300_000))
    assert [ring.generation for ring in calm] == [generation] * 3


def test_one_rank_ahead(calm: list[ringd.Ring]) -> None:
    """A rank that skipped a call is found out, call by call, until it catches up by itself."""

    def call(ring: ringd.Ring) -> list[ringd.Mismatch | np.ndarray]:
        names = ["b", "c"] if ring.rank == 0 else ["a", "b"]
        works = [ring.all_reduce_async(np.ones(2), name=name) for name in names]
        for work in works:
            with pytest.raises(ringd.Mismatch, match=r"n0: .*named.*n1, n2: .*named"):
                work.wait()
        return ring.all_reduce(np.ones(2), name="c")

    for result in everywhere(calm, call):
        np.testing.assert_array_equal(result, [3.0, 3.0])


@pytest.mark.parametrize("count", SIZES)
def test_deadline_names_who_is_missing(
    calm: list[ringd.Ring], calm_cluster: Cluster, request: pytest.FixtureRequest, count: int
) -> None:
    """A call that waits in vain ends everywhere with the names of those who did not make it."""
    group = request.node.name
    patient = calm[0].all_reduce_async(tensor(0, count), timeout=math.inf)
    wait_counts(calm_cluster[1], [1, 0, 0], group)
    with pytest.raises(
        ringd.DeadlineExceeded, match=r"0\.2 s passed on 'n1'; not submitted by: n2"
    ):
        calm[1].all_reduce(tensor(1, count), timeout=0.2)
    with pytest.raises(ringd.DeadlineExceeded, match="not submitted by: n2"):
        patient.wait()
    with pytest.raises(ringd.DeadlineExceeded, match="'n1'"):  # as the others count on
        calm[2].all_reduce(tensor(2, count))
    for result in everywhere(calm, lambda ring: ring.all_reduce(tensor(ring.rank, count))):
        np.testing.assert_array_equal(result, total(3, count))


def test_deadline_names_who_has_no_client(calm_cluster: Cluster) -> None:
    """Before all members have a client in the group, those without one are named."""
    with (
        ringd.connect(calm_cluster.sockets[1], "lonely") as ring,
        pytest.raises(ringd.DeadlineExceeded, match="no client in the group on: n0, n2"),
    ):
        ring.all_reduce(np.ones(3), timeout=0.2)


def test_wrong_arguments_reach_nobody(calm: list[ringd.Ring]) -> None:
    """What cannot be reduced is refused here, and the group's order is not disturbed."""
    ring = calm[1]
    for x, op in [
        (np.ones(2, int), "mean"),
        (np.ones(2, bool), "mean"),
        (np.ones(2, object), "sum"),
        (np.ones(2, complex), "bor"),
        (np.array(["a"]), "sum"),
        (np.ones(2, "M8[s]"), "max"),
        (np.ones(2, np.longdouble), "sum"),
    ]:
        with pytest.raises(TypeError):
            ring.all_reduce(x, op)
    with pytest.raises(ValueError, match="avg"):
        ring.all_reduce(np.ones(2), "avg")
    with pytest.raises(TypeError, match="float32"):
        ring.all_reduce(np.ones(2), out=np.ones(2, np.float32))
    with pytest.raises(ValueError, match="shape"):
        ring.all_reduce(np.ones(2), out=np.ones(3))
    with pytest.raises(ValueError, match="positive"):
        ring.all_reduce(np.ones(2), timeout=-1)
    results = everywhere(calm, lambda ring: ring.all_reduce(np.ones(2)).tolist())
    assert results == [[3.0, 3.0]] * 3


def test_fork(calm: list[ringd.Ring], calm_cluster: Cluster) -> None:
    """A forked child is told to connect anew, can do so, and does not disturb its parent."""
    ring = calm[0]
    works = [ring.all_reduce_async(tensor(0, 70_000)) for ring in calm[:1]]
    child = os.fork()
    if child == 0:  # the child's exit code tells what it met
        code = 1
        try:
            ring.all_reduce(np.ones(1))
        except ringd.RingError as error:
            code = 2 if "connect again after fork" in str(error) else 3
        if code == 2:
            with ringd.connect(calm_cluster.sockets[0], "child") as own:
                code = 0 if own.node == "n0" else 4
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    works += [ring.all_reduce_async(tensor(ring.rank, 70_000)) for ring in calm[1:]]
    for work in works:
        np.testing.assert_array_equal(work.wait(), total(3, 70_000))


def test_closed_ring(calm_cluster: Cluster) -> None:
    """After ``close``, calls say so, open ones have ended, and closing twice does no harm."""
    with connected(calm_cluster, "closed") as rings:
        open_call = rings[0].all_reduce_async(np.ones(3))
        rings[0].close()
        rings[0].close()
        with pytest.raises(ringd.RingError, match="closed"):
            open_call.wait()
        with pytest.raises(ringd.RingError, match="closed"):
            rings[0].all_reduce(np.ones(3))


@pytest.mark.parametrize(
    ("protect", "size", "most"),
    [("off", 2, 93), ("off", 4, 125), ("integrity", 2, 90), ("integrity", 4, 116)],
)
def test_a_small_call_runs_few_functions_of_a_daemon(tmp_path, protect, size, most):
    """The time of a small call is that of the functions that it runs, waiting left out.

    In a ring of four, two members' messages pass here, and one ends here. The bounds have room for
    what another version of Python counts.
    """
    x = np.ones(1024, np.float32)
    with Cluster(tmp_path, size, protect=protect) as cluster:
        path = cluster[0].delay_path.with_suffix(".functions")
        path.touch()
        cluster.start().wait_ready()
        with connected(cluster) as rings:
            everywhere(rings, lambda ring: [ring.all_reduce(x) for _ in range(200)])
        cluster[0].stop()
    calls = [[]]
    for name in path.read_text().split():
        if name == "_called":  # with the next one
            calls.append([])
        calls[-1].append(name)
    found = [call for call in calls if call.count("frame_received") == size - 1 and "_run" in call]
    fewest = min(found, key=len)
    assert len(fewest) <= most, sorted(fewest)
