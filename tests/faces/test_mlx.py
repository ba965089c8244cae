"""MLX, unmodified, under ``run --mlx``: launched apart, disturbed, ended; values checked."""

from __future__ import annotations

import importlib.util
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster
from tests.proxy import Proxy
from tests.ringkit import BOUNDED, HASTY
from tests.test_ring_streams_held import Command, end_all, program

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mlx") is None, reason="MLX's wheels for CPUs are for Linux"
)

PAGE = Path(__file__).parents[2] / "docs" / "mlx.md"
APART = 4.0
"""Seconds."""

SUMS = """
    import resource, sys, time
    import mlx.core as mx

    def used():
        found = resource.getrusage(resource.RUSAGE_SELF)
        return found.ru_utime + found.ru_stime

    before = used()
    group = mx.distributed.init(strict=True, backend="ring")
    rank, size = group.rank(), group.size()
    print("in", round(used() - before, 2), flush=True)
    for number in range(int(sys.argv[1])):
        x = mx.arange(50_000, dtype=mx.float32) + (rank + number)
        total = mx.distributed.all_sum(x)
        gathered = mx.distributed.all_gather(mx.full((1000,), rank + number))
        mx.eval(total, gathered)
        expected = mx.arange(50_000) * size + sum(other + number for other in range(size))
        assert mx.array_equal(total, expected.astype(mx.float32))
        assert gathered.reshape(size, 1000)[:, 7].tolist() == [r + number for r in range(size)]
        if rank == 0:
            mx.eval(mx.distributed.send(x, 1))
        elif rank == 1:
            came = mx.distributed.recv_like(x, 0)
            assert mx.array_equal(came, x - 1)
        time.sleep(0.02)
    print("done", rank, flush=True)
"""

