"""Every kind of call through real daemons: any size, dtype and layout, lent or not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from cluster import Cluster
from ringkit import connected, everywhere

import ringd

SIZE = 3
SIZES = [0, 1, 7, 3_000, 20_000, 200_000]
"""Rows of a rank's part of four int32: nothing, small, in messages and in segments, in chunks."""


@pytest.fixture(scope="module")
def rings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ringd.Ring]]:
    """A ring of three."""
    with Cluster(tmp_path_factory.mktemp("k"), SIZE) as cluster:
        cluster.start().wait_ready()
        with connected(cluster) as rings:
            yield rings


def zip_of(data: bytes) -> list[bytes]:
    """Return the bytes of *data*, each followed by another one."""
    return [bytes([byte, 255]) for byte in data]


def part(rank: int, rows: int) -> np.ndarray:
    """Return a tensor that no other rank has."""
    return np.arange(rows * 4, dtype=np.int32).reshape(rows, 4) + 1000 * (rank + 1)


@pytest.mark.parametrize("root", range(SIZE))
@pytest.mark.parametrize("rows", SIZES)
def test_from_and_to_a_root(rings, rows, root):
    """Broadcast, reduce, gather and scatter have their result where it belongs."""
    parts = [part(rank, rows) for rank in range(SIZE)]
    whole = np.concatenate(parts)

    def calls(ring):
        blank = np.zeros_like(whole)
        return (
            ring.broadcast(parts[ring.rank], root),
            ring.reduce(parts[ring.rank], root),
            ring.gather(parts[ring.rank], root),
            ring.scatter(whole if ring.rank == root else blank, root),
        )

    for rank, (cast, reduced, gathered, scattered) in enumerate(everywhere(rings, calls)):
        np.testing.assert_array_equal(cast, parts[root])
        np.testing.assert_array_equal(scattered, parts[rank])
        if rank == root:
            np.testing.assert_array_equal(reduced, sum(parts))
            np.testing.assert_array_equal(gathered, whole)
        else:
            assert reduced is None
            assert gathered is None


@pytest.mark.parametrize("rows", SIZES)
def test_among_all(rings, rows):
    """All-gather, reduce-scatter and all-to-all."""
    parts = [part(rank, rows) for rank in range(SIZE)]
    wide = [np.concatenate([p + 100_000 * rank for p in parts]) for rank in range(SIZE)]

    def calls(ring):
        return (
            ring.all_gather(parts[ring.rank]),
            ring.reduce_scatter(wide[ring.rank]),
            ring.all_to_all(wide[ring.rank]),
        )

    for rank, (gathered, mine, sent) in enumerate(everywhere(rings, calls)):
        np.testing.assert_array_equal(gathered, np.concatenate(parts))
        np.testing.assert_array_equal(mine, np.split(sum(wide), SIZE)[rank])
        everyone = np.concatenate([np.split(w, SIZE)[rank] for w in wide])
        np.testing.assert_array_equal(sent, everyone)


@pytest.mark.parametrize("rows", SIZES)
def test_lent_inputs_and_given_outputs(rings, rows):
    """Arrays of ring.empty are taken as they are; out has the result, and is what is returned."""

    def calls(ring):
        mine = ring.empty((SIZE * rows, 4), np.int32)
        mine[:] = part(ring.rank, SIZE * rows)
        out = np.empty((rows, 4), np.int32)
        assert ring.reduce_scatter(mine, out=out) is out
        reduced = ring.reduce(mine, 1)
        gathered = ring.gather(mine, 1)
        everything = ring.all_gather(mine)
        cast = ring.broadcast(mine, 2, out=mine)
        assert cast is mine
        return out, reduced, gathered, everything, cast

    wholes = [part(rank, SIZE * rows) for rank in range(SIZE)]
    for rank, (out, reduced, gathered, everything, cast) in enumerate(everywhere(rings, calls)):
        np.testing.assert_array_equal(out, np.split(sum(wholes), SIZE)[rank])
        np.testing.assert_array_equal(everything, np.concatenate(wholes))
        np.testing.assert_array_equal(cast, wholes[2])
        assert (reduced is None) == (gathered is None) == (rank != 1)
        if rank == 1:
            np.testing.assert_array_equal(reduced, sum(wholes))
            np.testing.assert_array_equal(gathered, np.concatenate(wholes))


