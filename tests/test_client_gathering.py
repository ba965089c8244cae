"""all_gather_bytes in the background: who notices its first call's end makes the second one."""

import numpy as np
import pytest
from alarms import (
    LEAST_HITS,
    instants,
    interrupted,
    no_alarm_left,  # noqa: F401
)
from clientkit import INLINE_LIMIT, SMALL, fake, pool_of, session_of
from fake_daemon import FakeDaemon, eventually

import ringd
from ringd.border.limits import Limits
from ringd.client import stay as stay_module
from tests.ringkit import Call, everywhere, outcomes

LONG = bytes(range(256)) * 40


def kinds_of(daemon):
    """Return what was handed over, in order."""
    return [call.message.call.dtype for call in daemon.handler.submitted]


@pytest.mark.parametrize("data", [b"", b"abc", LONG], ids=["empty", "inline", "segment"])
def test_bytes_come_back_of_all_ranks(tmp_path, data):
    """Waited for, asked for, or told of."""
    with fake(tmp_path, size=3) as (_, ring):
        assert ring.all_gather_bytes(data) == [data] * 3
        work = ring.all_gather_bytes_async(data)
        assert work.wait(60) == [data] * 3
        assert work.wait() is work.wait()
        work = ring.all_gather_bytes_async(data)
        eventually(work.done)
        assert work.wait() == [data] * 3
        assert ring.all_gather_bytes_async(bytearray(data)).future().result(10) == [data] * 3
        told = []
        ring.all_gather_bytes_async(memoryview(data)).add_done_callback(told.append)
        eventually(lambda: told)
        assert told[0].wait() == [data] * 3
        assert repr(told[0]).startswith("<ringd.Work op 9, all_gather_bytes")


def test_who_waits_takes_the_end_of_the_first_call_in_itself(tmp_path):
    """No other thread is woken for it."""
    with fake(tmp_path) as (_, ring):
        ring.all_gather_bytes(b"abc")
        woken = []
        ring._connection.keeper.wake = lambda: woken.append(1)
        for _ in range(20):
            ring.all_gather_bytes(b"abc")
        del ring._connection.keeper.wake
        assert woken == []


@pytest.mark.parametrize("dropped", [False, True])
def test_the_second_call_is_made_though_nobody_waits(tmp_path, dropped):
    """The other members count on it, whatever the program does with the handle."""
    with fake(tmp_path, size=3) as (daemon, ring):
        work = ring.all_gather_bytes_async(b"abc")
        if dropped:
            del work
        eventually(lambda: kinds_of(daemon) == ["int64", "uint8"])
        assert daemon.handler.submitted[1].message.call.counts == (3, 3, 3)


def test_later_calls_come_behind_both(tmp_path):
    """On all members alike, however late somebody looks."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        works = [ring.all_gather_bytes_async(b"abc"), ring.all_reduce_async(SMALL)]
        works += [ring.all_gather_bytes_async(b"d"), ring.barrier_async()]
        eventually(lambda: kinds_of(daemon) == ["int64"])
        daemon.handler.hold = False
        daemon.run(lambda: daemon.handler.complete(daemon.handler.submitted[0]))
        eventually(lambda: len(daemon.handler.submitted) == 6)
        assert kinds_of(daemon) == ["int64", "uint8", "float64", "int64", "uint8", ""]
        assert [call.message.seq for call in daemon.handler.submitted] == list(range(6))
        assert works[0].wait(60) == [b"abc"] * 2
        assert (works[1].wait(60) == 2 * SMALL).all()
        assert works[2].wait(60) == [b"d"] * 2


def test_an_error_of_the_first_call_ends_the_second(tmp_path):
    """Which is handed over as one that has ended so: the others are in step."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        work = ring.all_gather_bytes_async(b"abc")
        refuse(daemon)
        with pytest.raises(ringd.Refused, match="the reason"):
            work.wait(60)
        eventually(lambda: len(daemon.handler.submitted) == 2)
        second = daemon.handler.submitted[1].message
        assert (second.seq, second.outcome, second.message) == (1, "refused", "the reason")
        daemon.handler.hold = False
        assert ring.all_reduce(1.0) == 2.0


