"""Programs that die, leave, come twice or come back, over three real daemons."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_daemon import SEGMENT

import ringd
from tests.cluster import Cluster, wait_until
from tests.ringkit import (
    BOUNDED,
    PATIENT,
    Program,
    begin,
    connected,
    everywhere,
    outcomes,
    tensor,
    total,
    wait_counts,
    wait_state,
)

COUNTS = [100, 12_000, 300_000]
IDLE = "hear()"
ENDINGS = {
    "killed": "hear()",
    "exit": "import os; os._exit(3)",
    "exception": "raise ValueError('on purpose')",
    "left": "ring.close()",
}


def clients(cluster: Cluster, rank: int) -> int:
    """Return how many programs the daemon of *rank* has."""
    return len((cluster[rank].status() or {"clients": []})["clients"])


@pytest.mark.parametrize("ending", ENDINGS)
def test_waiting_calls_learn_of_a_death(calm_cluster: Cluster, ending: str) -> None:
    """However a program ends, calls that wait for it end with its member's name, on all ranks.

    Order, not time, shows that it is the death they learn of: they have no deadline.
    """
    group = f"death {ending}"
    body = "ring.barrier(); hear(); " + ENDINGS[ending]
    with Program(calm_cluster[2], body, group) as program:
        rings = [ringd.connect(calm_cluster.sockets[rank], group) for rank in (0, 1)]
        everywhere(rings, lambda ring: ring.barrier())
        calls = begin(rings, lambda ring: ring.all_reduce(tensor(ring.rank, 300_000)))
        small = rings[0].all_reduce_async(np.ones(2))
        wait_counts(calm_cluster[1], [3, 2, 1], group)
        if ending == "killed":
            program.kill()
        program.tell() if ending != "killed" else None
        found = [call.outcome() for call in calls]
        assert [type(error) for error in found] == [ringd.GroupLost] * 2
        assert [str(error).count("n2") for error in found] == [1, 1]
        with pytest.raises(ringd.GroupLost, match="n2"):
            small.wait()
        # The group can be joined anew at once, by a new program and by those that are there.
        with ringd.connect(calm_cluster.sockets[2], group) as successor:
            rings.append(successor)
            for result in everywhere(rings, lambda ring: ring.all_reduce(tensor(ring.rank, 9))):
                np.testing.assert_array_equal(result, total(3, 9))
            for ring in rings:
                ring.close()


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", "died at 2"),
        ("raise ValueError('on purpose')", "hung up at 2"),
        ("ring._connection.pump.channel.lifeline.send(bytes([99] * 16)); hear()", "was lost (it "),
    ],
    ids=["killed", "exception", "abuse"],
)
def test_only_the_dead_are_said_to_have_died(calm_cluster: Cluster, end: str, said: str) -> None:
    """The others are told how a program was lost, as far as its daemon can know."""
    group = f"how {said}"
    with Program(calm_cluster[2], "ring.barrier(); hear(); " + end, group) as program:
        rings = [ringd.connect(calm_cluster.sockets[rank], group) for rank in (0, 1)]
        everywhere(rings, lambda ring: ring.barrier())
        calls = begin(rings, lambda ring: ring.barrier())
        program.tell()
        for call in calls:
            assert said in str(call.outcome())
        for ring in rings:
            ring.close()


@pytest.mark.parametrize("count", COUNTS)
def test_what_a_dead_program_handed_over_counts(calm_cluster: Cluster, count: int) -> None:
    """A call that was made before the death completes for the others; the next one does not."""
    group = f"handed over {count}"
    body = f"ring.all_reduce_async(tensor(2, {count})); say('made'); hear()"
    with Program(calm_cluster[2], body, group) as program:
        rings = [ringd.connect(calm_cluster.sockets[rank], group) for rank in (0, 1)]
        program.expect("made")
        wait_counts(calm_cluster[0], [0, 0, 1], group)
        program.kill()
        wait_until(lambda: clients(calm_cluster, 2) == 0, "notice of the death")
        for result in everywhere(rings, lambda ring: ring.all_reduce(tensor(ring.rank, count))):
            np.testing.assert_array_equal(result, total(3, count))
        for error in outcomes(rings, lambda ring: ring.all_reduce(tensor(ring.rank, count))):
            assert isinstance(error, ringd.GroupLost)
            assert "n2" in str(error)
        for ring in rings:
            ring.close()


def test_other_groups_notice_nothing(calm_cluster: Cluster) -> None:
    """While programs of one group die, calls of another go on, in the same generation."""
    with connected(calm_cluster, "bystanders") as rings:
        generation = rings[0].generation
        stop = threading.Event()

        def run(ring: ringd.Ring) -> int:
            made = 0
            going_on = True
            while going_on:
                result = ring.all_reduce(tensor(ring.rank, 70_000, made))
                np.testing.assert_array_equal(result, total(3, 70_000, made))
                made += 1
                # All ranks must agree on when to end.
                going_on = bool(ring.all_reduce(not stop.is_set(), "min"))
            return made

        calls = begin(rings, run)
        for rank in (0, 2):
            with Program(calm_cluster[rank], IDLE, "dying") as program:
                ring = ringd.connect(calm_cluster.sockets[1], "dying")
                program.kill()
                wait_until(lambda r=rank: clients(calm_cluster, r) == 1, "notice of the death")
                ring.close()
        stop.set()
        assert all(call.result() > 0 for call in calls)
        assert [ring.generation for ring in rings] == [generation] * 3


def test_a_dead_program_leaves_no_memory(calm_cluster: Cluster) -> None:
    """Segments of a killed program are unmapped, whatever it was doing with them."""
    body = """
