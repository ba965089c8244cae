"""Rank and size: known once the group has formed, waited for before, and kept afterwards."""

import contextlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from alarms import (
    LEAST_HITS,
    instants,
    interrupted,
    no_alarm_left,  # noqa: F401
)
from clientkit import INLINE_LIMIT, SMALL, fake
from fake_daemon import FakeDaemon, eventually

import ringd
from ringd.border.limits import Limits
from ringd.client import stay as stay_module
from ringd.client.group import Place
from ringd.wire.border import messages as border
from tests.cluster import Cluster
from tests.ringkit import BOUNDED, Call, connected, outcomes


def form(daemon, **places):
    """Tell the one client that its session has formed."""

    def tell():
        ((join_id, client),) = daemon.handler.stays.items()
        daemon.handler.forms = True
        daemon.handler.form(client, join_id, **places)

    daemon.run(tell)


@pytest.mark.parametrize("what", ["rank", "size", "nodes"])
def test_to_ask_early_waits_until_the_group_has_formed(tmp_path, what):
    """As a call would; what comes then is given at once from then on."""
    with fake(tmp_path, size=3, forms=False) as (daemon, ring):
        call = Call(lambda: getattr(ring, what))
        time.sleep(0.05)
        assert call.running
        assert "rank not known yet" in repr(ring)
        form(daemon)
        expected = {"rank": 0, "size": 3, "nodes": ("n0", "n1", "n2")}[what]
        assert call.result() == expected
        assert getattr(ring, what) == expected
        assert "rank 0 of 3" in repr(ring)


def test_the_daemon_says_for_whom_that_waits(tmp_path):
    """At the default deadline of its config, in its words."""
    with fake(tmp_path, forms=False, timeout=0.1) as (_, ring):
        for _ in range(2):
            with pytest.raises(ringd.DeadlineExceeded, match=r"'default'.*not known.*b is missing"):
                ring.rank  # noqa: B018


def test_it_is_asked_again_while_that_lasts(tmp_path, monkeypatch):
    """What it waits for may change; once a second at most."""
    monkeypatch.setattr(stay_module, "_ASK_EVERY", 0.05)
    with fake(tmp_path, forms=False, timeout=0.5) as (daemon, ring):
        call = Call(lambda: ring.size)
        eventually(lambda: ring._stay.group.awaited == "b is missing")
        daemon.handler.waits_for = "c is missing"
        assert "c is missing" in str(call.outcome())


def test_a_daemon_that_is_away_or_silent_is_named(daemons, monkeypatch):
    """No other one can say for whom it waits."""
    monkeypatch.setattr(stay_module, "_ASK_EVERY", 0.05)
    process = daemons.start("--timeout", "0.2", "--never-forms")
    with ringd.connect(daemons.path, timeout=10) as ring:
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(ringd.DeadlineExceeded, match=r"does not answer.*is it stopped\?"):
            ring.rank  # noqa: B018
        daemons.kill()
        eventually(lambda: ring._connection.pump.channel is None)
        with pytest.raises(ringd.DeadlineExceeded, match="is away"):
            ring.rank  # noqa: B018


SIZED = {
    "broadcast": lambda ring, **o: ring.broadcast(SMALL, **o),
    "all_gather": lambda ring, **o: ring.all_gather(SMALL, **o),
    "reduce_scatter": lambda ring, **o: ring.reduce_scatter(SMALL, **o),
    "all_to_all": lambda ring, **o: ring.all_to_all(SMALL, [5, 5], [5, 5], **o),
    "all_gather_bytes": lambda ring, **o: ring.all_gather_bytes(b"abc", **o),
}


@pytest.mark.parametrize("kind", SIZED)
def test_a_call_that_depends_on_the_size_waits_for_it(tmp_path, kind):
    """Within its own deadline."""
    with fake(tmp_path, forms=False) as (daemon, ring):
        with pytest.raises(ringd.DeadlineExceeded, match="ranks are not known yet; b is missing"):
            SIZED[kind](ring, timeout=0.05)
        assert daemon.handler.submitted == []
        call = Call(lambda: SIZED[kind](ring, timeout=30))
        time.sleep(0.02)
        form(daemon)
        assert len(call.result()) == {"all_gather": 20, "reduce_scatter": 5}.get(kind, 10) or 2


