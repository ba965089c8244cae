"""The pipeline: its stages are the model, beside real daemons and when they die."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.cluster import PATIENCE, Cluster, Node
from tests.examplekit import Example, module

SENTENCES = [f"{'Far away ' * (i % 4)}someone counts to {i}." for i in range(6)]


@pytest.fixture(scope="module")
def minilm() -> Iterator[ModuleType]:
    """Give the module examples/minilm.py."""
    yield from module("minilm")


@pytest.fixture(scope="module")
def pipeline() -> Iterator[ModuleType]:
    """Give the module examples/pipeline_inference.py."""
    yield from module("pipeline_inference")


@pytest.mark.parametrize("size", range(1, 7))
def test_the_runs_of_layers_are_the_whole_model(minilm: ModuleType, size: int) -> None:
    """Each layer belongs to one rank, and one rank behind the other gives the model's bits."""
    whole = minilm.MiniLM()
    stages = [minilm.MiniLM(rank, size, by="layers") for rank in range(size)]
    assert [i for stage in stages for i in stage.layers] == list(range(6))
    assert sum(stage.parameters for stage in stages) == whole.parameters
    for _, tokens, mask in whole.batches(SENTENCES, 4):
        x = stages[0].look_up(tokens)
        for stage in stages:
            x = stage.through_layers(x, mask)
        assert minilm.pooled(x, mask).tobytes() == whole.embed(tokens, mask).tobytes()


def test_more_ranks_than_layers_are_refused(minilm: ModuleType) -> None:
    """A seventh rank would have no layer."""
    with pytest.raises(ValueError, match="6 layers cannot be shared out among 7 ranks"):
        minilm.MiniLM(0, 7, by="layers")


class FakeRing:
    """A ring of threads; each rank has one, and all share *queues*, by sender and receiver."""

    def __init__(self, rank: int, size: int, queues: dict[tuple[int, int], Any]) -> None:
        self.rank, self.size = rank, size
        self.under_way: list[int] = [0]
        """How many messages this rank has sent for which none has come, one time after another."""
        self._queues = queues

    def send(self, x: Any, to: int, *, name: str) -> None:
        """Send without waiting."""
        self.under_way.append(self.under_way[-1] + 1)
        self._queues[self.rank, to].put((x.shape, x.dtype, name, x))

    def recv_async(self, shape: tuple[int, ...], source: int, *, dtype: Any, name: str) -> Any:
        """Return what has a method wait()."""

        def wait() -> Any:
            *sent, x = self._queues[source, self.rank].get(timeout=PATIENCE)
            assert sent == [shape, dtype, name]
            self.under_way.append(self.under_way[-1] - 1)
            return x

        return SimpleNamespace(wait=wait)


class Doubling:
    """In the place of the model: each rank doubles what comes."""

    width = 2

    def look_up(self, tokens: Any) -> Any:
        """Return a vector for each token."""
        return np.stack([tokens, np.ones_like(tokens)], axis=-1).astype(np.float32)

    def through_layers(self, x: Any, _mask: Any) -> Any:
        """Return the double."""
        return 2 * x


@pytest.mark.parametrize("size", [2, 3, 6])
def test_so_many_are_under_way_at_once(minilm: ModuleType, pipeline: ModuleType, size: int) -> None:
    """Rank 0 sends as many micro-batches as are asked for before it waits for one, never more."""
    queues = {(a, b): SimpleQueue() for a in range(size) for b in range(size)}
    model, ring = Doubling(), FakeRing(0, size, queues)
    masks = [minilm.mask_of([i + 1, i % 3 + 1]) for i in range(9)]
    batches = [([2 * i, 2 * i + 1], np.full(mask.shape, i), mask) for i, mask in enumerate(masks)]
    with ThreadPoolExecutor(size - 1) as pool:
        others = [
            pool.submit(pipeline.pass_on, FakeRing(rank, size, queues), model, masks)
            for rank in range(1, size)
        ]
        fed = list(pipeline.feed(ring, model, batches, 4))
        for other in others:
            other.result(PATIENCE)
    assert max(ring.under_way) == 4
    assert ring.under_way[-1] == 0
    for (chosen, embedded), (expected, tokens, mask) in zip(fed, batches, strict=True):
        assert chosen == expected
        x = 2**size * model.look_up(tokens)
        assert embedded.tobytes() == minilm.pooled(x, mask).tobytes()


