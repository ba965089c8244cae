"""Acknowledgements: they reach the handler, and who owes one is woken, once."""

from borderkit import EIGHT, Raw
from fake_daemon import eventually

from ringd.border import client as client_module
from ringd.wire.border import lifeline
from ringd.wire.border import messages as border


def nudged(raw, timeout):
    """Whether the daemon says on the lifeline that there is something to read."""
    raw.lifeline.settimeout(timeout)
    try:
        return raw.lifeline.recv(64) == lifeline.pack_session(0, ())
    except TimeoutError:
        return False


def test_acknowledgement_reaches_the_handler(daemon):
    """Of a client that is attached; others are denied, as are numbers that cannot be."""
    with Raw(daemon) as raw, Raw(daemon, attach=False) as stranger:
        assert "attach" in stranger.ask(border.Ack(5, 1)).message
        assert "sequence number" in raw.ask(border.Ack(5, 2**62 + 1)).message
        raw.send(border.Ack(5, 3))
        eventually(lambda: daemon.handler.acks == [3])


def test_one_that_acknowledges_nothing_is_woken(daemon):
    """Somebody waits for it: a program that computes learns over the lifeline that it has mail."""
    daemon.handler.ask_ack = True
    with Raw(daemon) as raw:
        assert raw.ask(raw.submit(), EIGHT).ack
        assert nudged(raw, 10)
        # What has to be acknowledged first came later, and nobody had asked for that.
        daemon.handler.ask_ack = False
        assert not raw.ask(raw.submit(seq=1), EIGHT).ack
        assert nudged(raw, 10)


def test_one_that_reads_nothing_is_woken_once(daemon, monkeypatch):
    """A stopped program with many calls open is not hung up on for a full lifeline."""
    monkeypatch.setattr(client_module, "NUDGE_AFTER", 0.001)
    daemon.handler.hold = daemon.handler.ask_ack = True
    with Raw(daemon) as raw:
        for seq in range(50):
            raw.send(raw.submit(seq=seq), EIGHT)
        eventually(lambda: len(daemon.handler.submitted) == 50)
        (client,) = daemon.run(lambda: daemon.server.clients)
        for call in list(daemon.handler.submitted):
            daemon.run(lambda call=call: daemon.handler.complete(call))
            eventually(lambda: daemon.run(lambda: client._nudge is None))
        raw.lifeline.settimeout(10)
        assert raw.lifeline.recv(4096) == lifeline.pack_session(0, ())
        # It speaks, but has read no more than the half of it: it is woken again.
        raw.send(border.Ack(5, 25))
        assert nudged(raw, 10)
        raw.send(border.Ack(5, 50))
        eventually(lambda: daemon.handler.acks == [25, 50])
        assert daemon.run(lambda: client._nudge) is None
        assert not nudged(raw, 0.01)


def test_one_that_acknowledges_is_left_alone(daemon, monkeypatch):
    """Nobody is woken for what has been said, be it by an Ack or with the next call."""
    monkeypatch.setattr(client_module, "NUDGE_AFTER", 0.2)
    daemon.handler.ask_ack = True
    with Raw(daemon) as raw:
        assert raw.ask(raw.submit(), EIGHT).ack
        assert raw.ask(raw.submit(seq=1, acked=1), EIGHT).ack
        raw.send(border.Ack(5, 2))
        eventually(lambda: daemon.handler.acks == [2])
        (client,) = daemon.run(lambda: daemon.server.clients)
        eventually(lambda: daemon.run(lambda: client._nudge is None))
        assert not nudged(raw, 0.01)


def test_one_whose_session_is_over_is_woken_until_it_joins_anew(daemon):
    """Others may wait for that, and a program that computes would hear of it much later."""
    with Raw(daemon) as raw:
        (client,) = daemon.run(lambda: daemon.server.clients)
        daemon.run(lambda: client.send(border.Lost(5, 0, "group_lost", "somebody left")))
        assert nudged(raw, 10)
        raw.send(border.Ack(5, 0))  # it speaks, but has not joined anew
        assert nudged(raw, 10)
        daemon.run(lambda: client.enters(6, "default", 5))
        assert not nudged(raw, 0.2)
