"""Calls beyond the window: they wait in the client, and nobody stands still."""

from __future__ import annotations

import numpy as np
import pytest
from clientkit import INLINE_LIMIT, fake
from fake_daemon import eventually

import ringd
from ringd.border.limits import Limits
from ringd.client.session import SHORT_WINDOW
from ringd.collective.coalesced import MAX_TENSORS, written
from tests.cluster import Cluster
from tests.ringkit import BOUNDED, Call, connected

SMALL_WINDOW = BOUNDED + "\n[ipc]\nwindow = 64\n"
CALLS = 1500


@pytest.mark.parametrize("shape", [4, 5000], ids=["inline", "segment"])
def test_any_number_of_calls_may_be_made_before_the_first_wait(tmp_path, shape):
    """What does not fit into the window is handed over as it empties, in order."""
    limits = Limits(inline_limit=INLINE_LIMIT, window=16)
    with fake(tmp_path, limits=limits) as (_, ring):
        works = [ring.all_reduce_async(np.full(shape, float(i)), timeout=30.0) for i in range(200)]
        for i, work in enumerate(works):
            assert set(work.wait()) == {2.0 * i}


def test_calls_that_wait_are_handed_over_while_the_program_computes(tmp_path):
    """Nobody waits in the client, and the others still get all that was called."""
    with fake(tmp_path, ask_ack=True, limits=Limits(window=16)) as (daemon, ring):
        works = [ring.all_reduce_async(np.ones(2)) for _ in range(100)]
        eventually(lambda: len(daemon.handler.submitted) == 100)
        assert works[-1].done()


def test_what_may_travel_with_offers_has_a_window_of_bytes(tmp_path):
    """All members keep it until a call can run; longer tensors follow in chunks, and cost none."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        submitted = daemon.handler.submitted
        for _ in range(40):
            ring.all_reduce_async(np.ones(1 << 17))  # 1 MiB
        eventually(lambda: len(submitted) == 40)
        for _ in range(40):
            ring.all_reduce_async(np.ones(1 << 15))  # 256 KiB
        ring.all_reduce_async(np.ones(2))  # in order: behind these
        eventually(lambda: len(submitted) == 40 + SHORT_WINDOW // (256 << 10))
        with pytest.raises(ringd.DeadlineExceeded, match=r"no room for it.*8 MiB of short tensors"):
            ring.all_reduce(np.ones(2), timeout=0.05)
        assert len(submitted) == 40 + SHORT_WINDOW // (256 << 10)


def test_shapes_of_tensors_count_in_that_window(tmp_path):
    """They travel with the offers, however little or much there is to reduce."""
    nothing = [np.ones(0)] * MAX_TENSORS
    room = SHORT_WINDOW // len(written([(0,)] * MAX_TENSORS))
    with fake(tmp_path, hold=True) as (daemon, ring):
        submitted = daemon.handler.submitted
        for _ in range(room + 3):
            ring.all_reduce_coalesced_async(nothing)
        eventually(lambda: len(submitted) == room)
        with pytest.raises(ringd.DeadlineExceeded, match="8 MiB of short tensors"):
            ring.all_reduce(np.ones(2), timeout=0.05)
        assert len(submitted) == room


def test_tensors_of_several_dtypes_are_all_handed_over_or_none(tmp_path):
    """Members that made some of the calls alone would be out of step with the others."""
    limits = Limits(window=2, segment_budget=1 << 20)
    with fake(tmp_path, hold=True, limits=limits) as (_, ring):
        works = [ring.all_reduce_async(np.ones(1)) for _ in range(40)]
        session = ring._stay.group.session
        many = [np.ones(1), np.ones(8000, "i4"), np.ones(1, "f4")]  # there is room for the first
        with pytest.raises(ringd.ResourceExhausted, match=r"ipc.window = 2.*ipc.segment_budget"):
            ring.all_reduce_coalesced_async(many)
        assert session.next_seq == len(works)
        few = [np.ones(1), np.ones(8, "i4")]
        ring.all_reduce_coalesced_async(few)
        assert session.next_seq == len(works) + len(few)


def test_what_goes_in_chunks_has_no_window_of_bytes(tmp_path):
    """A tensor that is divided never travels with an offer beyond the limit."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        for _ in range(40):
            ring.reduce_scatter_async(np.ones(1 << 15))  # 256 KiB
        eventually(lambda: len(daemon.handler.submitted) == 40)


