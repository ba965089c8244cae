"""The group is lost, or the stay in it denied: told once, and joined anew."""

import numpy as np
import pytest
from clientkit import BOTH, LARGE, SMALL, fake, tell
from fake_daemon import FakeDaemon, eventually

import ringd
from ringd.wire.border import messages as border


@BOTH
def test_lost_group_is_told_once_and_joined_anew(tmp_path, x):
    """Open calls end with GroupLost; the next call is made in a new session."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        works = [ring.all_reduce_async(x) for _ in range(4)]
        eventually(lambda: len(daemon.handler.submitted) == 4)
        tell(daemon, lambda join_id: border.Lost(join_id, 2, "group_lost", "b's client died"))
        with pytest.raises(ringd.GroupLost, match="b's client died"):
            works[2].wait(30)
        assert [work.done() for work in works] == [False, False, True, True]
        assert len(daemon.handler.attaches) == 1  # the first two have yet to come
        for i in range(2):
            daemon.run(lambda i=i: daemon.handler.complete(daemon.handler.submitted[i]))
            np.testing.assert_array_equal(works[i].wait(30), 2 * x)
        with pytest.raises(ringd.GroupLost):
            works[3].wait()
        eventually(lambda: len(daemon.handler.attaches) == 2)
        old, new = daemon.handler.attaches
        assert (old.join_id != new.join_id, new.next_seq, new.released) == (True, 0, 0)
        daemon.handler.hold = False
        np.testing.assert_array_equal(ring.all_reduce(x), 2 * x)
        assert daemon.run(lambda: daemon.handler.submitted[-1].message.join_id) == new.join_id
        daemon.run(lambda: None)
        # What is left over from the old session is of no consequence.
        ((client, _),) = daemon.handler.joins.items()
        for reply in (
            border.Completed(old.join_id, 0, 9, 7),
            border.Failed(old.join_id, 0, 9, "error", "x"),
            border.Lost(old.join_id, 0, "error", "x"),
            border.Released(old.join_id, 5),
            border.Denied(old.join_id, "refused", "x"),
            border.Answer(b"{}"),
        ):
            daemon.run(lambda reply=reply: client.send(reply))
        np.testing.assert_array_equal(ring.all_reduce(x), 2 * x)


@pytest.mark.parametrize(
    "begin",
    [
        lambda ring: ring.all_reduce_async(SMALL),
        lambda ring: ring.all_reduce_coalesced_async([SMALL, SMALL.astype("i4")]),
    ],
    ids=["one", "several dtypes"],
)
def test_who_only_asks_whether_a_call_has_ended_is_not_told_of_the_loss(tmp_path, begin):
    """So the next call says it."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        work = begin(ring)
        eventually(lambda: daemon.handler.submitted)
        tell(daemon, lambda join_id: border.Lost(join_id, 0, "group_lost", "b's client died"))
        eventually(work.done)
        with pytest.raises(ringd.GroupLost, match="b's client died"):
            ring.all_reduce(SMALL, timeout=10)


def test_one_that_joins_anew_says_who_had_left(tmp_path):
    """Its daemon may be another one by then, and others may be told of its leaving only."""
    with fake(tmp_path) as (daemon, ring):
        tell(daemon, lambda join_id: border.Lost(join_id, 0, "group_lost", "b's client died"))
        eventually(lambda: (ring.state, len(daemon.handler.attaches))[1] == 2)
        first, second = daemon.handler.attaches
        assert (first.former, first.loss) == (0, "")
        assert (second.former, second.loss) == (first.join_id, "b's client died")
        tell(daemon, lambda join_id: border.Lost(join_id, 0, "peer_lost", "the ring broke"))
        eventually(lambda: (ring.state, len(daemon.handler.attaches))[1] == 3)
        assert (daemon.handler.attaches[2].former, daemon.handler.attaches[2].loss) == (
            second.join_id,
            "",
        )


def test_calls_that_are_lost_are_not_announced_again(tmp_path):
    """A new daemon is told how many calls are about to come, and that many come."""
    with FakeDaemon(tmp_path / "s", hold=True) as first:
        ring = ringd.connect(first.path, timeout=10)
        works = [ring.all_reduce_async(SMALL) for _ in range(4)]
        eventually(lambda: len(first.handler.submitted) == 4)
        tell(first, lambda join_id: border.Lost(join_id, 2, "group_lost", "b's client died"))
        eventually(works[2].done)
    with FakeDaemon(tmp_path / "s") as second:
        for work in works[:2]:
            np.testing.assert_array_equal(work.wait(30), 2 * SMALL)
        assert (second.handler.attaches[0].next_seq, len(second.handler.submitted)) == (2, 2)
        ring.close()


def test_loss_without_open_calls_is_told_by_the_next_call(tmp_path):
    """If nothing was open, the next call raises, once."""
    with fake(tmp_path) as (daemon, ring):
        ring.all_reduce(SMALL)
        tell(daemon, lambda join_id: border.Lost(join_id, 1, "group_lost", "died"))
        eventually(lambda: (ring.state, len(daemon.handler.attaches))[1] == 2)
        with pytest.raises(ringd.GroupLost, match="died"):
            ring.all_reduce(SMALL)
        np.testing.assert_array_equal(ring.all_reduce(SMALL), 2 * SMALL)
        assert len(daemon.handler.attaches) == 2


