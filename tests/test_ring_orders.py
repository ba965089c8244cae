"""``drain``, ``resume`` and ``log-level`` with real daemons, and whose orders count."""

from __future__ import annotations

import grp
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from click.testing import CliRunner, Result

import ringd
from ringd.cli import steer
from ringd.cli.ask import ask
from ringd.cli.main import main
from ringd.wire.border.messages import AskDrain, AskResume
from tests.cluster import Cluster, Node, wait_until
from tests.ownports import free_ports
from tests.proxy import Proxy
from tests.ringkit import Call, begin, connected, everywhere, tensor, total
from tests.test_client_forbidden import NOBODY, ordinary_user
from tests.test_ring_commands import cli

SHORT = """
[ops]
timeout = "60s"
"""

PATIENT = """
[join]
lost_after = "10m"
"""
"""A link may stand still for as long as a busy machine takes."""


def state(node: Node) -> str:
    """Return the ring's state as that daemon sees it."""
    return str((node.status() or {}).get("state"))


def said(node: Node, event: str) -> int:
    """Return how often that daemon has logged *event*."""
    return sum(entry["event"] == event for entry in node.log())


def test_drain_and_resume(place: Path) -> None:
    """A drained machine is out of the ring; calls made then wait, and come back as it resumes.

    One with a deadline ends with it, and says whom it waited for.
    """
    with Cluster(place, 3, settings=SHORT) as cluster:
        generation = cluster.start().wait_ready()
        with connected(cluster) as rings:
            assert everywhere(rings, lambda ring: ring.all_reduce(1).item()) == [3] * 3
            done = cli(cluster, 1, "drain", "--json")
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["unfinished"] == 0
            assert cli(cluster, 1, "health").returncode == 4
            drained = "n1: shutting down, or drained by its operator (`ringd-cli resume` there"
            for rank in range(3):
                wait_until(lambda r=rank: state(cluster[r]) != "ready", "all have left the ring")
                assert drained in cli(cluster, rank, "health").stdout
            calls = begin(rings, lambda ring: ring.all_reduce(np.ones(100_000), timeout=60.0))
            late = ringd.connect(cluster.sockets[0], group="late")
            with pytest.raises((ringd.DeadlineExceeded, ringd.NotReady)):
                late.all_reduce(1, timeout=0.3)
            late.close()
            assert all(call.running for call in calls)
            again = cli(cluster, 1, "rejoin")  # which does not bring it back, and says so
            assert (again.returncode, state(cluster[1])) == (1, "draining")
            assert '"ringd-cli resume" brings this machine back' in again.stderr
            assert json.loads(cli(cluster, 1, "rejoin", "--json").stdout)["state"] == "draining"
            assert cli(cluster, 1, "resume").stdout == "Resuming.\n"
            cluster.wait_ready(beyond=generation)
            assert [call.result()[0] for call in calls] == [3.0] * 3
            assert cli(cluster, 1, "resume").returncode == 0  # which changes nothing
            assert state(cluster[1]) == "ready"


@pytest.mark.parametrize("again", [False, True])
def test_resume_ends_a_drain_that_waits_for_calls(place: Path, again: bool) -> None:
    """The machine stays in its ring; a drain after that counts anew."""
    (port, own), count = free_ports(2), 2_000_000
    with (
        Proxy(port) as proxy,
        Cluster(place, 2, settings=PATIENT, ports=[port, own], dial={"n0": proxy.port}) as cluster,
    ):
        cluster[1].delay_path.with_suffix(".drain").write_text("600")
        generation = cluster.start().wait_ready()
        with connected(cluster) as rings:
            everywhere(rings, lambda ring: ring.barrier())
            proxy.stall_after(count)  # bytes: a part of the call's
            calls = begin(rings, lambda ring: ring.all_reduce(tensor(ring.rank, count)))
            assert proxy.stalled.wait(120)
            drain = Call(lambda: cli(cluster, 1, "drain"))
            wait_until(lambda: said(cluster[1], "draining, as asked"), "it is asked to drain")
            assert drain.running
            ask(cluster[1].socket, AskResume, timeout=60.0)
            second = Call(lambda: ask(cluster[1].socket, AskDrain, timeout=60.0)) if again else None
            if again:
                wait_until(lambda: said(cluster[1], "draining, as asked") == 2, "asked again")
            proxy.resume()
            done = drain.result()
            assert (done.returncode, "not drained: it was resumed" in done.stderr) == (1, True)
            for call in calls:
                np.testing.assert_array_equal(call.result(), total(2, count))
            if second is not None:
                assert second.result()["drained"]
                assert state(cluster[1]) == "draining"
            else:
                assert (state(cluster[1]), cluster.wait_ready()) == ("ready", generation)


