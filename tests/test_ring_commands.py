"""``ringd`` and ``ringd-cli`` as processes: what they say, and their exit codes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import ringd
from ringd.client.ring import connect
from tests.cluster import Cluster, wait_until
from tests.ringkit import BOUNDED, Call, connected, everywhere, wait_counts


def run(name: str, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command of this installation to its end."""
    command = [str(Path(sys.executable).with_name(name)), *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=180, check=False, env=environ
    )


def cli(cluster: Cluster, rank: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``ringd-cli`` for the daemon of *rank*."""
    return run("ringd-cli", *words, "--socket", cluster.sockets[rank])


def test_status_json(calm_cluster: Cluster) -> None:
    """The status has the promised fields, on each member with its own rank."""
    for rank in range(3):
        done = cli(calm_cluster, rank, "status", "--json")
        body = json.loads(done.stdout)
        assert done.returncode == 0
        assert body["schema_version"] == 1
        assert (body["node"], body["rank"], body["size"]) == (f"n{rank}", rank, 3)
        assert (body["state"], body["generation"]) == ("ready", 1)
        assert body["waiting_for"] == {}
        members = body["members"]
        assert [member["name"] for member in members] == ["n0", "n1", "n2"]
        assert [member["rank"] for member in members] == [0, 1, 2]
        for member in members:
            assert member["state"] == ("self" if member["rank"] == rank else "up")
            assert member["address"] == f"127.0.0.1:{calm_cluster[member['rank']].port}"
            assert {"last_error", "last_error_age"} <= set(member)


def test_status_shows_a_stuck_call(calm_cluster: Cluster) -> None:
    """The open ops of a group, their age, what they wait for, and each member's op count."""
    with connected(calm_cluster, "stuck") as rings:
        everywhere(rings, lambda ring: ring.barrier())
        works = [ring.all_reduce_async([1, 2], name="grad") for ring in rings[:2]]
        wait_counts(calm_cluster[0], [2, 2, 1], "stuck")
        (group,) = json.loads(cli(calm_cluster, 0, "status", "--json").stdout)["groups"]
        assert group["present"] == ["n0", "n1", "n2"]
        assert group["op_counts"] == {"n0": 2, "n1": 2, "n2": 1}
        (op,) = group["open_ops"]
        assert op["op"] == 1
        assert op["call"] == "all_reduce sum int64[2] named 'grad'"
        assert op["age"] >= 0
        assert op["waiting_for"] == "not submitted by: n2"
        text = cli(calm_cluster, 0, "status").stdout
        assert "ops submitted: n0 2, n1 2, n2 1" in text
        assert "not submitted by: n2" in text
        rings[2].all_reduce([1, 2], name="grad")
        assert [work.wait().tolist() for work in works] == [[3, 6]] * 2


def test_status_claims_nothing_of_members_out_of_reach(place: Path) -> None:
    """While the ring is broken, what the daemon cannot know is unknown, or as last heard."""
    with Cluster(place, 4, settings=BOUNDED) as cluster:

        def members(key: str) -> list[str]:
            status = cluster[0].status()
            return [] if status is None else [str(member[key]) for member in status["members"]]

        cluster.start([0, 1, 3])
        wait_until(lambda: "refused" in "".join(members("last_error")[2:3]), "n2 is missed")
        cluster.start([2]).wait_ready()
        with connected(cluster) as rings:
            works = [ring.all_reduce_async([1]) for ring in rings[:3]]
            wait_counts(cluster[0], [1, 1, 1, 0])
            for rank in (1, 3):
                cluster[rank].kill()
            cut_off = ["self", "down", "unknown", "down"]
            wait_until(lambda: members("state") == cut_off, "n2 is out of reach")
            body = json.loads(cli(cluster, 0, "status", "--json").stdout)
            text = cli(cluster, 0, "status").stdout
            cluster.start([1, 3]).wait_ready()
            rings[3].all_reduce([1])
            assert [work.wait().tolist() for work in works] == [[4]] * 3
            (group,) = json.loads(cli(cluster, 0, "status", "--json").stdout)["groups"]
            assert (len(group["present"]), group["unknown"]) == (4, [])
    assert body["waiting_for"]["n2"] == "unknown while its neighbours are out of reach"
    assert "refused" in body["members"][2]["last_error"]  # which is long over
    (group,) = body["groups"]
    assert (group["present"], group["unknown"]) == (["n0"], ["n1", "n2", "n3"])
    (op,) = group["open_ops"]
    assert "n1 missing for" in op["waiting_for"]
    assert "n2" not in op["waiting_for"]
    assert "group 'test': n0 present, unknown while the ring is not up: n1, n2, n3\n" in text
    assert "ops submitted, as last heard: n0 1, n1 1, n2 1, n3 0\n" in text
    assert "last error: right neighbour n2" in text


def test_exit_codes(place: Path) -> None:
    """0 ready, 2 wrong usage, 3 no daemon, 4 running but not ready; the socket also by name."""
    with Cluster(place, 2) as cluster:
        for command in ("status", "health", "rejoin"):
            assert cli(cluster, 0, command).returncode == 3
        assert cli(cluster, 0, "status", "--nonsense").returncode == 2
        assert cli(cluster, 0, "health", "--wait", "soon").returncode == 2
        waiting = Call(lambda: cli(cluster, 0, "health", "--wait", "2m"))
        cluster.start([0])
        with connect(cluster.sockets[0]):  # it answers now
            for command in ("status", "health"):
                done = cli(cluster, 0, command, "--json")
                assert done.returncode == 4
                assert json.loads(done.stdout)["state"] == "forming"
            done = cli(cluster, 0, "health", "--wait", "100ms")
            assert done.returncode == 4
            assert "waiting for n1" in done.stdout
        cluster.start([1])
        assert waiting.result().returncode == 0
        assert run("ringd-cli", "health", RINGD_SOCKET=cluster.sockets[0]).returncode == 0
        cluster[0].kill()  # its socket's file is still there
        assert cli(cluster, 0, "health").returncode == 3


def test_rejoin(place: Path) -> None:
    """``rejoin`` leads to a new generation, in which calls go on."""
    with Cluster(place, 2) as cluster:
        generation = cluster.start().wait_ready()
        assert cli(cluster, 1, "rejoin").returncode == 0
        cluster.wait_ready(beyond=generation)
        assert cli(cluster, 1, "health", "--wait", "2m").returncode == 0
        with connected(cluster) as rings:
            assert everywhere(rings, lambda ring: ring.all_reduce(1).item()) == [2, 2]


@pytest.mark.parametrize("words", [["status"], ["health"], ["rejoin"], ["init"], ["keygen"]])
def test_help(words: list[str]) -> None:
    """Every command explains itself."""
    done = run("ringd-cli", *words, "--help")
    assert done.returncode == 0
    assert "Usage: ringd-cli" in done.stdout


PRINTING = [
    ["--help"],
    ["status", "--help"],
    ["status"],
    ["status", "--json"],
    ["health"],
    ["trace"],
    ["init", "{place}/ringd.toml", "--member", "a=127.0.0.1:5680"],
    ["keygen", "{place}/ring.key"],
]
"""Commands that print, each in another way."""


def run_into(sink: int, words: list[str], place: Path, socket: str) -> tuple[int, str]:
    """Run a command with *sink* as its standard output; return its exit code and its errors."""
    command = [str(Path(sys.executable).with_name("ringd-cli"))]
    command += [word.format(place=place) for word in words]
    done = subprocess.run(
        command,
        stdout=sink,
        stderr=subprocess.PIPE,
        text=True,
        timeout=180,
        check=False,
        env={"RINGD_SOCKET": socket},  # so with standard output buffered, as it is by default
    )
    return done.returncode, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("words", PRINTING)
def test_output_that_finds_no_room(calm_cluster: Cluster, place: Path, words: list[str]) -> None:
    """One line says so, and the command has failed."""
    with Path("/dev/full").open("w") as full:
        code, errors = run_into(full.fileno(), words, place, calm_cluster.sockets[0])
    assert (code, errors) == (1, "Error: standard output: No space left on device\n")


@pytest.mark.parametrize("words", PRINTING)
def test_output_that_nobody_reads(calm_cluster: Cluster, place: Path, words: list[str]) -> None:
    """A closed pipe, as ``| head -1`` may leave it, ends a command without a word."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        code, errors = run_into(writing, words, place, calm_cluster.sockets[0])
    finally:
        os.close(writing)
    assert (code, errors) == (1, "")


def test_from_init_to_sum(place: Path) -> None:
    """What ``init`` and ``keygen`` write is a ring that works."""
    config, key = place / "ringd.toml", place / "ring.key"
    with Cluster(place, 2) as cluster:
        members = [f"--member={n.name}=127.0.0.1:{n.port}" for n in cluster.nodes]
        key.unlink()
        config.unlink()
        assert run("ringd-cli", "init", str(config), *members).returncode == 0
        assert run("ringd-cli", "init", str(config), *members).returncode == 1
        assert run("ringd-cli", "keygen", str(key)).returncode == 0
        assert key.stat().st_mode & 0o777 == 0o600
        cluster.start().wait_ready()
        with connected(cluster) as rings:
            assert everywhere(rings, lambda ring: ring.all_reduce(1).item()) == [2, 2]


def test_all_problems_of_a_config_at_once(place: Path) -> None:
    """A bad config is one line for each problem, with file, key and remedy; exit code 78."""
    config = place / "bad.toml"
    config.write_text(
        """
[ring]
name = "home"
key_fil = "ring.key"
[[ring.members]]
name = "a"
addresses = ["10.0.0.1:5680"]
[[ring.members]]
name = "a"
addresses = ["10.0.0.1"]
[join]
heartbeat = "3 seconds"
lost_after = "1s"
[ipc]
mode = "0666"
"""
    )
    for extra in ([], ["--check-config"]):
        done = run("ringd", "--config", str(config), "--node", "b", *extra)
        assert done.returncode == 78
        lines = done.stderr.splitlines()
        assert all(line.startswith(f"Error: {config}: ") for line in lines)
        for words in (
            ["key_fil", "key_file"],
            ["10.0.0.1"],
            ['"a"'],
            ["heartbeat", "3 seconds"],
            ["mode", "0666"],
            ['"b"'],
        ):
            assert any(all(word in line for word in words) for line in lines), words
        assert len(lines) >= 6


def test_a_socket_that_was_removed(place: Path) -> None:
    """Whoever finds no socket is not sent to start a second daemon beside one that runs."""
    done = run("ringd-cli", "health", "--socket", str(place / "none"))
    assert done.returncode == 3
    assert "one that runs already makes a socket that was removed anew" in done.stderr


def test_check_of_a_good_config(place: Path) -> None:
    """``--check-config`` says which member this is, and starts nothing."""
    with Cluster(place, 2) as cluster:
        done = run("ringd", "--check-config", RINGD_CONFIG=str(cluster.config), RINGD_NODE="n1")
        assert done.returncode == 0
        assert "'n1', rank 1" in done.stdout
        assert not cluster[1].socket.exists()


def test_check_finds_a_port_in_use(place: Path) -> None:
    """One line with file, key, value and remedy, and no error: it may be this member's daemon."""
    with Cluster(place, 2) as cluster:
        with socket.create_server(("127.0.0.1", cluster[1].port)):
            done = run("ringd", "--config", str(cluster.config), "--node", "n1", "--check-config")
        assert done.returncode == 0
        (line,) = done.stderr.splitlines()
        where = f"127.0.0.1:{cluster[1].port}"
        assert line.startswith(
            f"Note: {cluster.config}: ring.members[1].listen: cannot listen on {where}"
        )
        assert "stop the program" in line
        cluster.start().wait_ready()
        own = cluster[1]
        options = ("--config", str(cluster.config), "--node", "n1", "--socket", str(own.socket))
        done = run("ringd", *options, "--check-config")
        assert (done.returncode, done.stderr) == (0, "")
        # Nor does it matter that only the daemon's own command line names its socket.
        done = run("ringd", *options[:4], "--check-config")
        assert done.returncode == 0
        assert "this member's own ringd" in done.stderr


@pytest.mark.parametrize(
    ("name", "words", "code"),
    [
        ("ringd-cli", ["status", "--socket", "{place}/none"], 3),
        ("ringd-cli", ["health", "--wait", "soon"], 2),
        ("ringd-cli", ["init", "{place}/ringd.toml", "--member", "a=h", "--member", "b=h"], 2),
        ("ringd-cli", ["keygen", "{place}/gone/ring.key"], 1),
        ("ringd-cli", ["stats"], 2),
        ("ringd", ["--config", "{place}/ringd.toml"], 78),
        ("ringd", ["--nodes", "a"], 2),
    ],
)
def test_errors_have_one_form(place: Path, name: str, words: list[str], code: int) -> None:
    """Each error is a line that begins alike, after the usage if that was wrong."""
    done = run(name, *(word.format(place=place) for word in words))
    assert (done.returncode, done.stdout) == (code, "")
    usage, *_, errors = done.stderr.rpartition("for help.\n\n")
    assert usage.startswith(f"Usage: {name}") == (code == 2)
    assert all(line.startswith("Error: ") for line in errors.splitlines())
    assert errors


def test_version() -> None:
    """Both commands know the package's version."""
    for name in ("ringd", "ringd-cli"):
        assert run(name, "--version").stdout.split()[-1] == ringd.__version__


def test_environment_twins(place: Path) -> None:
    """Each option of ``ringd`` can come from the environment; SIGTERM ends it with 0."""
    with Cluster(place, 1) as cluster:
        node = cluster[0]
        environ = {
            "RINGD_CONFIG": str(cluster.config),
            "RINGD_NODE": node.name,
            "RINGD_SOCKET": str(node.socket),
            "RINGD_STATE_DIR": str(node.state_dir),
        }
        with node.log_path.open("ab") as log:
            command = [str(Path(sys.executable).with_name("ringd"))]
            node.process = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
        cluster.wait_ready()
        assert node.state_dir.is_dir()
        shown = run("ringd-cli", "status", RINGD_SOCKET=str(node.socket)).stdout
        assert shown.startswith("ring 'test', 1 member\n")
        assert node.stop() == 0
        assert not node.socket.exists()
