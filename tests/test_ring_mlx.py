"""``ringd-cli run --mlx``, with programs that come together as those of MLX do, and no MLX."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path

import pytest

from ringd.cli.mlx import Chain
from ringd.loop import Loop
from ringd.streams.end import End
from ringd.streams.table import Refusal
from tests.cluster import PATIENCE, Cluster, wait_until
from tests.ownports import free_ports
from tests.ringkit import BOUNDED
from tests.streamkit import connect
from tests.test_ring_streams_held import Command, end_all, program

LIKE_MLX = """
    import json, os, socket, sys, time
    rank = int(os.environ["MLX_RANK"])
    with open(os.environ["MLX_HOSTFILE"]) as file:
        places = [[place.split(":") for place in own] for own in json.load(file)]
    if "another-hostfile" in sys.argv:
        places.append(places[0])
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


def run(ring: Cluster, rank: int, *options: str, words: Sequence[str] = ()) -> Command:
    """Start the program of a rank."""
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
    commands = [run(ring, rank, words=["until"]) for rank in range(3)]
    for command in commands:
        wait_until(lambda command=command: line(command) == "in")
    commands[2].process.send_signal(signal.SIGTERM)
    assert commands[2].end()[0] == 128 + signal.SIGTERM
    next_ones = [run(ring, 2)]
    assert "waiting for the programs on n0" in next_ones[0].process.stderr.readline()
    for command in commands[:2]:
        command.process.send_signal(signal.SIGTERM)
    for command in commands[:2]:
        code, _, err = command.end()
        assert code == 128 + signal.SIGTERM
        assert "a program that is started again there needs a new one here, too" in err
    next_ones += [run(ring, 0), run(ring, 1)]
    for command in next_ones:
        code, out, err = command.end()
        assert code == 0, err
        assert "done" in out


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_rank_that_is_started_again_before_all_are_there(
    ring: Cluster, how: signal.Signals
) -> None:
    """Each of them, while each other one waits: that one goes on waiting, and all come together."""
    jobs = []
    for again, other in permutations(range(3), 2):
        missing = 3 - again - other
        options = ("--name", f"{how.name}-{again}-{other}")
        ended, waiting = (run(ring, rank, *options) for rank in (again, other))
        jobs.append((again, other, missing, options, ended, waiting))
    for again, other, missing, options, ended, waiting in jobs:
        for command in (ended, waiting):
            said(command, f"waiting for the programs on n{missing}\n")
        ended.process.send_signal(how)
        _, _, err = ended.end()
        assert err == ""
        started = run(ring, again, *options)
        if how == signal.SIGTERM:
            said(started, f"waiting for the programs on n{missing}\n")
        for rank, command in (
            (again, started),
            (missing, run(ring, missing, *options)),
            (other, waiting),
        ):
            code, out, err = command.end()
            assert code == 0, (again, other, err)
            assert out.endswith(f"in\ndone {rank}\n")
            assert "started again" not in err


def test_a_rank_that_was_there_and_is_gone_when_the_last_one_comes(ring: Cluster) -> None:
    """Is missed, and said to be; none is let in, where it would spin, before it is there again."""
    first, gone = run(ring, 0), run(ring, 1)
    for command in (first, gone):
        said(command, "waiting for the programs on n2\n")
    gone.process.send_signal(signal.SIGTERM)
    gone.end()
    last = run(ring, 2)
    said(first, "waiting for the programs on n1\n")
    assert line(first) == "listens"
    for rank, command in enumerate((first, run(ring, 1), last)):
        code, out, err = command.end()
        assert code == 0, err
        assert out.endswith(f"in\ndone {rank}\n")


def test_members_that_disagree(ring: Cluster) -> None:
    """On how many connections there are: both are told."""
    with run(ring, 1) as one, run(ring, 0, "--connections", "3") as three:
        code, _, err = three.end()
        assert code == 128 + signal.SIGTERM
        assert "'n1' runs with --connections 1, and this machine with 3; say the same on all" in err
        one.process.send_signal(signal.SIGTERM)
        one.end()


def three_ports() -> tuple[int, int, int]:
    """Return free ports that follow one another, as of ranks 0 to 2 with `--port`."""
    first, own, right = free_ports(3)
    while right != first + 2:
        first, own, right = free_ports(3)
    return first, own, right


