"""What torch's reduce ops compute, in ringd's terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed as dist

_OP = dist.ReduceOp
_NAMES = {
    _OP.SUM: "sum",
    _OP.AVG: "mean",
    _OP.PRODUCT: "prod",
    _OP.MIN: "min",
    _OP.MAX: "max",
    _OP.BAND: "band",
    _OP.BOR: "bor",
    _OP.BXOR: "bxor",
    _OP.PREMUL_SUM: "sum",
}


@dataclass(frozen=True, slots=True)
class Reduction:
    """An op of ringd, and what each rank does with its tensor before."""

    name: str
    """One of ringd's ops."""
    factor: Any = None
    """By which the tensor is multiplied, a number or a tensor; None but for PREMUL_SUM."""

    @classmethod
    def of(cls, op: Any) -> Reduction:
        """Return that of a ``dist.ReduceOp``."""
        kind = op.op
        factor = op.__getstate__()[1] if kind == _OP.PREMUL_SUM else None
        return cls(_NAMES[kind], factor)

    def prepared(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return what is reduced of *tensor*.

        Raises:
            TypeError: there is a factor, and *tensor* is of whole numbers.
        """
        if self.factor is None:
            return tensor
        if not tensor.dtype.is_floating_point and not tensor.dtype.is_complex:
            raise TypeError(f"PREMUL_SUM multiplies floating-point tensors, not {tensor.dtype}")
        return (tensor.detach() * self.factor).to(tensor.dtype)
