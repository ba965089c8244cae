"""Listening: neighbours come in at once, whatever strangers do at the same time."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import struct

import pytest
from netkit import KEY, bound, every_turn, identity, listening, open_fds, run_until, welcome
from test_host_limits import Fake

from ringd.config.settings import JoinSettings
from ringd.errors import RingError
from ringd.loop import Loop
from ringd.net.listener import MAX_PENDING, Listener
from ringd.wire.link.handshake import Code, Dialing
from ringd.wire.link.hello import VERSION
from tests.ownports import free_ports


class Scene:
    """A listener of rank 1, and what happened to it."""

    def __init__(self, bind=(("127.0.0.1", 0),), timeout=30.0, judge=welcome):
        self.loop = Loop()
        self.accepted = []
        self.knocks = []
        self.refused = []
        self.strangers = []
        self.listener = Listener(
            self.loop,
            bind=bind,
            identity=lambda: identity(1),
            key=KEY,
            settings=JoinSettings(handshake_timeout=timeout),
            on_link=lambda *link: self.accepted.append(link),
            on_knock=self.knocks.append,
            on_refused=lambda address, reason, _cause: self.refused.append((address, reason)),
            judge=judge,
        )

    @property
    def pending(self):
        """The number of handshakes under way."""
        return len(self.listener._pending)

    def start(self):
        """Listen."""
        self.listener.start()
        return self

    def connect(self, data=b"", *, keep=True):
        """Connect as a stranger would, and send *data*."""
        sock = socket.create_connection(bound(self.listener)[0][:2])
        if data:
            sock.sendall(data)
        if keep:
            self.strangers.append(sock)
        return sock

    def neighbour(self, rank=0, purpose="link", key=KEY, behind=b""):
        """Connect as a neighbour does; return the socket and the finished handshake."""
        sock = self.connect()
        sock.setblocking(False)
        dialing = Dialing(identity(rank), key, "b", os.urandom(32), os.urandom(32), purpose=purpose)
        sock.send(dialing.outgoing())

        def go_on():
            with contextlib.suppress(BlockingIOError):
                dialing.receive(sock.recv(4096))
            out = dialing.outgoing()
            if out:
                sock.send(out + behind)
            return dialing.peer is not None

        run_until(self.loop, go_on)
        return sock, dialing

    def close(self):
        """Close everything."""
        self.listener.stop()
        for sock in [*self.strangers, *(link[0] for link in self.accepted)]:
            sock.close()
        self.loop.close()


@pytest.fixture
def make():
    """A maker of scenes that are closed afterwards and leave nothing open."""
    before = open_fds()
    scenes = []

    def maker(**changes):
        scenes.append(Scene(**changes))
        return scenes[-1]

    yield maker
    for scene in scenes:
        scene.close()
    assert open_fds() == before


@pytest.fixture
def scene(make):
    """A listener on IPv4 loopback."""
    return make().start()


@pytest.fixture
def ports():
    """Two ports that nobody listens on."""
    return free_ports(2)


def test_a_neighbour(scene):
    """The left neighbour is handed over with its address; the listener goes on."""
    for number in range(3):
        sock, dialing = scene.neighbour()
        run_until(scene.loop, lambda number=number: len(scene.accepted) == number + 1)
        accepted, peer, address, leftover = scene.accepted[number]
        assert (dialing.peer.name, peer.name, peer.rank, leftover) == ("b", "a", 0, b"")
        assert address == "127.0.0.1:" + str(sock.getsockname()[1])
        accepted.send(b"x")
    assert scene.refused == []
    assert scene.pending == 0


def test_a_neighbour_that_is_judged_later(make):
    """A neighbour waits for the verdict; meanwhile it may go, or be dropped, without harm."""
    cases = []
    scene = make(judge=lambda peer, address, verdict: cases.append((peer, address, verdict)))
    scene.start()

    def dial():
        sock, dialing = (
            scene.connect(),
            Dialing(identity(0), KEY, "b", os.urandom(32), os.urandom(32)),
        )
        sock.send(dialing.outgoing())
        before = len(cases)

        def go_on():
            with contextlib.suppress(BlockingIOError):
                dialing.receive(sock.recv(4096, socket.MSG_DONTWAIT))
            if out := dialing.outgoing():
                sock.send(out)
            return len(cases) > before

        run_until(scene.loop, go_on)
        return sock

    gone = dial()
    gone.close()
    run_until(scene.loop, lambda: scene.refused)
    dial()
    dial()
    assert (scene.accepted, scene.pending) == ([], 2)
    assert cases[0][0].name == "a"
    for objection, (_, _, verdict) in zip(("", "", "two of that name"), cases, strict=True):
        verdict(objection)
        verdict(objection)
    run_until(scene.loop, lambda: len(scene.refused) == 2)
    assert scene.refused[1] == (cases[2][1], "two of that name")
    assert [peer.name for _, peer, *_ in scene.accepted] == ["a"]
    assert scene.pending == 0


def test_what_follows_the_handshake(scene):
    """Bytes that come in one piece with the proof are handed over with the socket."""
    scene.neighbour(behind=b"frame")
    run_until(scene.loop, lambda: scene.accepted)
    assert scene.accepted[0][3] == b"frame"


def test_a_knock(scene):
    """A knock of the right neighbour is told, and its connection closed."""
    sock, _ = scene.neighbour(rank=2, purpose="knock")
    run_until(scene.loop, lambda: scene.knocks)
    assert [(peer.name, peer.purpose) for peer in scene.knocks] == [("c", "knock")]
    sock.setblocking(True)
    assert sock.recv(1) == b""


def test_refusals(scene):
    """Whoever is refused is named with the reason, and told."""
    sock = scene.connect()
    dialing = Dialing(identity(0, ring="lab"), KEY, "b", os.urandom(32), os.urandom(32))
    sock.sendall(dialing.outgoing())
    run_until(scene.loop, lambda: scene.refused)
    text = "'b' belongs to ring 'home', 'a' to ring 'lab'"
    assert scene.refused == [("127.0.0.1:" + str(sock.getsockname()[1]), text)]
    with pytest.raises(Exception, match="belongs to ring") as caught:
        dialing.receive(sock.recv(4096))
    assert (caught.value.code, caught.value.by_peer) == (Code.RING, True)
    assert sock.recv(1) == b""


def test_the_reason_outlives_a_refusal_that_cannot_be_sent(scene):
    """Whoever hangs up before it has heard why is named with the reason all the same."""
    sock = scene.connect(keep=False)
    sock.sendall(
        Dialing(identity(0, ring="lab"), KEY, "b", os.urandom(32), os.urandom(32)).outgoing()
    )
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()  # with a reset
    run_until(scene.loop, lambda: scene.refused)
    assert [reason for _, reason in scene.refused] == [
        "'b' belongs to ring 'home', 'a' to ring 'lab'"
    ]


def garbage_of(number):
    """Return what a stranger of some kind sends."""
    hello = Dialing(identity(0), b"", "b", bytes(32), bytes(32)).outgoing()
    kinds = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"RNGD",
        hello[:20],
        hello,
        hello[:8] + bytes(len(hello) - 8),
        hello + hello,
        struct.pack("<4sBBH", b"RNGD", VERSION, 1, 0xFFFF),
        bytes(100_000),
    ]
    return kinds[number % len(kinds)]


def test_strangers_by_the_hundred(scene):
    """Silent ones, garbage and port scans by the hundred do not keep a neighbour out."""
    before = open_fds()
    for number in range(300):
        scene.connect()  # silent
        sock = scene.connect(keep=False)
        if number % 2:  # a scan that resets, or closes
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        sock = scene.connect(keep=False)
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.send(garbage_of(number))
        scene.strangers.append(sock)
        if number % 100 == 50:
            scene.neighbour()
        elif number % 10 == 0:
            run_until(scene.loop, lambda: True)
        assert scene.pending <= MAX_PENDING
    scene.neighbour()
    run_until(scene.loop, lambda: len(scene.accepted) == 4)
    assert [peer.name for _, peer, _, _ in scene.accepted] == ["a"] * 4
    assert ("dropped: more than 256 handshakes under way") in {r for _, r in scene.refused}
    for sock in scene.strangers:
        sock.close()
    scene.strangers.clear()
    run_until(scene.loop, lambda: scene.pending == 0)
    assert len(scene.refused) == 900
    assert open_fds() == before + 4


def test_deadline(make):
    """Strangers who stay silent or trickle are dropped when their time is up."""
    scene = make(timeout=0.3).start()
    silent = scene.connect()
    trickling = scene.connect()
    hello = Dialing(identity(0), KEY, "b", os.urandom(32), os.urandom(32)).outgoing()
    run_until(scene.loop, lambda: scene.pending + len(scene.refused) == 2)
    sent = iter(hello[:-1])

    def trickle():
        byte = next(sent, None)
        if byte is not None:
            with contextlib.suppress(OSError):
                trickling.send(bytes([byte]))
        return len(scene.refused) == 2

    run_until(scene.loop, trickle)
    assert {reason for _, reason in scene.refused} == {"no handshake within 0.3 s"}
    assert scene.pending == 0
    assert silent.recv(1) == b""


def test_a_slow_neighbour_is_understood(scene):
    """A hello that comes byte by byte is as good as any."""
    sock = scene.connect()
    dialing = Dialing(identity(0), KEY, "b", os.urandom(32), os.urandom(32))
    for byte in dialing.outgoing():
        sock.send(bytes([byte]))
        run_until(scene.loop, lambda: True)
    sock.setblocking(False)

    def go_on():
        with contextlib.suppress(BlockingIOError):
            dialing.receive(sock.recv(1))
        for byte in dialing.outgoing():
            sock.send(bytes([byte]))
        return dialing.peer is not None

    run_until(scene.loop, go_on)
    assert len(scene.accepted) == 1


def test_out_of_descriptors(scene):
    """When no descriptor is left the loop does not spin, and goes on accepting afterwards."""
    waiting = [scene.connect() for _ in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    turns = []
    every_turn(scene.loop, lambda: turns.append(1))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        scene.loop.call_later(0.35, scene.loop.stop)
        scene.loop.run()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(turns) < 30
    assert scene.pending == 0
    run_until(scene.loop, lambda: scene.pending == len(waiting))
    scene.neighbour()
    run_until(scene.loop, lambda: scene.accepted)


def test_descriptors_held_by_strangers(scene):
    """When strangers hold the last descriptors, the oldest of them makes room."""
    before = open_fds()
    strangers = [scene.connect() for _ in range(20)]
    run_until(scene.loop, lambda: scene.pending == 20)
    newcomer = scene.connect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        # One that is open at the moment is the highest: no other can be opened.
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + 20, hard))
        run_until(scene.loop, lambda: scene.refused)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    name = "127.0.0.1:" + str(strangers[0].getsockname()[1])
    assert scene.refused[0] == (name, f"dropped: Too many open files (errno {errno.EMFILE})")
    assert newcomer.fileno() > 0


def test_strangers_leave_the_last_descriptors(scene):
    """Near the limit of open files each newcomer takes the place of a stranger, and none grows."""
    strangers = [scene.connect() for _ in range(3)]
    run_until(scene.loop, lambda: scene.pending == 3)
    scene.listener._open_files = Fake(used=96, most=100, reserve=16)
    for _ in range(5):
        scene.connect()
    run_until(scene.loop, lambda: len(scene.refused) == 5)
    assert scene.pending == 3
    assert "96 of at most 100 open files are in use" in scene.refused[0][1]
    assert strangers[0].recv(1) == b""
    scene.neighbour()
    run_until(scene.loop, lambda: scene.accepted)


def test_stop_and_start(scene):
    """After stop nothing is open and nobody is called; a listener can start again."""
    port = bound(scene.listener)[0][1]
    stranger = scene.connect()
    run_until(scene.loop, lambda: scene.pending == 1)
    scene.listener.stop()
    assert (bound(scene.listener), scene.pending) == ([], 0)
    assert stranger.recv(1) == b""
    assert scene.refused == []
    scene.listener._bind = [("127.0.0.1", port)]
    scene.listener.start()  # although connections of the old one are in TIME_WAIT
    scene.neighbour()


def test_stop_while_out_of_descriptors(scene):
    """A listener that pauses can be stopped."""
    scene.connect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        run_until(
            scene.loop,
            lambda: any(at._resting for ats in scene.listener._acceptors.values() for at in ats),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    scene.listener.stop()
    late = scene.loop.now() + 0.15
    run_until(scene.loop, lambda: scene.loop.now() > late)
    assert scene.pending == 0


def used(scene, *bind):
    """Move the listener of *scene* to *bind*; return the sockets that it had, by address."""
    before = {sock.getsockname()[:2]: sock for sock in listening(scene.listener)}
    scene.listener.use(bind, key=KEY, settings=JoinSettings())
    return before


def test_other_addresses(make, ports):
    """A listener moves to other addresses and keeps those that stay, socket and all."""
    one, two = ports
    scene = make(bind=[("127.0.0.1", one)]).start()
    scene.connect()
    run_until(scene.loop, lambda: scene.pending == 1)
    before = used(scene, ("127.0.0.1", one), ("127.0.0.2", two))
    assert bound(scene.listener) == [("127.0.0.1", one), ("127.0.0.2", two)]
    assert listening(scene.listener)[0] is before["127.0.0.1", one]
    assert (scene.pending, scene.refused) == (0, [])
    scene.neighbour()
    used(scene, ("127.0.0.2", two))
    scene.neighbour()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", one))


def test_from_an_address_to_the_wildcard_and_back(make, ports):
    """Both want the same port of the same listener, which is no reason to refuse."""
    port, _ = ports
    scene = make(bind=[("127.0.0.1", port)]).start()
    for host in ("0.0.0.0", "127.0.0.1"):  # noqa: S104 - a test
        used(scene, (host, port))
        assert bound(scene.listener) == [(host, port)]
        scene.neighbour()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - a test
def test_addresses_that_cannot_be_had(make, ports, host):
    """When a new address is taken, the listener stays where it was, and goes on."""
    one, two = ports
    scene = make(bind=[("127.0.0.1", one)]).start()
    with socket.create_server(("127.0.0.1", two)), pytest.raises(RingError, match=f":{two}: "):
        used(scene, (host, one), ("127.0.0.1", two))
    assert bound(scene.listener) == [("127.0.0.1", one)]
    scene.neighbour()


def test_both_families(make):
    """The wildcards of IPv4 and IPv6 share a port."""
    (port,) = free_ports(1)
    scene = make(bind=[("0.0.0.0", port), ("::", port)]).start()  # noqa: S104 - a test
    assert bound(scene.listener) == [("0.0.0.0", port), ("::", port)]  # noqa: S104
    for host in ("127.0.0.1", "::1"):
        scene.strangers.append(socket.create_connection((host, port)))
    run_until(scene.loop, lambda: scene.pending == 2)


def test_port_in_use(make):
    """A port that is taken is one line with the address and a remedy, and nothing stays open."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        scene = make(bind=[("127.0.0.1", 0), ("127.0.0.1", port)])
        with pytest.raises(RingError) as caught:
            scene.start()
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{port}: Address already in use (errno {errno.EADDRINUSE}); "
        "stop the program that listens there (another ringd?), or choose another port on every "
        "machine"
    )
    assert bound(scene.listener) == []


def test_an_address_of_another_machine(make):
    """An address that no interface has is a clear error."""
    with pytest.raises(RingError, match="no interface of this machine has that address"):
        make(bind=[("192.0.2.1", 5680)]).start()


def test_without_ipv6(make, monkeypatch):
    """On a machine without IPv6 the IPv4 wildcard is enough; with neither, it is an error."""

    class Without(socket.socket):
        def __init__(self, family=-1, *args, **options):
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *args, **options)

    monkeypatch.setattr(socket, "socket", Without)
    scene = make(bind=[("127.0.0.1", 0), ("::", 0)]).start()
    assert len(bound(scene.listener)) == 1
    with pytest.raises(RingError, match="neither IPv4 nor IPv6"):
        make(bind=[("::", 0)]).start()


def test_the_identity_of_the_moment(make):
    """Every handshake asks anew who we are: an incarnation may have been raised meanwhile."""
    scene = make().start()
    incarnations = iter([5, 6])
    scene.listener._identity = lambda: identity(1, incarnation=next(incarnations))
    seen = [scene.neighbour()[1].peer.incarnation for _ in range(2)]
    assert seen == [5, 6]