def said(command: Command, words: str) -> None:
    """Wait until *command* says a line in which *words* are."""
    line = command.process.stderr.readline()
    while words not in line:
        assert line, "it has ended"
        line = command.process.stderr.readline()


def test_a_stranger_in_the_place_of_the_program(ring: Cluster) -> None:
    """Is turned away, and named: the program has yet to be let in, and connects after that."""
    first, _, right = three_ports()
    command = run(ring, 1, "--port", str(first))
    assert line(command) == "listens"
    with connect(right) as stranger:
        assert not stranger.recv(1)
    said(command, f"a stranger at port {right}, which is MLX's alone, was turned away")
    for started in (command, run(ring, 0), run(ring, 2)):
        code, out, err = started.end()
        assert code == 0, err
        assert "done" in out


def test_a_stranger_in_the_place_of_the_last_program(ring: Cluster) -> None:
    """That one connects first, so nobody can tell them apart; the port takes one, as MLX's do."""
    first, _, _ = three_ports()
    idle = ("run", "--mlx", "--port", str(first), "sleep", "60")
    with Command(ring[2], *idle) as command, connect(first):
        wait_until(lambda: refused(first))
        command.process.send_signal(signal.SIGTERM)
        command.end()


def test_a_stranger_in_the_place_of_the_left_neighbour(ring: Cluster) -> None:
    """Is said: MLX takes whoever comes first, and who belongs there finds nobody."""
    first, own, _ = three_ports()
    with run(ring, 1, "--port", str(first)) as command:
        assert line(command) == "listens"
        said(command, "waiting for the programs on")  # so it has been seen to listen
        with connect(own):
            said(command, f"nobody listens at port {own} any more: a stranger has connected")
            command.process.send_signal(signal.SIGTERM)
            command.end()


def test_what_a_killed_command_has_left_is_removed_by_the_next_one(
    ring: Cluster, places: Path
) -> None:
    """And nothing of one that runs."""
    waiting = run(ring, 1)
    assert line(waiting) == "listens"
    (kept,) = places.iterdir()
    killed = Command(ring[0], "run", "--mlx", "sh", "-c", "echo $$; exec sleep 600")
    left_alone = int(line(killed))
    killed.process.kill()
    killed.process.wait(PATIENCE)
    os.kill(left_alone, signal.SIGKILL)
    killed.end()
    assert len(list(places.iterdir())) == 2
    assert Command(ring[0], "run", "--mlx", "true").end() == (0, "", "")
    assert list(places.iterdir()) == [kept]


def test_a_program_with_another_hostfile(ring: Cluster) -> None:
    """Of one rank more than there are: all would wait for ever."""
    code, _, err = run(ring, 2, words=["another-hostfile"]).end()
    assert code == 128 + signal.SIGTERM
    assert "the last of 3 ranks would connect first: it has another MLX_HOSTFILE" in err


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"MLX_RANK": "2"}, "MLX_RANK is '2', and 'n1' is rank 1; unset it"),
        ({"MLX_RANK": "2\x1b[2J"}, "MLX_RANK is '2?[2J'"),
        ({"MLX_HOSTFILE": '[["10.0.0.1:1"], ["10.0.0.2:1"]]'}, "has 2 ranks, and the ring 3"),
        ({"MLX_HOSTFILE": '[["10.0.0.1:1"], ["10.0.0.2:1"], ["10.0.0.3:1"]]'}, ""),
        ({"MLX_HOSTFILE": "no such thing"}, ""),
        ({"MLX_RANK": "1"}, ""),
    ],
)
def test_the_environment_of_another_job(
    ring: Cluster,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    environ: dict[str, str],
    words: str,
) -> None:
    """Is an error before anything is run, if it has another rank or number of ranks."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
        if name == "MLX_HOSTFILE":
            path = tmp_path_factory.mktemp("hosts") / "hosts.json"
            path.write_text(value)
            monkeypatch.setenv(name, str(path))
    text = "import os; print(os.environ['MLX_RANK'])"
    code, out, err = Command(ring[1], "run", "--mlx", *program(text)).end()
    assert (code, out) == ((1, "") if words else (0, "1\n")), err
    assert words in err


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
