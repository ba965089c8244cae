"""Tensors as arrays: what is read of them, and where results are written.

A process group is given tensors as its user has them: strided, negated, on another device, with a
gradient to come. What is read and written is the tensor's own memory where that can be, else a
copy of it in the host's. What cannot be read or written is refused before a call is made.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ringd.collective.reduction import check, dtype_from_name

Array = npt.NDArray[Any]

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_NUMPY_HAS = {
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
}
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
"""By bytes: what stands for a dtype that numpy has not."""


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return *tensor* as one whose memory holds its values.

    Raises:
        TypeError: it has none of its own; says what to write instead.
    """
    if type(tensor) not in _PLAIN:
        if hasattr(tensor, "trigger_wait"):  # of a functional collective that is under way
            return local(tensor.trigger_wait())
        if hasattr(tensor, "to_local"):
            raise TypeError("a DTensor is no tensor of this rank alone; write x.to_local()")
        if hasattr(tensor, "__tensor_flatten__"):
            raise TypeError(f"a {type(tensor).__name__} is made of several tensors; hand over each")
    if tensor.layout is not torch.strided:
        raise TypeError(f"a tensor of layout {tensor.layout} is not supported; write x.to_dense()")
    if tensor.is_quantized:
        raise TypeError("the scale of a quantized tensor would be lost; write x.dequantize()")
    return tensor.detach()


def numbers(tensor: torch.Tensor, op: str) -> torch.Tensor:
    """Return *tensor*, which is to be reduced by *op*, with a dtype that ringd reduces.

    Raises:
        TypeError: there is none, or it has no such op.
    """
    if tensor.dtype == torch.complex32 and op in ("sum", "mean"):  # by parts, as any complex one
        tensor = torch.view_as_real(tensor)
    _check_op(tensor.dtype, op)
    return tensor


@functools.cache
def _check_op(dtype: torch.dtype, op: str) -> None:
    if dtype not in _NUMPY_HAS and dtype != torch.bfloat16:
        raise TypeError(f"{op} of {dtype} is not supported; convert it, to float32 say")
    check(op, _view(torch.empty(0, dtype=dtype)).dtype)


def array_of(tensor: torch.Tensor) -> Array:
    """Return the values of a :func:`local` tensor: its memory where that can be, else a copy."""
    return _view(_at_hand(tensor))


@dataclass(frozen=True, slots=True)
class Target:
    """Where a result goes that is for *tensor*."""

    tensor: torch.Tensor
    array: Array
    """Its memory, or that of *staged*."""
    staged: torch.Tensor | None = None
    """What stands for it in the host's memory, in plain form."""

    def finish(self) -> None:
        """Take over what *array* has been given."""
        if self.staged is not None:
            self.tensor.data.copy_(self.staged)


def target_of(tensor: torch.Tensor, *, filled: bool = False) -> Target:
    """Return the target of a :func:`local` tensor; *filled*: it has the tensor's values.

    Raises:
        ValueError: some of its elements are one and the same.
    """
    if _overlaps(tensor):
        raise ValueError(
            f"elements of a tensor of shape {tuple(tensor.shape)} and strides {tensor.stride()} "
            "share their memory, so no result can be written there; write x.clone()"
        )
    host = _at_hand(tensor) if filled else tensor
    if _is_plain(tensor):
        return Target(tensor, _view(tensor))
    if not filled:
        host = torch.empty(tensor.shape, dtype=tensor.dtype)
    return Target(tensor, _view(host), host)


def as_one(arrays: Sequence[Array]) -> Array | None:
    """Return *arrays* as one of one dimension, if they stand in memory one behind the other."""
    arrays = [array for array in arrays if array.size] or list(arrays[:1])
    if not all(array.flags.c_contiguous for array in arrays):
        return None
    first = arrays[0].reshape(-1)
    if len(arrays) == 1:
        return first
    end = _address(first)
    for array in arrays:
        if _address(array) != end or array.dtype != first.dtype:
            return None
        end += array.nbytes
    size = sum(array.size for array in arrays)
    return np.lib.stride_tricks.as_strided(first, (size,), (first.itemsize,))


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether the memory of *tensor* is the host's, and has its values."""
    return tensor.device.type == "cpu" and not (tensor.is_conj() or tensor.is_neg())


def _at_hand(tensor: torch.Tensor) -> torch.Tensor:
    """Return *tensor*, or a copy that is plain."""
    return tensor if _is_plain(tensor) else tensor.cpu().resolve_conj().resolve_neg()


def _view(tensor: torch.Tensor) -> Array:
    """Return the memory of a plain tensor."""
    if tensor.dtype in _NUMPY_HAS:
        array: Array = tensor.numpy()
    elif tensor.dtype == torch.bfloat16:
        array = tensor.view(torch.int16).numpy().view(_bfloat16())
    else:
        array = tensor.view(_BITS[tensor.dtype.itemsize]).numpy()
    return array


@functools.cache
def _bfloat16() -> np.dtype[Any]:
    return dtype_from_name("bfloat16")


def _overlaps(tensor: torch.Tensor) -> bool:
    """Whether elements may share memory; rather too often than not, where strides are odd."""
    if tensor.is_contiguous():
        return False
    sides = zip(tensor.stride(), tensor.shape, strict=True)
    reach = 0
    for stride, size in sorted(side for side in sides if side[1] > 1):
        if stride <= reach:
            return bool(tensor.numel())
        reach += stride * (size - 1)
    return False
