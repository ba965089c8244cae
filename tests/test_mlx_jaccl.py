"""How the ranks of MLX's JACCL backend meet: as MLX calls it, over real daemons."""

from __future__ import annotations

import gc
from concurrent import futures

import pytest

import ringd
import ringd.mlx
from tests.cluster import Cluster, wait_until


def meet(cluster: Cluster, ranks: list[int], size: int, group: str = "jaccl", timeout: float = 60):
    """Have a program on each machine do what MLX does for one of *ranks*; return the futures."""
    pool = futures.ThreadPoolExecutor(len(ranks))

    def one(node, rank):
        exchange = ringd.mlx.jaccl_factory(node.socket, group, timeout)(rank, size)
        words = bytes([rank]) * 5
        first = exchange(words, 5)
        return first, exchange(b"", 0), exchange(bytes(range(rank, rank + 3)), 3)

    return [pool.submit(one, *pair) for pair in zip(cluster.nodes, ranks, strict=False)]


@pytest.mark.parametrize("ranks", [[0, 1, 2], [2, 0, 1]])
def test_the_bytes_of_all_ranks_come_in_their_order(calm_cluster: Cluster, ranks) -> None:
    """MLX's own, whatever the order of the ring; again and again, and of any length."""
    expected = (
        b"\0\0\0\0\0\1\1\1\1\1\2\2\2\2\2",
        b"",
        bytes([0, 1, 2, 1, 2, 3, 2, 3, 4]),
    )
    assert [done.result(120) for done in meet(calm_cluster, ranks, 3)] == [expected] * 3


@pytest.mark.parametrize(
    ("ranks", "size", "words"),
    [
        ([0, 1, 1], 3, "n2 is rank 1 of 3"),
        ([0, 1, 2], 4, "the ring has 3 machines, but to MLX n0 is rank 0 of 4"),
    ],
)
def test_ranks_that_do_not_fit_are_named_to_all(calm_cluster: Cluster, ranks, size, words) -> None:
    """Two of one number, or more of them than there are machines."""
    for done in meet(calm_cluster, ranks, size, "wrong"):
        with pytest.raises(ValueError, match=words):
            done.result(120)


def test_a_rank_that_never_comes_is_named(calm_cluster: Cluster) -> None:
    """In the time that was given."""
    for done in meet(calm_cluster, [0, 1], 3, "short", timeout=1.0):
        with pytest.raises(ringd.DeadlineExceeded, match="n2"):
            done.result(120)


def test_the_group_is_left_when_mlx_lets_go(calm_cluster: Cluster) -> None:
    """So that the next program finds its place free."""
    for _ in range(2):
        for done in meet(calm_cluster, [0, 1, 2], 3, "again"):
            done.result(120)
        gc.collect()
        wait_until(
            lambda: (
                not any(
                    group["group"] == "again"
                    for node in calm_cluster.nodes
                    for group in node.status()["groups"]
                )
            ),
            "the group is left",
            120,
        )


def test_what_is_announced_must_be_there(calm_cluster: Cluster) -> None:
    """As MLX says how many bytes it hands over."""
    pool = futures.ThreadPoolExecutor(3)
    makers = [
        pool.submit(ringd.mlx.jaccl_factory(node.socket, "short-words", 60.0), rank, 3)
        for rank, node in enumerate(calm_cluster.nodes)
    ]
    exchange = makers[0].result(120)
    with pytest.raises(ValueError, match="3 bytes to exchange, 4 announced"):
        exchange(b"abc", 4)
