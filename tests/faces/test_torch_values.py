"""What torch's collectives compute over the ring: the right values, or an error before any."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import chain

import pytest
import torch
from torch import distributed as dist

from tests.faces.ranks import Ranks

SIZE = 3

OP = dist.ReduceOp
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
INTEGERS += [torch.uint16, torch.uint32, torch.uint64]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
COMPLEX = [torch.complex64, torch.complex128]
ONLY_MOVED = [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex32]
LENGTHS = [0, 1, 7, 40_000]
"""The last one stands in shared memory."""


def of_rank(rank: int, length: int, dtype: torch.dtype) -> torch.Tensor:
    """Return small whole numbers, other ones for each rank."""
    numbers = (torch.arange(length) * (rank + 2) + rank) % 5 + 1
    if dtype.is_complex:
        return torch.complex(numbers.float(), -numbers.float()).to(dtype)
    return numbers.to(torch.float32).to(dtype)


def everyone(length: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return what all ranks have, by rank."""
    return [of_rank(rank, length, dtype) for rank in range(dist.get_world_size())]


def mine(length: int, dtype: torch.dtype) -> torch.Tensor:
    """Return what this rank has."""
    return of_rank(dist.get_rank(), length, dtype)


def bits(tensor: torch.Tensor) -> list[int]:
    """Return the bytes of *tensor*."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def folded(parts: list[torch.Tensor], op: OP) -> torch.Tensor:
    """Return the reduction of *parts*, of small whole numbers, by torch's own arithmetic."""
    wide = torch.complex128 if parts[0].is_complex() else torch.float64
    stacked = torch.stack([part.to(wide) for part in parts])
    if op == OP.AVG:
        total = stacked.sum(0)
        if total.is_complex():  # by parts
            return torch.complex(total.real / len(parts), total.imag / len(parts)).to(
                parts[0].dtype
            )
        return (total / len(parts)).to(parts[0].dtype)
    if op == OP.SUM:
        return stacked.sum(0).to(parts[0].dtype)
    if op == OP.PRODUCT:
        return stacked.prod(0).to(parts[0].dtype)
    if op in (OP.MIN, OP.MAX):
        values = stacked.amin(0) if op == OP.MIN else stacked.amax(0)
        return values.to(parts[0].dtype)
    whole, fold = [part.to(torch.int64) for part in parts], torch.bitwise_and
    fold = {OP.BOR: torch.bitwise_or, OP.BXOR: torch.bitwise_xor}.get(op, fold)
    total = whole[0]
    for part in whole[1:]:
        total = fold(total, part)
    return total.to(parts[0].dtype)


