"""State directories, disks and descriptors of real daemons, and what strangers do to them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import zmq

import ringd
from ringd.observe.oncelog import BURST
from ringd.wire.border import messages as border
from ringd.wire.link.handshake import Dialing, Identity
from tests.cluster import Cluster, wait_until
from tests.ownports import free_ports
from tests.ringkit import (
    BOUNDED,
    PATIENT,
    Program,
    begin,
    connected,
    everywhere,
    tensor,
    total,
    wait_state,
)

STATE = "state.json"
STILL = 0.5
"""Seconds without a change after which the daemons' descriptors have settled."""


def reasons(cluster: Cluster, rank: int, event: str) -> list[str]:
    """Return the reasons that the daemon of *rank* has logged with *event*."""
    return [line["reason"] for line in cluster[rank].log() if line["event"] == event]


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\x00" * 100, b'{"generation": -1, "incarnation": "x"}', b"[1]"]
)
def test_damaged_state_file(place: Path, damage: bytes) -> None:
    """A damaged state file is set aside with a word, and no generation is used twice."""
    with Cluster(place, 2) as cluster:
        generation = cluster.start().wait_ready()
        cluster[1].kill()
        (state,) = cluster[1].state_dir.glob("*.json")
        state.write_bytes(damage)
        cluster[1].start()
        assert cluster.wait_ready(beyond=generation) > generation
        assert "damaged" in reasons(cluster, 1, "state file")[0]
        (aside,) = cluster[1].state_dir.glob("*damaged*")
        assert aside.read_bytes() == damage


def test_lost_state_directory(place: Path) -> None:
    """A member whose state is gone altogether comes back as well."""
    with Cluster(place, 2) as cluster:
        generation = cluster.start().wait_ready()
        cluster[0].restart()
        generation = cluster.wait_ready(beyond=generation)
        cluster[0].kill()
        for path in cluster[0].state_dir.iterdir():
            path.unlink()
        cluster[0].start()
        assert cluster.wait_ready(beyond=generation) > generation


@pytest.mark.parametrize("directory", ["/dev/null/state", "/sys/ringd"])
def test_unwritable_state_directory(place: Path, directory: str) -> None:
    """A daemon that cannot keep its state says where and what to do, and does not start."""
    with Cluster(place, 1) as cluster:
        cluster[0].state_dir = Path(directory)
        cluster.start()
        assert cluster[0].process is not None
        assert cluster[0].process.wait(30) == 1  # a service manager may try again
        (text,) = reasons(cluster, 0, "cannot start")
        assert directory in text
        assert "--state-dir" in text


