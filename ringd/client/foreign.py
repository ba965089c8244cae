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

from ringd.collective.reduction import DTYPE_NAMES, dtype_from_name

Array = npt.NDArray[Any]

_NUMPY_LOOKS_FOR = ("__array__", "__array_interface__", "__array_struct__", "__buffer__")


def as_array(x: Any) -> Array:
    """Return *x* as numpy's asarray does, and what that refuses: bfloat16 of torch and MLX, DLPack.

    What has a :func:`torch_fault` is the caller's to refuse.

    Raises:
        TypeError: a tensor has no numbers within a transform, or has a dtype that numpy lacks; says
            what to write.
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


def torch_fault(x: Any, name: str) -> str | None:
    """Return why *x*, to be called *name*, cannot stand for its numbers, and what to write instead.

    None where it can, and for what is no tensor of torch.
    """
    torch = sys.modules.get("torch")
    return _torch_fault(x, torch, name) if _is_a(x, torch, "Tensor") else None


def _is_a(x: object, module: Any, kind: str) -> bool:
    found = getattr(module, kind, None)
    return isinstance(found, type) and isinstance(x, found)


def _from_torch(x: Any, torch: Any) -> Array:
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


def _torch_fault(x: Any, torch: Any, name: str) -> str | None:
    # A tangent comes last: torch has no answer for some of the kinds before it.
    if x.is_nested:
        return f"a nested tensor has no shape; write {name}.to_padded_tensor(0.0)"
    if x.layout != torch.strided:
        return f"a sparse tensor cannot be handed over; write {name}.to_dense()"
    if hasattr(x, "get_mask"):
        return (
            "the mask of a masked tensor would be lost, and what lies under it would count; write "
            f"{name}.to_tensor(0), or another value that suits, and hand the mask over apart"
        )
    if hasattr(x, "to_local"):
        return f"a distributed tensor cannot be handed over as a whole; write {name}.to_local()"
    if x.device.type == "meta":
        return "a tensor on the device 'meta' has no numbers that could be handed over"
    if x.device.type != "cpu":
        return f"{name} lies on the device {str(x.device)!r}; write {name}.cpu()"
    if x.requires_grad:
        return f"{name} requires a gradient, which would be lost; write {name}.detach()"
    if x.is_quantized:
        return f"the scale of a quantized tensor would be lost; write {name}.dequantize()"
    if torch.autograd.forward_ad.unpack_dual(x).tangent is not None:
        return (
            f"{name} has a tangent, which would be lost; write "
            f"torch.autograd.forward_ad.unpack_dual({name}).primal, and hand the tangent over apart"
        )
    return None


def _unreadable(x: Any, error: Exception) -> str:
    kind, name = type(x).__name__, str(x.dtype).rpartition(".")[2]
    if name in DTYPE_NAMES:
        return (
            f"a {kind} without numbers of its own cannot be handed over ({error}); make the call "
            "with a plain tensor, outside of torch.func's transforms and of what torch traces"
        )
    other = "complex64" if x.is_complex() else "float32"
    return (
        f"a {kind} of dtype {name} cannot be handed over ({error}); write x.to(torch.{other}), "
        "or another dtype that numpy has"
    )


def _from_mlx(x: Any, mlx: Any) -> Array:
    try:
        if x.dtype != mlx.bfloat16:
            return np.asarray(x)
        dtype = _bfloat16()
        return np.asarray(x.view(mlx.uint16)).view(dtype)
    except ValueError as error:
        raise TypeError(
            f"x has no numbers that could be handed over ({error}); make the call outside of "
            "mx.compile and mx.vmap"
        ) from error


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
