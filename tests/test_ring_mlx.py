"""``ringd-cli run --mlx``, with programs that come together as those of MLX do, and no MLX."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringd.cli.mlx import Chain
from ringd.loop import Loop
from ringd.streams.end import End
from ringd.streams.table import Refusal
from tests.cluster import Cluster, wait_until
from tests.ownports import free_ports
from tests.ringkit import BOUNDED
from tests.streamkit import connect
from tests.test_ring_streams_held import Command, end_all, program

LIKE_MLX = """
    import json, os, socket, sys, time
    rank = int(os.environ["MLX_RANK"])
    with open(os.environ["MLX_HOSTFILE"]) as file:
        places = [[place.split(":") for place in own] for own in json.load(file)]
    size = len(places)

    def accept():
        found = []
        for host, port in places[rank]:
            with socket.create_server((host, int(port)), backlog=0) as listener:
                print("listens", flush=True)
                found.append(listener.accept()[0])
        return found

    def reach():
        return [socket.create_connection((host, int(port)))
                for host, port in places[(rank + 1) % size]]

    if rank == size - 1:
        right, left = reach(), accept()
    else:
        left, right = accept(), reach()
    print("in", flush=True)
    if "until" in sys.argv:
        time.sleep(60)
    for number, (come, go) in enumerate(zip(left, right)):
        go.sendall(bytes([rank, number]) * 100_000)
        expected = bytes([(rank - 1) % size, number]) * 100_000
        assert come.recv(len(expected), socket.MSG_WAITALL) == expected
        come.sendall(b"!")
        assert go.recv(1) == b"!"
    print("done", rank, flush=True)
"""
"""Accepts and connects in the order of MLX's ring backend, and as often.

None ends before its right one has heard it: that is so behind any all-reduce.
"""


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give three daemons."""
    with Cluster(tmp_path_factory.mktemp("ring"), 3, settings=BOUNDED) as cluster:
        cluster.start().wait_ready()
        yield cluster


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the directory for hostfiles; nothing is left there."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield tmp_path
    end_all()
    wait_until(lambda: not list(tmp_path.iterdir()), "hostfiles are removed")


def run(ring: Cluster, rank: int, *options: str, until: bool = False) -> Command:
    """Start the program of a rank."""
    words = ["until"] if until else []
    return Command(ring[rank], "run", "--mlx", *options, "--", *program(LIKE_MLX), *words)


def line(command: Command) -> str:
    """Return the next line that it prints."""
    return command.process.stdout.readline().strip()


def refused(port: int) -> bool:
    """Whether nobody is let in at *port*."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def test_programs_come_minutes_apart(ring: Cluster) -> None:
    """None is let in, where it would spin, before all are there; who is missing is said."""
    order = (2, 0, 1)
    begun = {rank: run(ring, rank, "--connections", "2") for rank in order[:-1]}
    for rank, command in begun.items():
        if rank < 2:
            assert line(command) == "listens"
    missing = order[-1]
    for command in begun.values():
        said = command.process.stderr.readline()
        while f"waiting for the programs on n{missing}\n" not in said:
            assert "waiting for the programs on" in said
            said = command.process.stderr.readline()
    begun[missing] = run(ring, missing, "--connections", "2")
    for rank, command in begun.items():
        code, out, err = command.end()
        assert code == 0, err
        assert out.endswith(f"in\ndone {rank}\n")


def test_one_run_right_after_the_other(ring: Cluster) -> None:
    """Also where a machine is faster, and begins the next one while others end the first."""
    commands = [run(ring, rank, until=True) for rank in range(3)]
    for command in commands:
        wait_until(lambda command=command: line(command) == "in")
    commands[2].process.send_signal(signal.SIGTERM)
    assert commands[2].end()[0] == 128 + signal.SIGTERM
    next_ones = [run(ring, 2)]
    assert "waiting for the programs on n0" in next_ones[0].process.stderr.readline()
    for command in commands[:2]:
        command.process.send_signal(signal.SIGTERM)
    for command in commands[:2]:
        assert command.end()[0] == 128 + signal.SIGTERM
    next_ones += [run(ring, 0), run(ring, 1)]
    for command in next_ones:
        code, out, err = command.end()
        assert code == 0, err
        assert "done" in out


def test_members_that_disagree(ring: Cluster) -> None:
    """On how many connections there are: both are told."""
    with run(ring, 1) as one, run(ring, 0, "--connections", "3") as three:
        code, _, err = three.end()
        assert code == 128 + signal.SIGTERM
        assert "'n1' runs with --connections 1, and this machine with 3; say the same on all" in err
        one.process.send_signal(signal.SIGTERM)
        one.end()


def test_a_stranger_at_the_port(ring: Cluster) -> None:
    """A port that leads to a neighbour takes one connection, as MLX's do."""
    first, _, right = free_ports(3)
    while right != first + 2:
        first, _, right = free_ports(3)
    with run(ring, 1, "--port", str(first)) as command, connect(right):
        wait_until(lambda: refused(right))
        command.process.send_signal(signal.SIGTERM)
        command.end()


def test_a_ring_of_one_and_a_hostfile(tmp_path_factory: pytest.TempPathFactory) -> None:
    """MLX makes a group of one by itself; the file is what `--port` has programs find."""
    with Cluster(tmp_path_factory.mktemp("ring"), 1) as cluster:
        cluster.start().wait_ready()
        text = "import os; print(os.environ.get('MLX_RANK'))"
        with Command(cluster[0], "run", "--mlx", *program(text)) as command:
            assert command.end() == (0, "None\n", "")
        with Command(cluster[0], "mlx-hostfile", "--connections", "2") as command:
            code, out, _ = command.end()
        assert code == 0
        assert json.loads(out) == [["127.0.0.1:32323", "127.0.0.1:32324"]]


@pytest.mark.parametrize("service", ["mlx:job:x", "mlx:job:2", "mlx:job:-1", "mlx:other:0", "x"])
def test_what_others_name_that_it_does_not_serve_is_refused(loop: Loop, service: str) -> None:
    """Whatever a member says."""
    chain = Chain(
        loop, name="job", connections=2, first_port=None, tell=print, on_conflict=pytest.fail
    )
    with pytest.raises(Refusal, match="no service"):
        chain.accepts(End(1, 0, window=lambda: 1), service)
