"""Tensors as arrays, and futures in their order: what can be told without a ring."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist

from ringd.errors import DeadlineExceeded, GroupLost
from ringd.torch import tensors
from ringd.torch.failures import failure
from ringd.torch.process_group import RingProcessGroup
from ringd.torch.seats import Seats
from ringd.torch.tensors import array_of, as_one, local, target_of
from ringd.torch.work import Futures, Part, Work
from tests.faces.ranks import Ranks
from tests.faces.test_torch_values import (
    check_any_source,
    check_layout,
    check_moves,
    check_reductions,
    every_other,
    negated,
    scalar,
)

SIZE = 3


def test_the_memory_is_the_tensors_own() -> None:
    """What is written to the array is in the tensor, whose storage can be resized all the same."""
    for dtype in (torch.float32, torch.bfloat16, torch.bool, torch.uint16, torch.complex64):
        tensor = torch.zeros(2, 3).to(dtype).t()
        array = array_of(tensor)
        assert array.shape == (3, 2)
        array[2, 1] = 1
        assert tensor[2, 1] == 1
        assert tensor.to(torch.complex64).sum() == 1
        tensor.untyped_storage().resize_(0)


def test_a_negated_view_is_read_by_its_values_and_written_through_a_copy() -> None:
    """The same holds for a conjugated one."""
    for tensor in (torch.tensor([1j, 2j]).conj().imag, torch.tensor([1j, 2j]).conj()):
        before = tensor.clone()
        assert array_of(tensor).tolist() == before.tolist()
        target = target_of(tensor)
        target.array[:] = [5, 6]
        assert torch.equal(tensor, before)
        target.finish()
        assert tensor.tolist() == [5, 6]


@pytest.mark.parametrize(
    ("tensor", "shares"),
    [
        (torch.zeros(3, 4), False),
        (torch.zeros(3, 4).t(), False),
        (torch.zeros(8)[::3], False),
        (torch.zeros(1).expand(3), True),
        (torch.zeros(3, 1).expand(3, 2), True),
        (torch.zeros(1).expand(1, 1), False),
        (torch.zeros(0, 1).expand(0, 4), False),
        (torch.zeros(8).as_strided((3, 3), (2, 1)), True),
        (torch.zeros(8).as_strided((2, 2), (2, 3)), False),
    ],
    ids=str,
)
def test_memory_that_elements_share(tensor: torch.Tensor, *, shares: bool) -> None:
    """No result is written there."""
    if shares:
        with pytest.raises(ValueError, match="share their memory"):
            target_of(tensor)
    else:
        assert target_of(tensor).array.shape == tensor.shape


def test_arrays_behind_each_other_are_one() -> None:
    """Empty ones between them do not matter; gaps, and another order, do."""
    row = np.arange(10.0)
    one = as_one([row[:3], row[3:3], row[3:10]])
    assert one is not None
    assert one.tolist() == row.tolist()
    assert one.base is not None
    assert as_one([row[:3], row[4:]]) is None
    assert as_one([row[5:], row[:5]]) is None
    assert as_one([row[::2]]) is None
    assert as_one([row[:5], row[5:].view(np.int64)]) is None
    nothing = as_one([row[:0], row[:0]])
    assert nothing is not None
    assert nothing.shape == (0,)


def test_what_is_no_tensor_of_its_own() -> None:
    """Is refused, with what to write."""
    with pytest.raises(TypeError, match="to_dense"):
        local(torch.eye(2).to_sparse_csr())
    with pytest.raises(TypeError, match="no values"):
        local(torch.empty(2, device="meta"))
    with pytest.raises(TypeError, match="dequantize"):
        local(torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))


def test_errors_are_of_both_kinds() -> None:
    """Of ringd, and of torch."""
    for kind in (GroupLost, DeadlineExceeded):
        error = failure(kind("why"))
        assert isinstance(error, kind)
        assert isinstance(error, dist.DistBackendError)
        assert str(error).endswith("why")


class Ended:
    """A call of ringd that ends when it is told to."""

    source = None

    def __init__(self) -> None:
        self._ended = False
        self._callbacks: list[Callable[[Any], object]] = []

    def end(self) -> None:
        """End."""
        self._ended = True
        for callback in self._callbacks:
            callback(self)

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """As of ringd.Work."""
        self._callbacks.append(callback)
        if self._ended:
            callback(self)

    def done(self) -> bool:
        """As of ringd.Work."""
        return self._ended

    def wait(self, _timeout: float | None = None) -> None:
        """As of ringd.Work."""
        assert self._ended


def test_futures_are_resolved_in_order() -> None:
    """Whichever call ends first; what waits for one may ask for another one, and wait."""
    futures, seen = Futures(), []
    calls = [Ended() for _ in range(3)]
    inner = Ended()
    inner.end()

    def called_back(number: int) -> None:
        Work([Part(inner, lambda _result: None)], [], futures).get_future().wait()
        seen.append(number)

    for number, call in enumerate(calls):
        work = Work([Part(call, lambda _result: None)], [], futures)
        work.get_future().add_done_callback(lambda _future, number=number: called_back(number))
    calls[2].end()
    calls[1].end()
    assert seen == []
    calls[0].end()
    assert seen == [0, 1, 2]


class Taken:
    """A ring that takes calls, and keeps with what they were made."""

    def __init__(self) -> None:
        self.memory: list[tuple[int, int]] = []
        """Addresses of the input and of what takes the result."""

    def _take(self, x: Any, *_op: str, out: Any, timeout: float) -> Ended:
        self.memory.append((x.ctypes.data, out.ctypes.data))
        assert timeout == 30
        call = Ended()
        call.end()
        return call

    all_reduce_async = all_gather_async = reduce_scatter_async = _take

    def close(self) -> None:
        """As of ringd.Ring."""


@pytest.mark.parametrize(
    ("method", "arguments", "options", "most"),
    [
        ("allreduce", lambda whole, _part: [[whole]], dist.AllreduceOptions, 26),
        ("all_gather_single", lambda whole, part: [whole, part], None, 35),
        ("reduce_scatter_single", lambda whole, part: [part, whole], dist.ReduceScatterOptions, 40),
    ],
)
def test_what_an_ordinary_tensor_costs_beside_the_call_of_ringd(
    method: str, arguments: Callable[..., list[Any]], options: Any, most: int
) -> None:
    """No copy, and so many calls of functions: counted, as each takes long behind a wait."""
    ring = Taken()
    seats = Seats("group", 0, ("a", "b"), ("a", "b"))
    group = RingProcessGroup([ring], seats, timedelta(seconds=30))  # type: ignore[list-item]
    whole, part = torch.zeros(8), torch.zeros(4)
    made = (*arguments(whole, part), *([options()] if options else []))
    begin = getattr(group, method)
    begin(*made).wait()
    counted: list[str] = []

    def count(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and "ringd/torch" in frame.f_code.co_filename:
            counted.append(frame.f_code.co_name)

    sys.setprofile(count)
    try:
        begin(*made).wait()
    finally:
        sys.setprofile(None)
    assert len(counted) <= most, counted
    x = part if method == "all_gather_single" else whole
    out = part if method == "reduce_scatter_single" else whole
    assert ring.memory[-1] == (x.data_ptr(), out.data_ptr())


def as_if_elsewhere(check: Callable[..., None], *args: Any) -> None:
    """Call *check* with tensors that are handled as those of a GPU are."""
    plain, at_hand = tensors._is_plain, tensors._at_hand
    tensors._is_plain = lambda _tensor: False
    tensors._at_hand = lambda tensor: tensor.clone().resolve_conj().resolve_neg()
    try:
        check(*args)
    finally:
        tensors._is_plain, tensors._at_hand = plain, at_hand


@pytest.mark.parametrize(
    "check",
    [
        (check_layout, every_other),
        (check_layout, negated),
        (check_layout, scalar),
        (check_reductions, torch.bfloat16, [dist.ReduceOp.SUM, dist.ReduceOp.AVG]),
        (check_moves, torch.float32),
        (check_any_source,),
    ],
    ids=str,
)
def test_through_the_hosts_memory(ranks: Ranks, check: tuple[Any, ...]) -> None:
    """Each call reads a copy, and copies its result back."""
    ranks.call(as_if_elsewhere, *check)