def refuse(daemon, error=ringd.Refused):
    """Let the first call of a fake daemon that holds calls fail."""
    eventually(lambda: daemon.handler.submitted)
    first = daemon.handler.submitted[0]
    daemon.run(
        lambda: daemon.handler.submit_failed(first.client, first.message, error("the reason"))
    )


@pytest.mark.parametrize("error", [ringd.Refused, ringd.Mismatch, ringd.DeadlineExceeded])
@pytest.mark.parametrize("behind", [False, True])
def test_who_waits_for_both_makes_no_second_call_in_vain(tmp_path, behind, error):
    """Members that called something else have no number for it; unless calls are behind it."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        call = Call(lambda: ring.all_gather_bytes(b"abc"))
        eventually(lambda: daemon.handler.submitted)
        work = ring.all_reduce_async(SMALL) if behind else None
        daemon.handler.on_submit = daemon.handler.complete
        refuse(daemon, error)
        assert isinstance(call.outcome(), error)
        assert ring.all_reduce(1.0, timeout=10) == 2.0
        seqs = [(call.message.seq, call.message.outcome) for call in daemon.handler.submitted]
        assert seqs == [(0, ""), *([(1, error.code), (2, ""), (3, "")] if behind else [(1, "")])]
        assert work is None or work.wait(60)[1] == 2.0


def test_each_of_the_calls_has_the_deadline(tmp_path, monkeypatch):
    """Also where the daemon does not say so: the second one's begins when it is made."""
    monkeypatch.setattr(stay_module, "GRACE", 0.01)
    with fake(tmp_path, hold=True) as (daemon, ring):
        work = ring.all_gather_bytes_async(b"abc", timeout=0.3)
        with pytest.raises(ringd.DeadlineExceeded, match="it goes on"):
            work.wait(0.05)
        daemon.run(lambda: daemon.handler.complete(daemon.handler.submitted[0]))
        eventually(lambda: len(daemon.handler.submitted) == 2)
        assert daemon.handler.submitted[1].message.asked == 0.3
        with pytest.raises(ringd.DeadlineExceeded, match=r"op 1 .*its deadline passed"):
            work.wait(60)
        late = ring.all_gather_bytes_async(b"abc", timeout=0.05)
        with pytest.raises(ringd.DeadlineExceeded, match=r"op 2 .*its deadline passed"):
            late.wait(60)
        told = []
        ring.all_gather_bytes_async(b"abc", timeout=0.05).add_done_callback(told.append)
        eventually(lambda: told)


def test_a_daemon_that_is_away_holds_nobody_beyond_the_deadline(daemons, monkeypatch):
    """The first call ends, and so does the second one."""
    monkeypatch.setattr(stay_module, "GRACE", 0.01)
    daemons.start("--hold")
    with ringd.connect(daemons.path, timeout=10) as ring:
        assert ring.size == 2
        daemons.kill()
        eventually(lambda: ring._connection.pump.channel is None)
        with pytest.raises(ringd.DeadlineExceeded, match="is away"):
            ring.all_gather_bytes(b"abc", timeout=0.1)
        with pytest.raises(ringd.DeadlineExceeded, match="is away"):
            ring.all_gather_bytes_async(b"abc", timeout=0.1).wait(60)


def test_the_second_call_survives_the_daemon(tmp_path):
    """Whether that ends before the first one's end, or after it."""
    with FakeDaemon(tmp_path / "s", hold=True) as first:
        ring = ringd.connect(first.path, timeout=10)
        works = [ring.all_gather_bytes_async(bytes(n)) for n in range(3)]
        eventually(lambda: first.handler.submitted)
        first.run(lambda: first.handler.complete(first.handler.submitted[0], 0))
        eventually(lambda: len(first.handler.submitted) == 3)
    with FakeDaemon(tmp_path / "s") as second:
        for n, work in enumerate(works):
            assert work.wait(20) == [bytes(n)] * 2
        assert second.handler.attaches[0].next_seq == 3
        ring.close()


