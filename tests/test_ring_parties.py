"""Several programs on a machine, parts of the ring, and splits, through real daemons."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
from cluster import Cluster, wait_until
from ringkit import begin, everywhere, lend, outcomes, tensor, total

import ringd

PROGRAMS = (2, 1, 3)
"""On each machine."""
SIZE = sum(PROGRAMS)
NAMES = ("n0", "n0", "n1", "n2", "n2", "n2")
LENGTHS = [1, 7, 50_000, 700_000]
"""Of a rank's part of float32: small, in segments, in chunks."""


@contextmanager
def programs(
    cluster: Cluster, group: str = "test", numbers=PROGRAMS, **options
) -> Iterator[list[ringd.Ring]]:
    """Give a ring for each of so many programs on each machine, by rank."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                ringd.connect(
                    socket, group, 30, local_rank=local_rank, local_size=number, **options
                )
            )
            for socket, number in zip(cluster.sockets, numbers, strict=True)
            for local_rank in range(number)
        ]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A ring of three."""
    with Cluster(tmp_path_factory.mktemp("p"), 3) as cluster:
        cluster.start().wait_ready()
        yield cluster


@pytest.fixture(scope="module")
def rings(cluster: Cluster) -> Iterator[list[ringd.Ring]]:
    """Six programs on three machines."""
    with programs(cluster) as rings:
        yield rings


def part(rank: int, length: int) -> np.ndarray:
    """Return a tensor that no other rank has."""
    return np.arange(length, dtype=np.float32) + 1000 * (rank + 1)


def test_ranks_count_machines_then_local_ranks(rings):
    """And each knows where all are."""

    def about(ring):
        return ring.rank, ring.size, ring.local_rank, ring.local_size, ring.node, ring.nodes

    local = [(rank, number) for number in PROGRAMS for rank in range(number)]
    assert everywhere(rings, about) == [
        (rank, SIZE, *local[rank], NAMES[rank], NAMES) for rank in range(SIZE)
    ]


@pytest.mark.parametrize("lent", [False, True], ids=["copied", "lent"])
@pytest.mark.parametrize("length", LENGTHS)
def test_every_call_has_the_values_that_its_name_promises(rings, length, lent):
    """Whatever the size; all ranks of all machines take part alike."""
    parts = [part(rank, length) for rank in range(SIZE)]
    rows = np.stack([part(10 + rank, length) for rank in range(SIZE)])

    def calls(ring):
        rank = ring.rank
        mine, mine_of_all = (lend(ring, x, empty=lent) for x in (parts[rank], rows + rank))
        return (
            ring.all_reduce(mine, "max"),
            ring.broadcast(mine, 4),
            ring.all_gather(mine),
            ring.reduce_scatter(mine_of_all, "min"),
            ring.all_to_all(mine_of_all),
            ring.scatter(mine_of_all, 1),
            ring.gather(mine, 3),
            ring.reduce(mine, 2, "min"),
        )

    for rank, results in enumerate(everywhere(rings, calls)):
        reduced, cast, all_, scattered, exchanged, given, gathered, at_root = results
        np.testing.assert_array_equal(reduced, parts[-1])
        np.testing.assert_array_equal(cast, parts[4])
        np.testing.assert_array_equal(all_, np.concatenate(parts))
        np.testing.assert_array_equal(scattered, rows[rank : rank + 1])
        np.testing.assert_array_equal(exchanged, np.stack([rows[rank] + r for r in range(SIZE)]))
        np.testing.assert_array_equal(given, rows[rank : rank + 1] + 1)
        assert (gathered is None, at_root is None) == (rank != 3, rank != 2)
        if rank == 3:
            np.testing.assert_array_equal(gathered, np.concatenate(parts))
        if rank == 2:
            np.testing.assert_array_equal(at_root, parts[0])


@pytest.mark.parametrize("dtype", ["float16", "int8", "bool", "complex64"])
def test_sums_are_those_of_the_dtype(rings, dtype):
    """float16 is accumulated in float32, also over the programs of one machine."""
    x = np.array([1, 0, 3] * 20_000).astype(dtype)
    expected = (x.astype(np.float32) * SIZE).astype(dtype) if dtype == "float16" else x * SIZE
    wanted = x if dtype == "bool" else expected.astype(dtype)
    results = everywhere(rings, lambda ring: ring.all_reduce(x))
    assert {result.tobytes() for result in results} == {wanted.tobytes()}


