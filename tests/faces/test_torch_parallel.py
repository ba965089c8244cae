"""What torch builds on process groups, by four ranks on two machines, against one process."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import distributed as dist
from torch import nn
from torch.distributed import _functional_collectives as functional
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import profile
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ringd import Ring
from tests.cluster import Cluster
from tests.faces.conftest import join
from tests.faces.ranks import Ranks, beside
from tests.faces.test_torch_training import (
    alone,
    batch,
    model,
    own_batches,
    same_everywhere,
    train,
    weights,
)


@pytest.fixture(scope="module")
def ranks(cluster: Cluster) -> Iterator[Ranks]:
    """Give two ranks on each of two machines."""
    environs = [
        {**environ, "LOCAL_RANK": str(local), "LOCAL_WORLD_SIZE": "2"}
        for environ in beside(cluster.sockets)
        for local in range(2)
    ]
    with Ranks(environs) as ranks:
        ranks.call(join)
        yield ranks
        ranks.call(dist.destroy_process_group)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Check that they are the same but for the order of sums."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def check_right(trained: nn.Module) -> None:
    """Check that *trained* has the weights that one process comes to."""
    same_everywhere(weights(trained))
    close(weights(trained), alone(dist.get_world_size()))


# --- DistributedDataParallel --------------------------------------------------------------


def check_ddp(options: dict[str, Any]) -> None:
    """Train with *options* of DDP."""
    trained = model()
    train(DistributedDataParallel(trained, **options), own_batches())
    check_right(trained)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"static_graph": True},
        {"find_unused_parameters": True},
        {"gradient_as_bucket_view": True, "bucket_cap_mb": 0.0001},
    ],
    ids=str,
)
def test_ddp(ranks: Ranks, options: dict[str, Any]) -> None:
    """With its options."""
    ranks.call(check_ddp, options)


class Halves(nn.Module):
    """Uses one of its layers, by step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 3)])
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output of the layer whose turn it is."""
        self.calls += 1
        return self.layers[int(self.calls) % 2](x)


def check_unused() -> None:
    """A layer that a step does not use stays as it is."""
    trained = Halves()
    first = copy.deepcopy(trained)
    train(DistributedDataParallel(trained, find_unused_parameters=True), own_batches()[:1])
    same_everywhere(weights(trained))
    assert torch.equal(trained.layers[0].weight, first.layers[0].weight)
    assert not torch.equal(trained.layers[1].weight, first.layers[1].weight)


def test_ddp_with_unused_parameters(ranks: Ranks) -> None:
    """All ranks agree on which were not used."""
    ranks.call(check_unused)


def check_hooks() -> None:
    """Gradients as float16, and as matrices of low rank; both come close on all ranks alike."""
    size = dist.get_world_size()
    for hook, state in [
        (default_hooks.allreduce_hook, None),
        (default_hooks.fp16_compress_hook, None),
        (
            powerSGD_hook.powerSGD_hook,
            powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2),
        ),
    ]:
        trained = model()
        ddp = DistributedDataParallel(trained)
        ddp.register_comm_hook(state, hook)
        train(ddp, own_batches())
        same_everywhere(weights(trained))
        torch.testing.assert_close(weights(trained), alone(size), rtol=0.2, atol=0.05)


def test_ddp_hooks(ranks: Ranks) -> None:
    """Torch's own ones."""
    ranks.call(check_hooks)


def check_no_sync() -> None:
    """Two backward passes, of which the second one is reduced, are a step of both."""
    rank, size = dist.get_rank(), dist.get_world_size()
    trained, reference = model(), model()
    ddp = DistributedDataParallel(trained)
    for step in range(2):
        with ddp.no_sync() if step == 0 else nullcontext():
            x, y = batch(rank, step)
            nn.functional.mse_loss(ddp(x), y).backward()
    for step in range(2):
        for other in range(size):
            x, y = batch(other, step)
            (nn.functional.mse_loss(reference(x), y) / size).backward()
    for weight, expected in zip(trained.parameters(), reference.parameters(), strict=True):
        close(weight.grad, expected.grad)


