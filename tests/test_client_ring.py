"""What a program sees: values, layouts, arguments, memory, threads."""

import contextlib
import enum
import gc
import math
import os
import sys
import threading
import time
import weakref
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from fake_daemon import FakeDaemon, eventually, mapped, open_fds

import ringd
from ringd.border.server import Limits
from ringd.client import connection as connection_module
from ringd.client import pool as pool_module

LIMIT = 1024  # bytes; small, so that small arrays go through shared memory too


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    """A fake daemon whose ring has three members that all submit the same."""
    path = tmp_path_factory.mktemp("daemon") / "s"
    with FakeDaemon(path, size=3, limits=Limits(inline_limit=LIMIT)) as daemon:
        yield daemon


@pytest.fixture
def ring(daemon):
    """A ring of that daemon."""
    with ringd.connect(daemon.path, timeout=10) as ring:
        yield ring


def pool_of(ring):
    """Return the ring's pool."""
    return ring._connection._group.pool


def test_ring_knows_its_place(ring):
    """Rank, size, node, generation and state are the daemon's word."""
    assert (ring.rank, ring.size, ring.node, ring.generation, ring.state) == (
        0,
        3,
        "fake",
        7,
        "ready",
    )
    assert repr(ring) == "<ringd.Ring group 'default', rank 0 of 3 (fake), ready, generation 7>"
    ring.wait_ready(timeout=1)


LAYOUTS = {
    "scalar": lambda: np.array(3.5),
    "python number": lambda: 2.5,
    "list": lambda: [[1.0, 2.0], [3.0, 4.0]],
    "empty": lambda: np.empty((0, 3)),
    "one": lambda: np.array([7]),
    "two": lambda: np.array([7, 8]),
    "vector": lambda: np.arange(100.0),
    "matrix": lambda: np.arange(12000.0).reshape(100, 120),
    "fortran": lambda: np.asfortranarray(np.arange(12000.0).reshape(100, 120)),
    "transposed": lambda: np.arange(12000.0).reshape(10, 12, 100).transpose(2, 0, 1),
    "strided": lambda: np.arange(10000)[::3],
    "reversed": lambda: np.arange(5000.0)[::-1],
    "broadcast": lambda: np.broadcast_to(np.arange(50.0), (20, 50)),
    "big endian": lambda: np.arange(300).astype(">i4"),
    "big endian strided": lambda: np.arange(3000).astype(">f8")[::2],
    "unaligned": lambda: np.frombuffer(bytes(range(250)) * 20, np.uint8)[1:4001].view(np.int32),
    "many dimensions": lambda: np.arange(2.0**12).reshape((2,) * 12),
    "matrix class": lambda: np.arange(10.0).view(np.recarray),
    "subset": lambda: np.arange(10000.0).reshape(100, 100)[10:60, 20:70],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_layout_comes_in_and_stays_as_it_is(ring, name):
    """Any layout is reduced, keeps its shape, and is not written to."""
    x = LAYOUTS[name]()
    before = np.array(x, copy=True)
    if isinstance(x, np.ndarray) and x.flags.owndata:
        x.flags.writeable = False
    result = ring.all_reduce(x)
    assert (result.shape, result.flags.writeable) == (before.shape, True)
    assert result.dtype == before.dtype.newbyteorder("=")
    np.testing.assert_array_equal(result, 3 * before)
    np.testing.assert_array_equal(x, before)


DTYPES = [
    "?",
    "i1",
    "i2",
    "i4",
    "i8",
    "u1",
    "u2",
    "u4",
    "u8",
    "f2",
    "f4",
    "f8",
    "c8",
    "c16",
    ml_dtypes.bfloat16,
]


@pytest.mark.parametrize("count", [5, 3000])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_every_dtype_crosses_the_border(ring, dtype, count):
    """All dtypes go through messages and through shared memory."""
    x = np.arange(count).astype(dtype)
    result = ring.all_reduce(x, "max" if np.dtype(dtype).kind != "c" else "sum")
    expected = x if np.dtype(dtype).kind != "c" else 3 * x
    assert result.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("op", "expected"), [("sum", 6), ("mean", 2), ("prod", 8), ("min", 2), ("max", 2)]
)
def test_every_op_is_passed_on(ring, op, expected):
    """The op that was asked for is the one computed."""
    assert ring.all_reduce(np.full(4, 2.0), op).tolist() == [expected] * 4