def check_reductions(dtype: torch.dtype, ops: list[OP]) -> None:
    """all_reduce, reduce and reduce_scatter give the same right numbers."""
    rank, size = dist.get_rank(), dist.get_world_size()
    for length in LENGTHS:
        for op in ops:
            expected = folded(everyone(length, dtype), op)
            tensor = mine(length, dtype)
            dist.all_reduce(tensor, op)
            assert torch.equal(tensor.to(torch.complex128), expected.to(torch.complex128)), op
            tensor = mine(length, dtype)
            before = bits(tensor)
            dist.reduce(tensor, 1, op)
            assert bits(tensor) == (bits(expected) if rank == 1 else before)
            shares = expected[: length // size * size].chunk(size) if length >= size else None
            if shares:
                given = mine(length, dtype)[: length // size * size]
                out, listed = torch.empty_like(shares[0]), torch.empty_like(shares[0])
                dist.reduce_scatter_tensor(out, given, op)
                dist.reduce_scatter(listed, list(given.chunk(size)), op)
                assert bits(out) == bits(listed) == bits(shares[rank])


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers(ranks: Ranks, dtype: torch.dtype) -> None:
    """All ops but AVG."""
    ops = [OP.SUM, OP.PRODUCT, OP.MIN, OP.MAX, OP.BAND, OP.BOR, OP.BXOR]
    ranks.call(check_reductions, dtype, ops)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_floats(ranks: Ranks, dtype: torch.dtype) -> None:
    """All ops but those on bits."""
    ranks.call(check_reductions, dtype, [OP.SUM, OP.PRODUCT, OP.MIN, OP.MAX, OP.AVG])


@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
def test_complex(ranks: Ranks, dtype: torch.dtype) -> None:
    """Sums and means."""
    ranks.call(check_reductions, dtype, [OP.SUM, OP.AVG])


def check_half_means() -> None:
    """A mean is taken in float32."""
    tensor = torch.full((5,), 60000.0, dtype=torch.float16)
    dist.all_reduce(tensor, OP.AVG)
    assert tensor.tolist() == [60000.0] * 5


def test_a_mean_of_large_halves_is_finite(ranks: Ranks) -> None:
    """Though their sum would not be."""
    ranks.call(check_half_means)


def check_bool() -> None:
    """The byte of true is 1, whatever it was in an input."""
    rank = dist.get_rank()
    seven = torch.tensor([0, 7, 0], dtype=torch.uint8).view(torch.bool)
    for op, expected in [(OP.SUM, [1, 1, 0]), (OP.MAX, [1, 1, 0]), (OP.PRODUCT, [0, 0, 0])]:
        tensor = torch.tensor([True, False, False]) if rank == 0 else seven.clone()
        dist.all_reduce(tensor, op)
        assert bits(tensor) == expected
    tensor = torch.tensor([True, rank == 0, False])
    dist.all_reduce(tensor, OP.BXOR)
    assert bits(tensor) == [1, 1, 0]


def test_bool(ranks: Ranks) -> None:
    """A sum is *or*."""
    ranks.call(check_bool)


def check_nan() -> None:
    """NaN on one rank, at each place."""
    rank = dist.get_rank()
    for dtype in FLOATS:
        for op in (OP.MIN, OP.MAX):
            tensor = torch.arange(9.0).to(dtype)
            tensor[rank::3] = math.nan
            dist.all_reduce(tensor, op)
            assert tensor.isnan().all()


def test_min_and_max_carry_nan(ranks: Ranks) -> None:
    """Whichever rank has it."""
    ranks.call(check_nan)


def check_premultiplied() -> None:
    """Each rank's tensor is multiplied, then all are added; the input is as it was."""
    size = dist.get_world_size()
    half = dist._make_nccl_premul_sum(0.5)
    for dtype in [torch.float32, torch.bfloat16, torch.complex64]:
        tensor = mine(6, dtype)
        if not dtype.is_complex:
            dist.all_reduce(tensor, half)
            assert torch.equal(tensor, folded(everyone(6, dtype), OP.SUM) * 0.5)
        given, out = mine(6, dtype), torch.empty(2, dtype=dtype)
        dist.reduce_scatter_tensor(out, given, half)
        shares = (folded(everyone(6, dtype), OP.SUM) * 0.5).chunk(size)
        assert torch.equal(out, shares[dist.get_rank()])
        assert torch.equal(given, mine(6, dtype))
    with pytest.raises(TypeError, match="PREMUL_SUM"):
        dist.all_reduce(torch.ones(2, dtype=torch.int32), half)


def test_premultiplied_sums(ranks: Ranks) -> None:
    """As FSDP asks for where gradients are divided beforehand."""
    ranks.call(check_premultiplied)


def check_moves(dtype: torch.dtype) -> None:
    """Whatever moves tensors leaves their bits as they are."""
    rank, size = dist.get_rank(), dist.get_world_size()
    for length in LENGTHS:
        all_of_them = [bits(part) for part in everyone(length, dtype)]
        tensor = mine(length, dtype)
        dist.broadcast(tensor, 2)
        assert bits(tensor) == all_of_them[2]
        listed = [torch.zeros_like(tensor) for _ in range(size)]
        dist.all_gather(listed, mine(length, dtype))
        assert [bits(part) for part in listed] == all_of_them
        flat = torch.zeros(length * size, dtype=torch.float32).to(dtype)
        dist.all_gather_into_tensor(flat, mine(length, dtype))
        assert bits(flat) == list(chain.from_iterable(all_of_them))
        listed = [torch.zeros_like(tensor) for _ in range(size)]
        dist.gather(mine(length, dtype), listed if rank == 1 else None, 1)
        assert [bits(part) for part in listed] == (
            all_of_them if rank == 1 else [bits(torch.zeros_like(tensor))] * size
        )
        dist.scatter(tensor, everyone(length, dtype) if rank == 0 else None, 0)
        assert bits(tensor) == all_of_them[rank]
        dist.all_to_all(listed, [mine(length, dtype)] * size)
        assert [bits(part) for part in listed] == all_of_them
        check_messages(length, dtype)


def check_messages(length: int, dtype: torch.dtype) -> None:
    """A tensor goes round."""
    rank, size = dist.get_rank(), dist.get_world_size()
    left, right = (rank - 1) % size, (rank + 1) % size
    received = torch.zeros(length, dtype=torch.float32).to(dtype)
    sent = mine(length, dtype)
    ops = [dist.P2POp(dist.isend, sent, right), dist.P2POp(dist.irecv, received, left)]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    assert bits(received) == bits(of_rank(left, length, dtype))


@pytest.mark.parametrize("dtype", [torch.bool, *INTEGERS, *FLOATS, *COMPLEX, *ONLY_MOVED], ids=str)
def test_what_is_moved(ranks: Ranks, dtype: torch.dtype) -> None:
    """Every dtype, in all that does not compute."""
    ranks.call(check_moves, dtype)


def check_uneven() -> None:
    """Lists of tensors of different lengths, and splits, zero among them."""
    rank, size = dist.get_rank(), dist.get_world_size()
    listed = [torch.zeros(other + 1) for other in range(size)]
    dist.all_gather(listed, torch.full((rank + 1,), float(rank)))
    assert [part.tolist() for part in listed] == [[float(r)] * (r + 1) for r in range(size)]
    received = [torch.zeros(other) for other in range(size)]
    dist.all_to_all(received, [torch.full((rank,), float(rank))] * size)
    assert [part.tolist() for part in received] == [[float(r)] * r for r in range(size)]
    out = torch.zeros(sum(range(size)), 2)
    given = torch.full((rank * size, 2), float(rank))
    dist.all_to_all_single(out, given, list(range(size)), [rank] * size)
    assert out[:, 1].tolist() == [0.0] * 0 + [1.0] + [2.0] * 2
    assert len(out) == 3


def test_uneven_lists(ranks: Ranks) -> None:
    """Of all_gather and all_to_all."""
    ranks.call(check_uneven)


def check_refusals() -> None:
    """What cannot be computed is refused before a byte of the tensor is written."""
    cases = [
        (torch.ones(3, dtype=torch.int32), OP.AVG),
        (torch.ones(3, dtype=torch.bool), OP.AVG),
        (torch.ones(3), OP.BAND),
        (torch.ones(3).to(torch.float8_e5m2), OP.SUM),
        (torch.ones(1).expand(3), OP.SUM),
        (torch.eye(3).to_sparse(), OP.MAX),
    ]
    for tensor, op in cases:
        before = tensor.to_dense().float().tolist()
        with pytest.raises((TypeError, ValueError)):
            dist.all_reduce(tensor, op)
        assert tensor.to_dense().float().tolist() == before
    for op in (OP.PRODUCT, OP.MIN, OP.MAX):  # of complex numbers
        out = torch.zeros(1, dtype=torch.complex64)
        if op != OP.PRODUCT:
            with pytest.raises(TypeError):
                dist.reduce_scatter_tensor(out, torch.ones(3, dtype=torch.complex64), op)
        with pytest.raises(ValueError, match="complex"):
            dist.all_reduce(torch.ones(3, dtype=torch.complex64), op)
    one, three = torch.zeros(1), [torch.zeros(2)] * 3
    for wrong in [
        lambda: dist.all_gather(three, one),
        lambda: dist.all_gather_into_tensor(torch.zeros(4), one),
        lambda: dist.reduce_scatter_tensor(one, torch.zeros(4)),
        lambda: dist.reduce_scatter(torch.zeros(2), [torch.zeros(1 + i) for i in range(3)]),
        lambda: dist.all_to_all_single(torch.zeros(4), torch.zeros(3)),
        lambda: dist.all_to_all_single(torch.zeros(4), torch.zeros(4)),
    ]:
        with pytest.raises((RuntimeError, ValueError)):
            wrong()
    dist.barrier()  # and the group goes on


def test_what_is_refused(ranks: Ranks) -> None:
    """By dtype, op, shape, and memory."""
    ranks.call(check_refusals)


def every_other() -> torch.Tensor:
    """Return a tensor with gaps."""
    return torch.zeros(6)[::2]


def transposed() -> torch.Tensor:
    """Return one that stands by columns."""
    return torch.zeros(3, 2).t()


def negated() -> torch.Tensor:
    """Return one that has the sign of its memory turned."""
    return torch.zeros(3, dtype=torch.complex64).conj().imag


def leaf() -> torch.Tensor:
    """Return one that is to have a gradient."""
    return torch.zeros(3, requires_grad=True)


def scalar() -> torch.Tensor:
    """Return one without an axis."""
    return torch.tensor(0.0)


Make = Callable[[], torch.Tensor]


def filled(make: Make, factor: float) -> torch.Tensor:
    """Return a tensor with 1, 2, ... times *factor*."""
    tensor = make()
    with torch.no_grad():
        tensor.copy_(torch.arange(1.0, tensor.numel() + 1).reshape(tensor.shape) * factor)
    return tensor


def factors(tensors: Sequence[torch.Tensor]) -> list[float]:
    """Return what each one has been multiplied by."""
    found = []
    for tensor in tensors:
        plain = torch.arange(1.0, tensor.numel() + 1).reshape(tensor.shape)
        factor = (tensor.detach() / plain).flatten()
        assert (factor == factor[0]).all()
        found.append(factor[0].item())
    return found


def check_layout(make: Make) -> None:
    """What *make* returns is read, and written to, by its elements."""
    rank, size = dist.get_rank(), dist.get_world_size()
    parts = range(1, size + 1)
    everywhere, here, moved = filled(make, rank + 1), filled(make, rank + 1), filled(make, rank + 1)
    dist.all_reduce(everywhere)
    dist.reduce(here, 0)
    dist.broadcast(moved, 1)
    assert factors([everywhere, here, moved]) == [
        sum(parts),
        sum(parts) if not rank else rank + 1,
        2,
    ]
    share, one = make(), make()
    dist.reduce_scatter(share, [filled(make, part) for part in parts])
    dist.scatter(one, [filled(make, part) for part in parts] if rank == 0 else None)
    assert factors([share, one]) == [size * (rank + 1), rank + 1]
    gathered, exchanged = [make() for _ in parts], [make() for _ in parts]
    dist.all_gather(gathered, filled(make, rank + 1))
    dist.all_to_all(exchanged, [filled(make, rank + 1)] * size)
    assert factors(gathered) == factors(exchanged) == list(parts)
    if rank == 0:
        dist.send(filled(make, 5.0), 1)
    elif rank == 1:
        received = make()
        dist.recv(received, 0)
        assert factors([received]) == [5.0]


@pytest.mark.parametrize("make", [every_other, transposed, negated, leaf, scalar])
def test_layouts(ranks: Ranks, make: Make) -> None:
    """A tensor's numbers count, not how its memory is."""
    ranks.call(check_layout, make)


def check_unlike_layouts() -> None:
    """channels_last on one rank, not on the others."""
    image = torch.arange(24.0).reshape(1, 2, 3, 4)
    tensor = image.clone()
    if dist.get_rank() == 1:
        tensor = image.to(memory_format=torch.channels_last).clone()
    dist.all_reduce(tensor)
    assert torch.equal(tensor, image * dist.get_world_size())


def test_ranks_may_have_unlike_layouts(ranks: Ranks) -> None:
    """Their elements still meet by index."""
    ranks.call(check_unlike_layouts)


def check_sparse() -> None:
    """Indices that all have, and others that one has."""
    rank, size = dist.get_rank(), dist.get_world_size()
    for dtype in [torch.float32, torch.bfloat16, torch.int64, torch.bool]:
        dense = torch.zeros(size + 1, 2).to(dtype)
        dense[rank], dense[size] = 1, 1
        tensor = dense.to_sparse(1)
        dist.all_reduce(tensor)
        expected = torch.ones(size + 1, 2)
        expected[size] = 1 if dtype == torch.bool else size
        assert torch.equal(tensor.to_dense(), expected.to(dtype))


def test_sparse_sums(ranks: Ranks) -> None:
    """Of tensors with different elements."""
    ranks.call(check_sparse)


def check_handles() -> None:
    """wait, again, a future, several calls under way, and one's own numbers."""
    size, tensors = dist.get_world_size(), [torch.ones(3) * i for i in range(300)]
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    assert works[-1].get_future().wait()[0] is tensors[-1]
    for i, (work, tensor) in enumerate(zip(works, tensors, strict=True)):
        assert work.wait()
        assert work.wait(timedelta(seconds=1))
        assert work.is_completed()
        assert work.is_success()
        assert tensor.tolist() == [float(i * size)] * 3
    listed = [torch.zeros(2) for _ in range(size)]
    work = dist.all_gather(listed, torch.ones(2), async_op=True)
    while not work.is_completed():
        time.sleep(0.001)
    assert torch.stack(listed).sum() == 2 * size
    if dist.get_rank() == 0:
        late = dist.irecv(torch.zeros(1), 1)
        assert not late.is_completed()
        with pytest.raises(RuntimeError, match="timeout"):
            late.wait(timedelta(milliseconds=50))
        dist.barrier()
        assert late.wait()
    else:
        dist.barrier()
        if dist.get_rank() == 1:
            dist.send(torch.ones(1), 0)


def test_handles(ranks: Ranks) -> None:
    """What async_op gives."""
    ranks.call(check_handles)


def check_any_source() -> None:
    """The receiver is told who has sent."""
    rank, size = dist.get_rank(), dist.get_world_size()
    if rank:
        dist.send(torch.tensor([float(rank)]), 0, tag=7)
        return
    seen = set()
    for _ in range(size - 1):
        tensor = torch.zeros(1)
        source = dist.recv(tensor, tag=7)
        assert tensor.item() == source
        seen.add(source)
    assert seen == set(range(1, size))


def test_any_source(ranks: Ranks) -> None:
    """Recv without a source."""
    ranks.call(check_any_source)