def test_ddp_no_sync(ranks: Ranks) -> None:
    """Gradients are gathered before they are reduced."""
    ranks.call(check_no_sync)


def check_join() -> None:
    """Ranks with fewer batches shadow the others' calls until all are through."""
    trained = model()
    ddp = DistributedDataParallel(trained)
    optimizer = torch.optim.SGD(ddp.parameters(), 0.1)
    with Join([ddp]):
        for step in range(1 + dist.get_rank()):
            x, y = batch(dist.get_rank(), step)
            optimizer.zero_grad()
            nn.functional.mse_loss(ddp(x), y).backward()
            optimizer.step()
    same_everywhere(weights(trained))


def test_ddp_join(ranks: Ranks) -> None:
    """Uneven inputs."""
    ranks.call(check_join)


def check_compiled() -> None:
    """DDP under torch.compile, which must not look into the process group."""
    trained = model()
    ddp = torch.compile(DistributedDataParallel(trained), backend="aot_eager")
    train(ddp, own_batches())
    check_right(trained)


def test_ddp_compiled(ranks: Ranks) -> None:
    """As it is without."""
    ranks.call(check_compiled)


def check_zero() -> None:
    """Each rank has the optimizer's state of a part of the weights."""
    trained = model()
    ddp = DistributedDataParallel(trained)
    optimizer = ZeroRedundancyOptimizer(ddp.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    for ((x, y),) in own_batches():
        optimizer.zero_grad()
        nn.functional.mse_loss(ddp(x), y).backward()
        optimizer.step()
    check_right(trained)
    optimizer.consolidate_state_dict(1)
    if dist.get_rank() == 1:
        assert len(optimizer.state_dict()["state"]) == len(list(trained.parameters()))


def test_zero(ranks: Ranks) -> None:
    """ZeRO-1."""
    ranks.call(check_zero)


def check_workers() -> None:
    """Workers that fork while the ring is in use, and a sampler."""
    rank, size = dist.get_rank(), dist.get_world_size()
    data = TensorDataset(torch.arange(16.0))
    loader = DataLoader(
        data,
        batch_size=2,
        sampler=DistributedSampler(data, shuffle=False),
        num_workers=2,
        multiprocessing_context="fork",
    )
    total = torch.zeros(1)
    for (part,) in loader:
        share = part.sum().reshape(1)
        dist.all_reduce(share)
        total += share
    assert total.item() == sum(range(16))
    assert len(loader) == 16 // size // 2
    assert rank < size


def test_workers_that_fork(ranks: Ranks) -> None:
    """A DataLoader."""
    ranks.call(check_workers)


# --- sharded weights ----------------------------------------------------------------------


def check_fsdp1() -> None:
    """FullyShardedDataParallel, the older one."""
    wrapped = FullyShardedDataParallel(model(), device_id=torch.device("cpu"))
    train(wrapped, own_batches())
    with FullyShardedDataParallel.summon_full_params(wrapped):
        check_right(wrapped)


def test_fsdp1(ranks: Ranks) -> None:
    """On CPUs."""
    ranks.call(check_fsdp1)


def whole(trained: nn.Module) -> torch.Tensor:
    """Return all weights of a model that is sharded."""
    parts = [weight.full_tensor().detach().flatten() for weight in trained.parameters()]
    return torch.cat(parts)


def check_fsdp2(shape: tuple[int, ...]) -> None:
    """fully_shard over a mesh; with two dimensions it replicates along the first one."""
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
    trained = model()
    for layer in trained:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(trained, mesh=mesh)
    train(trained, own_batches())
    same_everywhere(whole(trained))
    close(whole(trained), alone(dist.get_world_size()))


@pytest.mark.parametrize("shape", [(4,), (2, 2)], ids=["fsdp2", "hsdp"])
def test_fsdp2(ranks: Ranks, shape: tuple[int, ...]) -> None:
    """Sharded, and sharded and replicated."""
    ranks.call(check_fsdp2, shape)


def check_mixed() -> None:
    """Weights as bfloat16, gradients reduced in float32."""
    trained = model()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    fully_shard(trained, mp_policy=policy)
    batches = [[(x.bfloat16(), y.bfloat16()) for x, y in step] for step in own_batches()]
    train(trained, batches)
    same_everywhere(whole(trained))
    torch.testing.assert_close(whole(trained), alone(dist.get_world_size()), rtol=0.05, atol=0.05)


def test_fsdp2_in_mixed_precision(ranks: Ranks) -> None:
    """bfloat16 through all_gather."""
    ranks.call(check_mixed)


def check_clipping() -> None:
    """The norm of all shards' gradients."""
    sharded, reference = model(), model()
    fully_shard(sharded)
    x, y = batch(0, 0)
    for one in (sharded, reference):
        nn.functional.mse_loss(one(x), y).backward()
    norm = nn.utils.clip_grad_norm_(sharded.parameters(), 0.01)
    close(norm.full_tensor(), nn.utils.clip_grad_norm_(reference.parameters(), 0.01))


def test_clipping(ranks: Ranks) -> None:
    """Of gradients that are sharded."""
    ranks.call(check_clipping)


def check_checkpoint(directory: str) -> None:
    """What four ranks have saved, they load."""
    trained, fresh = model(), model()
    with torch.no_grad():
        for weight in trained.parameters():
            weight.add_(1)
    for one in (trained, fresh):
        fully_shard(one)
    dcp.save({"model": trained.state_dict()}, checkpoint_id=directory)
    state = {"model": fresh.state_dict()}
    dcp.load(state, checkpoint_id=directory)
    fresh.load_state_dict(state["model"])
    assert torch.equal(whole(fresh), whole(trained))


def test_checkpoint(ranks: Ranks, tmp_path: Path) -> None:
    """Distributed checkpoints of sharded weights."""
    ranks.call(check_checkpoint, str(tmp_path / "saved"))


# --- divided tensors and models -----------------------------------------------------------


def check_dtensor() -> None:
    """Distribute, redistribute each way, compute, and put together."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    numbers = torch.arange(64.0).reshape(8, 8)
    sharded = distribute_tensor(numbers, mesh, [Shard(0)])
    assert torch.equal(sharded.to_local(), numbers.chunk(4)[dist.get_rank()])
    columns = sharded.redistribute(mesh, [Shard(1)])
    assert torch.equal(columns.to_local(), numbers.chunk(4, 1)[dist.get_rank()])
    assert torch.equal(columns.redistribute(mesh, [Replicate()]).to_local(), numbers)
    assert torch.equal((sharded @ columns).full_tensor(), numbers @ numbers)
    assert torch.equal(sharded.sum().full_tensor(), numbers.sum())
    assert isinstance(sharded, DTensor)


def test_dtensor(ranks: Ranks) -> None:
    """One that is divided along an axis."""
    ranks.call(check_dtensor)


def check_meshes() -> None:
    """Rows and columns of a mesh are process groups; those of one are not in the other's way."""
    mesh: DeviceMesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    rank = dist.get_rank()
    for name, expected in [("dp", rank % 2 * 2 + 2), ("tp", rank // 2 * 4 + 1)]:
        total = torch.tensor(rank)
        dist.all_reduce(total, group=mesh[name].get_group())
        assert total.item() == expected


def test_a_mesh_of_two_dimensions(ranks: Ranks) -> None:
    """On two machines with two ranks each."""
    ranks.call(check_meshes)


def check_tensor_parallel() -> None:
    """A layer divided by columns and the next one by rows, with FSDP2 along the other way."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    trained, reference = model(), model()
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallelize_module(trained, mesh["tp"], plan)
    fully_shard(trained, mesh=mesh["dp"])
    batches = [[batch(dist.get_rank() // 2, step)] for step in range(3)]
    train(trained, batches)
    train(reference, [[batch(row, step) for row in range(2)] for step in range(3)])
    close(whole(trained), weights(reference))


def test_tensor_parallel(ranks: Ranks) -> None:
    """And data parallel, beside each other."""
    ranks.call(check_tensor_parallel)


def check_pipeline() -> None:
    """Each rank has one layer; activations and gradients go from one to the next."""
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8) for _ in range(size)]
    stage = PipelineStage(layers[rank], rank, size, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, n_microbatches=4, loss_fn=nn.functional.mse_loss)
    x, y = torch.randn(8, 8), torch.randn(8, 8)
    output = schedule.step(x) if rank == 0 else schedule.step(target=y)
    whole_model = copy.deepcopy(nn.Sequential(*layers))
    whole_model.zero_grad()
    expected = whole_model(x)
    if rank == size - 1:
        close(output, expected.detach())
    nn.functional.mse_loss(expected, y).backward()
    close(layers[rank].weight.grad, whole_model[rank].weight.grad)


def test_pipeline(ranks: Ranks) -> None:
    """With send and recv."""
    ranks.call(check_pipeline)


def check_functional() -> None:
    """Functional collectives, compiled and not."""
    rank, size = dist.get_rank(), dist.get_world_size()
    world = dist.group.WORLD

    def all_of_them(x: torch.Tensor) -> list[torch.Tensor]:
        return [
            functional.all_reduce(x, "sum", world),
            functional.all_gather_tensor(x, 0, world),
            functional.reduce_scatter_tensor(x, "avg", 0, world),
            functional.all_to_all_single(x, None, None, world),
            functional.broadcast(x, 1, world),
        ]

    x = torch.arange(8.0) + rank
    everyone = [torch.arange(8.0) + other for other in range(size)]
    expected = [
        sum(everyone),
        torch.cat(everyone),
        (sum(everyone) / size).chunk(size)[rank],
        torch.cat([other.chunk(size)[rank] for other in everyone]),
        everyone[1],
    ]
    for run in (all_of_them, torch.compile(all_of_them, backend="aot_eager", fullgraph=True)):
        for actual, wanted in zip(run(x), expected, strict=True):
            assert torch.equal(functional.wait_tensor(actual), wanted)


def test_functional_collectives(ranks: Ranks) -> None:
    """As DTensor and the compiler use them."""
    ranks.call(check_functional)


def check_objects() -> None:
    """Pickled objects: gathered, broadcast, scattered, sent."""
    rank, size = dist.get_rank(), dist.get_world_size()
    mine = {"rank": rank, "text": "x" * rank * 1000}
    gathered: list[Any] = [None] * size
    dist.all_gather_object(gathered, mine)
    assert [len(one["text"]) for one in gathered] == [1000 * other for other in range(size)]
    dist.gather_object(mine, gathered if rank == 2 else None, dst=2)
    objects = [mine, "second"]
    dist.broadcast_object_list(objects, src=1)
    assert objects[0]["rank"] == 1
    scattered: list[Any] = [None]
    dist.scatter_object_list(scattered, list(range(size)) if rank == 0 else None, src=0)
    assert scattered == [rank]
    if rank == 0:
        dist.send_object_list([mine], dst=3)
    elif rank == 3:
        dist.recv_object_list(objects[:1], src=0)


def test_objects(ranks: Ranks) -> None:
    """Whatever pickle takes."""
    ranks.call(check_objects)


def check_coalesced() -> None:
    """Several calls that begin together."""
    size = dist.get_world_size()
    tensors = [torch.full((3,), float(i)) for i in range(4)]
    with mock.patch.object(Ring, "all_reduce_async", side_effect=AssertionError):
        with dist._coalescing_manager() as manager:
            for tensor in tensors:
                dist.all_reduce(tensor)
        manager.wait()
    assert [tensor[0].item() for tensor in tensors] == [float(i * size) for i in range(4)]
    with dist._coalescing_manager(async_ops=True) as manager:
        outputs = [torch.zeros(size) for _ in range(2)]
        for i, output in enumerate(outputs):
            dist.all_gather_into_tensor(output, torch.tensor([float(i)]))
    manager.wait()
    assert [output.tolist() for output in outputs] == [[0.0] * size, [1.0] * size]


def check_all_kinds_coalesced() -> None:
    """Tensors of any layout and dtype, sparse ones among them, in one call of the group."""
    size, rank = dist.get_world_size(), dist.get_rank()

    def made() -> list[torch.Tensor]:
        return [
            torch.arange(6.0).reshape(2, 3) * (rank + 1),
            torch.tensor(float(rank)),
            torch.arange(12.0).reshape(3, 4).t()[1:] + rank,
            torch.full((5,), rank, dtype=torch.int64),
            torch.empty(0),
            torch.full((2, 2), 0.5, dtype=torch.bfloat16),
            (torch.arange(4.0) * rank).to_sparse(),
            torch.full((70_000,), float(rank)),
            torch.complex(torch.ones(3), torch.arange(3.0)).conj(),
        ]

    wanted = made()
    for tensor in wanted:
        dist.group.WORLD.allreduce([tensor]).wait()
    tensors = made()
    work = dist.group.WORLD.allreduce_coalesced(tensors)
    work.wait()
    assert work.is_completed()
    assert all(one is other for one, other in zip(work.result(), tensors, strict=True))
    for tensor, right in zip(tensors, wanted, strict=True):
        assert torch.equal(tensor.to_dense(), right.to_dense())
    options = dist.AllreduceCoalescedOptions()
    options.reduceOp = dist.ReduceOp.MAX
    tensors = [torch.full((3,), rank), torch.full((2,), -rank)]
    dist.group.WORLD.allreduce_coalesced(tensors, options).wait()
    assert [tensor.tolist() for tensor in tensors] == [[size - 1] * 3, [0] * 2]
    options.reduceOp = dist._make_nccl_premul_sum(0.5)
    tensors = [torch.full((3,), 2.0), torch.ones(1)]
    dist.group.WORLD.allreduce_coalesced(tensors, options).wait()
    assert [tensor.tolist() for tensor in tensors] == [[float(size)] * 3, [size / 2]]
    dist.group.WORLD.allreduce_coalesced([]).wait()


def test_all_kinds_coalesced(ranks: Ranks) -> None:
    """As each alone."""
    ranks.call(check_all_kinds_coalesced)


def test_coalesced(ranks: Ranks) -> None:
    """As FSDP does."""
    ranks.call(check_coalesced)


def check_profiled() -> None:
    """The profiler runs over it."""
    with profile() as profiler:
        dist.all_reduce(torch.ones(3))
    assert profiler.key_averages()


def test_profiler(ranks: Ranks) -> None:
    """Nothing stands in its way."""
    ranks.call(check_profiled)


# --- groups -------------------------------------------------------------------------------


def check_groups() -> None:
    """Subsets of the ranks, on one machine and on several, also made by their members alone."""
    rank = dist.get_rank()
    for members in ([0, 1], [1, 2], [0, 3], [3], [0, 1, 2, 3]):
        group = dist.new_group(members)
        total = torch.tensor([rank, 1])
        if rank in members:
            assert dist.get_rank(group) == members.index(rank)
            dist.all_reduce(total, group=group)
            assert total.tolist() == [sum(members), len(members)]
            dist.broadcast(total, members[-1], group=group)
            dist.barrier(group=group)
            dist.destroy_process_group(group)
    members = [0, 1] if rank < 2 else [2, 3]
    for _ in range(10):  # under the same name again
        group = dist.new_group(members, use_local_synchronization=True)
        total = torch.tensor([rank])
        dist.all_reduce(total, group=group)
        assert total.item() == sum(members)
        dist.destroy_process_group(group)


def test_groups(ranks: Ranks) -> None:
    """new_group."""
    ranks.call(check_groups)


def check_again() -> None:
    """A process group is destroyed, and the next one made."""
    for _ in range(3):
        dist.destroy_process_group()
        join()
        total = torch.ones(1)
        dist.all_reduce(total)
        assert total.item() == dist.get_world_size()


def test_destroyed_and_made_again(ranks: Ranks) -> None:
    """In the same processes."""
    ranks.call(check_again)
