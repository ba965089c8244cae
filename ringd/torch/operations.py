"""What torch's reduce ops compute, in ringd's terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed as dist

_OP = dist.ReduceOp


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
        plain = _PLAIN[op.op.value]
        return cls("sum", op.__getstate__()[1]) if plain is None else plain

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


_PLAIN: dict[int, Reduction | None] = {
    _OP.SUM.value: Reduction("sum"),
    _OP.AVG.value: Reduction("mean"),
    _OP.PRODUCT.value: Reduction("prod"),
    _OP.MIN.value: Reduction("min"),
    _OP.MAX.value: Reduction("max"),
    _OP.BAND.value: Reduction("band"),
    _OP.BOR.value: Reduction("bor"),
    _OP.BXOR.value: Reduction("bxor"),
    _OP.PREMUL_SUM.value: None,  # each has a factor of its own
}