def rank_of(
    node: Node, stack: ExitStack, local_rank: int, size: int, *arguments: object
) -> Example:
    """Start the example as one of *size* programs beside a daemon."""
    output = node.cluster.directory / f"{node.name}.{local_rank}.out"
    options = ("--socket", node.socket, "--local-rank", local_rank, "--local-size", size)
    return stack.enter_context(Example("pipeline_inference.py", output, *options, *arguments))


def test_two_programs_beside_each_daemon_and_one_of_these_dies(place: Path) -> None:
    """The first programs wait for the last one; a kill in mid-inference changes no bit."""
    report = place / "report.json"
    mine = ("--sentences", 39, "--rounds", 3, "--report", report)
    with Cluster(place, 2) as cluster, ExitStack() as stack:
        cluster.start()
        # What is to be done, rank 0 knows; the others are told.
        present = [rank_of(cluster[0], stack, 0, 2, *mine), rank_of(cluster[0], stack, 1, 2)]
        present.append(rank_of(cluster[1], stack, 0, 2))
        for example, name in zip(present, ("n0", "n0", "n1"), strict=True):
            example.expect(f"here is {name!r}")
        present.append(rank_of(cluster[1], stack, 1, 2))
        present[0].expect("round 1")
        cluster[1].restart()
        assert [example.end() for example in present] == [0, 0, 0, 0]
    for rank, (example, layers) in enumerate(zip(present, (1, 2, 1, 2), strict=True)):
        assert f"rank {rank} of 4: everybody is there" in example.output
        assert f"holds {layers} of 6 layers" in example.output
        assert "the results are right" in example.output
    figures = json.loads(report.read_text())
    assert figures["apart"] == 0
    assert not figures["unlike"]
    assert [one["count"] for one in figures["rounds"]] == [5, 5, 5]
    assert "yes: the whole model gives the same, bit for bit" in present[0].output


def test_every_rank_fails_when_the_results_are_too_far_apart(place: Path) -> None:
    """What only rank 0 can find wrong is known to all ranks, and they say so."""
    with Cluster(place, 1) as cluster, ExitStack() as stack:
        cluster.start()
        options = ("--sentences", 15, "--tolerance", -1)
        present = [rank_of(cluster[0], stack, i, 2, *options) for i in range(2)]
        assert [example.end() for example in present] == [1, 1]
        for example in present:
            assert "the results are NOT right" in example.output


def test_a_rank_alone_says_that_it_takes_two(place: Path) -> None:
    """A ring with room for one program is no pipeline; what to write is said."""
    with Cluster(place, 1) as cluster, ExitStack() as stack:
        cluster.start()
        alone = rank_of(cluster[0], stack, 0, 1)
        assert alone.end() == 1
        assert alone.lines[-1].endswith("For two here: --local-size 2")


def test_all_on_one_machine_with_daemons_killed(tmp_path: Path) -> None:
    """One command starts everything, kills daemons, and still gets the same bits."""
    report = tmp_path / "report.json"
    options = ("--local", 2, "--chaos", "--sentences", 79, "--report", report)
    with Example("pipeline_inference.py", tmp_path / "out", *options) as example:
        assert example.end() == 0
    figures = json.loads(report.read_text())
    assert figures["apart"] == 0
    assert not figures["unlike"]
    assert figures["kills"] >= 1
    assert sum(len(one["delayed"]) for one in figures["rounds"]) >= 1
    assert f"{figures['kills']} kills delayed" in example.output


@pytest.mark.parametrize("name", ["pipeline_inference", "sharded_inference", "train_digits"])
def test_an_example_without_a_daemon_says_so_in_a_line(name: str, tmp_path: Path) -> None:
    """With what to do, and no traceback."""
    options = ("--socket", tmp_path / "nowhere.sock", "--patience", 0.2)
    with Example(f"{name}.py", tmp_path / "out", *options) as example:
        assert example.end() == 1
    (line,) = example.output.splitlines()
    assert line.startswith("no daemon within 0.2 s")
    assert "start one with" in line