OUTS = {
    "itself": lambda x: x,
    "new": np.empty_like,
    "fortran": lambda x: np.empty(x.shape, x.dtype, order="F"),
    "strided": lambda x: np.empty((*x.shape[:-1], x.shape[-1] * 2), x.dtype)[..., ::2],
    "big endian": lambda x: np.empty(x.shape, ">f4"),
}


@pytest.mark.parametrize("shape", [(3, 4), (40, 50)])
@pytest.mark.parametrize("out", OUTS)
def test_out_takes_the_result(ring, shape, out):
    """The result lands in *out*, of any layout, and *out* is returned."""
    x = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    expected = 3 * x
    target = OUTS[out](x)
    assert ring.all_reduce(x, out=target) is target
    np.testing.assert_array_equal(target, expected)


def test_out_that_does_not_fit_is_refused_before_the_call(daemon, ring):
    """A wrong *out* is the caller's error, and no member hears of it."""
    daemon.run(daemon.handler.submitted.clear)
    x = np.ones(4, np.float32)
    readonly = np.ones(4, np.float32)
    readonly.flags.writeable = False
    for out, error in [
        (np.ones(4, np.float64), TypeError),
        ([0.0] * 4, TypeError),
        (np.ones(5, np.float32), ValueError),
        (np.ones((2, 2), np.float32), ValueError),
        (readonly, ValueError),
    ]:
        with pytest.raises(error, match="out"):
            ring.all_reduce(x, out=out)
    assert daemon.run(lambda: len(daemon.handler.submitted)) == 0


@pytest.mark.parametrize(
    ("x", "op", "error"),
    [
        (np.ones(2, np.int32), "mean", TypeError),
        (np.ones(2, bool), "mean", TypeError),
        (np.ones(2, np.complex64), "max", TypeError),
        (np.array([object()]), "sum", TypeError),
        (np.array(["text"]), "sum", TypeError),
        (np.ones(2, np.longdouble), "sum", TypeError),
        (np.zeros(2, "M8[s]"), "sum", TypeError),
        (np.zeros(2, [("a", "i4")]), "sum", TypeError),
        (np.ones(2), "xor", ValueError),
    ],
)
def test_what_cannot_be_reduced_is_refused_in_the_client(ring, x, op, error):
    """Undefined combinations are Python errors at the call."""
    with pytest.raises(error):
        ring.all_reduce(x, op)


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_timeout_must_be_positive(ring, timeout):
    """A timeout that means nothing is refused."""
    with pytest.raises(ValueError, match="timeout"):
        ring.all_reduce(1.0, timeout=timeout)
    with pytest.raises(ValueError, match="timeout"):
        ring.barrier(timeout=timeout)


def test_name_is_passed_on_and_bounded(daemon, ring):
    """The call's name reaches the daemon; an endless one is refused here."""
    ring.all_reduce(1.0, name="layer3.grad")
    assert daemon.run(lambda: daemon.handler.submitted[-1].message.call.name) == "layer3.grad"
    for call in (
        lambda: ring.all_reduce(1.0, name="x" * 257),
        lambda: ring.barrier(name="x" * 257),
    ):
        with pytest.raises(ValueError, match="256"):
            call()


class Op(str, enum.Enum):
    """A program's own names for what it uses."""

    SUM = "sum"


@pytest.mark.parametrize(
    ("argument", "error"),
    [
        ({"timeout": np.float64(9)}, None),
        ({"timeout": np.float32(9)}, None),
        ({"timeout": np.int64(9)}, None),
        ({"timeout": np.array(9)}, None),
        ({"timeout": 1e300}, None),
        ({"timeout": 10**400}, OverflowError),
        ({"timeout": "9"}, TypeError),
        ({"name": np.str_("l")}, None),
        ({"name": "\udc80"}, ValueError),
        ({"name": b"l"}, TypeError),
        ({"name": None}, TypeError),
        ({"op": np.str_("sum")}, None),
        ({"op": Op.SUM}, None),
        ({"op": b"sum"}, ValueError),
    ],
    ids=str,
)
def test_argument_is_used_or_refused_and_the_ring_goes_on(ring, argument, error):
    """What cannot be sent is an error of that call, which is not counted."""
    session = ring._connection._group.session
    calls = [partial(ring.all_reduce, 1.0), *([] if "op" in argument else [ring.barrier])]
    for call in calls:
        with pytest.raises(error) if error else contextlib.nullcontext():
            call(**argument)
        assert session.ops == {}
        assert ring.all_reduce(1.0) == 3.0


