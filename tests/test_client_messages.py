"""A program's ends of channels, with a daemon that does as it is told."""

import threading
from concurrent import futures

import numpy as np
import pytest
from clientkit import fake, take_in, tell
from fake_daemon import FakeDaemon, Handler, eventually

import ringd
from ringd.client.groups import Groups
from ringd.wire.border import messages as border


@pytest.fixture
def opened(tmp_path):
    """A ring of two in a daemon that takes all ends of channels: (daemon, ring, the openings)."""
    with fake(tmp_path, size=2) as (daemon, ring):
        openings = []
        daemon.handler.open = lambda _client, message: openings.append(message)
        yield daemon, ring, openings


def test_a_receiver_from_any_whose_end_is_refused_is_told(opened):
    """It would ask again and again, beyond its deadline."""
    daemon, ring, openings = opened

    def refuse(client, message):
        openings.append(message)
        client.send(border.Denied(message.channel_id, "resource_exhausted", "too many channels"))

    daemon.handler.open = refuse
    with pytest.raises(ringd.ResourceExhausted, match="too many channels"):
        ring.recv(3, ringd.ANY, timeout=5)
    assert len({opening.channel_id for opening in openings}) == 1


def test_a_receiver_from_any_is_told_of_a_lost_daemon_at_once(tmp_path):
    """With on_loss="fail": its call is made only when a message has come, and ends all the same."""
    opened = threading.Event()
    with futures.ThreadPoolExecutor(1) as pool:
        with FakeDaemon(tmp_path / "s", size=2) as daemon:
            daemon.handler.open = lambda _client, message: message.watch and opened.set()
            ring = ringd.connect(daemon.path, timeout=10, on_loss="fail")
            receiving = pool.submit(ring.recv, 3, ringd.ANY, timeout=60)
            assert opened.wait(30)
        with pytest.raises(ringd.PeerLost, match=r"this machine's daemon.*went away"):
            receiving.result(30)
        ring.close()


def test_an_interrupt_leaves_one_end_of_a_channel(opened, monkeypatch):
    """The daemon would refuse a second one, and so all messages from then on."""
    _, ring, openings = opened
    add = Groups.add

    def interrupted(groups, group):
        monkeypatch.setattr(Groups, "add", add)
        add(groups, group)
        raise KeyboardInterrupt

    monkeypatch.setattr(Groups, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ring.send(np.arange(3), 1)
    ring.send(np.arange(3), 1)
    eventually(lambda: openings)
    assert len({opening.channel_id for opening in openings}) == 1
    ring._close(0.0)


def test_ends_are_left_with_a_ring_that_is_forgotten(opened):
    """At once, as of nobody else's ring; what they had lent included."""
    daemon, ring, openings = opened
    ring.send(np.arange(3), 1)
    eventually(lambda: openings)
    ends = list(ring._stay.group.ends.values())
    ring._stay.abandon()
    assert [end.forgotten for end in ends] == [True]
    eventually(lambda: daemon.handler.gone)


@pytest.mark.parametrize("code", ["group_lost", "peer_lost"])
def test_what_follows_a_lost_message_is_of_the_next_stay(opened, code):
    """The daemon may not have told of the group yet: others count on calls that are not these."""
    daemon, ring, openings = opened
    submit, submitted = daemon.handler.submit, []

    def answer(client, message, payload, inline):
        submitted.append(message)
        if openings and message.join_id == openings[0].channel_id:
            client.send(border.Failed(message.join_id, message.seq, 0, code, "n1 died"))
        else:
            submit(client, message, payload, inline)

    daemon.handler.submit = answer
    ring.barrier()
    with pytest.raises((ringd.GroupLost, ringd.PeerLost), match="n1 died"):
        ring.recv(3, 1)
    ring.barrier()
    first, _, second = submitted
    assert (first.join_id != second.join_id, second.seq) == (True, 0)


def test_ends_of_a_former_session_wait_until_the_next_daemon_has_let_us_in(tmp_path, monkeypatch):
    """What is said of calls before that is refused: it goes another way, and may be there first."""
    monkeypatch.setattr(Handler, "open", lambda *_: None, raising=False)
    with fake(tmp_path, size=2, hold=True) as (daemon, ring):
        work = ring.send_async(np.arange(3), 1)
        eventually(lambda: daemon.handler.submitted)
        tell(daemon, lambda join_id: border.Lost(join_id, 0, "group_lost", "b left"))
        eventually(lambda: len(daemon.handler.attaches) == 2)
        daemon.stop()
        with FakeDaemon(tmp_path / "s", size=2, hold=True) as second:
            eventually(lambda: second.handler.submitted)
            assert second.server.counters.denied_messages == 0
            assert not work.done()
            ring._close(0.0)


def test_who_was_told_of_a_loss_by_a_message_hears_of_no_other_one(opened):
    """However late the group's own loss is told: what was lost with it is known."""
    daemon, ring, openings = opened
    submit = daemon.handler.submit

    def answer(client, message, payload, inline):
        if message.join_id not in {opening.channel_id for opening in openings}:
            submit(client, message, payload, inline)
            return
        client.send(border.Failed(message.join_id, message.seq, 0, "group_lost", "n1 died"))
        client.send(border.Lost(message.join_id, message.seq, "group_lost", "n1 died"))

    daemon.handler.submit = answer
    ring.barrier()
    ring.send(np.arange(3), 1, tag=99)
    eventually(lambda: take_in(ring) or ring._stay.group.lost_messages)
    with pytest.raises(ringd.GroupLost, match="n1 died"):
        ring.recv(3, 1)
    ring.close()  # which would say that one was not received


def test_who_was_told_of_a_loss_by_a_call_hears_of_no_message_lost_with_it(opened):
    """Also where it turns out only later that one is."""
    daemon, ring, openings = opened
    submit, held = daemon.handler.submit, []

    def answer(client, message, payload, inline):
        if message.join_id in {opening.channel_id for opening in openings}:
            held.append((client, message))
        else:
            submit(client, message, payload, inline)

    daemon.handler.submit = answer
    ring.barrier()
    ring.send(np.arange(3), 1, tag=99)
    eventually(lambda: held)
    tell(daemon, lambda join_id: border.Lost(join_id, 1, "group_lost", "n1 died"))
    eventually(lambda: take_in(ring) or ring._stay.group.pending_error)
    with pytest.raises(ringd.GroupLost, match="n1 died"):
        ring.barrier()
    ((client, message),) = held

    def end():
        client.send(border.Failed(message.join_id, message.seq, 0, "group_lost", "n1 died"))
        client.send(border.Lost(message.join_id, message.seq, "group_lost", "n1 died"))

    daemon.run(end)
    eventually(lambda: take_in(ring) or message.join_id not in ring._stay.group.ends)
    ring.close()  # which would say that one was not received