buffers = [ring.empty(3_000_000) for _ in range(4)]
for buffer in buffers:
    buffer[:] = 0
works = [ring.all_reduce_async(buffer) for buffer in buffers]
say("made")
hear()
"""
    node = calm_cluster[1]

    def mapped() -> int:
        with open(f"/proc/{node.pid}/maps") as maps:  # noqa: PTH123 - of the kernel
            return sum(SEGMENT in line for line in maps)

    with Program(node, body, "memory") as program:
        program.expect("made")
        wait_until(lambda: mapped() >= 4, "segments in the daemon")
        program.kill()
        wait_until(lambda: mapped() == 0, "no segments in the daemon")
        wait_until(lambda: clients(calm_cluster, 1) == 0, "no clients")


def test_no_names_in_shared_memory(calm_cluster: Cluster) -> None:
    """Tensors cross in nameless memory: a full or tiny /dev/shm is nobody's concern."""
    with connected(calm_cluster, "nameless") as rings:
        everywhere(rings, lambda ring: ring.all_reduce(tensor(ring.rank, 300_000)).sum())
        for pid in [node.pid for node in calm_cluster.nodes] + [os.getpid()]:
            with open(f"/proc/{pid}/maps") as maps:  # noqa: PTH123
                shared = [line.split()[-2:] for line in maps if " rw-s " in line]
            names = [" ".join(words) for words in shared]
            assert [name for name in names if "/dev/shm" in name] == []  # noqa: S108 - not used
            assert any(SEGMENT in name for name in names)


def test_no_memory_is_a_clear_error(calm_cluster: Cluster) -> None:
    """A program that may have no more memory is told so, and goes on."""
    body = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    ring.all_reduce(np.ones(300_000))
except ringd.ResourceExhausted as error:
    say("exhausted", "shared memory" in str(error))