@pytest.mark.parametrize("present", [True, False])
def test_call_that_cannot_be_packed_is_not_counted(tmp_path, monkeypatch, present):
    """Or every daemon to come would be offered it; be there one now or not."""
    with FakeDaemon(tmp_path / "s") as daemon:
        ring = ringd.connect(daemon.path, timeout=10)
        session = ring._connection._group.session
        if not present:
            daemon.stop()
            eventually(lambda: ring._connection._pump.channel is None)
        with monkeypatch.context() as patch:
            patch.setattr(ringd.client.tensors, "plain", lambda text: text)
            with pytest.raises(TypeError):
                ring.all_reduce(1.0, name=np.str_("l"))
        assert (session.ops, session.next_seq, session.open) == ({}, 0, 0)
    with FakeDaemon(tmp_path / "s"):
        assert ring.all_reduce(1.0, timeout=10) == 2.0
        ring.close()


def test_barrier_returns(ring):
    """A barrier carries nothing and returns nothing."""
    assert ring.barrier() is None
    assert ring.barrier(timeout=5, name="here") is None


@pytest.mark.parametrize(
    "argument",
    [
        {"group": ""},
        {"group": "x" * 65},
        {"group": "a\tb"},
        {"on_loss": "shrug"},
        {"timeout": -1},
    ],
)
def test_connect_checks_its_arguments(daemon, argument):
    """Wrong arguments are ValueErrors."""
    with pytest.raises(ValueError, match=next(iter(argument))):
        ringd.connect(daemon.path, **argument)


def test_connect_takes_no_name_that_cannot_be_sent(daemon):
    """Bytes, and halves of a surrogate pair, are refused at once."""
    for name, error in ((b"g", TypeError), ("\udc80", ValueError)):
        with pytest.raises(error):
            ringd.connect(daemon.path, name)


def test_connect_takes_numpys_strings_and_any_programs_name(daemon, monkeypatch):
    """What a message cannot carry as it is, it carries otherwise."""
    monkeypatch.setattr(sys, "argv", ["caf\udce9.py"])
    group, on_loss = np.str_("numpys"), np.str_("fail")
    with ringd.connect(daemon.path, group, timeout=10, on_loss=on_loss) as ring:
        assert daemon.run(lambda: daemon.handler.attaches[-1].program) == "caf?.py"
        assert ring.all_reduce(1.0) == 3.0


def test_async_calls_keep_their_order_and_results(ring):
    """Many calls in flight, small and large, each get their own result, in any order of waiting."""
    inputs = [np.full(1 + 97 * (i % 30), float(i)) for i in range(200)]
    works = [ring.all_reduce_async(x) for x in inputs]
    for x in inputs:
        x[:] = -1  # handed over means free to be reused
    for i in reversed(range(200)):
        result = works[i].wait()
        assert (result.shape, result[0], result[-1]) == (inputs[i].shape, 3.0 * i, 3.0 * i)
        assert works[i].wait() is result
        assert works[i].done() is True
    assert repr(works[3]) == "<ringd.Work op 3, all_reduce sum float64[292], done>"


def test_done_fills_out(ring):
    """Once done() says so, *out* has its values, and not before."""
    x = np.ones(5000)
    out = np.zeros(5000)
    work = ring.all_reduce_async(x, out=out)
    deadline = time.monotonic() + 10
    while not work.done():
        assert time.monotonic() < deadline
    assert out.tolist() == [3.0] * 5000


