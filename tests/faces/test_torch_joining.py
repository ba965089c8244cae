"""How ranks come together, and what they are told where they cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

import ringd
from ringd.torch.rendezvous import Request
from ringd.torch.seats import Claim, Seats, ranks_of
from tests.cluster import Cluster
from tests.faces.ranks import PATIENCE, Raised, Ranks, beside
from tests.ownports import free_ports

SIZE = 3
SHORT = timedelta(seconds=3)


@contextmanager
def programs(cluster: Cluster, *environs: dict[str, str]) -> Iterator[Ranks]:
    """Give one beside each daemon, with these additions to its environment."""
    each = environs or ({},) * len(cluster.sockets)
    socket = zip(beside(cluster.sockets[: len(each)]), each, strict=True)
    with Ranks([{**one, **more} for one, more in socket]) as ranks:
        yield ranks


def met(**options: Any) -> tuple[int, int, int]:
    """Join; return the rank, the size, and a sum that shows that ranks are what they say."""
    dist.init_process_group("ringd", **options)
    rank, size = dist.get_rank(), dist.get_world_size()
    gathered = torch.zeros(size, dtype=torch.int64)
    dist.all_gather_into_tensor(gathered, torch.tensor([rank]))
    group = dist.new_group([0, size - 1])
    if rank in (0, size - 1):
        ends = torch.zeros(2, dtype=torch.int64)
        dist.all_gather_into_tensor(ends, torch.tensor([rank]), group=group)
        assert ends.tolist() == [0, size - 1]
    dist.destroy_process_group()
    assert gathered.tolist() == list(range(size))
    return rank, size, int(os.environ.get("LOCAL_RANK", "0"))


def met_as(order: list[int], init_method: str) -> tuple[int, int, int]:
    """Join with the rank that *order* has for this process, which knows its number as PLACE."""
    rank = order[int(os.environ["PLACE"])]
    return met(init_method=init_method, rank=rank, world_size=len(order))


def placed(size: int) -> list[dict[str, str]]:
    """Return environments with a number for each process."""
    return [{"PLACE": str(place)} for place in range(size)]


def test_by_the_ring_alone(cluster: Cluster) -> None:
    """Rank and size are those of the ring."""
    with programs(cluster) as ranks:
        found = ranks.call(met_in_the_ring)
    assert found == [(0, 3, 0), (1, 3, 0), (2, 3, 0)]


def met_in_the_ring() -> tuple[int, int, int]:
    """As a user without a launcher."""
    return met(init_method="ringd://")


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 0, 2]], ids=str)
def test_in_an_order_of_their_own(cluster: Cluster, order: list[int]) -> None:
    """Ranks that are given differ from the ring's."""
    with programs(cluster, *placed(3)) as ranks:
        assert [rank for rank, _, _ in ranks.call(met_as, order, "ringd://job")] == order


def test_through_a_file(cluster: Cluster, tmp_path: Path) -> None:
    """Which says nothing of machines: they find out themselves."""
    with programs(cluster, *placed(3)) as ranks:
        found = ranks.call(met_as, [1, 2, 0], f"file://{tmp_path}/store")
    assert [rank for rank, _, _ in found] == [1, 2, 0]


