"""Near its limit of open files a daemon keeps whom it has, and says so to who comes."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from borderkit import EIGHT, Raw
from fake_daemon import FakeDaemon, eventually
from structlog.testing import capture_logs
from test_host_limits import Fake

import ringd
from ringd.border import admission
from ringd.border import lifeline as lifelines
from ringd.host import limits
from ringd.wire.border import lifeline
from ringd.wire.border import messages as border
from tests.cluster import Cluster, wait_until
from tests.ringkit import BOUNDED, Call

FULL = "near the limit of open files, programs are refused"
ROOM = "there is room for programs again"

pytestmark = pytest.mark.usefixtures("apart")


@pytest.fixture
def files(monkeypatch):
    """Give a table of descriptors that has room, and can be made full."""
    monkeypatch.setattr(limits, "_SURE", 0.0)
    return Fake(used=0, most=1000, reserve=100)


@pytest.fixture
def daemon(place, files, monkeypatch):
    """Give a fake daemon with such a table."""
    monkeypatch.setattr(admission, "_FOR", 0.0)
    with capture_logs() as logged, FakeDaemon(place / "s", open_files=files) as daemon:
        daemon.logged = logged
        yield daemon


def events(daemon):
    """Return what was logged of this."""
    return [line["event"] for line in daemon.logged if line["event"] in (FULL, ROOM)]


def refusal(daemon, group):
    """Return why a newcomer is refused: a busy machine may take longer than it wants to wait."""
    for timeout in (0.3, 3.0, 30.0):
        try:
            ringd.connect(daemon.path, group, timeout=timeout).close()
        except ringd.DaemonUnavailable:
            continue
        except ringd.ResourceExhausted as error:
            return str(error)
    return ""


def test_newcomers_are_refused_and_the_others_kept(daemon, files):
    """Who is attached goes on, with new segments too; who comes is told why; then there is room."""
    large = np.ones(100_000, np.float32)
    with ringd.connect(daemon.path, "old") as old:
        files.jump(900)
        for n in range(3):
            why = refusal(daemon, f"new{n}")
            for part in (daemon.path, "900 of at most 1000", "ipc.reserve", "LimitNOFILE"):
                assert part in why
            assert (old.all_reduce(large * (n + 1)) == 2 * (n + 1)).all()
        assert daemon.run(lambda: len(daemon.server._roster._by_token)) == 1
        files.jump(800)
        with ringd.connect(daemon.path, "new", timeout=10) as new:
            assert (new.all_reduce(large) == 2).all()
    assert events(daemon) == [FULL, ROOM]


def test_program_that_waits_gets_in_when_there_is_room(daemon, files):
    """To be refused is not the end of a connect that has time."""
    files.jump(950)
    attempts = []
    enter = daemon.server._lifelines._on_connection
    daemon.server._lifelines._on_connection = lambda *new: attempts.append(1) or enter(*new)
    call = Call(lambda: ringd.connect(daemon.path, timeout=10))
    eventually(lambda: len(attempts) > 2)
    files.jump(10)
    with call.result() as ring:
        ring.barrier()


def test_segments_are_refused_later_than_programs(daemon, files):
    """A call whose memory cannot be had fails, with the limit in its text; the next one goes on."""
    with ringd.connect(daemon.path) as ring:
        files.jump(960)
        with pytest.raises(ringd.ResourceExhausted, match="960 of at most 1000"):
            ring.all_reduce(np.ones(100_000))
        assert ring.all_reduce(1.0) == 2.0


def test_shortage_that_has_passed_is_over_for_the_same_segment_too(daemon, files):
    """A client uses its segments again; what was refused once is asked for again."""
    large = np.ones(100_000)
    with ringd.connect(daemon.path) as ring:
        files.jump(960)
        for _ in range(2):
            with pytest.raises(ringd.ResourceExhausted, match="960 of at most 1000"):
                ring.all_reduce(large)
        numbers = set(ring._connection.pool._segments)
        files.jump(10)
        assert ring.all_reduce(large)[-1] == 2
        assert daemon.run(lambda: daemon.handler.submitted[-1].message.source.segment) in numbers
        assert daemon.run(lambda: sum(c.segment_bytes for c in daemon.server.clients)) > 0


def test_those_that_are_for_nothing_yet_are_the_first_to_go(daemon, files):
    """A burst of newcomers leaves room for their own ZeroMQ connections, and for who is in."""
    files.given_back = lambda count: files.jump(files.used - count)
    with ExitStack() as stack:
        inside = stack.enter_context(Raw(daemon, group="inside"))
        files.jump(892)
        newcomers = []
        for _ in range(4):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(10)
            sock.connect(daemon.path + lifeline.SUFFIX)
            assert len(sock.recv(border.TOKEN_BYTES)) == border.TOKEN_BYTES
            files.jump(files.used + lifelines.DESCRIPTORS)
            newcomers.append(sock)
        assert [early.recv(1) for early in newcomers[:3]] == [b""] * 3
        late = stack.enter_context(Raw(daemon))
        assert newcomers[3].recv(1) == b""
        for raw in (inside, late):
            assert raw.ask(raw.submit(), EIGHT) == border.Completed(5, 0, 1, 7)


@pytest.fixture
def node(place):
    """Give a real daemon of a ring of one, with few descriptors left for programs."""
    settings = BOUNDED + "[ipc]\nreserve = 16\n"
    with Cluster(place, 1, settings=settings) as cluster:
        cluster.start().wait_ready()
        yield cluster[0]


def command(node, *words):
    """Run ringd-cli against *node*."""
    return subprocess.run(
        [sys.executable, "-m", "ringd.cli.main", *words, "--socket", str(node.socket)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux sets another process's limits")
def test_daemon_outlives_more_programs_than_it_can_have(node):
    """Real descriptors, a real limit: the first programs work on, and the rest are told."""
    limit = node.open_files() + 16 + 18
    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (limit, limit))
    with ExitStack() as stack:
        rings = []
        refusal = ""
        while not refusal and len(rings) < 20:
            try:
                ring = ringd.connect(node.socket, f"g{len(rings)}", 1)
            except ringd.ResourceExhausted as error:
                refusal = str(error)
            else:
                rings.append(stack.enter_context(ring))
        assert f"of at most {limit} open files" in refusal
        assert 2 <= len(rings) <= 6
        for _ in range(200):
            with socket.socket(socket.AF_UNIX) as late:
                late.connect(str(node.socket) + lifeline.SUFFIX)
                assert late.recv(border.TOKEN_BYTES) == lifeline.REFUSED
        asked = command(node, "status")
        assert (asked.returncode, asked.stdout) == (1, "")
        assert f"of at most {limit} open files" in asked.stderr
        for ring in rings:
            assert ring.all_reduce(3.0) == 3.0
        assert node.open_files() < limit
        stack.pop_all().close()
    status = wait_until(node.status, "an answer")
    assert (status["open_files"]["limit"], status["open_files"]["reserve"]) == (limit, 16)
    with ringd.connect(node.socket, "late", 10) as ring:
        assert ring.all_reduce(np.ones(100_000, np.float32)).sum() == 100_000

    def said(event):
        return [line["event"] for line in node.log()].count(event)

    def room_again():
        ringd.connect(node.socket, "later", 10).close()
        return said(ROOM)

    wait_until(room_again, "there is room")
    assert (said(FULL), said(ROOM)) == (1, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux sets another process's limits")
def test_daemon_outlives_more_connections_over_zeromq_than_it_can_have(node):
    """They go past the lifeline, and have the daemon accept before it knows who comes."""
    limit = node.open_files() + 16 + 18
    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (limit, limit))
    with ringd.connect(node.socket, "inside", 10) as ring, ExitStack() as stack:
        flood = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(300)]
        for sock in flood:
            sock.settimeout(30)
            sock.connect(str(node.socket))
        for sock in flood[:-20]:  # each that finds no room takes the place of the oldest one
            with suppress(ConnectionError):
                while sock.recv(100):
                    pass
        assert ring.all_reduce(3.0) == 3.0
        assert node.open_files() < limit
    with ringd.connect(node.socket, "late", 10) as ring:
        assert ring.all_reduce(np.ones(100_000, np.float32)).sum() == 100_000


def test_what_programs_had_is_given_back(node):
    """All of it, however they end: calls of all sizes, groups, messages, a death in mid-call."""

    def used():
        return {name: each["used"] for name, each in node.status()["accounts"].items()}

    idle = used()  # of who asks
    script = (
        "import os, sys, numpy as np, ringd\n"
        "ring = ringd.connect(sys.argv[1], timeout=10)\n"
        "half = ring.split(0)\n"
        "for count in (1, 1000, 1_000_000):\n"
        "    half.all_reduce(np.ones(count))\n"
        "    ring.all_gather(np.ones(count))\n"
        "ring.all_gather_bytes(b'x' * 1000)\n"
        "if sys.argv[2:]:\n"
        "    os.kill(os.getpid(), 9)\n"
        "ring.close()\n"
    )
    for words in ([], ["die"]):
        done = subprocess.run(
            [sys.executable, "-c", script, str(node.socket), *words], check=False, timeout=60
        )
        assert done.returncode == (-9 if words else 0)
    wait_until(lambda: used() == idle, lambda: f"{used()}, not {idle}")
    assert idle["memory"] == idle["messages"] == idle["groups"] == idle["channels"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a process has")
def test_ten_thousand_status_calls(node):
    """Over one connection, beside a program's calls: nothing is left of them."""

    def resident():
        return int(Path(f"/proc/{node.pid}/statm").read_text().split()[1]) * 4096

    with ringd.connect(node.socket, "inside", 10) as ring:
        ring.all_reduce(1)
        with Raw(SimpleNamespace(path=str(node.socket)), attach=False, with_lifeline=False) as raw:
            files = None
            for number in range(100):
                for _ in range(100):
                    raw.send(border.AskStatus(border.VERSION))
                for _ in range(100):
                    assert isinstance(raw.receive(), border.Answer)
                assert ring.all_reduce(number) == number
                if number == 10:
                    files, before = node.open_files(), resident()
            assert node.open_files() == files
            assert resident() - before < 4 << 20