TRAIN = """
    from functools import partial
    import mlx.core as mx, mlx.nn as nn, mlx.optimizers as optim

    group = mx.distributed.init(strict=True, backend="ring")
    mx.random.seed(0)
    model = nn.Linear(8, 1)
    optimizer = optim.SGD(learning_rate=0.05)
    true = mx.arange(8, dtype=mx.float32)[:, None]
    mx.random.seed(1 + group.rank())
    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(x):
        loss, gradients = nn.value_and_grad(
            model, lambda x: ((model(x) - x @ true) ** 2).mean()
        )(x)
        optimizer.update(model, nn.average_gradients(gradients))
        return loss

    for _ in range(300):
        loss = step(mx.random.normal((32, 8)))
        mx.eval(state)
    assert loss.item() < 0.01, loss
    weights = mx.distributed.all_gather(model.weight)
    mx.eval(weights)
    assert mx.array_equal(weights[0], weights[-1])
"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, list[Proxy]]]:
    """Give three daemons with a proxy before each."""
    with Cluster(tmp_path_factory.mktemp("unused"), 3) as plan:
        ports = [node.port for node in plan.nodes]
    proxies = [Proxy(port) for port in ports]
    dial = {f"n{rank}": proxy.port for rank, proxy in enumerate(proxies)}
    directory = tmp_path_factory.mktemp("ring")
    with Cluster(directory, 3, settings=HASTY, ports=ports, dial=dial) as cluster:
        cluster.start().wait_ready()
        yield cluster, proxies
    for proxy in proxies:
        proxy.close()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """End what a test has started."""
    yield
    end_all()


def run(
    cluster: Cluster, rank: int, text: str, *words: str, options: Sequence[str] = ()
) -> Command:
    """Start a program of MLX beside a daemon."""
    command = ("nice", "-n", "5", *program(text), *words)
    return Command(cluster[rank], "run", "--mlx", *options, "--", *command)


def end(commands: dict[int, Command]) -> dict[int, str]:
    """See that all end well; return what each printed."""
    printed = {}
    for rank, command in commands.items():
        code, printed[rank], err = command.end(120)
        assert code == 0, err
    return printed


@pytest.mark.parametrize("size", [2, 3, 4])
def test_launched_apart(tmp_path_factory: pytest.TempPathFactory, size: int) -> None:
    """In every order (of four: in every fourth), all at the same time; none uses the processor.

    ``benchmarks/launch_skew.py`` does it by minutes, and ``tests/test_mlx_orders.py`` without MLX.
    """
    orders = list(permutations(range(size)))[:: 4 if size == 4 else 1]
    jobs: list[dict[int, Command]] = [{} for _ in orders]
    with Cluster(tmp_path_factory.mktemp("ring"), size, settings=BOUNDED) as cluster:
        cluster.start().wait_ready()
        for place in range(size):
            if place:
                time.sleep(APART)
            for job, order in zip(jobs, orders, strict=True):
                name = ("--name", "".join(map(str, order)))
                job[order[place]] = run(cluster, order[place], SUMS, "3", options=name)
        for job in jobs:
            for out in end(job).values():
                assert float(out.split()[1]) < 1.0


def cut(scene: tuple[Cluster, list[Proxy]]) -> None:
    """Reset all links."""
    for proxy in scene[1]:
        proxy.cut()


def strand(scene: tuple[Cluster, list[Proxy]]) -> None:
    """Let a link fall silent for ever."""
    scene[1][1].strand()


def kill(scene: tuple[Cluster, list[Proxy]]) -> None:
    """Kill a daemon."""
    scene[0][2].restart()


def kill_all(scene: tuple[Cluster, list[Proxy]]) -> None:
    """Kill all daemons."""
    for node in scene[0].nodes:
        node.kill()
    scene[0].start()


def test_disturbed(scene: tuple[Cluster, list[Proxy]]) -> None:
    """Sums, gathers and messages have the right values, whatever happens to links and daemons."""
    cluster = scene[0]
    commands = {rank: run(cluster, rank, SUMS, "300") for rank in range(3)}
    for command in commands.values():
        assert command.process.stdout.readline().startswith("in ")
    disturbances: list[Callable[[tuple[Cluster, list[Proxy]]], None]]
    disturbances = [cut, strand, kill, cut, kill_all]
    for disturb in disturbances:
        assert all(command.process.poll() is None for command in commands.values())
        generation = cluster.wait_ready()
        disturb(scene)
        cluster.wait_ready(generation)
    for rank, out in end(commands).items():
        assert out == f"done {rank}\n"


def test_training_in_a_compiled_step(scene: tuple[Cluster, list[Proxy]]) -> None:
    """With the gradients averaged in it, which no patched module could do."""
    end({rank: run(scene[0], rank, TRAIN) for rank in range(3)})


def test_a_program_that_is_killed(scene: tuple[Cluster, list[Proxy]]) -> None:
    """What it does to the others is what it does without us, and the next run is right.

    That is an error in their next call, or (in a quarter of the runs of MLX 0.32.4 by itself) a
    wait without end; so they are ended, too.
    """
    commands = {rank: run(scene[0], rank, SUMS, "100000") for rank in range(3)}
    for command in commands.values():
        assert command.process.stdout.readline().startswith("in ")
    commands[1].process.send_signal(signal.SIGTERM)
    assert commands[1].end()[0] == 128 + signal.SIGTERM
    for rank in (0, 2):
        said = commands[rank].process.stderr.readline()
        while "Too many send/recv errors" not in said:
            assert said
            said = commands[rank].process.stderr.readline()
        commands[rank].process.send_signal(signal.SIGTERM)
        # The last one if it was about to exit itself, and passed nothing on any more.
        assert commands[rank].end()[0] in {1, 128 + signal.SIGTERM, -signal.SIGTERM}
    end({rank: run(scene[0], rank, SUMS, "3") for rank in (2, 1, 0)})


def test_the_first_lines_of_the_page() -> None:
    """They are what is typed here."""
    assert "    ringd-cli run --mlx -- python generate.py" in PAGE.read_text()


def test_jaccl_takes_the_factory() -> None:
    """As the page has it. MLX checks what it is given, also where it calls nothing."""
    import mlx.core as mx

    (lines,) = re.findall(r"```python\n([^`]*jaccl_factory[^`]*)```", PAGE.read_text())
    typed: dict[str, Any] = {}
    exec(lines, typed)  # noqa: S102 - it is our own
    assert typed["group"].size() == 1
    with pytest.raises(TypeError, match="all_gather_factory"):
        mx.distributed.init(backend="jaccl", all_gather_factory=3)
