"""``status`` for people, once and live: what is wrong first, then members, groups, programs."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ringd.cli.live import Meter, picture, show
from ringd.cli.picture import render, rows, warnings
from ringd.errors import RingError
from tests.cluster import Cluster, wait_until
from tests.ringkit import connected, everywhere
from tests.test_ring_commands import cli, run

LINK = {
    "peer": "mini",
    "protection": "off",
    "preferred": False,
    "preferred_error": "10.0.0.2:1: timed out",
    "round_trip": 0.0004,
    "up_for": 10.0,
    "bytes_in": 10 << 20,
    "bytes_out": 20 << 20,
}
MEMBER = {"state": "up", "last_error": None, "last_error_age": None}
BODY = {
    "ring": "home",
    "node": "studio",
    "size": 2,
    "state": "forming",
    "generation": 4,
    "waiting_for": {"mini": "its disk is slow"},
    "members": [
        MEMBER | {"rank": 0, "name": "studio", "state": "self", "address": "10.0.0.1:1"},
        MEMBER | {"rank": 1, "name": "mini", "address": "10.1.0.2:1"},
    ],
    "links": {"right": LINK},
    "groups": [],
    "clients": [{"program": "train.py", "pid": 7, "shared_memory": 1 << 20}],
}


def test_what_is_wrong_comes_first() -> None:
    """Then the ring, then a line for each member, with the averages of its links."""
    assert render(BODY).splitlines() == [
        "! waiting for mini: its disk is slow",
        "! the right link to mini is not over the preferred address (10.0.0.2:1: timed out)",
        "ring 'home', 2 members",
        "studio: forming, generation 4",
        "",
        "     member  state  address                     round trip  in         out",
        "  0  studio  self   10.0.0.1:1",
        "  1  mini    up     10.1.0.2:1 (not preferred)  0.40 ms     1.0 MiB/s  2.0 MiB/s",
        "  right link to mini: up for 10.0 s, 10.0 MiB in, 20.0 MiB out; protection: off",
        "",
        "program train.py (pid 7): 1.0 MiB of shared memory",
    ]


def test_a_neighbour_on_both_sides() -> None:
    """In a ring of two its links add up; the left one is over an address of ours."""
    links = {"right": LINK | {"preferred": True}, "left": LINK}
    own, other = rows(BODY | {"links": links}, {"right": (1.0, 2.0), "left": (1023.0, 1.0)})
    assert (own.address, other.address) == ("10.0.0.1:1 (not preferred)", "10.1.0.2:1")
    assert (other.received, other.sent) == ("1.0 KiB/s", "3 B/s")


def test_rates_are_of_one_link() -> None:
    """From two looks; a link that is new between them, or seen first, has carried nothing yet."""
    meter = Meter()
    assert meter.rates(BODY | {"uptime": 100.0}) == {"right": (0, 0)}
    later = LINK | {"up_for": 12.0, "bytes_in": 12 << 20}
    assert meter.rates({"uptime": 102.0, "links": {"right": later}}) == {"right": (1 << 20, 0.0)}
    anew = LINK | {"up_for": 0.1, "bytes_in": 5}
    assert meter.rates({"uptime": 103.0, "links": {"right": anew}}) == {"right": (0, 0)}
    assert meter.rates({"uptime": 1.0, "links": {"right": anew}}) == {"right": (0, 0)}
    assert meter.rates({"uptime": 2.0, "links": {}}) == {}


def test_the_picture() -> None:
    """It has what the text has, in any width."""
    console = Console(width=100, record=True, file=Path(os.devnull).open("w"))  # noqa: SIM115
    console.print(picture(BODY, {"right": (5.0, 6.0)}))
    console.file.close()
    text = console.export_text()
    assert text.startswith("! waiting for mini: its disk is slow\n")
    for part in ("ring 'home', studio: forming", "0.40 ms", "5 B/s", "6 B/s", "train.py (pid 7)"):
        assert part in text


def test_watch_as_lines(calm_cluster: Cluster) -> None:
    """Each second has one; Ctrl-C ends it, and is no error."""
    command = [str(Path(sys.executable).with_name("ringd-cli")), "status", "--watch", "--json"]
    with subprocess.Popen(
        [*command, "--socket", calm_cluster.sockets[0]], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        bodies = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert bodies[1]["uptime"] > bodies[0]["uptime"]
    assert run("ringd-cli", "status", "--watch", "--json", "--socket", "/none").returncode == 3


def test_what_watch_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal, and rich; it says what else there is."""
    with pytest.raises(RingError, match="elsewhere use --watch --json"):
        show(dict, as_json=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "rich.live", None)
    with pytest.raises(RingError, match=r"pip install '\.\[watch\]', or use --watch --json"):
        show(dict, as_json=False)


