"""What docs/torch.md has its reader type."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from tests.cluster import Cluster
from tests.faces.ranks import Ranks, beside
from tests.faces.test_torch_training import alone, model, own_batches, train, weights

PAGE = Path(__file__).parents[2] / "docs" / "torch.md"


def type_in(text: str) -> None:
    """Run *text* with a model, and train that."""
    typed: dict[str, Any] = {"model": model()}
    exec(text, typed)  # noqa: S102 - it is our own
    train(typed["model"], own_batches())
    torch.testing.assert_close(weights(typed["model"]), alone(dist.get_world_size()))
    dist.destroy_process_group()


def test_the_first_lines(cluster: Cluster) -> None:
    """They are all that a training needs."""
    text = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    with Ranks(beside(cluster.sockets)) as ranks:
        ranks.call(type_in, text)


def hand_over_a_store() -> None:
    """Join through a store of the user's own."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    dist.init_process_group("ringd", store=store, rank=0, world_size=1)
    total = torch.ones(2)
    dist.all_reduce(total)
    assert total.tolist() == [1.0, 1.0]
    dist.destroy_process_group()


def test_a_store_of_ones_own(cluster: Cluster) -> None:
    """For one rank on one of the machines."""
    with Ranks(beside(cluster.sockets[:1])) as ranks:
        ranks.call(hand_over_a_store)
