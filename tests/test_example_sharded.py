"""The sharded model: its shares add up to the model, beside real daemons and when they die."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.cluster import PATIENCE, Cluster
from tests.examplekit import Example, module

SENTENCES = [
    "A nurse repairs a bicycle.",
    "Somebody mends a bike.",
    "The stock market fell sharply after the central bank's announcement on Thursday.",
    "",
]
FIRST = [-0.02983832, 0.04277697, 0.00808637, 0.00672134]
"""The beginning of the first one's embedding, by sentence-transformers 6.2.0 with torch."""


@pytest.fixture(scope="module")
def minilm() -> Iterator[ModuleType]:
    """Give the module examples/minilm.py."""
    yield from module("minilm")


@pytest.fixture(scope="module")
def embedded(minilm: ModuleType) -> np.ndarray:
    """Give what the whole model makes of SENTENCES."""
    return embed(minilm.MiniLM(), minilm.alone)


def embed(model: Any, all_sum: Any) -> np.ndarray:
    """Return the embeddings of SENTENCES, in their order."""
    result = np.empty((len(SENTENCES), model.width), np.float32)
    for chosen, tokens, mask in model.batches(SENTENCES, 3):
        result[chosen] = model.embed(tokens, mask, all_sum)
    return result


def test_the_whole_model_agrees_with_another_implementation(embedded: np.ndarray) -> None:
    """The embedding of a sentence is what the model's own library makes of it."""
    assert embedded[0, :4].tolist() == pytest.approx(FIRST, abs=1e-6)


def test_like_meaning_is_near(embedded: np.ndarray) -> None:
    """A sentence is nearer to its paraphrase than to one about something else."""
    alike = embedded @ embedded[0]
    assert alike[0] == pytest.approx(1, abs=1e-6)
    assert alike[1] > 0.4
    assert alike[2] < 0.2


@pytest.mark.parametrize("size", range(1, 13))
def test_shares_cover_everything_once_and_evenly(minilm: ModuleType, size: int) -> None:
    """Every head and column belongs to exactly one rank, and no rank is without."""
    for count in (12, 1536):
        shares = [minilm.share(count, rank, size) for rank in range(size)]
        assert [i for one in shares for i in one] == list(range(count))
        assert {len(one) for one in shares} <= {count // size, math.ceil(count / size)}


def test_more_ranks_than_heads_are_refused(minilm: ModuleType) -> None:
    """A thirteenth rank would have no head."""
    with pytest.raises(ValueError, match="12 heads cannot be shared out among 13 ranks"):
        minilm.MiniLM(0, 13)


def test_uneven_shares_add_up_to_the_whole_model(minilm: ModuleType, embedded: np.ndarray) -> None:
    """Five ranks, of which some have two heads and some three, compute what one does."""
    size = 5
    parts: list[Any] = [None] * size
    in_step = threading.Barrier(size, timeout=PATIENCE)

    def run(rank: int) -> np.ndarray:
        def all_sum(part: np.ndarray, name: str) -> np.ndarray:
            parts[rank] = (name, part)
            in_step.wait()
            names, arrays = zip(*parts, strict=True)
            assert set(names) == {name}
            total = np.sum(arrays, axis=0)
            in_step.wait()
            return total

        return embed(minilm.MiniLM(rank, size), all_sum)

    with ThreadPoolExecutor(size) as pool:
        for result in pool.map(run, range(size)):
            assert np.abs(result - embedded).max() <= 1e-6


def test_gelu_is_exact_to_float32(minilm: ModuleType) -> None:
    """The activation agrees with the error function of the standard library."""
    x = np.linspace(-8, 8, 4001, dtype=np.float32)
    expected = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()]
    assert np.abs(minilm.gelu(x) - expected).max() < 1e-6


def ranks(cluster: Cluster, stack: ExitStack, *arguments: object) -> Iterator[Example]:
    """Start the example beside one daemon after the other, whenever the next is asked for."""
    for node in cluster.nodes:
        output = node.cluster.directory / f"{node.name}.out"
        report = ("--report", output.with_suffix(".json"))
        options = ("--socket", node.socket, "--sentences", 40, "--batch", 8, *report, *arguments)
        yield stack.enter_context(Example("sharded_inference.py", output, *options))


def test_ranks_that_come_late_and_a_daemon_that_dies_change_nothing(place: Path) -> None:
    """The first ranks wait for the last one; a kill in mid-inference changes no bit."""
    with Cluster(place, 3) as cluster, ExitStack() as stack:
        cluster.start()
        coming = ranks(cluster, stack, "--rounds", 3)
        present = [next(coming), next(coming)]
        for rank, example in enumerate(present):
            example.expect(f"here is 'n{rank}'")
        present.append(next(coming))
        present[0].expect("round 1")
        cluster[2].restart()
        assert [example.end() for example in present] == [0, 0, 0]
        for node in cluster.nodes:
            figures = json.loads((place / f"{node.name}.json").read_text())
            assert figures["apart"] <= 1e-5
            assert figures["spread"] == 0
            assert not figures["unlike"]
            assert [one["count"] for one in figures["rounds"]] == [72, 72, 72]


def test_every_rank_fails_when_the_results_are_too_far_apart(place: Path) -> None:
    """What only rank 0 can find wrong is known to all ranks, and they say so."""
    with Cluster(place, 2) as cluster, ExitStack() as stack:
        cluster.start()
        present = list(ranks(cluster, stack, "--tolerance", 1e-12))
        assert [example.end() for example in present] == [1, 1]
        for example in present:
            assert "NO: the whole model gives the same" in example.output


def test_all_on_one_machine_with_daemons_killed(tmp_path: Path) -> None:
    """One command starts everything, kills daemons, and still gets the same bits."""
    report = tmp_path / "report.json"
    options = ("--local", 2, "--chaos", "--sentences", 40, "--batch", 8, "--report", report)
    with Example("sharded_inference.py", tmp_path / "out", *options) as example:
        assert example.end() == 0
    figures = json.loads(report.read_text())
    assert figures["apart"] <= 1e-5
    assert figures["spread"] == 0
    assert not figures["unlike"]
    assert figures["kills"] >= 1
    assert sum(len(one["delayed"]) for one in figures["rounds"]) >= 1
    assert f"{figures['kills']} kills delayed" in example.output