def test_what_waits_for_that_window_goes_on_as_it_empties(tmp_path):
    """Whoever makes all calls before the first wait."""
    with fake(tmp_path, ask_ack=True) as (_, ring):
        works = [ring.all_reduce_async(np.full(1 << 15, float(i))) for i in range(100)]
        for i, work in enumerate(works):
            assert set(work.wait()) == {2.0 * i}


def test_calls_without_end_are_refused_with_the_limit(tmp_path):
    """What waits in the client is bounded by memory; the error names both settings."""
    limits = Limits(inline_limit=INLINE_LIMIT, window=8, segment_budget=1 << 16)
    with fake(tmp_path, hold=True, limits=limits) as (_, ring):

        def burst():
            return [ring.all_reduce_async(np.ones(2)) for _ in range(10_000)]

        with pytest.raises(ringd.ResourceExhausted, match=r"ipc.window = 8.*ipc.segment_budget"):
            burst()


def test_large_calls_without_end_are_refused_with_the_limit(tmp_path):
    """By the memory of their tensors: the error names what holds it, and both settings."""
    limits = Limits(inline_limit=INLINE_LIMIT, window=8, segment_budget=4 << 20)
    with fake(tmp_path, hold=True, limits=limits) as (_, ring):

        def burst():
            return [ring.all_reduce_async(np.ones(5000), timeout=1.0) for _ in range(1000)]

        with pytest.raises(
            ringd.ResourceExhausted, match=r"ipc.segment_budget = .*which wait.*ipc.window = 8"
        ):
            burst()


def test_a_call_that_waits_in_the_client_ends_at_its_deadline(tmp_path):
    """The deadline counts from the call, and the error says what it waited for."""
    with fake(tmp_path, hold=True, limits=Limits(window=4)) as (_, ring):
        for _ in range(4):
            ring.all_reduce_async(np.ones(2), timeout=60.0)
        with pytest.raises(ringd.DeadlineExceeded, match=r"no room for it.*ipc.window"):
            ring.all_reduce(np.ones(2), timeout=0.05)


def test_bursts_beyond_the_window_complete_on_all_members(tmp_path):
    """Every member makes all its calls before its first wait; each value is right."""
    with (
        Cluster(tmp_path, 2, settings=SMALL_WINDOW) as cluster,
        connected(cluster.start()) as rings,
    ):

        def burst(ring):
            works = [ring.all_reduce_async(np.full(3, float(i))) for i in range(CALLS)]
            return [work.wait()[0] for work in works]

        for call in [Call(lambda ring=ring: burst(ring)) for ring in rings]:
            assert call.result() == [2.0 * i for i in range(CALLS)]


def test_two_groups_in_opposite_order_complete(tmp_path):
    """One member fills one group first, the other member the other one."""
    with (
        Cluster(tmp_path, 2, settings=SMALL_WINDOW) as cluster,
        connected(cluster.start(), "a") as first,
        connected(cluster, "b") as second,
    ):

        def fill(here, there):
            works = [here.all_reduce_async(np.full(2, 1.0)) for _ in range(CALLS)]
            works += [there.all_reduce_async(np.full(2, 2.0)) for _ in range(CALLS)]
            return sum(work.wait()[0] for work in works)

        calls = [
            Call(lambda: fill(first[0], second[0])),
            Call(lambda: fill(second[1], first[1])),
        ]
        totals = [call.result() for call in calls]
        assert totals == [2 * CALLS * 1.0 + 2 * CALLS * 2.0] * 2