def test_watch_on_a_terminal(place: Path) -> None:
    """It shows what moves, also that the daemon has gone, and goes on."""
    command = [str(Path(sys.executable).with_name("ringd-cli")), "status", "--watch"]
    with Cluster(place, 2) as cluster:
        cluster.start().wait_ready()
        ours, theirs = pty.openpty()
        shown = b""

        def shows(text: bytes) -> bool:
            nonlocal shown
            shown += os.read(ours, 1 << 16)
            return text in shown

        with (
            connected(cluster, "moving") as rings,
            subprocess.Popen(
                [*command, "--socket", cluster.sockets[0]],
                stdin=theirs,
                stdout=theirs,
                env={"TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
            ) as process,
        ):
            try:
                wait_until(lambda: shows(b"n0: ready"), "the first picture")
                everywhere(rings, lambda ring: ring.all_reduce(np.ones(1 << 20)))
                wait_until(lambda: shows(b"MiB/s"), "the rate of that call")
                cluster[0].kill()
                wait_until(lambda: shows(b"the daemon that made it is gone"), "its end")
                process.send_signal(signal.SIGINT)
                assert process.wait(60) == 0
            finally:
                process.kill()
                os.close(ours)
                os.close(theirs)


def test_wait(place: Path) -> None:
    """It lasts until the ring is ready, or no longer than was said."""
    with Cluster(place, 1) as cluster:
        assert cli(cluster, 0, "wait", "--timeout", "100ms").returncode == 3
        assert cli(cluster, 0, "wait", "--timeout", "soon").returncode == 2
        cluster.start()
        done = cli(cluster, 0, "wait")
        assert (done.returncode, done.stdout) == (0, "n0: ready, generation 1\n")


def test_who_waits_hears_for_what(place: Path) -> None:
    """Once, until it is something else; what scripts read has the outcome alone."""
    with Cluster(place, 2) as cluster:
        cluster.start([0])
        wait_until(lambda: cluster[0].status() is not None, "a daemon")
        done = cli(cluster, 0, "wait", "--timeout", "3s")
        assert done.returncode == 4
        assert len(done.stdout.splitlines()) == 1
        (said,) = done.stderr.splitlines()
        assert said.startswith("waiting: n0: ")
        assert "n1" in said
        assert cli(cluster, 0, "wait", "--timeout", "100ms", "--json").stderr == ""
        cluster.start([1]).wait_ready()
        cluster[1].kill()
        wait_until(lambda: cluster[0].status()["state"] != "ready", "a loss")
        done = cli(cluster, 0, "wait", "--timeout", "1s")
        assert 1 <= len(done.stderr.splitlines()) <= 3, done.stderr


def test_a_call_that_waits_for_long_is_a_warning() -> None:
    """As the log warns of it: one for each group, of the call that has waited longest."""
    op = {"op": 3, "channel": None, "call": "barrier", "phase": "waiting", "progress": None}
    op |= {"waiting_for": "not submitted by: mini"}
    ages = {15.0: True, 75.0: True, 1.0: False}
    open_ops = [op | {"age": age, "stalled": stalled} for age, stalled in ages.items()]
    group = {"name": "g", "present": ["studio"], "op_counts": {}, "open_ops": open_ops}
    warning = (
        "a call of group 'g' has waited for 1.2 min, and 1 more: barrier; not submitted by: mini"
    )
    assert [line for line in warnings(BODY | {"groups": [group]}) if "group" in line] == [warning]


@pytest.mark.parametrize("command", ["status", "wait", "drain", "log-level", "doctor", "import"])
def test_help_has_exit_codes_and_an_example(command: str) -> None:
    """As that of every command."""
    shown = run("ringd-cli", command, "--help").stdout
    assert "Exit codes: 0 " in shown
    assert f"ringd-cli {command}" in shown.partition("Example")[2]
