"""What people train with, set up as its users do: Accelerate, the Trainer, Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.cluster import Cluster
from tests.faces.ranks import Ranks, beside
from tests.faces.test_torch_training import same_everywhere, weights
from tests.ownports import free_ports

LEARNED = 0.05
"""Of the first loss, what may be left of it."""


def data(count: int = 64) -> TensorDataset:
    """Return numbers, and what a linear model makes of them."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=random)
    return TensorDataset(x, x @ torch.tensor([[1.0], [-2.0], [3.0], [0.5]]))


def loss_of(model: nn.Module) -> float:
    """Return the mean loss over all data."""
    x, y = data().tensors
    with torch.no_grad():
        return nn.functional.mse_loss(model(x), y).item()


def check_learned(model: nn.Module, before: float) -> None:
    """Check that all ranks have learned, and the same."""
    same_everywhere(weights(model))
    assert loss_of(model) < LEARNED * before


@pytest.fixture
def launched(cluster: Cluster) -> Any:
    """Give a program beside each of two daemons, with what torchrun tells it."""
    (port,) = free_ports(1)
    environs = [
        {
            **environ,
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "GROUP_RANK": str(rank),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "none",
        }
        for rank, environ in enumerate(beside(cluster.sockets))
    ]
    with Ranks(environs) as ranks:
        yield ranks


def with_accelerate() -> None:
    """A process group that is there is taken; by itself, on CPUs, it would choose gloo."""
    from accelerate import Accelerator

    dist.init_process_group("ringd", init_method="ringd://")
    accelerator = Accelerator(cpu=True)
    assert dist.get_backend() == "ringd"
    assert accelerator.num_processes == 2
    torch.manual_seed(accelerator.process_index)  # rank 0's weights count
    model = nn.Linear(4, 1)
    before = loss_of(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loader = DataLoader(data(), batch_size=8, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for _ in range(8):
        for x, y in loader:
            optimizer.zero_grad()
            accelerator.backward(nn.functional.mse_loss(model(x), y))
            optimizer.step()
    gathered = accelerator.gather_for_metrics(torch.tensor([accelerator.process_index]))
    assert gathered.tolist() == [0, 1]
    check_learned(accelerator.unwrap_model(model), before)
    accelerator.end_training()


def test_accelerate(launched: Ranks) -> None:
    """With DDP, and what it gathers."""
    launched.call(with_accelerate)


class Rows(Dataset):
    """The data as the Trainer has it."""

    def __len__(self) -> int:
        return len(data())

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        x, y = data()[index]
        return {"x": x, "labels": y}


class Linear(nn.Module):
    """A model as the Trainer has it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss, and what it is of."""
        found = self.layer(x)
        return {"loss": nn.functional.mse_loss(found, labels), "logits": found}


def with_trainer(directory: str) -> None:
    """As with Accelerate, which it is built on."""
    from transformers import Trainer, TrainingArguments

    dist.init_process_group("ringd", init_method="ringd://")
    arguments = TrainingArguments(
        directory,
        use_cpu=True,
        num_train_epochs=10,
        per_device_train_batch_size=8,
        learning_rate=0.1,
        optim="sgd",
        lr_scheduler_type="constant",
        report_to=[],
        save_strategy="epoch",
        save_total_limit=1,
        disable_tqdm=True,
    )
    assert arguments.world_size == 2
    model = Linear()
    before = loss_of(model.layer)
    trainer = Trainer(model, arguments, train_dataset=Rows(), eval_dataset=Rows())
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < LEARNED * before
    check_learned(model.layer, before)
    dist.destroy_process_group()


def test_trainer(launched: Ranks, tmp_path: Path) -> None:
    """Of transformers, with checkpoints."""
    launched.call(with_trainer, str(tmp_path))


def with_lightning(directory: str) -> None:
    """The backend is an argument of the strategy."""
    import lightning
    from lightning.pytorch.plugins.environments import TorchElasticEnvironment
    from lightning.pytorch.strategies import DDPStrategy

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def training_step(self, batch: list[torch.Tensor], _index: int) -> torch.Tensor:
            x, y = batch
            loss = nn.functional.mse_loss(self.layer(x), y)
            self.log("loss", loss, sync_dist=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    module = Module()
    before = loss_of(module.layer)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        num_nodes=2,
        strategy=DDPStrategy(process_group_backend="ringd"),
        plugins=[TorchElasticEnvironment()],
        max_epochs=8,
        default_root_dir=directory,
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, DataLoader(data(), batch_size=8))
    assert dist.get_backend() == "ringd"
    check_learned(module.layer, before)


def test_lightning(launched: Ranks, tmp_path: Path) -> None:
    """With DDPStrategy."""
    launched.call(with_lightning, str(tmp_path))
