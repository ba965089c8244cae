"""Tensors as arrays: what is read of them, and where results are written.

A process group is given tensors as its user has them: strided, negated, on another device, with a
gradient to come. What is read and written is the tensor's own memory where that can be, else a
copy of it in the host's. What cannot be read or written is refused before a call is made.

An ordinary tensor is asked no more than that takes: behind each wait the processor's caches hold
other things, and then what torch does in a microsecond takes ten.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ringd.collective.reduction import check, dtype_from_name

Array = npt.NDArray[Any]

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_NUMPY_HAS = {
    torch.bool: np.dtype(np.bool_),
    torch.uint8: np.dtype(np.uint8),
    torch.uint16: np.dtype(np.uint16),
    torch.uint32: np.dtype(np.uint32),
    torch.uint64: np.dtype(np.uint64),
    torch.int8: np.dtype(np.int8),
    torch.int16: np.dtype(np.int16),
    torch.int32: np.dtype(np.int32),
    torch.int64: np.dtype(np.int64),
    torch.float16: np.dtype(np.float16),
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.complex64: np.dtype(np.complex64),
    torch.complex128: np.dtype(np.complex128),
}


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
    if tensor.is_meta:
        raise TypeError("a tensor on the device meta has no values")
    if tensor.is_quantized:
        raise TypeError("the scale of a quantized tensor would be lost; write x.dequantize()")
    return tensor.detach() if tensor.requires_grad else tensor


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
    if dtype.is_complex and op in ("min", "max"):  # as of all of torch's backends
        raise TypeError(f"{op} of {dtype}: to torch, complex numbers have no order")
    check(op, _dtype_of(dtype))


def array_of(tensor: torch.Tensor) -> Array:
    """Return the values of a :func:`local` tensor: its memory where that can be, else a copy."""
    return _view(_at_hand(tensor))


class Target(NamedTuple):
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
    if _is_plain(tensor):
        return Target(tensor, _view(tensor))
    host = _at_hand(tensor) if filled else torch.empty(tensor.shape, dtype=tensor.dtype)
    return Target(tensor, _view(host), host)


def as_one(arrays: Sequence[Array]) -> Array | None:
    """Return *arrays* as one of one dimension, if they stand in memory one behind the other."""
    if len(arrays) == 1:
        return arrays[0].reshape(-1) if arrays[0].flags.c_contiguous else None
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
    return tensor.is_cpu and not (tensor.is_conj() or tensor.is_neg())


def _at_hand(tensor: torch.Tensor) -> torch.Tensor:
    """Return *tensor*, or a copy that is plain."""
    return tensor if _is_plain(tensor) else tensor.cpu().resolve_conj().resolve_neg()


class _Memory:
    """That of a tensor, as numpy asks for it.

    ``Tensor.numpy()`` would do, but that storage could not be resized any more, which FSDP does.
    """

    __slots__ = ("__array_interface__", "_tensor")

    def __init__(self, tensor: torch.Tensor, dtype: np.dtype[Any]) -> None:
        self._tensor = tensor
        strides = None
        if not tensor.is_contiguous():
            strides = tuple(stride * dtype.itemsize for stride in tensor.stride())
        self.__array_interface__ = {
            "version": 3,
            "shape": tensor.shape,
            "strides": strides,
            "typestr": dtype.str,
            "data": (tensor.data_ptr(), False),
        }


def _view(tensor: torch.Tensor) -> Array:
    """Return the memory of a plain tensor."""
    dtype = _dtype_of(tensor.dtype)
    if not tensor.numel():
        return np.empty(tensor.shape, dtype)
    if dtype.isbuiltin == 1:
        return np.asarray(_Memory(tensor, dtype))
    return np.asarray(_Memory(tensor, _bits(dtype.itemsize))).view(dtype)


@functools.cache
def _dtype_of(dtype: torch.dtype) -> np.dtype[Any]:
    """Return what numpy has for *dtype*, or what has as many bits."""
    if dtype == torch.bfloat16:
        return dtype_from_name("bfloat16")
    return _NUMPY_HAS.get(dtype) or _bits(dtype.itemsize)


def _bits(size: int) -> np.dtype[Any]:
    return np.dtype(f"u{size}")


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