def test_dropped_work_still_takes_place(ring):
    """A handle that nobody keeps does not cancel the call, nor leak its memory."""
    pool = pool_of(ring)
    for _ in range(50):
        ring.all_reduce_async(np.ones(100_000))
    ring.barrier()
    ring.barrier()
    pool._collect()
    assert pool.lent == 0
    assert all(segment.idle for segment in pool._segments.values())


def test_result_memory_is_reused_when_the_array_is_gone(ring):
    """The same warm memory serves call after call; a kept result is never overwritten."""
    pool = pool_of(ring)
    x = np.ones(100_000)
    kept = ring.all_reduce(x)[10:20]
    for i in range(100):
        x[:] = i
        assert ring.all_reduce(x)[-1] == 3 * i
    assert kept.tolist() == [3.0] * 10
    assert len(pool) <= 4
    del kept
    gc.collect()
    ring.all_reduce(x)
    pool._collect()
    assert pool.lent == 0
    assert len(pool) <= 4


def test_results_beyond_half_the_budget_are_copied_out(tmp_path):
    """A program that keeps all its results cannot starve its calls."""
    limits = Limits(segment_budget=4 << 20, inline_limit=LIMIT)
    with (
        FakeDaemon(tmp_path / "s", size=3, limits=limits) as daemon,
        ringd.connect(daemon.path, timeout=10) as ring,
    ):
        kept = [ring.all_reduce(np.full(50_000, float(i))) for i in range(50)]
        assert [array[-1] for array in kept] == [3.0 * i for i in range(50)]
        pool = pool_of(ring)
        assert 0 < pool.lent <= pool.budget // 2
        assert pool.size <= pool.budget
        assert any(array.base is None for array in kept)


def test_empty_is_handed_over_without_a_copy(daemon, ring):
    """An array of ring.empty goes by reference, with *hold*, and so do its contiguous views."""
    x = ring.empty((300, 40), np.float64)
    x[:] = np.arange(12000).reshape(300, 40)
    expected = 3 * x
    for view, whole in [
        (x, True),
        (x[100:200], True),
        (x.reshape(-1)[7:], True),
        (x[:, 3:], False),
    ]:
        rows = expected[100:200] if view.shape == (100, 40) else None
        result = ring.all_reduce(view)
        message = daemon.run(lambda: daemon.handler.submitted[-1].message)
        assert message.hold is whole
        if rows is not None:
            np.testing.assert_array_equal(result, rows)
    np.testing.assert_array_equal(ring.all_reduce(x, out=x), expected)
    np.testing.assert_array_equal(ring.all_reduce(ring.all_reduce(x)), 9 * expected)
    # A result was not asked for as an input, so it is copied like any other array.
    assert daemon.run(lambda: daemon.handler.submitted[-1].message.hold) is False


def test_empty_is_an_ordinary_array(ring):
    """Shapes, dtypes and defaults are numpy's."""
    assert ring.empty(5).dtype == np.float32
    assert ring.empty((), np.int8).shape == ()
    assert ring.empty((0, 5)).shape == (0, 5)
    assert ring.empty([700, 2], ml_dtypes.bfloat16).dtype == ml_dtypes.bfloat16
    big = ring.empty(np.int64(5000))
    assert (big.shape, big.flags.c_contiguous, big.flags.writeable) == ((5000,), True, True)


@pytest.mark.parametrize("dtype", [object, "S4", "M8[s]"])
def test_empty_of_what_cannot_be_reduced_is_refused(ring, dtype):
    """As all_reduce would refuse it later."""
    with pytest.raises(TypeError, match="cannot be reduced"):
        ring.empty((3,), dtype)


def test_empty_beyond_the_budget_names_the_setting(ring):
    """What cannot fit is an error that says what to raise."""
    with pytest.raises(ringd.ResourceExhausted, match=r"ipc\.segment_budget"):
        ring.empty(1 << 40, np.float64)


def test_array_in_shared_memory_survives_its_ring(daemon):
    """Results and buffers are good after close."""
    with ringd.connect(daemon.path, "other", timeout=10) as ring:
        result = ring.all_reduce(np.ones(10_000))
        buffer = ring.empty(10_000)
    buffer[:] = 1
    gc.collect()
    assert (result.sum(), buffer.sum()) == (30_000, 10_000)


