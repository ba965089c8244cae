"""Layouts, dtypes, ops and outputs: what goes in, and what comes out."""

import math

import ml_dtypes
import numpy as np
import pytest

LAYOUTS = {
    "scalar": lambda: np.array(3.5),
    "python number": lambda: 2.5,
    "list": lambda: [[1.0, 2.0], [3.0, 4.0]],
    "empty": lambda: np.empty((0, 3)),
    "one": lambda: np.array([7]),
    "two": lambda: np.array([7, 8]),
    "vector": lambda: np.arange(100.0),
    "matrix": lambda: np.arange(12000.0).reshape(100, 120),
    "fortran": lambda: np.asfortranarray(np.arange(12000.0).reshape(100, 120)),
    "transposed": lambda: np.arange(12000.0).reshape(10, 12, 100).transpose(2, 0, 1),
    "strided": lambda: np.arange(10000)[::3],
    "reversed": lambda: np.arange(5000.0)[::-1],
    "broadcast": lambda: np.broadcast_to(np.arange(50.0), (20, 50)),
    "big endian": lambda: np.arange(300).astype(">i4"),
    "big endian strided": lambda: np.arange(3000).astype(">f8")[::2],
    "unaligned": lambda: np.frombuffer(bytes(range(250)) * 20, np.uint8)[1:4001].view(np.int32),
    "many dimensions": lambda: np.arange(2.0**12).reshape((2,) * 12),
    "matrix class": lambda: np.arange(10.0).view(np.recarray),
    "subset": lambda: np.arange(10000.0).reshape(100, 100)[10:60, 20:70],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_layout_comes_in_and_stays_as_it_is(ring, name):
    """Any layout is reduced, keeps its shape, and is not written to."""
    x = LAYOUTS[name]()
    before = np.array(x, copy=True)
    if isinstance(x, np.ndarray) and x.flags.owndata:
        x.flags.writeable = False
    result = ring.all_reduce(x)
    assert (result.shape, result.flags.writeable) == (before.shape, True)
    assert result.dtype == before.dtype.newbyteorder("=")
    np.testing.assert_array_equal(result, 3 * before)
    np.testing.assert_array_equal(x, before)


DTYPES = [
    "?",
    "i1",
    "i2",
    "i4",
    "i8",
    "u1",
    "u2",
    "u4",
    "u8",
    "f2",
    "f4",
    "f8",
    "c8",
    "c16",
    ml_dtypes.bfloat16,
]


@pytest.mark.parametrize("count", [5, 3000])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_every_dtype_crosses_the_border(ring, dtype, count):
    """All dtypes go through messages and through shared memory."""
    x = np.arange(count).astype(dtype)
    result = ring.all_reduce(x, "max" if np.dtype(dtype).kind != "c" else "sum")
    expected = x if np.dtype(dtype).kind != "c" else 3 * x
    assert result.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("op", "expected"), [("sum", 6), ("mean", 2), ("prod", 8), ("min", 2), ("max", 2)]
)
def test_every_op_is_passed_on(ring, op, expected):
    """The op that was asked for is the one computed."""
    assert ring.all_reduce(np.full(4, 2.0), op).tolist() == [expected] * 4


OUTS = {
    "itself": lambda x: x,
    "new": np.empty_like,
    "fortran": lambda x: np.empty(x.shape, x.dtype, order="F"),
    "strided": lambda x: np.empty((*x.shape[:-1], x.shape[-1] * 2), x.dtype)[..., ::2],
    "big endian": lambda x: np.empty(x.shape, ">f4"),
}


@pytest.mark.parametrize("shape", [(3, 4), (40, 50)])
@pytest.mark.parametrize("out", OUTS)
def test_out_takes_the_result(ring, shape, out):
    """The result lands in *out*, of any layout, and *out* is returned."""
    x = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    expected = 3 * x
    target = OUTS[out](x)
    assert ring.all_reduce(x, out=target) is target
    np.testing.assert_array_equal(target, expected)