def test_messages_between_any_two_programs(rings):
    """On one machine, and on two."""

    def talk(ring):
        others = [rank for rank in range(SIZE) if rank != ring.rank]
        for other in others:
            ring.send(part(10 * ring.rank + other, 3000), other)
        return [ring.recv(3000, other, dtype=np.float32, timeout=20) for other in others]

    for rank, came in enumerate(everywhere(rings, talk)):
        others = [other for other in range(SIZE) if other != rank]
        for other, array in zip(others, came, strict=True):
            np.testing.assert_array_equal(array, part(10 * other + rank, 3000))


def sent_over(cluster: Cluster) -> int:
    """Return the bytes that all links together have carried rightwards."""
    return sum(node.status()["links"]["right"]["bytes_out"] for node in cluster.nodes)


def test_a_byte_crosses_each_link_once_whatever_the_number_of_programs(cluster):
    """All links carry for an all-reduce of four programs each what they carry for one each."""
    x = np.ones(2_000_000, np.float32)
    carried = []
    for number in (1, 4):
        with programs(cluster, f"bytes {number}", (number,) * 3) as rings:
            everywhere(rings, lambda ring: ring.barrier())
            before = sent_over(cluster)
            for result in everywhere(rings, lambda ring: ring.all_reduce(x)):
                assert set(result) == {3.0 * number}
            carried.append(sent_over(cluster) - before)
    expected = 3 * 2 * (3 - 1) / 3 * x.nbytes
    assert carried[0] / expected == pytest.approx(1, abs=0.01)
    assert carried[1] / carried[0] == pytest.approx(1, abs=0.01)


def test_split_makes_rings_of_those_with_one_color(rings):
    """Ordered by key; other colors, and those in none, are not waited for."""

    def halves(ring):
        rank = ring.rank
        with (
            ring.split("even" if rank % 2 == 0 else None if rank == 5 else 1, -rank) or ring as half
        ):
            if half is ring:
                return None
            results = [half.rank, half.all_gather(np.array([rank])).tolist()]
            big = half.all_reduce(part(rank, 100_000))
            half.send(rank, 1 - half.rank) if half.rank < 2 else None
            got = int(half.recv((), 1 - half.rank, dtype=int)) if half.rank < 2 else None
            half.barrier()  # who leaves before the others are done ends their messages
            return [*results, got, float(big[0])]

    def without_closing_the_last(ring):
        if ring.rank == 5:
            assert ring.split(None) is None
            return None
        return halves(ring)

    got = everywhere(rings, without_closing_the_last)
    evens, odds = [4, 2, 0], [3, 1]
    for rank, result in enumerate(got[:5]):
        ranks = evens if rank % 2 == 0 else odds
        place = ranks.index(rank)
        peer = ranks[1 - place] if place < 2 else None
        total_ = float(sum(part(r, 1)[0] for r in ranks))
        assert result == [place, ranks, peer, total_]


def test_split_in_the_background(rings):
    """Several at once, taken in another order than asked for, by wait, future and await."""

    def talk(ring):
        works = [ring.split_async(ring.rank % (n + 1), timeout=20) for n in range(3)]
        assert ring.split_async(None).wait(20) is None

        async def by_await():
            return await works[1]

        with (
            works[2].wait(20) as thirds,
            asyncio.run(by_await()) as halves,
            works[0].future().result(20) as all_,
        ):
            assert works[2].wait() is thirds
            sizes = [part.all_reduce(1) for part in (all_, halves, thirds)]
            ring.barrier()
            return sizes

    got = everywhere(rings, talk)
    for rank, sizes in enumerate(got):
        expected = [sum(r % n == rank % n for r in range(len(rings))) for n in (1, 2, 3)]
        assert sizes == expected


def test_splits_of_splits_leave_nothing_behind(cluster, rings):
    """Made and closed again and again."""

    def again(ring):
        for turn in range(25):
            with ring.split(ring.rank % 3) as third, third.split(third.rank) as alone:
                assert (third.size, alone.size) == (2, 1)
                assert alone.all_reduce(np.array([turn]))[0] == turn
        return True

    assert everywhere(rings, again) == [True] * SIZE
    for node in cluster.nodes:
        wait_until(
            lambda node=node: [group["name"] for group in node.status()["groups"]] == ["test"],
            "only the first group",
        )


def test_a_part_of_the_machines(cluster):
    """Others cannot be told apart from those that are not there."""
    with ExitStack() as stack:
        here = [
            stack.enter_context(ringd.connect(cluster.sockets[member], "part", 30, members=members))
            for member, members in ((0, ["n0", "n2"]), (2, ["n2", "n0"]))
        ]
        x = [tensor(rank, 400_000) for rank in range(2)]
        for result in everywhere(here, lambda ring: ring.all_reduce(x[ring.rank])):
            np.testing.assert_array_equal(result, total(2, 400_000))
        assert everywhere(here, lambda ring: ring.nodes) == [("n0", "n2")] * 2