def test_calls_below_the_floor_go_on(tmp_path):
    """Calls that everybody made can still be made here; only the one after them raises."""
    with fake(tmp_path) as (daemon, ring):
        tell(daemon, lambda join_id: border.Lost(join_id, 2, "group_lost", "died"))
        for _ in range(2):
            np.testing.assert_array_equal(ring.all_reduce(SMALL), 2 * SMALL)
        with pytest.raises(ringd.GroupLost, match="died"):
            ring.all_reduce(SMALL)
        np.testing.assert_array_equal(ring.all_reduce(SMALL), 2 * SMALL)


def test_async_losses_are_told_before_new_calls(tmp_path):
    """Whoever has not waited for the lost calls hears of the loss at the next one."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        works = [ring.all_reduce_async(SMALL) for _ in range(3)]
        eventually(lambda: len(daemon.handler.submitted) == 3)
        tell(daemon, lambda join_id: border.Lost(join_id, 0, "group_lost", "died"))
        eventually(works[0].done)
        with pytest.raises(ringd.GroupLost):
            ring.all_reduce(SMALL)
        daemon.handler.hold = False
        np.testing.assert_array_equal(ring.all_reduce(SMALL), 2 * SMALL)
        for work in works:
            with pytest.raises(ringd.GroupLost):
                work.wait()


@pytest.mark.parametrize("waits", [False, True])
def test_losses_are_told_once_where_each_call_is_reported(tmp_path, waits):
    """Lost calls are reported, then the loss: a wait tells of it, or else the next call does."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        work = ring.all_reduce_async(SMALL)
        eventually(lambda: daemon.handler.submitted)
        tell(daemon, lambda join_id: border.Failed(join_id, 0, 0, "group_lost", "died"))
        if waits:
            with pytest.raises(ringd.GroupLost):
                work.wait(30)
        tell(daemon, lambda join_id: border.Lost(join_id, 0, "group_lost", "died"))
        eventually(lambda: (ring.state, len(daemon.handler.attaches))[1] == 2)
        daemon.handler.hold = False
        if not waits:
            with pytest.raises(ringd.GroupLost):
                ring.all_reduce(SMALL)
        np.testing.assert_array_equal(ring.all_reduce(SMALL), 2 * SMALL)


def test_denied_call_ends_with_the_reason(tmp_path):
    """A Denied on a call ends what is open, and the group can be joined anew."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        work = ring.all_reduce_async(LARGE)
        eventually(lambda: daemon.handler.submitted)
        tell(daemon, lambda join_id: border.Denied(join_id, "refused", "op 0 skips"))
        with pytest.raises(ringd.Refused, match="op 0 skips"):
            work.wait(30)
        daemon.handler.hold = False
        np.testing.assert_array_equal(ring.all_reduce(LARGE), 2 * LARGE)


def test_group_given_up_meanwhile_is_group_lost(tmp_path):
    """When the next daemon says that our place is gone, open calls end and we join anew."""
    with FakeDaemon(tmp_path / "s", hold=True) as first:
        ring = ringd.connect(first.path, timeout=10)
        work = ring.all_reduce_async(SMALL)
        eventually(lambda: first.handler.submitted)
    with FakeDaemon(tmp_path / "s", deny_attach=("group_lost", "used up; join anew")) as second:
        with pytest.raises(ringd.GroupLost, match="used up"):
            work.wait(30)
        # Denied again and again, it asks only when it is called.
        eventually(lambda: len(second.handler.attaches) == 2)
        second.run(lambda: setattr(second.handler, "deny_attach", None))  # the second is answered
        # To ask for the state takes in what has arrived.
        eventually(lambda: ring.state and ring._stay.group.pending_error is not None)
        with pytest.raises(ringd.GroupLost):
            ring.all_reduce(SMALL)
        np.testing.assert_array_equal(ring.all_reduce(SMALL), 2 * SMALL)
        assert len(second.handler.attaches) == 3
        ring.close()


def test_on_loss_fail_ends_calls_when_the_daemon_dies(tmp_path):
    """Who would rather know at once gets PeerLost, and joins the next daemon anew."""
    with FakeDaemon(tmp_path / "s", hold=True) as first:
        ring = ringd.connect(first.path, timeout=10, on_loss="fail")
        work = ring.all_reduce_async(SMALL)
        eventually(lambda: first.handler.submitted)
    with pytest.raises(ringd.PeerLost, match=r"this machine's daemon.*went away"):
        work.wait(30)
    with FakeDaemon(tmp_path / "s") as second:
        np.testing.assert_array_equal(ring.all_reduce(SMALL, timeout=10), 2 * SMALL)
        assert second.handler.attaches[-1].join_id != first.handler.attaches[0].join_id
        assert second.handler.attaches[-1].on_loss == "fail"
        ring.close()
