"""Dialing: for ever, in every way that fails, without a trace."""

from __future__ import annotations

import errno
import random
import resource
import socket
import threading

import pytest
from netkit import KEY, identity, open_fds, run_until

from ringd.config.settings import JoinSettings
from ringd.membership.backoff import Backoff
from ringd.net import dialer as dialers
from ringd.net import oserrors, resolver
from ringd.net.dialer import Dialer, Knock
from ringd.net.listener import Listener
from ringd.net.loop import EVENT_READ, Loop

QUICK = JoinSettings(connect_timeout=0.2, handshake_timeout=0.2)


class NoWait(Backoff):
    """A backoff that never waits, and counts."""

    def __init__(self):
        super().__init__(0.1, 1, random.Random(1))
        self.waits = 0
        self.resets = 0

    def next(self):
        """Return no wait."""
        self.waits += 1
        return 0.0

    def reset(self):
        """Count."""
        self.resets += 1


class Forever(NoWait):
    """A backoff that does not end by itself."""

    def next(self):
        """Return a wait that only a knock ends."""
        super().next()
        return 3600.0


class Scene:
    """A loop, a dialer of rank 0 towards rank 1, and what happened to it."""

    def __init__(self):
        self.loop = Loop()
        self.links = []
        self.failures = []
        self.knocks = []
        self.accepted = []
        self.refused = []
        self.closables = []

    def dialer(self, *addresses, backoff=None, settings=QUICK, **changes):
        """Return a dialer that was started."""
        values = {
            "identity": identity,
            "key": KEY,
            "target": "b",
            "addresses": lambda: addresses,
            "settings": settings,
            "backoff": backoff or NoWait(),
            "on_link": lambda sock, peer, address, leftover: self.links.append(
                (sock, peer, address, leftover)
            ),
            "on_failure": lambda address, reason: self.failures.append((address, reason)),
            "resolver": resolver.Resolver(self.loop),
        }
        dialer = Dialer(self.loop, **(values | changes))
        self.closables.append(dialer)
        dialer.start()
        return dialer

    def listener(self, rank=1, host="127.0.0.1", port=0):
        """Return the address of a listener that was started, and the listener."""
        listener = Listener(
            self.loop,
            bind=[(host, port)],
            identity=lambda: identity(rank),
            key=KEY,
            settings=QUICK,
            on_link=lambda sock, peer, *_: self.accepted.append((sock, peer)),
            on_knock=self.knocks.append,
            on_refused=lambda address, reason, _cause: self.refused.append((address, reason)),
        )
        listener.start()
        self.closables.append(listener)
        return address(*listener.addresses[0]), listener

    def close(self):
        """Close everything."""
        for closable in self.closables:
            closable.stop()
        for sock, *_ in [*self.links, *self.accepted]:
            sock.close()
        self.loop.close()


def address(host, port):
    """Return an address as configured."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def free_port():
    """Return a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def scene():
    """A scene that is closed afterwards and leaves nothing open."""
    before = open_fds()
    made = Scene()
    yield made
    made.close()
    assert open_fds() == before


