"""What reductions give, by numpy and the rules: values to reduce, and the promised results."""

from __future__ import annotations

import numpy as np

from ringd.collective.reduction import DTYPE_NAMES

COMPLEX_OPERATIONS = ("sum", "mean", "prod")
INTEGER_OPERATIONS = ("sum", "prod", "min", "max", "band", "bor", "bxor")
ALL_OPERATIONS = ("sum", "mean", "prod", "min", "max")
CASES = [
    (operation, name)
    for name in DTYPE_NAMES
    for operation in (
        COMPLEX_OPERATIONS
        if "complex" in name
        else INTEGER_OPERATIONS
        if "int" in name or name == "bool"
        else ALL_OPERATIONS
    )
]


def random_values(rng, dtype, count):
    """Return values that use the dtype's bits well and keep products finite."""
    if dtype.kind == "b":
        return rng.integers(0, 2, count).astype(bool)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, count, dtype=dtype, endpoint=True)
    values = rng.uniform(0.5, 1.5, count) * rng.choice([-1, 1], count)
    if dtype.kind == "c":
        values = values + 1j * rng.uniform(-1, 1, count)
    return values.astype(dtype)


def fold(operation, arrays):
    """Reduce arrays from left to right in their own dtype."""
    ufunc = {
        "prod": np.multiply,
        "min": np.minimum,
        "max": np.maximum,
        "band": np.bitwise_and,
        "bor": np.bitwise_or,
        "bxor": np.bitwise_xor,
    }.get(operation, np.add)
    if arrays[0].dtype.kind == "b" and operation not in ("band", "bor", "bxor"):
        ufunc = np.logical_and if operation in ("prod", "min") else np.logical_or
    total = arrays[0].copy()
    for array in arrays[1:]:
        if operation == "prod" and array.dtype.kind == "c":  # by single steps, as is promised
            real = total.real * array.real - total.imag * array.imag
            imaginary = total.real * array.imag + total.imag * array.real
            total = np.stack([real, imaginary], axis=-1).reshape(-1).view(array.dtype)
        else:
            total = ufunc(total, array)
    return total


def reduced(operation, inputs):
    """Return what the rules promise for *inputs* that are reduced in their order."""
    size, dtype = len(inputs), inputs[0].dtype
    half = dtype.name in ("float16", "bfloat16")
    total = fold(operation, [x.astype(np.float32) if half else x for x in inputs])
    if operation == "mean":
        if dtype.kind == "c":
            total = total.real / total.real.dtype.type(size) + 1j * (
                total.imag / total.imag.dtype.type(size)
            )
        else:
            total = total / total.dtype.type(size)
    return total.astype(dtype)
