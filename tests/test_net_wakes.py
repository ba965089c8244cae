"""When a dialer tries again: after its backoff, a knock, or a link that was lost."""

from __future__ import annotations

import socket

from dialkit import Forever, address, free_port
from netkit import run_until

from ringd.config.settings import JoinSettings


def test_wake_ends_a_sleep(scene):
    """A knock ends the backoff sleep at once and forgets the backoff."""
    backoff = Forever()
    port = free_port()
    dialer = scene.dialer(f"127.0.0.1:{port}", backoff=backoff)
    run_until(scene.loop, lambda: backoff.waits == 1)
    scene.listener(port=port)
    dialer.wake()
    run_until(scene.loop, lambda: scene.links and scene.accepted)
    assert backoff.resets == 1


def test_wake_ends_a_slow_connect(scene, full):
    """A knock ends an attempt at an address that does not answer; the round starts over."""
    addresses = [full]
    slow = JoinSettings(connect_timeout=3600)
    dialer = scene.dialer(addresses=lambda: addresses, settings=slow)
    run_until(scene.loop, lambda: dialer._round._sock is not None)
    addresses[0], _ = scene.listener()
    dialer.wake()
    run_until(scene.loop, lambda: scene.links and scene.accepted)
    assert scene.failures == []


def test_wake_spares_a_handshake(scene):
    """A knock during a handshake lets it go on, and retries at once should it fail."""
    backoff = Forever()
    silent = socket.create_server(("127.0.0.1", 0))
    addresses = [address(*silent.getsockname())]
    slow = JoinSettings(handshake_timeout=1)
    dialer = scene.dialer(addresses=lambda: addresses, backoff=backoff, settings=slow)
    run_until(scene.loop, lambda: dialer._round.connected)
    addresses[0], _ = scene.listener()
    dialer.wake()
    run_until(scene.loop, lambda: scene.links and scene.accepted)
    silent.close()
    assert [reason for _, reason in scene.failures] == ["no handshake within 1 s"]
    assert backoff.waits == 0


def test_wake_does_nothing_at_rest(scene):
    """A knock does not make a second link."""
    target, _ = scene.listener()
    dialer = scene.dialer(target)
    run_until(scene.loop, lambda: scene.links and scene.accepted)
    dialer.wake()
    assert not dialer.active


def test_a_link_that_did_not_hold(scene):
    """After a link that broke at once the next is dialed behind a backoff sleep."""
    backoff = Forever()
    target, _ = scene.listener()
    dialer = scene.dialer(target, backoff=backoff)
    run_until(scene.loop, lambda: scene.links)
    dialer.start()
    assert (backoff.waits, backoff.resets, dialer.active) == (1, 0, True)
    dialer.wake()
    run_until(scene.loop, lambda: len(scene.links) == 2)


def test_a_link_that_held(scene, monkeypatch):
    """After a link that was healthy for a while the next is dialed at once, as at a start."""
    backoff = Forever()
    target, _ = scene.listener()
    dialer = scene.dialer(target, backoff=backoff)
    run_until(scene.loop, lambda: scene.links)
    real = scene.loop.now
    monkeypatch.setattr(scene.loop, "now", lambda: real() + 60)
    dialer.start()
    run_until(scene.loop, lambda: len(scene.links) == 2)
    assert (backoff.waits, backoff.resets) == (0, 1)


def test_knock(scene):
    """A knock is heard by the left neighbour, once, and leaves no connection."""
    target, _ = scene.listener(rank=0)
    scene.knock(f"127.0.0.1:{free_port()}", target, target)
    run_until(scene.loop, lambda: scene.knocks and scene.answered)
    assert [peer.name for peer in scene.knocks] == ["b"]
    assert scene.answered == [target]
    assert scene.accepted == []


def test_knock_is_not_repeated(scene):
    """A knock that nobody hears ends after one round; one that is stopped is not heard."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    scene.knock(address)
    run_until(scene.loop, lambda: scene.unanswered)
    scene.listener(rank=0, port=port)
    scene.knock(address).stop()
    late = scene.loop.now() + 0.1
    run_until(scene.loop, lambda: scene.loop.now() > late)
    assert (scene.knocks, scene.answered, len(scene.unanswered)) == ([], [], 1)
