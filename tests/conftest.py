"""Fixtures that several files of tests share: daemons real and fake, dialers, links."""

from __future__ import annotations

import gc
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
from clientkit import INLINE_LIMIT, Daemons
from dialkit import Scene, full_host
from fake_daemon import FakeDaemon
from netkit import PEER, Recorder, make_link, secrets, tcp_pair

import ringd
from ringd.border.limits import Limits
from ringd.collective.reduction import quiet
from ringd.loop import Loop
from ringd.net.link import Link
from tests import ownports
from tests.cluster import Cluster
from tests.ringkit import PATIENT, connected

# A shell has what it starts in the background ignore it, and so would what tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

quiet()  # as a daemon's thread is

# The default deadline of 200 ms for each example says only how busy the machine is, and so does the
# time that it takes to make them.
hypothesis.settings.register_profile(
    "ringd", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("ringd")


ownports.claimed()  # before any test counts its open descriptors


def pytest_collection_finish() -> None:
    """Spare the garbage collector the thousands of tests: ``connect`` collects, in each of them."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a new directory with a path short enough for sockets."""
    return tmp_path_factory.mktemp("ring")


@pytest.fixture(scope="module")
def calm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give three daemons that nobody disturbs, for all tests of a module."""
    with Cluster(tmp_path_factory.mktemp("ring"), 3, settings=PATIENT) as cluster:
        cluster.start().wait_ready()
        yield cluster


@pytest.fixture
def calm(calm_cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[list[ringd.Ring]]:
    """Give a ring for each rank, in a group of the test's own."""
    with connected(calm_cluster, request.node.name[-60:]) as rings:
        yield rings


@pytest.fixture
def daemon(place: Path) -> Iterator[FakeDaemon]:
    """Give a fake daemon in a thread, whose ring has three members that all submit the same."""
    with FakeDaemon(place / "s", size=3, limits=Limits(inline_limit=INLINE_LIMIT)) as daemon:
        yield daemon


@pytest.fixture
def ring(daemon: FakeDaemon) -> Iterator[ringd.Ring]:
    """Give a ring of that daemon."""
    with ringd.connect(daemon.path, timeout=60) as ring:
        yield ring


@pytest.fixture
def daemons(place: Path) -> Iterator[Daemons]:
    """Give a place for fake daemons that are processes, one after the other."""
    daemons = Daemons(place / "s")
    yield daemons
    daemons.end()


@pytest.fixture
def loop() -> Iterator[Loop]:
    """Give a loop that is closed afterwards."""
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture(params=["off", "integrity", "encrypt"])
def link_pair(
    loop: Loop, request: pytest.FixtureRequest
) -> Iterator[tuple[tuple[Link, Recorder], tuple[Link, Recorder]]]:
    """Give two links over one connection, in one loop, with recorders: the right and the left.

    They are protected in each way in turn.
    """
    one, other = tcp_pair()
    near, far = (replace(PEER, secrets=own) for own in secrets(request.param))
    right, left = make_link(loop, one, "right", near), make_link(loop, other, peer=far)
    yield right, left
    right[0].close("over")
    left[0].close("over")


@pytest.fixture
def raw_link(loop: Loop) -> Iterator[tuple[Link, Recorder, socket.socket]]:
    """Give a link, its recorder, and the bare socket at the other end."""
    sock, far = tcp_pair()
    link, recorder = make_link(loop, sock)
    far.settimeout(10)
    yield link, recorder, far
    link.close("over")
    far.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    """Give a dialer's scene that is closed afterwards and leaves nothing open."""
    with Scene() as scene:
        yield scene


@pytest.fixture
def full() -> Iterator[str]:
    """Give the address of a host that drops every SYN."""
    with full_host() as address:
        yield address


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each ring have a connection of its own, as if it were another program's."""
    monkeypatch.setattr("ringd.client.ring.connection_at", lambda _paths: None)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT raise also where the tests are a shell's background job, which ignores it."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)
