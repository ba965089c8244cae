"""Training over the ring, in torch's own ways: right weights, and the same ones on all ranks."""

from __future__ import annotations

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.faces.ranks import Ranks

STEPS = 4


def model() -> nn.Module:
    """Return a small model, with the same weights each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def batch(rank: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what *rank* learns from in *step*."""
    random = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(4, 8, generator=random), torch.randn(4, 3, generator=random)


def weights(trained: nn.Module) -> torch.Tensor:
    """Return all of them in one row."""
    return torch.cat([weight.detach().flatten() for weight in trained.parameters()])


def train(trained: nn.Module, batches: list[list[tuple[torch.Tensor, torch.Tensor]]]) -> None:
    """Take a step with the mean loss of each list of batches."""
    optimizer = torch.optim.SGD(trained.parameters(), 0.1, momentum=0.9)
    for step in batches:
        optimizer.zero_grad()
        for x, y in step:
            (nn.functional.mse_loss(trained(x), y) / len(step)).backward()
        optimizer.step()


def alone(size: int) -> torch.Tensor:
    """Return the weights that one process comes to with the batches of *size* ranks."""
    trained = model()
    train(trained, [[batch(rank, step) for rank in range(size)] for step in range(STEPS)])
    return weights(trained)


def own_batches() -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return this rank's, step by step."""
    return [[batch(dist.get_rank(), step)] for step in range(STEPS)]


def same_everywhere(tensor: torch.Tensor) -> None:
    """Check that all ranks have the same bits."""
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor)
    for other in gathered:
        assert torch.equal(other, tensor)


def check_collectives() -> None:
    """all_reduce, broadcast and barrier do what they say."""
    rank, size = dist.get_rank(), dist.get_world_size()
    total = torch.arange(5.0) + rank
    dist.all_reduce(total)
    assert total.tolist() == [size * i + sum(range(size)) for i in range(5)]
    from_one = torch.full((3,), float(rank))
    dist.broadcast(from_one, 1)
    assert from_one.tolist() == [1.0] * 3
    dist.barrier()


def test_collectives(ranks: Ranks) -> None:
    """With their values."""
    ranks.call(check_collectives)


def check_ddp() -> None:
    """DDP comes to the weights of a training that sees all batches, on all ranks alike."""
    trained = model()
    if dist.get_rank():
        nn.init.zeros_(next(trained.parameters()))  # rank 0's count
    ddp = DistributedDataParallel(trained)
    train(ddp, own_batches())
    same_everywhere(weights(trained))
    torch.testing.assert_close(weights(trained), alone(dist.get_world_size()))


def test_ddp(ranks: Ranks) -> None:
    """A model of which the ranks have different weights at first."""
    ranks.call(check_ddp)