def test_a_second_call_that_finds_no_memory_waits_for_some(tmp_path):
    """It needs that only when the lengths are known; what is in use then may come back."""
    budget = Limits(inline_limit=INLINE_LIMIT, segment_budget=4 << 20)
    with fake(tmp_path, hold=True, limits=budget) as (daemon, ring):
        work = ring.all_gather_bytes_async(bytes(1_000_000))
        held = [ring.empty(250_000, np.float32) for _ in range(2)]
        eventually(lambda: daemon.handler.submitted)
        daemon.handler.hold = False
        daemon.run(lambda: daemon.handler.complete(daemon.handler.submitted[0]))
        with pytest.raises(ringd.DeadlineExceeded, match="it goes on"):
            work.wait(0.2)
        assert kinds_of(daemon) == ["int64"]
        held.clear()
        eventually(work.done)
        assert work.wait(60) == [bytes(1_000_000)] * 2


def test_a_second_call_that_can_never_fit_fails_and_is_told(tmp_path):
    """With the setting's name, and the calls behind it go on."""
    budget = Limits(inline_limit=INLINE_LIMIT, segment_budget=4 << 20)
    with fake(tmp_path, limits=budget, size=8) as (daemon, ring):
        with pytest.raises(ringd.ResourceExhausted, match=r"ipc\.segment_budget"):
            ring.all_gather_bytes(bytes(1_000_000))
        assert ring.all_reduce(1.0) == 8.0
        outcomes = [call.message.outcome for call in daemon.handler.submitted]
        assert outcomes == ["", "resource_exhausted", ""]


@pytest.mark.parametrize("data", [b"abc", LONG], ids=["inline", "segment"])
def test_interrupts_leave_both_calls_or_none(tmp_path, data):
    """At each instant: the group is in step with the others, and the next one is right."""
    hits = 0
    with fake(tmp_path) as (daemon, ring):
        for delay in instants(300, 3e-3):
            before = session_of(ring).next_seq
            hits += interrupted(lambda: ring.all_gather_bytes(data), delay)
            assert session_of(ring).next_seq - before in (0, 2)
            assert ring.all_gather_bytes(data, timeout=10.0) == [data] * 2
        seqs = daemon.run(lambda: [call.message.seq for call in daemon.handler.submitted])
        assert sorted(set(seqs)) == list(range(session_of(ring).next_seq))
        pool = pool_of(ring)
        eventually(lambda: not (ring.state is None or session_of(ring).ops))
        ring._connection.pump.run(pool._collect)
        assert pool.used == 0
    assert hits >= LEAST_HITS


def test_an_interrupted_gather_goes_on_by_itself(tmp_path):
    """Nobody calls the ring again, and the others have its bytes all the same."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        assert ring.size == 2
        wait = ring._connection.wait

        def interrupted_wait(*_):
            eventually(lambda: daemon.handler.submitted)
            raise KeyboardInterrupt

        ring._connection.wait = interrupted_wait
        with pytest.raises(KeyboardInterrupt):
            ring.all_gather_bytes(b"abc")
        ring._connection.wait = wait
        daemon.run(lambda: daemon.handler.complete(daemon.handler.submitted[0]))
        eventually(lambda: kinds_of(daemon) == ["int64", "uint8"])


def test_real_daemons_gather_what_differs(calm):
    """In length and content, in any order of waiting, beside other calls."""

    def run(ring):
        mine = [bytes([ring.rank + 1]) * (n * (ring.rank + 1)) for n in (0, 1, 7, 100_000)]
        works = [ring.all_gather_bytes_async(data) for data in mine]
        total = ring.all_reduce(1.0)
        return [work.wait(30) for work in reversed(works)], float(total)

    for gathered, total in everywhere(calm, run):
        assert total == 3.0
        assert gathered == [
            [bytes([rank + 1]) * (n * (rank + 1)) for rank in range(3)] for n in (100_000, 7, 1, 0)
        ]


def test_who_calls_something_else_is_in_step_afterwards(calm):
    """The call ends with an error on all members, and the next one is right."""

    def run(ring):
        return ring.all_gather_bytes(b"abc", timeout=20) if ring.rank else ring.all_reduce(1.0)

    for error in outcomes(calm, run):
        assert isinstance(error, ringd.Mismatch)
    assert everywhere(calm, lambda ring: ring.all_gather_bytes(b"x")) == [[b"x"] * 3] * 3