def test_through_the_environment(cluster: Cluster) -> None:
    """MASTER_ADDR and its like, as for any other backend; twice in the same processes."""
    (port,) = free_ports(1)
    environs = [
        {
            "RANK": str(rank),
            "WORLD_SIZE": "3",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        for rank in (2, 1, 0)
    ]
    with programs(cluster, *environs) as ranks:
        for _ in range(2):
            assert [rank for rank, _, _ in ranks.call(met)] == [2, 1, 0]
        ranks.call(beside_gloo, "ringd", "gloo")
        ranks.call(beside_gloo, "gloo", "ringd")


def beside_gloo(default: str, other: str) -> None:
    """Use a group of each backend."""
    dist.init_process_group(default)
    group = dist.new_group([0, 2], backend=other)
    for chosen, expected in [(dist.group.WORLD, 3), (group, 2)]:
        total = torch.tensor([dist.get_rank(), 1])
        if dist.get_rank() != 1 or chosen is dist.group.WORLD:
            dist.all_reduce(total, group=chosen)
            assert total.tolist() == [expected if chosen is dist.group.WORLD else 2, expected]
    dist.destroy_process_group()


def test_on_some_of_the_machines(cluster: Cluster) -> None:
    """Which are named; the others have no program."""
    with programs(cluster, {}, {}) as ranks:
        found = ranks.call(met_in, "ringd://two?members=n0,n1")
    assert [(rank, size) for rank, size, _ in found] == [(0, 2), (1, 2)]


def met_in(url: str) -> tuple[int, int, int]:
    """As a user of *url*."""
    return met(init_method=url)


TORCHRUN = """
import torch
from torch import distributed as dist
dist.init_process_group("ringd", init_method={init_method!r})
total = torch.tensor([dist.get_rank()])
dist.all_reduce(total)
import os
assert dist.get_rank() == int(os.environ["RANK"])
dist.destroy_process_group()
os.write(1, b"sum %d\\n" % total.item())  # at once: another program writes to the same pipe
"""


@pytest.mark.parametrize("init_method", ["ringd://run", "env://"])
def test_torchrun(cluster: Cluster, tmp_path: Path, init_method: str) -> None:
    """Two programs on each of three machines, under torch's own launcher."""
    (port,) = free_ports(1)
    script = tmp_path / "script.py"
    script.write_text(TORCHRUN.format(init_method=init_method))
    agents = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run"),
                *("--nnodes=3", f"--node-rank={node}", "--nproc-per-node=2"),
                *("--master-addr=127.0.0.1", f"--master-port={port}", str(script)),
            ],
            env={**os.environ, "RINGD_SOCKET": socket, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for node, socket in enumerate(cluster.sockets)
    ]
    said = [agent.communicate(timeout=2 * PATIENCE)[0].splitlines() for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0, 0]
    assert said == [["sum 15"] * 2] * 3


# --- what goes wrong ----------------------------------------------------------------------


def failed(ranks: Ranks, function: Any, *args: Any) -> list[str]:
    """Have all call *function*; return the last line of what each of them raised."""
    ranks.begin(function, *args)
    outcomes = ranks.outcomes()
    assert all(isinstance(outcome, Raised) for outcome in outcomes), outcomes
    return [outcome.strip().splitlines()[-1] for outcome in outcomes]


def test_ranks_that_do_not_fit(cluster: Cluster) -> None:
    """All are told which program has said what."""
    with programs(cluster, *placed(3)) as ranks:
        for text in failed(ranks, met_as, [0, 1, 1], "ringd://twice"):
            assert text.startswith("ValueError: the programs' ranks are not 0 to 2")
            assert "n0: 0, n1: 1, n2: 1" in text
        ranks.call(met_in_the_ring)


def test_another_world_size(cluster: Cluster) -> None:
    """Than there are programs in the ring."""
    with programs(cluster, *({"WORLD_SIZE": "4"},) * 3) as ranks:
        for text in failed(ranks, met_in, "ringd://size"):
            assert text.startswith("ValueError: world_size is 4 on n0, but there are 3 programs")


def test_too_small_a_world_size(cluster: Cluster) -> None:
    """Waits for nobody: each machine of the ring has a program at least."""
    with programs(cluster, {"WORLD_SIZE": "2"}) as ranks:
        (text,) = failed(ranks, met_in, "ringd://small")
    assert text.startswith("ValueError: world_size is 2, but there are 3 programs at least, on n0")


def test_no_ring_is_named(cluster: Cluster) -> None:
    """A URL that says what ringd does not know."""
    with programs(cluster, {}) as ranks:
        for url in ("ringd://a/b", "ringd://?member=n0"):
            (text,) = failed(ranks, met_in, url)
            assert text.startswith(f"ValueError: {url} is no ringd://GROUP?members=NAME,NAME")
        (text,) = failed(ranks, met_in, "ringd://?members=nobody")
        assert "nobody" in text


def without_daemon() -> None:
    """Join where there is none."""
    os.environ["RINGD_SOCKET"] = "/nowhere/at.all"
    dist.init_process_group("ringd", init_method="ringd://", timeout=SHORT)


def test_no_daemon(cluster: Cluster) -> None:
    """It is said where one was looked for, within the timeout."""
    with programs(cluster, {}) as ranks:
        (text,) = failed(ranks, without_daemon)
        assert "DaemonUnavailable" in text
        assert "/nowhere/at.all" in text


