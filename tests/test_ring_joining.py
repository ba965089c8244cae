"""Daemons and programs that start in any order, among strangers and rivals, form one ring."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ringd
from ringd.config.keyfile import create_key
from tests.cluster import Cluster, wait_until
from tests.ownports import free_ports
from tests.ringkit import (
    BOUNDED,
    PATIENT,
    Call,
    Program,
    connected,
    everywhere,
    tensor,
    total,
    wait_state,
)


@pytest.mark.parametrize("seed", [1, 2])
def test_any_order(place: Path, seed: int) -> None:
    """Five daemons and their programs, in random order, each before or after the other."""
    order = [(kind, rank) for kind in ("daemon", "program") for rank in range(5)]
    random.Random(seed).shuffle(order)
    with Cluster(place, 5, settings=PATIENT) as cluster:

        def program(rank: int) -> list[np.ndarray]:
            with ringd.connect(cluster.sockets[rank], timeout=30) as ring:
                return [ring.all_reduce(tensor(rank, count)) for count in (10, 300_000)]

        calls = []
        for kind, rank in order:
            if kind == "daemon":
                cluster[rank].start()
                wait_until(cluster[rank].status, f"answer of {rank}")
            else:
                calls.append(Call(lambda r=rank: program(r)))
        for call in calls:
            small, large = call.result()
            np.testing.assert_array_equal(small, total(5, 10))
            np.testing.assert_array_equal(large, total(5, 300_000))
        assert cluster.wait_ready() == 1  # no false start


def test_program_before_its_daemon(place: Path) -> None:
    """A program waits for its daemon up to its timeout; then it says what it looked for."""
    with Cluster(place, 1, settings=BOUNDED) as cluster:
        with pytest.raises(ringd.DaemonUnavailable, match=r"n0\.sock"):
            ringd.connect(cluster.sockets[0], timeout=0.1)
        early = Call(lambda: ringd.connect(cluster.sockets[0], timeout=30))
        cluster.start()
        with early.result() as ring:
            assert ring.all_reduce(2).item() == 2


def test_daemon_waits_for_a_missing_neighbour(place: Path) -> None:
    """While members are missing, the others say who, with the reason; then all form at once."""
    with Cluster(place, 3) as cluster:
        cluster.start([0, 2])

        def missed() -> bool:
            status = cluster[0].status()
            return status is not None and list(status["waiting_for"]) == ["n1"]

        wait_until(missed, "n1 is missed, n2 heard of")
        status = cluster[0].status()
        assert status is not None
        assert status["state"] == "forming"
        member = status["members"][1]
        assert member["name"] == "n1"
        assert member["state"] == "down"
        assert "refused" in member["last_error"]
        assert member["last_error_age"] >= 0
        cluster.start([1])
        cluster.wait_ready()


def test_many_failed_attempts(place: Path) -> None:
    """Hundreds of attempts that fail leave no descriptor behind, and no flood in the log."""
    hasty = '[join]\nbackoff_first = "1ms"\nbackoff_max = "2ms"\n'
    with Cluster(place, 2, settings=hasty) as cluster:
        with socket.create_server(("127.0.0.1", cluster[1].port)) as impostor:
            cluster.start([0])

            def turn_away(times: int) -> int:
                for _ in range(times):
                    impostor.accept()[0].close()
                return cluster[0].open_files()

            few = turn_away(50)
            many = turn_away(400)
        assert many <= few + 2  # the attempt that is just under way
        lines = [e for e in cluster[0].log() if e["event"].startswith("cannot reach")]
        assert 1 <= len(lines) <= 4  # each reason once
        cluster.start([1]).wait_ready()


def test_names_and_several_addresses(place: Path) -> None:
    """Each address of a neighbour is tried in turn, names are looked up, IPv6 is spoken."""
    dead, port0, port1 = free_ports(3)
    with Cluster(place, 2) as cluster:
        cluster.config.write_text(
            f"""