def test_a_dead_program_is_named_with_its_rank_and_machine(cluster):
    """On all ranks; those that are left go on together."""
    with programs(cluster, "deaths") as rings:
        everywhere(rings, lambda ring: ring.barrier())
        calls = begin(rings[:4] + rings[5:], lambda ring: ring.barrier())
        rings[4].close()
        for call in calls:
            error = call.outcome()
            assert type(error) is ringd.GroupLost
            assert "the client of rank 4 on 'n2' left" in str(error)


def test_daemons_that_are_killed_in_the_midst_of_a_call(tmp_path):
    """Of machines with several programs, again and again: every value is right."""
    with Cluster(tmp_path, 3) as cluster:
        cluster.start().wait_ready()
        with programs(cluster) as rings:
            for turn in range(6):
                x = [tensor(rank, 600_000, turn) for rank in range(SIZE)]
                calls = begin(rings, lambda ring, x=x: ring.all_reduce(x[ring.rank]))
                others = begin(rings, lambda ring, turn=turn: shift(ring, turn))
                cluster[turn % 3].kill()
                cluster[turn % 3].start()
                for call in calls:
                    np.testing.assert_array_equal(call.result(), total(SIZE, 600_000, turn))
                assert [call.result() for call in others] == [True] * SIZE


def shift(ring: ringd.Ring, turn: int) -> bool:
    """Send to the right, receive from the left; whether the right thing came."""
    rank, size = ring.rank, ring.size
    ring.send(part(rank + turn, 100_000), (rank + 1) % size)
    left = (rank - 1) % size
    came = ring.recv(100_000, left, dtype=np.float32)
    return bool(np.array_equal(came, part(left + turn, 100_000)))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"members": ["n0", "nobody"]}, ringd.Refused, "no member of the ring is named 'nobody'"),
        ({"members": ["n1", "n2"]}, ringd.Refused, "'n0', this machine, is not among its members"),
        ({"members": []}, ValueError, "members"),
        ({"local_rank": 2, "local_size": 2}, ValueError, "local_rank"),
        ({"local_rank": -1}, ValueError, "local_rank"),
        ({"local_size": 0}, ValueError, "local_size"),
    ],
    ids=str,
)
def test_a_part_that_cannot_be_is_refused_at_once(cluster, options, error, text):
    """It says why."""
    with pytest.raises(error, match=text):
        ringd.connect(cluster.sockets[0], "impossible", 30, **options)


def test_programs_of_a_machine_that_disagree_are_told(cluster):
    """Who comes second is refused; across machines, every call says who named what."""
    first = ringd.connect(cluster.sockets[0], "odd", 30, local_size=2)
    with first, pytest.raises(ringd.Refused, match="says local_size=2, this one says"):
        ringd.connect(cluster.sockets[0], "odd", 30, local_rank=1, local_size=3)
    with ExitStack() as stack:
        here = [
            stack.enter_context(ringd.connect(cluster.sockets[m], "unlike", 30, members=names))
            for m, names in ((0, ["n0", "n1"]), (1, ["n0", "n1", "n2"]))
        ]
        for call in (
            lambda ring: ring.all_reduce(1, timeout=20),
            lambda ring: ring.broadcast(1, 0, timeout=20),
            lambda ring: ring.rank,
        ):
            for error in outcomes(here, call):
                assert type(error) is ringd.Mismatch
                assert "disagree on who takes part" in str(error)


def test_programs_that_disagreed_are_in_step_once_one_is_corrected(cluster):
    """Nobody hears of the former disagreement again, however many calls it has ended."""
    right, wrong = ["n0", "n1"], ["n0", "n1", "n2"]
    with ringd.connect(cluster.sockets[0], "corrected", 30, members=right) as first:
        with ringd.connect(cluster.sockets[1], "corrected", 30, members=wrong) as second:
            for call in (
                lambda ring: ring.all_reduce(1, timeout=20),
                lambda ring: [work.wait() for work in [ring.all_reduce_async(1, timeout=20)] * 2],
                lambda ring: ring.all_gather_bytes(b"x", timeout=20),
                lambda ring: ring.rank,
            ):
                for error in outcomes([first, second], call):
                    assert type(error) is ringd.Mismatch
        with ringd.connect(cluster.sockets[1], "corrected", 30, members=right) as second:
            for number in range(3):
                found = everywhere([first, second], lambda ring, n=number: ring.all_reduce(10**n))
                assert [int(value) for value in found] == [2 * 10**number] * 2