def hold(group: str) -> None:
    """Be in *group*, as a former run that goes on."""
    globals()["held"] = ringd.connect(group=group)


def test_a_group_that_is_held(cluster: Cluster) -> None:
    """By a program of an earlier run: its number is told."""
    with programs(cluster, {}) as former, programs(cluster) as ranks:
        former.call(hold, "held")
        ranks.begin(met_in, "ringd://held", ranks=[0])
        (text,) = ranks.outcomes([0])
        assert isinstance(text, Raised)
        assert f"pid {former.processes[0].pid}" in text


def too_few(url: str) -> None:
    """Wait for others who do not come."""
    dist.init_process_group("ringd", init_method=url, timeout=SHORT)


def test_a_rank_that_does_not_come(cluster: Cluster, tmp_path: Path) -> None:
    """Its machine is named, or its number where nothing else is known."""
    with programs(cluster, {}, {}) as ranks:
        for text in failed(ranks, too_few, "ringd://few"):
            assert "DeadlineExceeded" in text
            assert "n2" in text
    with programs(cluster, *placed(2)) as ranks:
        for text in failed(ranks, too_few_by_file, f"file://{tmp_path}/store"):
            assert text.startswith("torch.distributed.DistBackendError: rank 2 has not come")


def too_few_by_file(url: str) -> None:
    """As :func:`too_few`, with a store."""
    rank = int(os.environ["PLACE"])
    dist.init_process_group("ringd", init_method=url, timeout=SHORT, rank=rank, world_size=3)


def late() -> str:
    """All but rank 2 call; return what they are told."""
    dist.init_process_group("ringd", init_method="ringd://late", timeout=SHORT)
    text = ""
    if dist.get_rank() != 2:
        with pytest.raises(RuntimeError, match=" timeout ") as caught:
            dist.all_reduce(torch.ones(1))
        assert isinstance(caught.value, ringd.DeadlineExceeded)
        assert isinstance(caught.value, dist.DistBackendError)
        text = str(caught.value)
        with pytest.raises(RuntimeError, match=" timeout "):
            dist.all_reduce(torch.ones(1), async_op=True).get_future().wait()
    return text


def test_a_missing_call(cluster: Cluster) -> None:
    """Ends at the group's timeout, and names who has not made it."""
    with programs(cluster) as ranks:
        told = ranks.call(late)
    assert "n2" in told[0]
    assert "n2" in told[1]


def late_in_training() -> str:
    """All but rank 2 take a step of DDP; return what they are told."""
    dist.init_process_group("ringd", init_method="ringd://training", timeout=SHORT)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))
    if dist.get_rank() == 2:
        return ""
    with pytest.raises(RuntimeError) as caught:
        model(torch.ones(1, 2)).sum().backward()
    return str(caught.value)


def test_a_missing_step(cluster: Cluster) -> None:
    """DDP, which waits in C++, says as much as the call."""
    with programs(cluster) as ranks:
        told = ranks.call(late_in_training)
    for text in told[:2]:
        assert "DeadlineExceeded" in text
        assert "not submitted by: n2" in text


def differ() -> None:
    """Make different calls."""
    dist.init_process_group("ringd", init_method="ringd://differ")
    dist.all_reduce(torch.ones(1 + dist.get_rank()))


def test_different_calls(cluster: Cluster) -> None:
    """All ranks are told which ones."""
    with programs(cluster) as ranks:
        for text in failed(ranks, differ):
            assert "Mismatch" in text


def lonely() -> None:
    """Ask for a group of another backend, which needs a store."""
    dist.init_process_group("ringd", init_method="ringd://lonely")
    with pytest.raises(RuntimeError, match="has no store"):
        dist.new_group(backend="gloo")


def test_there_is_no_store(cluster: Cluster) -> None:
    """Who needs one is told at once."""
    with programs(cluster) as ranks:
        ranks.call(lonely)


def lost() -> str:
    """Wait for one that dies."""
    dist.init_process_group("ringd", init_method="ringd://lost")
    dist.barrier()
    if dist.get_rank() == 2:
        os._exit(1)
    with pytest.raises(RuntimeError) as caught:
        dist.all_reduce(torch.ones(1))
    assert isinstance(caught.value, ringd.GroupLost)
    return str(caught.value)


