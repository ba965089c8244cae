"""16-bit floats, accumulated in float32, beside float32 with as many bytes."""

from __future__ import annotations

from collections.abc import Sequence

from instrument.plan import Cell, Panel

SIZES = (16 << 20, 64 << 20)
DTYPES = ("float32", "float16", "bfloat16")


def panels(sizes: Sequence[int] = SIZES) -> list[Panel]:
    """Return a panel for each size."""
    return [
        [Cell(dtype, "ringd", nbytes, options={"dtype": dtype}) for dtype in DTYPES]
        for nbytes in sizes
    ]
