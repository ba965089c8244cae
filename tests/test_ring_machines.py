"""A whole machine is lost, daemon and program; and how the others can tell what they wait for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ringd
from ringd.cli.trace import chrome_trace, lines
from tests.cluster import Cluster, wait_until
from tests.ringkit import BOUNDED, Program, begin, connected, everywhere, tensor, total, wait_counts

IMPATIENT = '[ops]\ntimeout = "60s"\nreattach = "300ms"\nstall_warning = "50ms"\n'


def lose_machine(cluster: Cluster) -> list[ringd.Ring]:
    """Let a program on rank 2 die with its daemon; return the others' rings."""
    with Program(cluster[2], "ring.barrier(); hear()") as program:
        rings = [ringd.connect(cluster.sockets[rank], "test") for rank in (0, 1)]
        everywhere(rings, lambda ring: ring.barrier())
        cluster[2].kill()
        program.kill()
    return rings


def test_machine_lost_with_its_program(place: Path) -> None:
    """When the daemon is back but its program is not, the others' calls end with its name."""
    with Cluster(place, 3, settings=IMPATIENT) as cluster:
        generation = cluster.start().wait_ready()
        rings = lose_machine(cluster)
        calls = begin(rings, lambda ring: ring.all_reduce(tensor(ring.rank, 300_000)))
        cluster[2].start()
        cluster.wait_ready(beyond=generation)
        for call in calls:
            error = call.outcome()
            assert isinstance(error, ringd.GroupLost)
            assert "n2" in str(error)
            assert "did not come back" in str(error)
        rings.append(ringd.connect(cluster.sockets[2], "test"))
        for result in everywhere(rings, lambda ring: ring.all_reduce(tensor(ring.rank, 9))):
            np.testing.assert_array_equal(result, total(3, 9))
        for ring in rings:
            ring.close()


def test_machine_lost_and_its_program_started_anew(place: Path) -> None:
    """A new program takes the lost one's place at once; the others learn of it by their calls."""
    with Cluster(place, 3, settings=BOUNDED) as cluster:  # reattach is 10 s here
        generation = cluster.start().wait_ready()
        rings = lose_machine(cluster)
        calls = begin(rings, lambda ring: ring.all_reduce(tensor(ring.rank, 300_000)))
        cluster[2].start()
        rings.append(ringd.connect(cluster.sockets[2], "test"))
        cluster.wait_ready(beyond=generation)
        for call in calls:
            error = call.outcome()
            assert isinstance(error, ringd.GroupLost)
            assert "n2" in str(error)
        for result in everywhere(rings, lambda ring: ring.all_reduce(tensor(ring.rank, 9))):
            np.testing.assert_array_equal(result, total(3, 9))
        for ring in rings:
            ring.close()


@pytest.mark.parametrize("count", [100, 300_000])
def test_result_outlives_the_machine_that_helped(place: Path, count: int) -> None:
    """Results that were told before a machine was lost stand, and are the same on the others."""
    body = f"ring.barrier(); ring.all_reduce(tensor(2, {count})); say('done'); hear()"
    with Cluster(place, 3, settings=IMPATIENT) as cluster:
        generation = cluster.start().wait_ready()
        with Program(cluster[2], body) as program:
            rings = [ringd.connect(cluster.sockets[rank], "test") for rank in (0, 1)]
            everywhere(rings, lambda ring: ring.barrier())
            works = [ring.all_reduce_async(tensor(ring.rank, count)) for ring in rings]
            program.expect("done")
            results = [work.wait() for work in works]
            cluster[2].kill()
            program.kill()
        cluster[2].start()
        cluster.wait_ready(beyond=generation)
        for result in results:
            np.testing.assert_array_equal(result, total(3, count))
        for ring in rings:
            ring.close()


def test_stalled_call_is_logged_once(place: Path) -> None:
    """A call that waits for long is one line in the log, with the names of those it waits for."""
    with Cluster(place, 2, settings=IMPATIENT) as cluster:
        cluster.start().wait_ready()
        with connected(cluster) as rings:
            everywhere(rings, lambda ring: ring.barrier())
            work = rings[0].all_reduce_async(np.ones(3), name="grad")
            wait_counts(cluster[1], [2, 1])

            def lines() -> list[dict]:  # of the barrier there may be one on a busy machine
                said = [event for event in cluster[0].log() if event["event"] == "call waits"]
                return [event for event in said if event["op"] > 0]

            wait_until(lines, "a word on it")
            second = rings[0].all_reduce_async(np.ones(3), name="later")
            wait_until(lambda: len(lines()) == 2, "a word on the second")
            assert [line["op"] for line in lines()] == [1, 2]
            assert lines()[0]["call"] == "all_reduce sum float64[3] named 'grad'"
            assert lines()[0]["group"] == "test"
            assert lines()[0]["waiting_for"] == "not submitted by: n1"
            for name in ("grad", "later"):
                rings[1].all_reduce(np.ones(3), name=name)
            assert [call.wait().tolist() for call in (work, second)] == [[2.0] * 3] * 2


def test_trace_of_all_members(calm_cluster: Cluster) -> None:
    """``trace`` gathers every member's events; Chrome's format holds each call of each rank."""
    with connected(calm_cluster, "traced") as rings:
        everywhere(rings, lambda ring: ring.all_reduce(tensor(ring.rank, 300_000), name="seen"))
    command = [str(Path(sys.executable).with_name("ringd-cli")), "trace", "--chrome"]
    path = calm_cluster.directory / "trace.json"
    done = subprocess.run(
        [*command, str(path), "--json", "--socket", calm_cluster.sockets[1]],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"schema_version": 1, "path": str(path)}
    events = json.loads(path.read_text())["traceEvents"]
    seen = [event for event in events if "'seen'" in str(event) and event["ph"] == "X"]
    assert len({event["pid"] for event in seen}) == 3


def test_trace_of_calls_that_are_open(calm_cluster: Cluster) -> None:
    """A call that waits is in the trace as begun, on the members that made it, and in Chrome's."""
    with connected(calm_cluster, "stalled") as rings:
        work = rings[0].all_reduce_async(np.ones(3), name="stuck")
        wait_counts(calm_cluster[1], [1, 0, 0], "stalled")
        body = calm_cluster[1].trace()
        said = [line for line in lines(body) if "'stuck'" in line]
        assert len(said) == 1
        # The time as in the daemons' logs.
        assert re.match(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{6}Z  n0  op 0 of group 'stalled': ", said[0])
        assert said[0].endswith("begun and open: it waits for others")
        spans = [e for e in chrome_trace(body)["traceEvents"] if "'stuck'" in str(e)]
        assert [(span["ph"], span["name"]) for span in spans] == [("B", "wait for others")]
        everywhere(rings[1:], lambda ring: ring.all_reduce(np.ones(3), name="stuck"))
        assert work.wait().tolist() == [3.0] * 3
    said = [line for line in lines(calm_cluster[1].trace()) if "'stuck'" in line]
    assert [line for line in said if "begun" in line] == []
    assert len([line for line in said if ", ok after " in line]) == 3