say(ring.all_reduce(np.ones(2)).tolist())
"""
    with (
        Program(calm_cluster[0], body, "starved") as program,
        ringd.connect(calm_cluster.sockets[1], "starved") as one,
        ringd.connect(calm_cluster.sockets[2], "starved") as two,
    ):
        program.expect("exhausted True")
        everywhere([one, two], lambda ring: ring.all_reduce(np.ones(2)))
        program.expect("[3.0, 3.0]")
        assert program.end() == 0


def test_second_client_is_refused(calm_cluster: Cluster) -> None:
    """A group has one client per machine; the second is told so, the first is not disturbed."""
    with connected(calm_cluster, "taken") as rings:
        with pytest.raises(ringd.Refused, match="'taken' has a client on 'n1' already"):
            ringd.connect(calm_cluster.sockets[1], "taken")
        for result in everywhere(rings, lambda ring: ring.all_reduce(tensor(ring.rank, 9))):
            np.testing.assert_array_equal(result, total(3, 9))
    with connected(calm_cluster, "taken") as rings:  # free again
        assert everywhere(rings, lambda ring: ring.all_reduce(1).item()) == [3] * 3


def test_a_cell_run_twice_is_told_that_it_was_itself(calm_cluster: Cluster) -> None:
    """The place is held by this very process: its id, and how it gets free."""
    with (
        ringd.connect(calm_cluster.sockets[0], "cell") as ring,
        pytest.raises(ringd.Refused) as refused,
    ):
        ringd.connect(calm_cluster.sockets[0], "cell")
    assert "it is this very process" in str(refused.value)
    assert f"pid {os.getpid()}" in str(refused.value)
    assert "close()" in str(refused.value)
    with pytest.raises(ringd.RingError, match="closed"):
        ring.barrier()
    with ringd.connect(calm_cluster.sockets[0], "cell") as ring:
        assert ring.node == "n0"


def test_another_process_that_holds_the_place_is_named(calm_cluster: Cluster) -> None:
    """By its program and its process id, so that it can be found and ended."""
    with (
        Program(calm_cluster[0], IDLE, "held") as program,
        pytest.raises(ringd.Refused) as refused,
    ):
        ringd.connect(calm_cluster.sockets[0], "held")
    assert f"pid {program.process.pid}" in str(refused.value)
    assert "this very process" not in str(refused.value)


def test_a_ring_that_nobody_can_reach_holds_no_place(calm_cluster: Cluster) -> None:
    """One in a cycle of garbage, as a trainer that knows itself, gives way to the next."""
    gc.disable()
    try:
        for _ in range(3):
            trainer = SimpleNamespace(ring=ringd.connect(calm_cluster.sockets[0], "cycle"))
            trainer.myself = trainer
            del trainer
        ringd.connect(calm_cluster.sockets[0], "cycle").close()
    finally:
        gc.enable()


def test_close_is_not_a_loss(calm_cluster: Cluster) -> None:
    """Programs that end one after the other, all calls done, cause no errors."""
    with connected(calm_cluster, "orderly") as rings:
        for rank in (1, 0, 2):
            count = 300_000 + rank
            works = [ring.all_reduce_async(tensor(ring.rank, count)) for ring in rings]
            np.testing.assert_array_equal(works[rank].wait(), total(3, count))
            if rank == 2:
                for ring in rings:
                    ring.close()
            for work in works[:0] if rank == 2 else works:
                np.testing.assert_array_equal(work.wait(), total(3, count))


def test_one_leaves_when_it_has_its_result(calm_cluster: Cluster) -> None:
    """A program that closes with its last result in hand takes nothing from the others."""
    for count in COUNTS:
        with connected(calm_cluster, f"last {count}") as rings:

            def last(ring: ringd.Ring, count: int = count) -> np.ndarray:
                result = ring.all_reduce(tensor(ring.rank, count))
                ring.close()
                return result

            for result in everywhere(rings, last):
                np.testing.assert_array_equal(result, total(3, count))


def test_program_is_named_in_the_status(calm_cluster: Cluster) -> None:
    """The daemon shows its programs by the kernel's process id."""
    with Program(calm_cluster[0], IDLE, "shown") as program:
        status = calm_cluster[0].status()
        assert status is not None
        assert [client["pid"] for client in status["clients"]] == [program.process.pid]
        assert [g["present"] for g in status["groups"] if g["name"] == "shown"] == [["n0"]]


def test_loss_is_told_at_once_where_asked_for(place: Path) -> None:
    """With ``on_loss="fail"`` open calls end with PeerLost on every rank; later ones go through."""
    with Cluster(place, 3, settings=PATIENT) as cluster:
        cluster.start().wait_ready()
        with connected(cluster, "told", on_loss="fail") as rings, connected(cluster, "wait") as old:
            everywhere(rings, lambda ring: ring.barrier())
            waiting = [ring.all_reduce_async(np.ones(2)) for ring in old[:2]]
            # Two members have called, the third is the one whose daemon dies.
            works = [ring.all_reduce_async(tensor(ring.rank, 300_000)) for ring in rings[:2]]
            wait_counts(cluster[2], [2, 2, 1], "told")
            cluster[2].kill()
            for work in works:
                with pytest.raises(ringd.PeerLost, match="n2"):
                    work.wait()
            cluster[2].start()
            cluster.wait_ready(beyond=1)
            # The third learns of it with its next call, whatever name it has for it.
            found = rings[2:] and outcomes(
                rings[2:], lambda ring: ring.all_reduce(np.ones(2), timeout=5)
            )
            assert isinstance(found[0], (ringd.PeerLost, ringd.GroupLost))
            for result in everywhere(rings, lambda ring: ring.all_reduce(tensor(ring.rank, 9))):
                np.testing.assert_array_equal(result, total(3, 9))
            waiting.append(old[2].all_reduce_async(np.ones(2)))
            assert [work.wait().tolist() for work in waiting] == [[3.0, 3.0]] * 3


def test_not_ready(place: Path) -> None:
    """``wait_ready`` says that the ring is not, calls wait for it."""
    with Cluster(place, 2, settings=BOUNDED) as cluster:
        cluster.start([0])
        with ringd.connect(cluster.sockets[0]) as ring:
            with pytest.raises(ringd.NotReady, match="forming"):
                ring.wait_ready(0.05)
            with pytest.raises(ringd.DeadlineExceeded, match="not up"):
                ring.all_reduce(np.ones(2), timeout=0.1)
            work = ring.all_reduce_async(np.ones(2))
            cluster.start([1])
            ring.wait_ready(30)
            assert ring.state == "ready"
            wait_state(cluster[1], "ready")
            with ringd.connect(cluster.sockets[1]) as other:
                with pytest.raises(ringd.DeadlineExceeded, match="passed on 'n0'"):
                    other.all_reduce(np.ones(2))
                other.all_reduce_async(np.ones(2))
                assert work.wait().tolist() == [2.0, 2.0]
