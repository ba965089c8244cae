"""Daemons are killed, replaced and cut off under a training: it ends as if nothing had been."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.cluster import Cluster, wait_until
from tests.faces.ranks import Ranks
from tests.faces.test_torch_parallel import whole
from tests.faces.test_torch_training import weights

SIZE = 3
STEPS = 60


def large() -> nn.Module:
    """Return a model whose gradients take several buckets, some of which stand in shared memory."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.Linear(512, 8))


def train(kind: str, progress: str) -> list[int]:
    """Train, telling the steps in the file *progress*; return the weights' bits."""
    rank, trained = dist.get_rank(), large()
    wrapped = trained
    if kind == "ddp":
        wrapped = DistributedDataParallel(trained, bucket_cap_mb=0.25)
    else:
        fully_shard(trained)
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.01, momentum=0.9)
    random = torch.Generator().manual_seed(rank)
    for step in range(STEPS):
        optimizer.zero_grad()
        wrapped(torch.randn(4, 64, generator=random)).square().mean().backward()
        optimizer.step()
        if rank == 0:
            beside = Path(f"{progress}.new")
            beside.write_text(str(step + 1))
            os.replace(beside, progress)  # noqa: PTH105 - in one step
    found = weights(trained) if kind == "ddp" else whole(trained)
    return found.view(torch.int32).tolist()


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_the_same_bits_as_without(
    cluster: Cluster, ranks: Ranks, tmp_path: Path, kind: str
) -> None:
    """Each daemon is killed with SIGKILL in its turn, two also at once, and links are dropped."""
    progress = tmp_path / "progress"
    undisturbed = ranks.call(train, kind, str(progress))
    progress.write_text("0")
    ranks.begin(train, kind, str(progress))
    disturbed = 0
    for turn in itertools.count():
        before = int(progress.read_text())
        if before >= STEPS - 10:
            break
        if turn % 4 == 3:
            cluster[turn % SIZE].rejoin()
        else:
            for rank in {turn % SIZE, SIZE - 1 if turn % 4 == 2 else turn % SIZE}:
                cluster[rank].restart()
        disturbed += 1
        wait_until(lambda before=before: int(progress.read_text()) > before + 5, "more steps")
    assert disturbed >= 5
    assert ranks.outcomes() == undisturbed
    assert undisturbed == [undisturbed[0]] * SIZE
