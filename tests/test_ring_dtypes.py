"""A dtype that one member's daemon cannot reduce: that member is named, the ring unharmed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import ringd
from ringd.client.session import Op
from ringd.collective import reduction
from ringd.collective.call import Call
from ringd.collective.eager import EagerRule
from tests.cluster import Cluster
from tests.ringkit import BOUNDED, begin, connected, everywhere, outcomes, wait_counts

LACKING = 1
COUNTS = pytest.mark.parametrize("count", [1, 10_000, 20_000, 200_000])
"""In one trip as a short and as a long tensor, and in chunks through shared memory."""


def bfloats(count: int) -> np.ndarray:
    """Return an input in bfloat16."""
    return np.ones(count, ml_dtypes.bfloat16)


def check_whole(cluster: Cluster, rings: list[ringd.Ring]) -> None:
    """Make sure that the ring never broke, and goes on in step."""
    assert {ring.generation for ring in rings} == {1}
    for node in cluster.nodes:
        assert "link lost" not in [event["event"] for event in node.log()]
    results = everywhere(rings, lambda ring: ring.all_reduce(np.float32([1, ring.rank])))
    assert [result.tolist() for result in results] == [[3, 3]] * 3


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give three daemons, of which n1 finds no ml_dtypes."""
    place = tmp_path_factory.mktemp("ring")
    (place / "without").mkdir()
    (place / "without" / "ml_dtypes.py").write_text("raise ImportError('not here')\n")
    with Cluster(place, 3, settings=BOUNDED) as cluster:
        plain = dict(cluster.environ)
        cluster.environ["PYTHONPATH"] = str(place / "without")
        cluster[LACKING].start()
        cluster.environ = plain
        for rank in (0, 2):
            cluster[rank].start()
        cluster.wait_ready()
        yield cluster


@COUNTS
@pytest.mark.parametrize("last", [False, True])
def test_member_without_ml_dtypes_is_named_by_all(
    lacking: Cluster, count: int, *, last: bool
) -> None:
    """Whether its program calls first or last: one error everywhere, that says what to install."""
    with connected(lacking, f"named {count} {last}") as rings:
        others = [rings[0], rings[2]]
        early, late = (others, [rings[1]]) if last else ([rings[1]], others)
        calls = begin(early, lambda ring: ring.all_reduce(bfloats(count)))
        expected = [0, 0, 0]
        for ring in early:
            expected[ring.rank] = 1
        for node in lacking.nodes:
            wait_counts(node, expected, f"named {count} {last}")
        errors = [
            call.outcome() for call in begin(late, lambda ring: ring.all_reduce(bfloats(count)))
        ]
        errors += [call.outcome() for call in calls]
        for error in errors:
            assert isinstance(error, ringd.Refused)
            assert "'n1'" in str(error)
            assert "ml_dtypes" in str(error)
            assert "'.[bf16]'" in str(error)
        assert len({str(error) for error in errors}) == 1
        check_whole(lacking, rings)


@COUNTS
def test_call_that_the_lacking_member_never_makes_ends_at_once(
    lacking: Cluster, count: int
) -> None:
    """Its program has had a TypeError, and gone on: no deadline is needed for the others' calls."""
    with connected(lacking, f"never {count}") as rings:
        others = [rings[0], rings[2]]
        for error in outcomes(others, lambda ring: ring.all_reduce(bfloats(count))):
            assert isinstance(error, ringd.Refused)
            assert "the daemon on 'n1' cannot take this call: dtype bfloat16" in str(error)
            assert "ml_dtypes" in str(error)
        with pytest.raises(ringd.Refused, match="bfloat16"):
            rings[1].all_reduce(np.float32(1))  # in step: the same number, ended for all
        check_whole(lacking, rings)


def test_budget_of_one_member_is_named_by_all(place: Path) -> None:
    """Whatever one daemon cannot take, the others read where that was."""
    with Cluster(place, 2, settings='[ipc]\nsegment_budget = "2MiB"\n') as cluster:
        cluster.start().wait_ready()
        with connected(cluster) as rings:
            rings[1]._connection.pool.budget = 1 << 30  # a program that knows no bounds
            x = np.zeros(1 << 20, np.int8)
            first, second = begin(rings, lambda ring: ring.all_reduce(x if ring.rank else x[:9]))
            for call in (first, second):
                assert isinstance(call.outcome(), ringd.ResourceExhausted)
                assert "'n1'" in str(call.outcome())
                assert "ipc.segment_budget" in str(call.outcome())


@pytest.mark.parametrize("eager", [True, False])
def test_dtype_of_a_later_version_is_refused_and_no_more(lacking: Cluster, *, eager: bool) -> None:
    """Daemons that know no such dtype pass it on, and each says so to its own program."""
    length = 9 if eager else 140_000

    def call(ring: ringd.Ring) -> None:
        op = Op(
            Call("all_reduce", "sum", "float9", (3,), ""), length, length, payload=bytes(length)
        )
        ring._stay.submit(op, 10.0, time.monotonic() + 10)
        ring._stay.wait(op, None)

    with connected(lacking, f"later {eager}") as rings:
        for ring, error in zip(rings, outcomes(rings, call), strict=True):
            assert isinstance(error, ringd.Refused)
            assert f"'{ring.node}'" in str(error)
            assert "'float9'" in str(error)
        check_whole(lacking, rings)


@pytest.mark.parametrize(
    ("dtype", "nbytes", "expected"),
    [
        ("float32", 12, True),
        ("float32", 6, False),
        ("bfloat16", 6, True),
        ("bfloat16", 12, False),
        ("float9", 7, True),
    ],
)
def test_length_of_what_rides_with_an_offer_is_checked_where_the_dtype_is_known(
    monkeypatch: pytest.MonkeyPatch, dtype: str, nbytes: int, *, expected: bool
) -> None:
    """What can reach numpy has the right length; with and without ml_dtypes."""
    call = Call("all_reduce", "sum", dtype, (3,), "")
    fits = EagerRule(1024, together=0).fits
    assert fits(call, nbytes, 0, 3, apart=True) is expected
    monkeypatch.delitem(reduction._BY_NAME, "bfloat16")
    assert fits(call, nbytes, 0, 3, apart=True) is expected