def test_a_call_that_does_not_is_handed_over_at_once(tmp_path):
    """An all-reduce means the same whoever takes part."""
    with fake(tmp_path, forms=False) as (_, ring):
        assert ring.all_reduce(1.0) == 2.0
        assert ring.barrier() is None


def test_what_is_wrong_with_an_argument_is_said_without_waiting(tmp_path):
    """Where that does not depend on the size."""
    with fake(tmp_path, forms=False) as (_, ring):
        with pytest.raises(TypeError, match="root is a rank"):
            ring.broadcast(SMALL, "sum")
        with pytest.raises(ValueError, match="both send_counts"):
            ring.all_to_all(SMALL, [5, 5])
        with pytest.raises(TypeError, match="object"):
            ring.all_gather(np.array([object()]))


def test_the_machine_of_each_rank_follows_from_the_session(tmp_path):
    """Several ranks may be on one machine, in any order."""
    with fake(tmp_path, size=4, forms=False) as (daemon, ring):
        join_id = ring._stay.group.session.join_id

        def tell():
            ((_, client),) = daemon.handler.stays.items()
            client.tell_session(join_id, (7, 8, join_id, 9), (3, 3, 0, 1))

        daemon.run(tell)
        eventually(lambda: ring._stay.group.place or ring.state is None)
        assert (ring.rank, ring.size, ring.nodes) == (2, 4, ("n3", "n3", "n0", "n1"))
        assert "rank 2 of 4" in repr(ring)


def test_what_was_known_stays_while_a_session_forms_anew(tmp_path):
    """It is the last one's until the next one's is known."""
    with fake(tmp_path, size=3) as (daemon, ring):
        assert (ring.rank, ring.size) == (0, 3)
        (client,) = daemon.run(lambda: daemon.server.clients)
        daemon.handler.forms = False
        join_id = ring._stay.group.session.join_id
        daemon.run(lambda: client.send(border.Lost(join_id, 0, "group_lost", "b left")))
        eventually(lambda: ring.state and ring._stay.group.session.join_id != join_id)
        assert (ring.rank, ring.size, ring._stay.group.session.members) == (0, 3, ())
        own = ring._stay.group.session.join_id
        eventually(lambda: own in daemon.handler.stays)
        daemon.run(lambda: client.tell_session(own, (1, own)))
        eventually(lambda: ring.state and ring.size == 2)
        assert ring.rank == 1
        daemon.run(lambda: client.tell_session(own, (1, 2)))  # which cannot be ours
        eventually(lambda: ring.state and ring._stay.group.session.members == (1, 2))
        assert ring.rank == 1


def test_a_loss_ends_the_wait(tmp_path):
    """It is told, once, as by a call."""
    with fake(tmp_path, forms=False) as (daemon, ring):
        call = Call(lambda: ring.rank)
        eventually(lambda: ring._stay.group.awaited)
        (client,) = daemon.run(lambda: daemon.server.clients)
        join_id = ring._stay.group.session.join_id
        daemon.run(lambda: client.send(border.Lost(join_id, 0, "group_lost", "b left")))
        assert isinstance(call.outcome(), ringd.GroupLost)
        assert ring.all_reduce(1.0) == 2.0


def test_the_end_of_the_ring_ends_the_wait(tmp_path):
    """In words."""
    with fake(tmp_path, forms=False) as (_, ring):
        call = Call(lambda: ring.rank)
        eventually(lambda: ring._stay.group.awaited)
        ring.close()
        assert "closed" in str(call.outcome())


def test_interrupts_of_the_wait_leave_the_ring_usable(tmp_path):
    """At each instant of it."""
    hits = 0
    with fake(tmp_path, forms=False) as (daemon, ring):
        for delay in instants(200, 2e-3):
            hits += interrupted(lambda: ring.rank, delay)
            assert ring.all_reduce(1.0, timeout=10) == 2.0
        form(daemon)
        assert ring.rank == 0
    assert hits >= LEAST_HITS


def test_a_program_that_failed_ends_though_a_thread_asks_for_its_rank(tmp_path):
    """As if it made a call."""
    code = """
import sys, threading, ringd
ring = ringd.connect(sys.argv[1], timeout=10)
def ask():
    try:
        ring.rank
    except ringd.MainThreadFailed:
        print("told")
threading.Thread(target=ask).start()
raise ValueError
"""
    with FakeDaemon(tmp_path / "s", forms=False) as daemon:
        done = subprocess.run(
            [sys.executable, "-c", code, daemon.path],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.stdout, done.returncode) == ("told\n", 1)


