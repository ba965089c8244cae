"""min and max of complex numbers beside those of the real MLX."""

from __future__ import annotations

import numpy as np
import pytest

from ringd.collective.reduction import Reduction

mx = pytest.importorskip("mlx.core")


@pytest.mark.parametrize("operation", ["min", "max"])
def test_complex_extremes_have_mlx_s_values(operation):
    """In each order; but for NaN, which MLX loses at times (docs/guarantees.md)."""
    parts = [-np.inf, -1.5, -0.0, 0.0, 2.0**-140, 3.0, np.inf]
    values = np.array([complex(real, imag) for real in parts for imag in parts], np.complex64)
    a, b = np.repeat(values, len(values)), np.tile(values, len(values))
    out = np.empty_like(a)
    Reduction(operation, a.dtype, 2).reduce_all([a, b], out)
    with mx.stream(mx.cpu):
        both = getattr(mx, f"{operation}imum")(mx.array(a), mx.array(b))
        np.testing.assert_array_equal(out, np.array(both))