def test_a_rank_that_dies(cluster: Cluster) -> None:
    """The others are told which one."""
    with programs(cluster) as ranks:
        ranks.begin(lost)
        for text in ranks.outcomes([0, 1]):
            assert not isinstance(text, Raised), text
            assert "n2" in text


ENDS = """
import sys, torch
from torch import distributed as dist
dist.init_process_group("ringd", init_method="ringd://ends")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1))
model(torch.ones(3)).backward()
left = dist.irecv(torch.ones(3), (dist.get_rank() + 1) % 3)
told = left.get_future()
dist.barrier()
if {fails}:
    raise RuntimeError("on its own account")
"""


@pytest.mark.parametrize("fails", [False, True])
def test_programs_that_end_without_a_word(cluster: Cluster, *, fails: bool) -> None:
    """They end as Python has it, with a call that nobody waits for."""
    run = [sys.executable, "-c", ENDS.format(fails=fails)]
    started = [
        subprocess.Popen(run, env={**os.environ, **environ}, stderr=subprocess.PIPE, text=True)
        for environ in beside(cluster.sockets)
    ]
    said = [program.communicate(timeout=PATIENCE)[1] for program in started]
    assert [program.returncode for program in started] == [int(fails)] * 3, said
    for text in said:
        assert ("on its own account" in text) == fails
        assert "Fatal" not in text


@pytest.mark.parametrize("autoload", ["0", "1"])
def test_found_by_torch(autoload: str) -> None:
    """By itself; or when it is told to, where it looks for nothing."""
    told = "" if autoload == "1" else "import ringd.torch; ringd.torch.register(); "
    code = f"import torch, sys; {told}assert 'RINGD' in torch.distributed.Backend._plugins; "
    code += "assert 'zmq' not in sys.modules"
    environ = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": autoload}
    subprocess.run([sys.executable, "-c", code], env=environ, check=True, timeout=PATIENCE)


def test_torch_is_imported_whatever_happens() -> None:
    """Also where the backend cannot be registered."""
    code = "import ringd.torch.registration as r; r.register = None; import torch"
    run = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert 'has no backend "ringd"' in done.stderr


# --- what needs no ring -------------------------------------------------------------------


def test_requests() -> None:
    """A URL, with what torch adds to it, and the environment, which it precedes."""
    launched = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert Request.of("ringd://", {}) == Request("torch", None, Claim(), 0, 1)
    assert Request.of("ringd:?rank=2&world_size=3", {}).claim == Claim(2, 3)
    asked = Request.of("ringd://job?members=a,b&rank=0&world_size=4", launched)
    assert asked == Request("job", ["a", "b"], Claim(0, 4), 1, 2)
    assert Request.of("ringd://job", launched).claim == Claim(1, 4)
    with pytest.raises(ValueError, match="LOCAL_RANK is a number, not 'x'"):
        Request.of("ringd://", {"LOCAL_RANK": "x"})


def test_claims() -> None:
    """Ranks that are not given are the ring's; those that are must be all of them, once."""
    nodes = ["a", "a", "b"]
    assert ranks_of([Claim()] * 3, nodes) == [0, 1, 2]
    assert ranks_of([Claim(2, 3), Claim(0, 3), Claim(1, 3)], nodes) == [2, 0, 1]
    for claims in ([Claim(0), Claim(1), Claim()], [Claim(0), Claim(0), Claim(1)]):
        with pytest.raises(ValueError, match="each once"):
            ranks_of(claims, nodes)
    with pytest.raises(ValueError, match="world_size is 4 on b"):
        ranks_of([Claim(), Claim(), Claim(None, 4)], nodes)


def test_seats() -> None:
    """Where a part's ranks are; like names of parts without a common rank do not meet."""
    seats = Seats("job", 2, ("b", "a", "b", "a"), ("a", "b"))
    assert (seats.local_rank, seats.local_size, seats.in_ring_order) == (1, 2, False)
    part = seats.part("1", [1, 2], 1)
    assert part == Seats(part.group, 1, ("a", "b"), ("a", "b"))
    assert part.in_ring_order
    assert part.group.startswith("job/1-")
    assert part.group != seats.part("1", [2, 3], 1).group
    assert part.group != seats.part("1", [1, 2], 2).group
