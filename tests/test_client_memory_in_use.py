"""Memory that the daemon or others may still read is neither used again nor given back."""

import contextlib

import pytest
from clientkit import INLINE_LIMIT, LARGE, fake, session_of, tell
from fake_daemon import FakeDaemon, eventually

import ringd
from ringd.border.limits import Limits
from ringd.client import stay as stay_module
from ringd.wire.border import messages as border


@pytest.mark.parametrize("end", ["deadline", "denied", "left behind"])
def test_memory_that_the_daemon_may_still_read_is_not_reused(tmp_path, monkeypatch, end):
    """A call that is over here may still be under way there: its input stays as it was."""
    monkeypatch.setattr(stay_module, "GRACE", 0.01)
    inputs = []
    with fake(tmp_path, hold=True, release=False) as (daemon, ring):

        def on_submit(call):
            inputs.append(call.client.view(call.message.source, writable=False))

        daemon.handler.on_submit = on_submit
        work = ring.all_reduce_async(LARGE, timeout=0.05 if end == "deadline" else 10)
        eventually(lambda: inputs)
        if end == "denied":
            tell(daemon, lambda join_id: border.Denied(join_id, "refused", "no"))
        elif end == "left behind":
            daemon.run(lambda: daemon.handler.complete(daemon.handler.submitted[0]))
            tell(daemon, lambda join_id: border.Lost(join_id, 1, "group_lost", "died"))
            work.wait(30)
        eventually(work.done)
        del work
        works = []
        for _ in range(8):
            with contextlib.suppress(ringd.RingError):  # one to tell of the loss
                works.append(ring.all_reduce_async(LARGE + 1))
        eventually(lambda: len(inputs) == 1 + len(works))
        assert bytes(inputs[0]) == LARGE.tobytes()
        inputs.clear()


@pytest.mark.parametrize("end", ["denied", "daemon lost", "left behind"])
def test_results_that_others_may_still_need_keep_their_memory(tmp_path, end):
    """A call that succeeded, and is not released, may be served from its input for a while."""
    with fake(tmp_path, release=False, on_loss="fail") as (daemon, ring):
        ring.all_reduce(LARGE)
        (first,) = daemon.handler.submitted
        number = first.message.source.segment
        daemon.run(lambda: setattr(daemon.handler, "hold", True))
        work = ring.all_reduce_async(LARGE)
        eventually(lambda: len(daemon.handler.submitted) == 2)
        if end == "denied":
            tell(daemon, lambda join_id: border.Denied(join_id, "refused", "no"))
        elif end == "daemon lost":
            ring._connection.pump.channel.hang_up()
        else:
            tell(daemon, lambda join_id: border.Lost(join_id, 0, "group_lost", "died"))
        with pytest.raises(ringd.RingError):
            work.wait(30)
        assert number not in ring._connection.pool._segments


def test_call_given_up_while_the_daemon_is_away_keeps_its_memory(tmp_path, monkeypatch):
    """Also a daemon that was parted with may be at work in it: it is free when released."""
    monkeypatch.setattr(stay_module, "GRACE", 0.01)
    with FakeDaemon(tmp_path / "s", hold=True, limits=Limits(inline_limit=INLINE_LIMIT)) as first:
        ring = ringd.connect(first.path, timeout=10)
        work = ring.all_reduce_async(LARGE, timeout=0.05)
    with pytest.raises(ringd.DeadlineExceeded):
        work.wait(30)
    (op,) = session_of(ring).ops.values()
    blocks = op.kept
    assert [block.segment.number for block in blocks] == [1, 1]
    pool = ring._connection.pool
    others = [pool.take(LARGE.nbytes) for _ in range(3)]
    assert all(
        (other.segment, other.offset) != (block.segment, block.offset)
        for other in others
        for block in blocks
    )
    with FakeDaemon(tmp_path / "s") as second:
        second.handler.on_submit = lambda call: call.client.send(
            border.Released(call.message.join_id, call.message.seq + 1)
        )
        eventually(lambda: (ring.state, op.kept)[1] == ())
        ring.close()
