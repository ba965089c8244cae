"""Tensors of torch, MLX and DLPack on their way in, where numpy cannot take them by itself.

No framework is imported: a program that has a tensor of one has done so. What is taken is a view
where the framework allows one. What cannot be taken is a TypeError that says the line to write.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ringd.collective.reduction import dtype_from_name

Array = npt.NDArray[Any]

_NUMPY_LOOKS_FOR = ("__array__", "__array_interface__", "__array_struct__", "__buffer__")


def as_array(x: Any) -> Array:
    """Return *x* as numpy's asarray does, and what that refuses: bfloat16 of torch and MLX, DLPack.

    Raises:
        TypeError: a tensor lies on another device, is sparse, requires a gradient, or has a dtype
            that numpy lacks; says what to write.
    """
    torch, mlx = sys.modules.get("torch"), sys.modules.get("mlx.core")
    if _is_a(x, torch, "Tensor"):
        return _from_torch(x, torch)
    if _is_a(x, mlx, "array"):
        return _from_mlx(x, mlx)
    if is_only_dlpack(x):
        return _from_dlpack(x)
    try:
        return np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:
        leaf = x
        while isinstance(leaf, (list, tuple)) and leaf:
            leaf = leaf[0]
        for module, kind, stack in ((torch, "Tensor", "torch.stack"), (mlx, "array", "mx.stack")):
            if leaf is not x and _is_a(leaf, module, kind):
                raise TypeError(f"x is a list of tensors ({error}); write {stack}(x)") from error
        raise


def is_only_dlpack(x: object) -> bool:
    """Whether *x* offers its numbers in that way alone; numpy's asarray does not look there."""
    return hasattr(x, "__dlpack__") and not any(map(partial(hasattr, x), _NUMPY_LOOKS_FOR))


def _is_a(x: object, module: Any, kind: str) -> bool:
    found = getattr(module, kind, None)
    return isinstance(found, type) and isinstance(x, found)


def _from_torch(x: Any, torch: Any) -> Array:
    fault = _torch_fault(x, torch)
    if fault is not None:
        raise TypeError(fault)
    x = x.resolve_conj().resolve_neg()
    if x.dtype == torch.bfloat16:
        dtype = _bfloat16()
        try:
            bits: Array = x.view(torch.int16).numpy()
        except (TypeError, RuntimeError) as error:
            raise TypeError(_unreadable(x, error)) from error
        return bits.view(dtype)
    try:
        return np.asarray(x)
    except (TypeError, RuntimeError) as error:
        raise TypeError(_unreadable(x, error)) from error


def _torch_fault(x: Any, torch: Any) -> str | None:
    """Return why a tensor of torch cannot stand for its numbers, and what to write instead."""
    if x.is_nested:
        return "a nested tensor has no shape; write x.to_padded_tensor(0.0)"
    if x.layout != torch.strided:
        return "a sparse tensor cannot be handed over; write x.to_dense()"
    if hasattr(x, "get_mask"):
        return (
            "the mask of a masked tensor would be lost, and what lies under it would count; write "
            "x.to_tensor(0), or another value that suits, and hand the mask over apart"
        )
    if hasattr(x, "to_local"):
        return "a distributed tensor cannot be handed over as a whole; write x.to_local()"
    if x.device.type != "cpu":
        return f"x lies on the device {str(x.device)!r}; write x.cpu()"
    if x.requires_grad:
        return "x requires a gradient, which would be lost; write x.detach()"
    if x.is_quantized:
        return "the scale of a quantized tensor would be lost; write x.dequantize()"
    return None


def _unreadable(x: Any, error: Exception) -> str:
    other = "complex64" if x.is_complex() else "float32"
    return (
        f"a {type(x).__name__} of dtype {x.dtype} cannot be handed over ({error}); "
        f"write x.to(torch.{other}), or a plain tensor of another dtype that numpy has"
    )


def _from_mlx(x: Any, mlx: Any) -> Array:
    if x.dtype != mlx.bfloat16:
        return np.asarray(x)
    dtype = _bfloat16()
    return np.asarray(x.view(mlx.uint16)).view(dtype)


def _from_dlpack(x: Any) -> Array:
    try:
        return np.from_dlpack(x)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise TypeError(
            f"numpy cannot take x, a {type(x).__name__} ({error}); move it to the CPU, in a dtype "
            "that numpy has, and write np.from_dlpack(x)"
        ) from error


def _bfloat16() -> np.dtype[Any]:
    try:
        return dtype_from_name("bfloat16")
    except TypeError:
        raise TypeError(
            "bfloat16 needs the package ml_dtypes, here and where each member's daemon is "
            "installed: in ringd's checkout, pip install '.[bf16]'; or convert x to float32"
        ) from None