@pytest.mark.parametrize("error", [1, 38])
def test_without_shared_memory_all_goes_inside_messages(tmp_path, monkeypatch, error):
    """Where the system gives no shared memory, large tensors still arrive, up to a limit."""

    def forbidden(_size):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(pool_module, "create_segment", forbidden)
    limits = Limits(inline_limit=LIMIT, max_message=10 << 20)
    with (
        FakeDaemon(tmp_path / "s", size=3, limits=limits) as daemon,
        ringd.connect(daemon.path, timeout=10) as ring,
    ):
        x = np.arange(1 << 20, dtype=np.float64)  # 8 MiB
        np.testing.assert_array_equal(ring.all_reduce(x), 3 * x)
        assert ring.empty(5000).shape == (5000,)
        with pytest.raises(ringd.ResourceExhausted, match=r"ipc\.max_message"):
            ring.all_reduce(np.ones(2 << 20))
        assert ring.all_reduce(1.0) == 3.0


def test_full_shared_memory_is_an_error_of_that_call(ring, monkeypatch):
    """No memory for a call: a clear error, and the next call goes on."""

    def full(_size):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pool_module, "create_segment", full)
        with pytest.raises(ringd.ResourceExhausted, match="No space left on device"):
            ring.all_reduce(np.ones(1 << 20))
    assert ring.all_reduce(np.ones(1 << 20))[0] == 3.0


def test_submission_waits_for_memory_to_come_back(tmp_path):
    """With all memory in open calls the next one waits; with nothing to wait for it fails."""
    limits = Limits(segment_budget=4 << 20, inline_limit=LIMIT)
    with (
        FakeDaemon(tmp_path / "s", size=3, limits=limits, hold=True) as daemon,
        ringd.connect(daemon.path, timeout=10) as ring,
    ):
        x = np.ones(1 << 17)  # 1 MiB
        first = ring.all_reduce_async(x)
        with pytest.raises(ringd.ResourceExhausted, match="held by open calls"):
            ring.all_reduce_async(x, timeout=0.05)
        timer = threading.Timer(
            0.05,
            lambda: daemon.run(lambda: daemon.handler.complete(daemon.handler.submitted[0])),
        )
        timer.start()
        second = ring.all_reduce_async(x, timeout=20)
        timer.join()
        del first
        eventually(lambda: len(daemon.handler.submitted) == 2)
        daemon.run(lambda: daemon.handler.complete(daemon.handler.submitted[1]))
        assert second.wait()[0] == 3.0
        del second
        buffers = [ring.empty(1 << 18) for _ in range(2)]
        with pytest.raises(ringd.ResourceExhausted, match="arrays that the program keeps"):
            ring.all_reduce(x)
        del buffers
        timer = threading.Timer(
            0.05,
            lambda: daemon.run(lambda: daemon.handler.complete(daemon.handler.submitted[2])),
        )
        timer.start()
        assert ring.all_reduce(x)[0] == 3.0
        timer.join()


def test_window_bounds_unreleased_calls(tmp_path):
    """Only so many calls may be unfinished anywhere; the next waits until others finish."""
    with (
        FakeDaemon(tmp_path / "s", size=3, limits=Limits(window=4), release=False) as daemon,
        ringd.connect(daemon.path, timeout=10) as ring,
    ):
        works = [ring.all_reduce_async(float(i)) for i in range(4)]
        assert [work.wait() for work in works] == [0.0, 3.0, 6.0, 9.0]
        with pytest.raises(ringd.DeadlineExceeded, match=r"ipc\.window"):
            ring.all_reduce(4.0, timeout=0.05)
        daemon.handler.release = True
        client = daemon.run(lambda: daemon.server.clients)[0]
        join_id = daemon.handler.joins[client]
        daemon.run(lambda: client.send(ringd.wire.border.Released(join_id, 4)))
        assert ring.all_reduce(4.0, timeout=10) == 12.0


def test_acked_floor_rises_with_each_answer(daemon, ring):
    """The daemon learns which outcomes have arrived."""
    for _ in range(5):
        ring.all_reduce(1.0)
    acked = daemon.run(lambda: [call.message.acked for call in daemon.handler.submitted[-5:]])
    assert acked == [0, 1, 2, 3, 4]


