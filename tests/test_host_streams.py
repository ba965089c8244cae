"""Started with standard streams closed, as some supervisors do: all works, and nothing is hit."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster, wait_until
from exhaustive import usually

import ringd
from tests.ringkit import BOUNDED

CLOSED = [
    " ".join(some)
    for count in range(1, 4)
    for some in itertools.combinations(("<&-", ">&-", "2>&-"), count)
]


SOME = [*CLOSED[:3], CLOSED[-1]]
"""Each alone, and all."""


def closing(which, *command):
    """Return *command* with the streams *which* closed, in the shell's words."""
    return ["/bin/sh", "-c", f'exec "$@" {which}', "sh", *command]


@pytest.fixture
def cluster(place):
    """Give a ring of one whose daemon does not run yet."""
    with Cluster(place, 1, settings=BOUNDED) as cluster:
        yield cluster


@pytest.mark.parametrize("which", SOME)
def test_daemon_runs_without_its_streams(cluster, which):
    """It forms its ring and serves programs, and what is 0 to 2 is none of its sockets."""
    node = cluster[0]
    command = [sys.executable, "-m", "ringd.daemon.main", "--config", str(cluster.config)]
    command += ["--node", node.name, "--socket", str(node.socket)]
    command += ["--state-dir", str(node.state_dir)]
    with node.log_path.open("ab") as log:
        node.process = subprocess.Popen(
            closing(which, *command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=cluster.environ,
        )
    cluster.wait_ready()
    with ringd.connect(node.socket, timeout=10) as ring:
        assert ring.all_reduce(3.0) == 3.0
    for fd in range(3) if sys.platform == "linux" else ():  # only Linux tells
        leads_to = str(Path(f"/proc/{node.pid}/fd/{fd}").readlink())
        assert leads_to in ("/dev/null", str(node.log_path))
    if "2>&-" not in which:
        wait_until(lambda: any(line["event"] == "ringd started" for line in node.log()), "a log")
    assert node.stop() == 0


@pytest.mark.parametrize("which", usually(SOME, CLOSED))
def test_commands_run_without_their_streams(cluster, which, place):
    """Their exit codes tell all the same, and an error is no other error."""
    no_daemon = ["ringd.cli.main", "status", "--socket", str(place / "nothing")]
    for words, code in (
        (["ringd.daemon.main", "--config", str(cluster.config), "--check-config"], 78),
        (["ringd.daemon.main", "--config", str(cluster.config), "--node", "n0", "--version"], 0),
        (no_daemon, 3),
        (["ringd.cli.main", "--help"], 0),
    ):
        ended = subprocess.run(
            closing(which, sys.executable, "-m", *words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert (words, ended.returncode) == (words, code)
        assert "Traceback" not in ended.stdout + ended.stderr


ERRORS = [
    (["ringd.daemon.main", "--config", "none.toml"], 78),
    (["ringd.cli.main", "nonsense"], 2),
    (["ringd.cli.main", "health", "--socket", "none"], 3),
    (["ringd.daemon.main", "--config", "none.toml", "--check-config"], 78),
    (["ringd.daemon.main", "--nonsense"], 2),
    (["ringd.cli.main", "status", "--socket", "none"], 3),
    (["ringd.cli.main", "status", "--nonsense"], 2),
    (["ringd.cli.main", "keygen", "."], 2),
    (["ringd.cli.main", "keygen", "none/key"], 1),
]
"""Commands that fail and their exit codes; the first three fail in three ways."""

UNREAD = ""
"""The standard error of :func:`test_exit_codes_hold_whatever_becomes_of_the_words` as it is."""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize(
    ("which", "words", "code"),
    [
        (which, *error)
        for which in (UNREAD, "2>/dev/full", ">/dev/full 2>/dev/full", "2<&0")
        for error in usually(ERRORS if which == UNREAD else ERRORS[:3], ERRORS)
    ],
)
def test_exit_codes_hold_whatever_becomes_of_the_words(place, which, words, code):
    """A full disk, a pipe that nobody reads, or one that is only to be read, for standard error."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            closing(which, sys.executable, "-m", *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=writer,
            check=False,
            timeout=120,
            cwd=place,
        )
    finally:
        os.close(writer)
    assert ended.returncode == code


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("program", ["ringd.daemon.main", "ringd.cli.main"])
@pytest.mark.parametrize("buffered", ["", "1"])
def test_output_that_finds_no_place_is_an_error_in_words(program, buffered):
    """Of the daemon's command as of the others, however Python buffers."""
    ended = subprocess.run(
        closing(">/dev/full", sys.executable, "-m", program, "--help"),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONUNBUFFERED": buffered},
    )
    expected = (1, "Error: standard output: No space left on device\n")
    assert (ended.returncode, ended.stderr) == expected


def test_open_streams_stay_as_they_are():
    """Nothing is replaced that is there."""
    code = (
        "import os, sys; from ringd.host.streams import open_standard_streams as o; "
        "before = [sys.stdin, sys.stdout, sys.stderr, os.listdir('/dev/fd')]; o(); "
        "print(before == [sys.stdin, sys.stdout, sys.stderr, os.listdir('/dev/fd')])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("True\n", "")


@pytest.mark.parametrize("which", CLOSED)
def test_closed_streams_swallow_what_is_written(which):
    """Also what a C library writes to descriptor 2 by itself, which would else hit a socket."""
    code = (
        "import os, sys; from ringd.host.streams import open_standard_streams as o; o(); "
        "fd = os.open(sys.argv[1], os.O_RDONLY); "
        "print('out'); print('err', file=sys.stderr); os.write(2, b'x'); "
        "sys.exit(10 * (fd > 2) + (sys.stdin.read() == ''))"
    )
    command = [sys.executable, "-c", code, os.devnull]
    ended = subprocess.run(
        closing(which, *command),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 11