def test_a_drained_daemon_stops_and_starts(place: Path) -> None:
    """A restart brings it back, as if it had not been drained."""
    with Cluster(place, 2) as cluster:
        generation = cluster.start().wait_ready()
        assert cli(cluster, 0, "drain").stdout.startswith('Drained. "ringd-cli resume" brings')
        assert cluster[0].stop() == 0
        cluster.start([0])
        cluster.wait_ready(beyond=generation)


def test_a_ring_of_one_drains(place: Path) -> None:
    """There are no neighbours to be told."""
    with Cluster(place, 1) as cluster:
        generation = cluster.start().wait_ready()
        assert cli(cluster, 0, "drain").returncode == 0
        assert state(cluster[0]) == "draining"
        assert cli(cluster, 0, "resume").returncode == 0
        assert cluster.wait_ready(beyond=generation) == generation + 1


def test_a_daemon_that_stops_is_not_resumed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing brings that back but a start, and nobody is told otherwise."""
    monkeypatch.setattr(steer, "find_socket", lambda path: path)
    monkeypatch.setattr(steer, "ask", lambda *_: {"schema_version": 1, "state": "draining"})
    done = CliRunner().invoke(main, ["resume", "--socket", str(place / "s")])
    assert (done.exit_code, done.output.count("start it again")) == (1, 1)


def test_another_log_level_for_a_while(place: Path) -> None:
    """It holds for as long as was said, or until a reload; status tells."""

    def level() -> object:
        told = (cluster[0].status() or {}).get("log_level")
        return told and told["level"]

    with Cluster(place, 1) as cluster:
        cluster.start().wait_ready()
        assert level() is None
        done = cli(cluster, 0, "log-level", "debug", "--for", "10m")
        assert (done.returncode, done.stdout) == (0, "Logging from debug on, for 10m.\n")
        assert level() == "debug"
        assert "! the log has level 'debug' for " in cli(cluster, 0, "status").stdout
        assert cli(cluster, 0, "reload").returncode == 0
        assert level() is None
        assert cli(cluster, 0, "log-level", "debug", "--for", "100ms").returncode == 0
        wait_until(lambda: level() is None, "the old level is back")
        for words in (["loud"], ["debug", "--for", "soon"]):
            assert CliRunner().invoke(main, ["log-level", *words]).exit_code == 2
        too_long = cli(cluster, 0, "log-level", "debug", "--for", "25h")
        assert (too_long.returncode, "and up to 24h" in too_long.stderr) == (1, True)
        none = cli(cluster, 0, "log-level", "debug", "--for", "0s", "--json")
        assert (none.returncode, "more than 0s" in json.loads(none.stdout)["refused"]) == (1, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_whose_orders_count() -> None:
    """A user of the socket's group may look, and not disturb, unless the config says so."""
    group = grp.getgrgid(NOBODY).gr_name

    def as_nobody(*words: str) -> Result:
        with ordinary_user():
            return CliRunner().invoke(main, [*words, "--socket", cluster.sockets[0]])

    with TemporaryDirectory() as name, Cluster(Path(name), 1) as cluster:
        cluster.directory.chmod(0o755)
        cluster.write_config(f'[ipc]\ngroup = "{group}"\n')
        cluster.start().wait_ready()
        assert as_nobody("status").exit_code == 0
        for words in (["rejoin"], ["reload"], ["drain"], ["resume"], ["log-level", "debug"]):
            done = as_nobody(*words)
            assert (done.exit_code, done.stdout) == (1, "")
            may = f"this is for root and the daemon's user (uid 0), and you are uid {NOBODY}"
            assert may in done.stderr
        cluster[0].kill()
        cluster.write_config(f'[ipc]\ngroup = "{group}"\ncontrol = "group"\n')
        generation = cluster.start().wait_ready()
        assert as_nobody("rejoin").exit_code == 0
        cluster.wait_ready(beyond=generation)
