"""Every kind of call through losses: killed daemons, slow links, deadlines; all or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

import ringd
from tests.cluster import Cluster
from tests.ownports import free_ports
from tests.proxy import Proxy
from tests.ringkit import HASTY, begin, connected, everywhere

SIZE = 3
COUNT = 600_000
"""Elements of int32 for each rank: 2.4 MB, in chunks of 512 KiB."""

CALLS: dict[str, Callable[[ringd.Ring, np.ndarray, float | None], object]] = {
    "all_reduce": lambda ring, x, t: ring.all_reduce(x, timeout=t),
    "reduce": lambda ring, x, t: ring.reduce(x, 2, timeout=t),
    "reduce_scatter": lambda ring, x, t: ring.reduce_scatter(x, timeout=t),
    "broadcast": lambda ring, x, t: ring.broadcast(x, 0, timeout=t),
    "all_gather": lambda ring, x, t: ring.all_gather(x, timeout=t),
    "gather": lambda ring, x, t: ring.gather(x, 2, timeout=t),
    "scatter": lambda ring, x, t: ring.scatter(x, 0, timeout=t),
    "all_to_all": lambda ring, x, t: ring.all_to_all(x, timeout=t),
    "all_reduce_coalesced": lambda ring, x, t: coalesced(ring, np.array_split(x, 7), t),
    "of two dtypes": lambda ring, x, t: coalesced(ring, [x[:9], x[9:].astype(np.int64)], t),
}


def coalesced(ring: ringd.Ring, xs: list[np.ndarray], timeout: float | None) -> np.ndarray:
    """Reduce *xs* in one call, each of which takes its result; return these as one."""
    return np.concatenate(ring.all_reduce_coalesced(xs, out=xs, timeout=timeout))


def given(rank: int) -> np.ndarray:
    """Return what *rank* hands over."""
    return np.arange(COUNT, dtype=np.int32) + 1_000_000 * rank


def wanted(kind: str, rank: int) -> np.ndarray | None:
    """Return what *rank* is to be given."""
    inputs = [given(other) for other in range(SIZE)]
    if kind in {"reduce", "gather"} and rank != 2:
        return None
    return {
        "all_reduce": lambda: sum(inputs),
        "reduce": lambda: sum(inputs),
        "reduce_scatter": lambda: np.split(sum(inputs), SIZE)[rank],
        "broadcast": lambda: inputs[0],
        "all_gather": lambda: np.concatenate(inputs),
        "gather": lambda: np.concatenate(inputs),
        "scatter": lambda: np.split(inputs[0], SIZE)[rank],
        "all_to_all": lambda: np.concatenate([np.split(x, SIZE)[rank] for x in inputs]),
        "all_reduce_coalesced": lambda: sum(inputs),
        "of two dtypes": lambda: sum(inputs),
    }[kind]()


def check(kind: str, results: list[np.ndarray | None]) -> None:
    """Look at every value."""
    for rank, result in enumerate(results):
        expected = wanted(kind, rank)
        if expected is None:
            assert result is None
        else:
            np.testing.assert_array_equal(result, expected)


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, list[Proxy]]]:
    """Give three daemons with a proxy before each."""
    ports = free_ports(SIZE)
    proxies = [Proxy(port) for port in ports]
    dial = {f"n{rank}": proxy.port for rank, proxy in enumerate(proxies)}
    directory = tmp_path_factory.mktemp("ring")
    with Cluster(directory, SIZE, settings=HASTY, ports=ports, dial=dial) as cluster:
        cluster.start().wait_ready()
        yield cluster, proxies
    for proxy in proxies:
        proxy.close()


@pytest.mark.parametrize("kind", CALLS)
def test_a_deadline_is_met_by_all_though_some_have_sent_all_they_had(
    proxied: tuple[Cluster, list[Proxy]], kind: str
) -> None:
    """The last link stands still amid the call; whoever was through has no result either."""
    _, proxies = proxied
    with connected(proxied[0], kind) as rings:
        everywhere(rings, lambda ring: ring.barrier())
        proxies[2].stall_after(300_000)
        calls = begin(rings, lambda ring: CALLS[kind](ring, given(ring.rank), 0.4))
        for call in calls:
            assert isinstance(call.outcome(), ringd.DeadlineExceeded)
        proxies[2].resume()
        check(kind, everywhere(rings, lambda ring: CALLS[kind](ring, given(ring.rank), 30.0)))


@pytest.mark.parametrize("lent", [False, True])
@pytest.mark.parametrize("kind", CALLS)
def test_a_daemon_that_is_killed_amid_a_call_costs_time_only(
    proxied: tuple[Cluster, list[Proxy]], kind: str, *, lent: bool
) -> None:
    """Of one kind it is this daemon, of the next one that; the inputs are copies, or lent."""
    cluster, proxies = proxied
    victim = (list(CALLS).index(kind) + lent) % SIZE
    with connected(cluster, kind) as rings:
        everywhere(rings, lambda ring: ring.barrier())
        inputs = [given(rank) for rank in range(SIZE)]
        if lent:
            for rank, ring in enumerate(rings):
                inputs[rank] = ring.empty(COUNT, np.int32)
                inputs[rank][:] = given(rank)
        proxies[2].stall_after(300_000)
        calls = begin(rings, lambda ring: CALLS[kind](ring, inputs[ring.rank], None))
        assert proxies[2].stalled.wait(120)
        cluster[victim].kill()
        proxies[2].resume()
        cluster[victim].start()
        check(kind, [call.result() for call in calls])