@pytest.fixture
def full():
    """The address of a host that drops every SYN: a listener whose queue is full."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        queued = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(server.getsockname())
            queued.append(sock)
        yield address(*server.getsockname())
        for sock in queued:
            sock.close()


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
    reason = f"connection refused (errno {errno.ECONNREFUSED})"
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
        run_until(scene.loop, lambda target=target: len(scene.failures) >= target, 60)
        counts.add(open_fds())
        assert len(scene.loop._timers) < 200
    assert max(counts) <= before + 1


def test_failed_handshakes_leave_nothing_open(scene):
    """2,000 attempts that reach the wrong member leave the number of open files flat."""
    target, _ = scene.listener(rank=2)
    before = open_fds()
    scene.dialer(target, settings=JoinSettings(handshake_timeout=30))
    for count in (100, 2000):
        run_until(scene.loop, lambda count=count: len(scene.failures) >= count, 60)
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
    scene.dialer(full, deaf, refusing, "nonsense", good)
    run_until(scene.loop, lambda: scene.links and scene.accepted)
    silent.close()
    assert scene.failures == [
        (full, "no answer within 0.2 s"),
        (deaf, "no handshake within 0.2 s"),
        (refusing, f"connection refused (errno {errno.ECONNREFUSED})"),
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
    dialer = scene.dialer(addresses=lambda: addresses, backoff=backoff)
    run_until(scene.loop, lambda: dialer._round.connected)
    addresses[0], _ = scene.listener()
    dialer.wake()
    run_until(scene.loop, lambda: scene.links and scene.accepted)
    silent.close()
    assert [reason for _, reason in scene.failures] == ["no handshake within 0.2 s"]
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


@pytest.mark.parametrize("stage", ["start", "connect", "handshake", "sleep"])
def test_stop_at_any_stage(scene, full, stage):
    """A dialer that was stopped calls nobody and leaves nothing open."""
    silent = socket.create_server(("127.0.0.1", 0))
    where = {"connect": full, "handshake": address(*silent.getsockname())}
    before = open_fds()
    backoff = Forever()
    dialer = scene.dialer(where.get(stage, f"127.0.0.1:{free_port()}"), backoff=backoff)
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


def test_names_are_resolved_at_every_attempt(scene, monkeypatch):
    """A name is looked up anew in each round, off the loop, and all it resolves to is tried."""
    port = free_port()
    answers = [
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        [("127.0.0.1", port), ("127.0.0.1", port)],
        [("127.0.0.1", port), ("127.0.0.2", port)],
    ]
    real = socket.getaddrinfo
    asked = []

    def lookup(host, port, **options):
        if host != "studio.local" or options["flags"]:
            return real(host, port, **options)
        asked.append(host)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", found) for found in answer]

    monkeypatch.setattr(resolver.socket, "getaddrinfo", lookup)
    scene.listener(host="127.0.0.2", port=port)
    name = f"studio.local:{port}"
    scene.dialer(name)
    run_until(scene.loop, lambda: scene.links and scene.accepted)
    refused = f"connection refused (errno {errno.ECONNREFUSED})"
    assert scene.failures == [
        (name, "cannot resolve the name: Name or service not known"),
        (f"{name} (127.0.0.1:{port})", refused),
        (f"{name} (127.0.0.1:{port})", refused),
    ]
    assert scene.links[0][2] == f"{name} (127.0.0.2:{port})"
    assert len(asked) == 3


def test_a_name_server_that_does_not_answer(scene, monkeypatch):
    """A lookup that hangs fails in time, holds nothing up, and is not begun twice."""
    gate = threading.Event()
    asked = []
    real = socket.getaddrinfo

    def lookup(host, port, **options):
        if host != "studio.local" or options["flags"]:
            return real(host, port, **options)
        asked.append(host)
        gate.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure")

    monkeypatch.setattr(resolver.socket, "getaddrinfo", lookup)
    settings = JoinSettings(connect_timeout=0.02)
    dialer = scene.dialer("studio.local:5680", settings=settings)
    text = "cannot resolve the name: no answer within 0.02 s"
    run_until(scene.loop, lambda: len(scene.failures) >= 5)
    assert set(scene.failures) == {("studio.local:5680", text)}
    assert asked == ["studio.local"]
    gate.set()
    run_until(scene.loop, lambda: len(asked) >= 2)
    dialer.stop()
    run_until(scene.loop, lambda: not dialer._resolver._waiting)


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


def test_knock(scene):
    """A knock is heard by the left neighbour, once, and leaves no connection."""
    target, _ = scene.listener(rank=0)
    knock = Knock(
        scene.loop,
        identity=lambda: identity(1),
        key=KEY,
        target="a",
        addresses=lambda: [f"127.0.0.1:{free_port()}", target, target],
        settings=QUICK,
        resolver=resolver.Resolver(scene.loop),
    )
    knock.start()
    run_until(scene.loop, lambda: scene.knocks and not knock.active)
    assert [peer.name for peer in scene.knocks] == ["b"]
    assert scene.accepted == []


def test_knock_is_not_repeated(scene):
    """A knock that nobody hears ends after one round."""
    rounds = []
    port = free_port()

    def addresses():
        rounds.append(port)
        return [f"127.0.0.1:{port}"]

    knock = Knock(
        scene.loop,
        identity=lambda: identity(1),
        key=KEY,
        target="a",
        addresses=addresses,
        settings=QUICK,
        resolver=resolver.Resolver(scene.loop),
    )
    knock.start()
    run_until(scene.loop, lambda: not knock.active)
    scene.listener(rank=0, port=port)
    late = scene.loop.now() + 0.1
    run_until(scene.loop, lambda: scene.loop.now() > late)
    assert (len(rounds), scene.knocks) == (1, [])
    knock.start()
    knock.stop()
    late = scene.loop.now() + 0.1
    run_until(scene.loop, lambda: scene.loop.now() > late)
    assert (knock.active, scene.knocks) == (False, [])


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


@pytest.mark.parametrize(
    ("number", "darwin", "words"),
    [
        (errno.ECONNREFUSED, False, "connection refused"),
        (errno.ETIMEDOUT, True, "timed out"),
        (errno.EHOSTUNREACH, False, "no route to host"),
        (errno.EHOSTUNREACH, True, "no route to host: if ping works, macOS Local Network Privacy"),
        (errno.ENETUNREACH, False, "network is unreachable"),
        (errno.EACCES, False, "Permission denied"),
    ],
)
def test_words(monkeypatch, number, darwin, words):
    """What the system says is put in words, with its number, on either platform."""
    monkeypatch.setattr(oserrors, "DARWIN", darwin)
    text = oserrors.describe(OSError(number, "Permission denied"))
    assert text.startswith(words)
    assert text.endswith(f" (errno {number})")