@pytest.mark.parametrize("rows", [0, 1, 7, 5_000, 60_000])
def test_all_to_all_of_uneven_parts(rings, rows):
    """Rank i sends rank j its own number of rows, none to some."""
    counts = np.array([[0, 1, 2], [3, 0, 1], [1, 4, 2]]) * rows
    given = [part(rank, int(counts[rank].sum())) for rank in range(SIZE)]

    def call(ring):
        sends, receives = counts[ring.rank], counts[:, ring.rank]
        x = given[ring.rank]
        if ring.rank == 2:
            x = ring.empty(x.shape, x.dtype)
            x[:] = given[2]
        return ring.all_to_all(x, sends, receives.tolist())

    for rank, found in enumerate(everywhere(rings, call)):
        ends = [np.cumsum([0, *row]) for row in counts]
        wanted = [x[e[rank] : e[rank + 1]] for x, e in zip(given, ends, strict=True)]
        np.testing.assert_array_equal(found, np.concatenate(wanted))


def test_counts_that_do_not_fit_together(rings):
    """Each rank hears whose; the next call is in step."""

    def call(ring):
        counts = [1, 1, 1] if ring.rank else [1, 0, 2]
        with pytest.raises(ringd.Mismatch) as caught:
            ring.all_to_all(np.ones(3), counts, [1, 1, 1])
        return str(caught.value)

    texts = set(everywhere(rings, call))
    assert len(texts) == 1
    assert "rank 0 sends 0 rows to rank 1, which expects 1 of it" in next(iter(texts))

    def mixed(ring):
        counts = ([1, 1, 1], [1, 1, 1]) if ring.rank else ()
        with pytest.raises(ringd.Mismatch):
            ring.all_to_all(np.ones(3), *counts)

    everywhere(rings, mixed)
    assert [r.tolist() for r in everywhere(rings, lambda ring: ring.all_gather(1))] == [[1] * 3] * 3


@pytest.mark.parametrize("length", [0, 1, 1000, 300_000])
def test_bytes_of_any_length_are_gathered(rings, length):
    """Also none at all."""
    sent = [bytes([rank + 1]) * (length * rank) for rank in range(SIZE)]
    for kind in (bytes, bytearray, lambda data: memoryview(b"".join(zip_of(data)))[::2]):
        found = everywhere(
            rings, lambda ring, kind=kind: ring.all_gather_bytes(kind(sent[ring.rank]))
        )
        assert found == [sent] * SIZE


@pytest.mark.parametrize("call", ["split", "all_gather_bytes", "broadcast"])
def test_another_call_in_the_place_of_one_that_timed_out(rings, call):
    """The next calls are in step: what has no name would be added to what it does not belong to."""
    first, *others = rings
    with pytest.raises(ringd.DeadlineExceeded):
        getattr(first, call)(b"a" if call == "all_gather_bytes" else 1, timeout=0.2)

    def other(ring):  # the news of the deadline may still be under way
        with pytest.raises((ringd.DeadlineExceeded, ringd.Mismatch)):
            ring.barrier()

    everywhere(others, other)
    found = everywhere(rings, lambda ring: [int(ring.all_reduce(10**k)) for k in range(5)])
    assert found == [[SIZE * 10**k for k in range(5)]] * SIZE


def test_a_scalar_is_gathered_as_one_row(rings):
    """As shape (1,)."""
    found = everywhere(rings, lambda ring: (ring.all_gather(ring.rank), ring.gather(2.5, 0)))
    for rank, (all_of_them, at_root) in enumerate(found):
        assert all_of_them.tolist() == [0, 1, 2]
        assert (at_root is None) if rank else (at_root.tolist() == [2.5] * 3)


def test_any_layout_and_dtype(rings):
    """Transposed, negative strides, byte-swapped, read-only, bool, bfloat16, complex."""
    base = np.arange(36).reshape(6, 6)
    for x in (
        base.T,
        base[::-1, ::2],
        base.astype(">i4"),
        base.astype(bool),
        base.astype(np.complex64) * 1j,
        base.astype("bfloat16"),
        np.broadcast_to(base[0], (6, 6)),
    ):
        found = everywhere(rings, lambda ring, x=x: (ring.all_gather(x), ring.all_to_all(x)))
        for rank, (gathered, sent) in enumerate(found):
            np.testing.assert_array_equal(gathered, np.concatenate([x] * SIZE))
            np.testing.assert_array_equal(sent, np.concatenate([np.split(x, SIZE)[rank]] * SIZE))


