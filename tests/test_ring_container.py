"""A daemon as the first process of a container, that is, of a namespace of processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import ringd
from tests.cluster import Cluster, wait_until
from tests.ringkit import BOUNDED

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="macOS has no such namespaces")

NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
if os.geteuid():
    NAMESPACE += ("--user", "--map-root-user")


@contextmanager
def contained(cluster: Cluster, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Give a daemon of *cluster* as a first process, and its number out here."""
    node = cluster[0]
    command = [*NAMESPACE, sys.executable, "-m", "ringd.daemon.main", "--config", str(node.config)]
    command += ["--socket", str(node.socket), "--state-dir", str(node.state_dir), *options]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=cluster.environ
    ) as outer:
        try:
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
            yield outer, int(str(wait_until(children.read_text, "it starts")))
        finally:
            outer.kill()


def processes(first: int) -> list[str]:
    """Return the processes in the namespace of *first*, by their numbers there."""
    return sorted(
        path.name for path in Path(f"/proc/{first}/root/proc").iterdir() if path.name.isdigit()
    )


def test_it_buries_orphans_and_ends_when_asked_to(place: Path) -> None:
    """With its log in JSON, and calls of programs from outside."""
    with Cluster(place, 1, settings=BOUNDED) as cluster, contained(cluster, "--node", "n0") as made:
        outer, first = made
        cluster.wait_ready()
        with ringd.connect(cluster[0].socket, timeout=10) as ring:
            assert ring.all_reduce(3) == 3
        orphans = "for n in 1 2 3; do (sleep 0.1 & exec true) & done; wait"
        inside = ["nsenter", "-t", str(first), "-p", "-m", "sh", "-c", orphans]
        subprocess.run(inside, check=True, timeout=30)
        wait_until(lambda: processes(first) == ["1"], lambda: f"no zombies: {processes(first)}")
        os.kill(first, signal.SIGTERM)
        _, said = outer.communicate(timeout=30)
        assert outer.returncode == 0
        assert [json.loads(line)["event"] for line in said.splitlines()][-1] == "ringd stopped"


def test_it_ends_also_while_it_waits_for_its_name(place: Path) -> None:
    """No signal has its usual effect on a first process."""
    with Cluster(place, 1) as cluster, contained(cluster) as (outer, first):
        assert outer.stderr is not None
        assert "waiting for this host's name" in outer.stderr.readline()
        os.kill(first, signal.SIGTERM)
        assert outer.wait(30) == 0