[ring]
name = "test"
key_file = "ring.key"
[[ring.members]]
name = "n0"
addresses = ["127.0.0.1:{dead}", "localhost:{port0}"]
listen = ["127.0.0.1:{port0}"]
[[ring.members]]
name = "n1"
addresses = ["[::1]:{dead}", "nowhere.invalid:{dead}", "[::ffff:127.0.0.1]:{port1}"]
listen = ["127.0.0.1:{port1}"]
"""
        )
        cluster.start().wait_ready()
        with connected(cluster) as rings:
            assert everywhere(rings, lambda ring: ring.all_reduce(1).item()) == [2, 2]


def test_wrong_key(place: Path) -> None:
    """A member with another key is turned away, with a word on both sides; no key is logged."""
    with Cluster(place, 3) as cluster:
        right = (place / "ring.key").read_bytes()
        (place / "ring.key").unlink()
        create_key(place / "ring.key")
        cluster.start([1])
        wait_until(cluster[1].status, "an answer")
        (place / "ring.key").write_bytes(right)
        cluster.start([0, 2])
        wait_until(lambda: any("key" in str(e.get("reason")) for e in cluster[0].log()), "a word")
        wait_until(lambda: any("key" in str(e.get("reason")) for e in cluster[1].log()), "a word")
        assert cluster[0].status()["state"] == "forming"  # type: ignore[index]
        assert right.decode().strip() not in "".join(n.log_path.read_text() for n in cluster.nodes)
        cluster[1].restart()
        cluster.wait_ready()


def test_other_roster_or_settings(place: Path) -> None:
    """Members whose configs differ say on both sides what differs, with both values."""
    with Cluster(place, 2) as cluster:
        cluster.start([0])
        wait_until(cluster[0].status, "an answer")
        cluster.write_config('[ops]\nchunk = "128KiB"\n')
        cluster.start([1])
        for node in cluster.nodes:
            wait_until(
                lambda n=node: any(
                    "chunk=524288" in str(e) and "chunk=131072" in str(e) for e in n.log()
                ),
                f"both values in the log of {node.name}",
            )
        cluster.write_config("")
        cluster[1].restart()
        cluster.wait_ready()


def test_second_daemon_on_the_same_places(place: Path) -> None:
    """Socket, state directory and port each belong to one daemon; a second says who has them."""
    with Cluster(place, 2) as cluster:
        generation = cluster.start().wait_ready()
        own, other = cluster[0], place / "other"

        def rival(sock: Path, state: Path) -> str:
            command = [sys.executable, "-m", "ringd.daemon.main", "--node", "n0"]
            command += ["--config", str(cluster.config), "--socket", str(sock)]
            run = subprocess.run(
                [*command, "--state-dir", str(state)],
                env=cluster.environ,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert run.returncode in (1, 78)
            return run.stderr

        holder = f"process {own.pid} on host {socket.gethostname()}, node n0"
        assert holder in rival(other / "s", own.state_dir)
        held = rival(own.socket, other / "state")
        assert holder in held
        assert f"kill {own.pid}" in held
        taken = rival(other / "s", other / "state")
        key = f"{cluster.config}: ring.members[0].listen"
        assert f"{key}: cannot listen on 127.0.0.1:{own.port}: Address already in use" in taken
        assert cluster.wait_ready() == generation
        with connected(cluster) as rings:
            assert everywhere(rings, lambda ring: ring.all_reduce(1).item()) == [2, 2]


def test_socket_of_a_killed_daemon_is_taken_over(place: Path) -> None:
    """What a killed daemon left behind is no obstacle for the next one, nor for its programs."""
    with Cluster(place, 2, settings=BOUNDED) as cluster:
        cluster.start().wait_ready()
        cluster[1].kill()
        assert cluster[1].socket.exists()
        wait_state(cluster[0], "forming")
        early = Call(lambda: ringd.connect(cluster.sockets[1], timeout=30))
        cluster.start([1])
        with early.result() as one, ringd.connect(cluster.sockets[0]) as zero:
            assert everywhere([zero, one], lambda ring: ring.all_reduce(1).item()) == [2, 2]


def test_ring_forms_among_strangers(place: Path) -> None:
    """Hundreds of silent or garbling strangers at every port do not keep the neighbours out."""
    with Cluster(place, 3, settings=BOUNDED) as cluster:
        strangers = []
        cluster.start([0, 2])
        for node in (cluster[0], cluster[2]):
            wait_until(node.status, "an answer")
        for node in (cluster[0], cluster[2]):
            for number in range(150):
                stranger = socket.create_connection(("127.0.0.1", node.port))
                strangers.append(stranger)
                if number % 3 == 1:
                    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                elif number % 3 == 2:
                    stranger.sendall(random.Random(number).randbytes(300))
        cluster.start([1])
        cluster.wait_ready()
        with connected(cluster) as rings:
            assert everywhere(rings, lambda ring: ring.all_reduce(1).item()) == [3] * 3
        for stranger in strangers:
            stranger.close()


def test_programs_as_processes(place: Path) -> None:
    """Separate programs, launched before their daemons, agree on the result."""
    body = "say(float(ring.all_reduce(tensor(ring.rank, 70_000)).sum()))"
    with Cluster(place, 2, settings=BOUNDED) as cluster:
        calls = [Call(lambda n=node: Program(n, body)) for node in cluster.nodes]
        cluster.start()
        for call in calls:
            with call.result() as program:
                program.expect(str(float(total(2, 70_000).sum())))
                assert program.end() == 0
