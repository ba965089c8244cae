"""The digits example: programs beside three real daemons train as one process would."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

from tests.cluster import Cluster
from tests.examplekit import Example


def programs(cluster: Cluster, stack: ExitStack, *arguments: object) -> list[Example]:
    """Start the example beside each daemon."""
    return [
        stack.enter_context(
            Example(
                "train_digits.py",
                cluster.directory / f"{node.name}.out",
                *("--socket", node.socket, *arguments),
            )
        )
        for node in cluster.nodes
    ]


def generations(program: Example) -> list[int]:
    """Return the ring's generation in each epoch, as the program saw it."""
    return [int(found) for found in re.findall(r"generation (\d+)", program.output)]


def test_all_ranks_train_to_the_same_weights_through_the_death_of_a_daemon(place: Path) -> None:
    """A daemon killed in mid-training costs no step: the weights are those of one process."""
    with Cluster(place, 3) as cluster, ExitStack() as stack:
        cluster.start()
        ranks = programs(cluster, stack, "--pace", 0.005, "--check")
        ranks[0].expect("epoch   4")
        cluster[1].restart()
        assert [rank.end() for rank in ranks] == [0, 0, 0]
        assert len({rank.lines[-2] for rank in ranks}) == 1
        assert re.fullmatch(r"accuracy 0\.9\d\d  weights [0-9a-f]{16}", ranks[0].lines[-2])
        seen = generations(ranks[0])
        assert len(seen) == 30
        assert seen[-1] > seen[0]


def test_programs_that_differ_end_with_an_error(place: Path) -> None:
    """Ranks of unlike networks are told who called what; none goes on with a wrong sum."""
    with Cluster(place, 2) as cluster, ExitStack() as stack:
        cluster.start()
        ranks = []
        for node, hidden in zip(cluster.nodes, (32, 48), strict=True):
            output = cluster.directory / f"{node.name}.out"
            example = Example(
                "train_digits.py", output, "--socket", node.socket, "--hidden", hidden
            )
            ranks.append(stack.enter_context(example))
        assert [rank.end() for rank in ranks] == [1, 1]
        assert ["Mismatch" in rank.lines[-1] for rank in ranks] == [True, True]