def test_threads_share_a_ring(ring):
    """Many threads, small and large calls, waits of all kinds: everyone gets their own result."""
    failures = []

    def work(number):
        try:
            for i in range(60):
                x = np.full(10 if i % 2 else 2000, number * 1000.0 + i)
                if i % 3:
                    result = ring.all_reduce(x, timeout=30)
                else:
                    handle = ring.all_reduce_async(x, timeout=30)
                    while i % 4 == 0 and not handle.done():
                        pass
                    result = handle.wait(30)
                if not (result == 3 * x).all():
                    failures.append((number, i))
        except Exception as error:  # noqa: BLE001 - to be seen by the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_waiting_thread_hears_what_another_took_in(tmp_path):
    """A thread that sleeps on the sockets is woken when another one takes its answer in."""
    with (
        FakeDaemon(tmp_path / "s", size=3, hold=True) as daemon,
        ringd.connect(daemon.path, timeout=10) as ring,
    ):
        works = [ring.all_reduce_async(float(i)) for i in range(3)]
        results = {}
        threads = [
            threading.Thread(target=lambda i=i: results.setdefault(i, works[i].wait(20)))
            for i in range(3)
        ]
        for thread in threads:
            thread.start()
        complete = daemon.handler.complete
        for i in (2, 0, 1):
            daemon.run(lambda i=i: complete(daemon.handler.submitted[i]))
            while not works[i].done():  # this thread takes the answer in, if it is first
                pass
        for thread in threads:
            thread.join(10)
        assert results == {0: 0.0, 1: 3.0, 2: 6.0}


def test_wait_with_a_timeout_leaves_the_call_going(tmp_path):
    """wait(timeout) gives up waiting, not the call."""
    with (
        FakeDaemon(tmp_path / "s", size=3, hold=True) as daemon,
        ringd.connect(daemon.path, timeout=10) as ring,
    ):
        work = ring.all_reduce_async(1.0)
        with pytest.raises(ringd.DeadlineExceeded, match="it goes on"):
            work.wait(0.02)
        assert (work.done(), "open" in repr(work)) == (False, True)
        daemon.run(lambda: daemon.handler.complete(daemon.handler.submitted[0]))
        assert work.wait(10) == 3.0


def test_several_rings_in_one_process(daemon):
    """Groups of one process are independent of each other."""
    rings = [ringd.connect(daemon.path, f"g{i}", timeout=10) for i in range(5)]
    works = [
        (i, ring.all_reduce_async(np.full(2000, float(i)))) for i, ring in enumerate(rings)
    ] * 2
    assert [work.wait()[0] for _, work in works] == [3.0 * i for i, _ in works]
    for ring in rings:
        ring.close()


def test_second_client_of_a_group_is_refused(daemon, ring):
    """One program per group and machine; the first one goes on."""
    with pytest.raises(ringd.Refused, match="has a client already"):
        ringd.connect(daemon.path, timeout=10)
    assert ring.all_reduce(1.0) == 3.0


def test_closed_ring_says_so(daemon):
    """After close every call fails in words; closing again is harmless; open calls end."""
    daemon.handler.hold = True
    try:
        ring = ringd.connect(daemon.path, "c", timeout=10)
        work = ring.all_reduce_async(1.0)
        waiter = []

        def wait():
            with pytest.raises(ringd.RingError, match="closed before"):
                work.wait()
            waiter.append(1)

        thread = threading.Thread(target=wait)
        thread.start()
        detached = daemon.handler.detached
        ring.close()
        thread.join(10)
        ring.close()
        with pytest.raises(ringd.RingError, match="closed before"):
            work.wait()
        assert len(waiter) == 1
        for call in (
            lambda: ring.all_reduce(1.0),
            ring.barrier,
            ring.wait_ready,
            lambda: ring.rank,
            lambda: ring.empty(100_000),
        ):
            with pytest.raises(ringd.RingError, match="closed"):
                call()
        assert (daemon.handler.detached, daemon.handler.gone) == (detached + 1, [])
    finally:
        daemon.handler.hold = False


