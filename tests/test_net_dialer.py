"""Dialing: for ever, in every way that fails, without a trace."""

from __future__ import annotations

import errno
import resource
import socket

import pytest
from dialkit import QUICK, Forever, NoWait, address, free_port
from netkit import open_fds, run_until

from ringd.loop import EVENT_READ
from ringd.net import dialer as dialers
from ringd.net.oserrors import describe


def test_a_link(scene):
    """A dialer that finds its neighbour hands the socket over and rests."""
    target, _ = scene.listener()
    dialer = scene.dialer(target)
    assert dialer.active
    run_until(scene.loop, lambda: scene.links and scene.accepted)
    _, peer, reached, leftover = scene.links[0]
    assert (peer.name, peer.rank, peer.incarnation, peer.purpose) == ("b", 1, 8, "link")
    assert (reached, leftover) == (target, b"")
    assert scene.accepted[0][1].name == "a"
    assert not dialer.active
    assert (scene.failures, scene.refused) == ([], [])
    one, other = scene.links[0][0], scene.accepted[0][0]
    one.sendall(b"hello")
    other.settimeout(5)
    assert other.recv(10) == b"hello"


def test_ipv6(scene):
    """IPv6 is spoken like IPv4."""
    target, _ = scene.listener(host="::1")
    assert target.startswith("[::1]:")
    scene.dialer(target)
    run_until(scene.loop, lambda: scene.links and scene.accepted)
    assert scene.links[0][2] == target


def test_it_waits_for_its_neighbour(scene):
    """Dialing goes on until somebody listens, with a backoff sleep after each round."""
    port = free_port()
    backoff = NoWait()
    scene.dialer(f"127.0.0.1:{port}", backoff=backoff)
    run_until(scene.loop, lambda: len(scene.failures) >= 20)
    reason = describe(OSError(errno.ECONNREFUSED, ""))
    assert set(scene.failures) == {(f"127.0.0.1:{port}", reason)}
    assert backoff.waits in {len(scene.failures), len(scene.failures) - 1}
    scene.listener(port=port)
    run_until(scene.loop, lambda: scene.links and scene.accepted)


def test_thousands_of_failures_leave_nothing_open(scene):
    """10,000 refused attempts leave the number of open files flat."""
    before = open_fds()
    scene.dialer(f"127.0.0.1:{free_port()}")
    counts = set()
    for target in (100, 5000, 10_000):
        run_until(scene.loop, lambda target=target: len(scene.failures) >= target)
        counts.add(open_fds())
        assert len(scene.loop._timers) < 200
    assert max(counts) <= before + 1


def test_failed_handshakes_leave_nothing_open(scene):
    """2,000 attempts that reach the wrong member leave the number of open files flat."""
    target, _ = scene.listener(rank=2)
    before = open_fds()
    scene.dialer(target)
    for count in (100, 2000):
        run_until(scene.loop, lambda count=count: len(scene.failures) >= count)
        assert open_fds() <= before + 3
    text = "'a' wanted 'b' and reached 'c'"
    assert {reason for _, reason in scene.failures} == {f"refused by the other side: {text}"}
    assert {reason for _, reason in scene.refused} == {text}


def test_each_address_in_turn(scene, full):
    """Every address gets its own time; the first good one wins, whatever stands before it."""
    silent = socket.create_server(("127.0.0.1", 0))
    deaf = address(*silent.getsockname())
    refusing = f"127.0.0.1:{free_port()}"
    good, _ = scene.listener()
    scene.dialer(full, deaf, refusing, "nonsense", good, settings=QUICK)
    run_until(scene.loop, lambda: scene.links and scene.accepted)
    silent.close()
    assert scene.failures[:4] == [
        (full, "no answer within 0.2 s"),
        (deaf, "no handshake within 0.2 s"),
        (refusing, describe(OSError(errno.ECONNREFUSED, ""))),
        ("nonsense", 'has no port; write "host:port", such as "nonsense:5680"'),
    ]
    assert scene.links[0][2] == good


def test_strangers_at_the_other_end(scene):
    """Whoever answers but is no ringd, or closes at once, is one failed attempt."""
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    answers = iter([b"SSH-2.0-OpenSSH_9.6\r\n", b"", b"RN"])

    def accept(_events):
        sock, _ = server.accept()

        def answer(_events):
            sock.recv(4096)
            sock.sendall(next(answers, b""))
            scene.loop.remove(sock)
            sock.close()

        scene.loop.add(sock, EVENT_READ, answer)

    scene.loop.add(server, EVENT_READ, accept)
    scene.dialer(address(*server.getsockname()))
    run_until(scene.loop, lambda: len(scene.failures) >= 3)
    scene.closables[0].stop()
    run_until(scene.loop, lambda: True)
    scene.loop.remove(server)
    server.close()
    assert [reason for _, reason in scene.failures[:3]] == [
        "the other side does not speak ringd's protocol",
        "connection closed during the handshake",
        "connection closed during the handshake",
    ]


@pytest.mark.parametrize("stage", ["start", "connect", "handshake", "sleep"])
def test_stop_at_any_stage(scene, full, stage):
    """A dialer that was stopped calls nobody and leaves nothing open."""
    silent = socket.create_server(("127.0.0.1", 0))
    where = {"connect": full, "handshake": address(*silent.getsockname())}
    before = open_fds()
    backoff = Forever()
    target = where.get(stage, f"127.0.0.1:{free_port()}")
    dialer = scene.dialer(target, backoff=backoff, settings=QUICK)
    reached = {
        "start": lambda: True,
        "connect": lambda: dialer._round._sock is not None,
        "handshake": lambda: dialer._round.connected,
        "sleep": lambda: backoff.waits == 1,
    }[stage]
    if stage != "start":
        run_until(scene.loop, reached)
    dialer.stop()
    scene.failures.clear()
    assert not dialer.active
    assert open_fds() == before
    late = scene.loop.now() + 0.25
    run_until(scene.loop, lambda: scene.loop.now() > late)
    assert scene.failures == []
    silent.close()


def test_out_of_descriptors(scene):
    """Without a descriptor to dial with, an attempt fails in words and dialing goes on."""
    target, _ = scene.listener()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    backoff = Forever()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        dialer = scene.dialer(target, backoff=backoff)
        run_until(scene.loop, lambda: backoff.waits == 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [reason for _, reason in scene.failures] == [
        f"Too many open files (errno {errno.EMFILE})"
    ]
    dialer.wake()
    run_until(scene.loop, lambda: scene.links and scene.accepted)


def test_itself(scene, monkeypatch):
    """A connection to its own socket, which TCP allows, is taken for nobody listening."""
    port = free_port()

    class Bound(socket.socket):
        def connect_ex(self, where):
            self.bind(("127.0.0.1", port))
            return super().connect_ex(where)

    backoff = Forever()
    monkeypatch.setattr(dialers.socket, "socket", Bound)
    scene.dialer(f"127.0.0.1:{port}", backoff=backoff)
    run_until(scene.loop, lambda: backoff.waits == 1)
    assert [reason for _, reason in scene.failures] == [
        "connection refused (it was answered by its own socket)"
    ]