def test_a_taken_port_is_the_last_word(place: Path) -> None:
    """A daemon that cannot listen says so, with the port, and nothing of having stopped."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Cluster(place, 2, ports=[port, *free_ports(1)]) as cluster:
            cluster.start([0])
            assert cluster[0].process is not None
            assert cluster[0].process.wait(30) == 1
            assert [line["event"] for line in cluster[0].log()] == ["cannot start"]
            assert f"127.0.0.1:{port}" in reasons(cluster, 0, "cannot start")[0]


def test_full_disk(place: Path) -> None:
    """While its state cannot be saved, a member says so, keeps trying, and joins when it can."""
    with Cluster(place, 2, settings=PATIENT) as cluster:
        generation = cluster.start().wait_ready()
        with connected(cluster) as rings:
            cluster[1].fill_disk()
            cluster[0].rejoin()
            wait_until(lambda: reasons(cluster, 1, "state not saved"), "the news in the log")
            wait_state(cluster[0], "forming")
            wait_until(
                lambda: "No space left" in str((cluster[0].status() or {}).get("waiting_for")),
                "the other member knows why",
            )
            calls = begin(rings, lambda ring: ring.all_reduce(tensor(ring.rank, 300_000)))
            cluster[1].slow_disk(0.0)
            for call in calls:
                np.testing.assert_array_equal(call.result(), total(2, 300_000))
            assert cluster.wait_ready(beyond=generation) > generation
            (reason,) = reasons(cluster, 1, "state not saved")  # once, though it tried often
            assert "No space left" in reason
        state = json.loads((cluster[1].state_dir / STATE).read_text())
        assert state["generation"] == cluster.wait_ready()


def test_garbage_at_every_door(calm_cluster: Cluster) -> None:
    """While strangers send garbage to the ports and the sockets, calls go on undisturbed."""
    rng = random.Random(7)
    answers = 0
    with connected(calm_cluster, "garbage") as rings, contextlib.ExitStack() as stack:
        generation = rings[0].generation

        def run(ring: ringd.Ring) -> None:
            for step in range(60):
                count = (100, 12_000, 300_000)[step % 3]
                result = ring.all_reduce(tensor(ring.rank, count, step))
                np.testing.assert_array_equal(result, total(3, count, step))

        calls = begin(rings, run)
        context = stack.enter_context(zmq.Context())
        for _round in range(5):
            for node in calm_cluster.nodes:
                for text in (b"", b"GET / HTTP/1.0\r\n\r\n", rng.randbytes(4096), b"\xff" * 70_000):
                    stranger = socket.create_connection(("127.0.0.1", node.port))
                    stack.callback(stranger.close)
                    with contextlib.suppress(OSError):  # hung up on already
                        stranger.sendall(text)
                dealer = context.socket(zmq.DEALER)
                dealer.setsockopt(zmq.LINGER, 0)
                stack.callback(dealer.close)
                dealer.connect(f"ipc://{node.socket}")
                dealer.send(rng.randbytes(100))
                dealer.send_multipart([b"xx"] * 5)
                dealer.send(border.pack(border.Detach(1)))
                dealer.send(border.pack(_submit()))
                assert dealer.poll(30_000)
                answers += isinstance(border.unpack_reply(dealer.recv())[0], border.Denied)
                raw = socket.socket(socket.AF_UNIX)
                stack.callback(raw.close)
                raw.connect(str(node.socket) + ".life")
                with contextlib.suppress(OSError):
                    raw.sendall(rng.randbytes(1000))
        for call in calls:
            call.result()
        assert [ring.generation for ring in rings] == [generation] * 3
    assert answers == 15
    for node in calm_cluster.nodes:
        status = node.status()
        assert status is not None
        assert status["counters"]["denied_messages"] >= answers
    assert all(node.running for node in calm_cluster.nodes)


def test_a_stranger_cannot_fill_the_log(place: Path) -> None:
    """Refusals in ever new words, and unlike ones, are all counted; few of them are logged."""
    with Cluster(place, 2) as cluster:
        cluster.start([0])
        wait_until(cluster[0].status, "the daemon answers")

        def refusals() -> dict[str, int]:
            status = cluster[0].status()
            assert status is not None
            return status["counters"]["refusals"]

        for number in range(50):
            stranger = Identity(f"ring {number}", ("n0", "n1"), 1, 1)
            hello = Dialing(stranger, b"", "n0", bytes(32), bytes(32)).outgoing()
            for text in (hello, b"GET / HTTP/1.0\r\n\r\n"):
                with socket.create_connection(("127.0.0.1", cluster[0].port)) as sock:
                    sock.sendall(text)
                    while sock.recv(4096):
                        pass
        wait_until(lambda: refusals() == {"ring": 50, "protocol": 50}, "all are counted")
        said = reasons(cluster, 0, "connection refused")
        assert sorted(said) == sorted(set(said))
        assert sum("belongs to ring" in reason for reason in said) == BURST
        assert len(said) == BURST + 1


def _submit() -> border.Submit:
    from ringd.wire.link.control import Call  # noqa: PLC0415 - ringkit has another Call

    call = Call("all_reduce", "sum", "float32", (3,), "")
    return border.Submit(1, 0, call, None, border.Ref(9, 0, 12), None, 0, False, "", "")


def test_a_log_that_nobody_reads(place: Path) -> None:
    """With a full pipe for standard error a daemon forms rings, runs calls, and can be ended."""
    with Cluster(place, 2) as cluster, contextlib.ExitStack() as stack:
        readers = []
        for node in cluster.nodes:
            os.mkfifo(node.log_path)
            readers.append(os.open(node.log_path, os.O_RDONLY | os.O_NONBLOCK))
            stack.callback(os.close, readers[-1])
            filler = os.open(node.log_path, os.O_WRONLY | os.O_NONBLOCK)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(filler, b"\n" * 4096)
            os.close(filler)
        generation = cluster.start().wait_ready()
        with connected(cluster) as rings:
            results = everywhere(rings, lambda ring: ring.all_reduce(tensor(ring.rank, 300_000)))
            cluster[0].rejoin()
            assert cluster.wait_ready(beyond=generation) > generation
        for result in results:
            np.testing.assert_array_equal(result, total(2, 300_000))
        assert cluster[0].stop() == 0
        text = bytearray()

        def read_on() -> bool:
            with contextlib.suppress(BlockingIOError):
                text.extend(os.read(readers[1], 65536))
            return b"ring ready" in text

        wait_until(read_on, "what was logged comes late, and is not lost")


def test_nothing_piles_up(place: Path) -> None:
    """Descriptors, mappings and memory of the daemons are flat over many programs and rejoins."""
    with Cluster(place, 3, settings=BOUNDED) as cluster:
        cluster.start().wait_ready()

        def use(number: int) -> None:
            with connected(cluster, f"group {number % 3}") as rings:
                everywhere(rings, lambda ring: ring.all_reduce(tensor(ring.rank, 300_000)).sum())
                work = rings[0].all_reduce_async(tensor(0, 300_000))  # never completes
                assert not work.done()

        for number in range(3):
            use(number)
            cluster[number].rejoin()
            cluster.wait_ready(beyond=number + 1)
        before = quiet(cluster)
        memory = [cluster[rank].resident_bytes() for rank in range(3)]
        for number in range(20):
            generation = cluster.wait_ready()
            use(number)
            if number % 5 == 0:
                with Program(cluster[1], "ring.empty(2_000_000); hear()", "killed") as program:
                    program.kill()
            cluster[number % 3].rejoin()
            cluster.wait_ready(beyond=generation)
        wait_until(
            lambda: all(now <= most for now, most in zip(open_files(cluster), before, strict=True)),
            lambda: f"no more descriptors than before: {before}, and now {open_files(cluster)}",
        )
        quiet(cluster)
        for rank in range(3):
            assert cluster[rank].resident_bytes() < memory[rank] + (8 << 20)


def open_files(cluster: Cluster) -> list[int]:
    """Return how many descriptors each daemon has."""
    return [node.open_files() for node in cluster.nodes]


def quiet(cluster: Cluster) -> list[int]:
    """Wait until the daemons know no client, map nothing of any, and have closed its files.

    Returns:
        The descriptors that each of them keeps.
    """

    def rest() -> list[tuple[object, object, int]]:
        found = []
        for node in cluster.nodes:
            status = node.status() or {}
            maps = Path(f"/proc/{node.pid}/maps").read_text()
            found.append((status.get("groups"), status.get("clients"), maps.count("memfd:ringd")))
        return found

    wait_until(
        lambda: rest() == [([], [], 0)] * len(cluster.nodes),
        lambda: f"no groups, clients and mappings: {rest()}",
    )
    # A connection that was closed at the other end is a descriptor until the daemon has looked.
    files = open_files(cluster)
    steady_since = time.monotonic()
    while time.monotonic() < steady_since + STILL:
        time.sleep(0.05)
        if (now := open_files(cluster)) != files:
            files, steady_since = now, time.monotonic()
    return files


def test_daemons_have_streams_of_their_own(calm_cluster: Cluster) -> None:
    """Not the tests', whose readers would wait for the end of every daemon."""
    for node in calm_cluster.nodes:
        streams = [Path(f"/proc/{node.pid}/fd/{number}") for number in range(3)]
        assert streams[0].samefile(os.devnull)
        assert streams[1].samefile(node.log_path)
        assert streams[2].samefile(node.log_path)