def test_other_roots_and_other_kinds_do_not_match(rings):
    """The error says what each rank called, on all ranks."""

    def roots(ring):
        with pytest.raises(ringd.Mismatch) as caught:
            ring.broadcast(np.ones(2), root=min(ring.rank, 1))
        return str(caught.value)

    def sorts(ring):
        with pytest.raises(ringd.Mismatch) as caught:
            (ring.all_gather if ring.rank else ring.all_to_all)(np.ones(3))
        return str(caught.value)

    def halves(ring):
        with pytest.raises(ringd.Mismatch) as caught:
            ring.all_gather_bytes(b"x") if ring.rank else ring.all_gather(np.array([1]))
        return str(caught.value)

    for calls, words in (
        (roots, ("root 0", "root 1")),
        (sorts, ("all_gather", "all_to_all")),
        (halves, ("all_gather int64[1]", "all_gather_bytes int64[1]")),
    ):
        texts = set(everywhere(rings, calls))
        assert len(texts) == 1
        assert all(word in next(iter(texts)) for word in words)
    assert [r.tolist() for r in everywhere(rings, lambda ring: ring.all_gather(1))] == [[1] * 3] * 3


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda ring: ring.broadcast(1, root=3), ValueError, "root is a rank from 0 to 2, not 3"),
        (lambda ring: ring.broadcast(1, root=-1), ValueError, "root is a rank from 0 to 2"),
        (lambda ring: ring.all_reduce(None), TypeError, "x is None; write np.empty"),
        (lambda ring: ring.broadcast(1, root=None), TypeError, "root is a rank, a whole number"),
        (lambda ring: ring.reduce(1, "max"), TypeError, "write op= before an op"),
        (lambda ring: ring.gather(1, root="a"), TypeError, "root is a rank, a whole number"),
        (lambda ring: ring.scatter(np.ones(4)), ValueError, "axis 0 of shape (4,) cannot be"),
        (lambda ring: ring.all_to_all(1), ValueError, "axis 0 of shape (1,) cannot be divided"),
        (lambda ring: ring.reduce_scatter(np.ones(4)), ValueError, "axis 0 of shape (4,)"),
        (lambda ring: ring.all_to_all(np.ones(3), [3]), ValueError, "give both"),
        (lambda ring: ring.all_to_all(np.ones(3), [3], [3]), ValueError, "send_counts are 3"),
        (lambda ring: ring.all_to_all(np.ones(3), [1, 1, 2], [0] * 3), ValueError, "add up to 4"),
        (lambda ring: ring.all_to_all(1, [-1, 1, 1], [0] * 3), ValueError, "not negative"),
        (lambda ring: ring.all_to_all(1, "abc", [0] * 3), TypeError, "are whole numbers"),
        (lambda ring: ring.all_gather_bytes("text"), TypeError, "write .encode()"),
        (lambda ring: ring.reduce(1, 0, "avg"), ValueError, "unknown op 'avg'"),
        (lambda ring: ring.all_gather(["a"]), TypeError, "cannot be"),
        (lambda ring: ring.all_gather(1, out=np.ones(1)), TypeError, "out has dtype float64"),
        (lambda ring: ring.all_gather(1.0, out=np.ones(1)), ValueError, "the result has (3,)"),
    ],
)
def test_a_bad_argument_is_refused_at_once(rings, call, error, text):
    """Before anything is sent: the next call is in step."""
    with pytest.raises(error) as caught:
        call(rings[0])
    assert text in str(caught.value)


def test_the_machines_names_are_known(rings):
    """By rank, one and the same everywhere."""
    assert {ring.nodes for ring in rings} == {("n0", "n1", "n2")}
    assert [ring.node for ring in rings] == list(rings[0].nodes)


def test_out_where_there_is_no_result(rings):
    """A rank that is given nothing needs no memory for it."""
    with pytest.raises(ValueError, match="this rank has no result"):
        rings[1].reduce(np.ones(2), 0, out=np.ones(2))