def test_close_ends_no_call_before_the_daemon_has_let_go_of_its_input(tmp_path, monkeypatch):
    """Who waits for a call may write to what it had lent as soon as that ends."""
    monkeypatch.setattr(connection_module, "_DETACH_TIMEOUT", 30)
    ended, found = threading.Event(), []
    with FakeDaemon(tmp_path / "s", hold=True, limits=Limits(inline_limit=LIMIT)) as daemon:
        ring = ringd.connect(daemon.path, timeout=10, on_loss="fail")
        x = ring.empty(50_000)
        x[:] = 1

        def wait():
            with pytest.raises(ringd.RingError, match="closed before"):
                ring.all_reduce(x)
            ended.set()

        thread = threading.Thread(target=wait)
        thread.start()
        eventually(lambda: daemon.handler.submitted)
        daemon.handler.on_leave = lambda _client: found.append(ended.wait(0.2))
        ring.close()
        thread.join(10)
        assert (found, ended.is_set()) == ([False], True)
        assert (daemon.handler.detached, daemon.handler.gone) == (1, [])


def test_forgotten_ring_is_noticed_by_the_daemon(tmp_path):
    """A ring that nobody keeps is collected, and its place is free again."""
    with FakeDaemon(tmp_path / "s") as daemon:
        ring = ringd.connect(daemon.path, timeout=10)
        ring.all_reduce(1.0)
        gone = weakref.ref(ring)
        del ring
        gc.collect()
        assert gone() is None
        with ringd.connect(daemon.path, timeout=10) as again:
            assert again.all_reduce(1.0) == 2.0


def test_work_keeps_its_ring(tmp_path):
    """A handle is enough to get the result."""
    with FakeDaemon(tmp_path / "s") as daemon:
        work = ringd.connect(daemon.path, timeout=10).all_reduce_async(np.ones(100_000))
        gc.collect()
        assert work.wait()[0] == 2.0


def test_socket_comes_from_the_environment(daemon, monkeypatch):
    """RINGD_SOCKET names the socket when no argument does."""
    monkeypatch.setenv("RINGD_SOCKET", daemon.path)
    with ringd.connect(group="env", timeout=10) as ring:
        assert ring.size == 3


def test_usual_places_are_searched(tmp_path, monkeypatch):
    """Without a name the user's own daemon is found; without a daemon all places are listed."""
    monkeypatch.delenv("RINGD_SOCKET", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    from ringd.host.paths import socket_candidates  # noqa: PLC0415

    own, system = socket_candidates()
    monkeypatch.setattr("ringd.client.ring.socket_candidates", lambda: (own, tmp_path / "none"))
    with pytest.raises(ringd.DaemonUnavailable) as missing:
        ringd.connect(timeout=0.05)
    assert all(str(path) in str(missing.value) for path in (own, tmp_path / "none"))
    assert system != own
    with FakeDaemon(own), ringd.connect(timeout=10) as ring:
        assert ring.size == 2


def test_forming_ring_is_waited_for(tmp_path):
    """wait_ready waits for the news that the ring is ready, or says that it is not."""
    with (
        FakeDaemon(tmp_path / "s", state="forming") as daemon,
        ringd.connect(daemon.path, timeout=10) as ring,
    ):
        assert ring.state == "forming"
        with pytest.raises(ringd.NotReady, match=r"forming after 0\.02 s"):
            ring.wait_ready(0.02)
        news = ringd.wire.border.RingState("ready", 9)
        daemon.loop.call_threadsafe(lambda: daemon.server.broadcast(news))
        ring.wait_ready(10)
        assert (ring.state, ring.generation) == ("ready", 9)


def test_descriptors_and_threads_are_flat(daemon):
    """A hundred rings later everything that they opened is closed."""

    def use(i):
        with ringd.connect(daemon.path, f"flat{i}", timeout=10) as ring:
            return ring.all_reduce(np.ones(50_000))[0]

    def count():
        return open_fds(), threading.active_count(), mapped()

    use(0)
    gc.collect()
    before = count()
    assert [use(i) for i in range(100)] == [3.0] * 100
    gc.collect()
    eventually(lambda: all(now <= then for now, then in zip(count(), before, strict=True)))