def test_threads_may_ask_at_the_same_time(tmp_path):
    """All are told when it is known, whoever hears of it."""
    limits = Limits(inline_limit=INLINE_LIMIT)
    with fake(tmp_path, forms=False, limits=limits) as (daemon, ring):
        calls = [Call(lambda: ring.rank) for _ in range(10)]
        eventually(lambda: ring._stay.group.awaited)
        form(daemon)
        assert [call.result(10) for call in calls] == [0] * 10


# --- with real daemons ------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two daemons that nobody disturbs."""
    with Cluster(tmp_path_factory.mktemp("place"), 2, settings=BOUNDED) as cluster:
        cluster.start().wait_ready()
        yield cluster


def test_real_daemons_say_for_whom_the_group_waits(cluster):
    """The member whose program lacks, and then all know their places."""
    with ringd.connect(cluster.sockets[1], "early", 10) as early:
        with pytest.raises(
            ringd.DeadlineExceeded, match="not known yet; no client in the group on: n0"
        ):
            early.broadcast(SMALL, timeout=0.2)
        call = Call(lambda: (early.rank, early.size, early.nodes))
        assert call.running
        with ringd.connect(cluster.sockets[0], "early", 10) as late:
            assert call.result() == (1, 2, ("n0", "n1"))
            assert (late.rank, late.size, late.nodes) == (0, 2, ("n0", "n1"))


def test_a_group_that_forms_anew_has_ranks(cluster):
    """So that is not what a message waits for, also in a part, whose ranks never were unknown."""
    with contextlib.ExitStack() as rings:
        whole = [rings.enter_context(ringd.connect(s, "anew", 10)) for s in cluster.sockets]
        calls = [Call(lambda ring=ring: ring.split(0)) for ring in whole]
        parts = [rings.enter_context(call.result()) for call in calls]
        for one, other in (whole, parts):
            assert one.rank == 0
            other.close()
            with pytest.raises(ringd.GroupLost):
                one.recv(SMALL.shape, 1, dtype=SMALL.dtype)
            with pytest.raises(
                ringd.DeadlineExceeded, match="it has not formed yet; no client in the group on: n1"
            ):
                one.recv(SMALL.shape, 1, dtype=SMALL.dtype, timeout=0.2)


def test_a_ring_that_is_down_is_named(tmp_path):
    """With the member that is missing."""
    with (
        Cluster(tmp_path, 2, settings='[ops]\ntimeout = "300ms"\n') as cluster,
        ringd.connect(cluster.start([0]).sockets[0], timeout=10) as ring,
        pytest.raises(ringd.DeadlineExceeded, match=r"not known yet; .*not up.*n1"),
    ):
        ring.rank  # noqa: B018


def test_a_call_that_does_not_fit_the_group_once_that_forms_fails_everywhere(cluster, monkeypatch):
    """A program with wrong ideas of it hands over what its daemon cannot judge yet."""
    with ringd.connect(cluster.sockets[0], "misfit", 10) as wrong:
        with monkeypatch.context() as patch:
            patch.setattr(wrong._stay.group, "place", Place(0, (0, 1, 2)))
            bad = wrong.reduce_scatter_async(np.ones(9))  # which two ranks cannot divide
            short = wrong.gather_async(SMALL, timeout=20)
        with ringd.connect(cluster.sockets[1], "misfit", 10) as other:
            theirs = other.reduce_scatter_async(np.ones(8)), other.gather_async(SMALL, timeout=20)
            for work in (bad, theirs[0]):
                with pytest.raises(ringd.Refused, match=r"daemon on 'n0'.*cannot be divided"):
                    work.wait(20)
            for work in (short, theirs[1]):  # it said that its result has room for three
                with contextlib.suppress(ringd.RingError):
                    work.wait(20)
            for value in outcomes([wrong, other], lambda ring: ring.all_gather(float(ring.rank))):
                np.testing.assert_array_equal(value, [0.0, 1.0])


def test_groups_over_one_connection_form_by_themselves(cluster):
    """Each when its programs are there, whatever the others wait for."""
    with ringd.connect(cluster.sockets[0], "alone", 10), connected(cluster, "both") as rings:
        sizes = outcomes(rings, lambda ring: (ring.rank, ring.size, float(ring.all_reduce(1.0))))
        assert sizes == [(0, 2, 2.0), (1, 2, 2.0)]
