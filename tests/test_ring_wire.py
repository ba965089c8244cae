"""Calls with a wire through real daemons: the same bits everywhere, within the bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

import ringd
from tests.cluster import Cluster
from tests.codeckit import error_bound, magnitudes
from tests.ringkit import BOUNDED, connected, everywhere, lend, outcomes

SIZE = 3
LARGE = 300_003
"""Elements: in several chunks, the last of which ends within a block."""
SMALL = 1000
WIRES = pytest.mark.parametrize("wire", ["bfloat16", "int8"])
KINDS: dict[str, Callable[..., np.ndarray | None]] = {
    "all_reduce": lambda ring, x, wire: ring.all_reduce(x, wire=wire),
    "mean": lambda ring, x, wire: ring.all_reduce(x, "mean", wire=wire),
    "max": lambda ring, x, wire: ring.all_reduce(x, "max", wire=wire),
    "reduce": lambda ring, x, wire: ring.reduce(x, 1, wire=wire),
    "reduce_scatter": lambda ring, x, wire: ring.reduce_scatter(x, wire=wire),
    "broadcast": lambda ring, x, wire: ring.broadcast(x, 2, wire=wire),
    "all_gather": lambda ring, x, wire: ring.all_gather(x, wire=wire),
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give three daemons that are ready."""
    with Cluster(tmp_path_factory.mktemp("wire"), SIZE, settings=BOUNDED) as cluster:
        cluster.start().wait_ready()
        yield cluster


@pytest.fixture
def rings(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[list[ringd.Ring]]:
    """Give a ring for each rank, in a group of the test's own."""
    with connected(cluster, request.node.name[-60:]) as rings:
        yield rings


def inputs(count: int) -> list[np.ndarray]:
    """Return a tensor for each rank, of other magnitudes, with what is not finite in one place."""
    rng = np.random.default_rng(count)
    found = [rng.normal(0, 10.0**rank, count).astype(np.float32) for rank in range(SIZE)]
    found[1][5], found[1][count // 2] = np.nan, np.inf
    return found


@WIRES
@pytest.mark.parametrize("kind", KINDS)
def test_all_ranks_have_the_same_bits_within_the_bound(
    rings: list[ringd.Ring], kind: str, wire: str
) -> None:
    """Those that complete or send a value, too, however the input is handed over."""
    given = inputs(LARGE)

    def call(ring: ringd.Ring, *, empty: bool = False) -> np.ndarray | None:
        return KINDS[kind](ring, lend(ring, given[ring.rank], empty=empty), wire)

    found = everywhere(rings, call)
    exact = everywhere(rings, lambda ring: KINDS[kind](ring, given[ring.rank], None))
    again = everywhere(rings, lambda ring: call(ring, empty=True))
    for mine, other in zip(found, again, strict=True):
        assert mine is other is None or mine.tobytes() == other.tobytes()
    if kind in {"all_reduce", "mean", "max", "broadcast", "all_gather"}:
        assert len({result.tobytes() for result in found}) == 1
    parts = SIZE if kind == "reduce_scatter" else 1  # each of which begins with a block
    finite = [
        np.concatenate([magnitudes(wire, part) for part in np.split(x, parts)])
        for x in (np.nan_to_num(x, posinf=0) for x in given)
    ]
    most = np.sum(finite, axis=0, dtype=np.float64)
    whole = {"broadcast": finite[2], "all_gather": np.concatenate(finite)}.get(kind, most)
    relative = float(error_bound(wire, [1.0], SIZE, 2 * SIZE))  # of the exact call, too
    for rank, (result, wanted) in enumerate(zip(found, exact, strict=True)):
        if result is None:
            assert kind == "reduce"
            continue
        odd = ~np.isfinite(wanted)
        assert result[odd].tobytes() == wanted[odd].tobytes()
        part = np.split(whole, parts)[rank % parts]
        assert (np.abs(result[~odd] - wanted[~odd]) <= relative * part[~odd]).all()
        assert result.tobytes() != wanted.tobytes()


@WIRES
@pytest.mark.parametrize("kind", KINDS)
def test_a_small_tensor_is_exact(rings: list[ringd.Ring], kind: str, wire: str) -> None:
    """Up to ops.eager_limit nothing is gained by rounding."""
    given = [x[: SMALL // SIZE * SIZE] for x in inputs(SMALL)]
    found = everywhere(rings, lambda ring: KINDS[kind](ring, given[ring.rank], wire))
    exact = everywhere(rings, lambda ring: KINDS[kind](ring, given[ring.rank], None))
    for mine, wanted in zip(found, exact, strict=True):
        assert mine is wanted is None or mine.tobytes() == wanted.tobytes()


def test_calls_with_other_wires_are_named_on_all_ranks(rings: list[ringd.Ring]) -> None:
    """As any other difference is."""
    wires = ["int8", None, "bfloat16"]
    for error in outcomes(
        rings, lambda ring: ring.all_reduce(np.ones(LARGE, np.float32), wire=wires[ring.rank])
    ):
        assert isinstance(error, ringd.Mismatch)
        assert f"n0: all_reduce sum float32[{LARGE}] with wire int8; n1: " in str(error)
        assert f"n1: all_reduce sum float32[{LARGE}]; n2: " in str(error)
        assert "with wire bfloat16" in str(error)


def test_a_restarted_daemon_changes_no_bit(cluster: Cluster, rings: list[ringd.Ring]) -> None:
    """What runs again after a loss is encoded in the same way."""
    given = inputs(2 * LARGE)
    before = everywhere(rings, lambda ring: ring.all_reduce(given[ring.rank], wire="int8"))

    def call(ring: ringd.Ring) -> set[bytes]:
        works = [ring.all_reduce_async(given[ring.rank], wire="int8") for _ in range(10)]
        works[0].wait()
        if ring.rank == 0:
            cluster[1].restart()
        return {work.wait().tobytes() for work in works}

    assert everywhere(rings, call) == [{before[0].tobytes()}] * SIZE


def test_what_cannot_be_is_refused_at_once(rings: list[ringd.Ring]) -> None:
    """Before anything is handed over."""
    ring = rings[0]
    with pytest.raises(TypeError, match="wire='int8' is for float32, not float64; convert"):
        ring.all_reduce(np.ones(3), wire="int8")
    with pytest.raises(ValueError, match="unknown wire 'int4'; it is one of bfloat16, int8"):
        ring.all_reduce(np.ones(3, np.float32), wire="int4")
    with pytest.raises(ValueError, match="op 'prod' cannot have wire='int8'"):
        ring.reduce(np.ones(3, np.float32), op="prod", wire="int8")
    with pytest.raises(TypeError, match="wire is a string, not int"):
        ring.broadcast(np.ones(3, np.float32), wire=8)  # type: ignore[arg-type] # that is the test
