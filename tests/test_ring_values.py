"""Sums over three real daemons against numpy in a higher precision."""

from __future__ import annotations

import hashlib
import itertools

import ml_dtypes
import numpy as np
import pytest

import ringd
from tests.cluster import Cluster
from tests.ieee import FORMATS, fold
from tests.ringkit import everywhere

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
FLOATS = ["float16", "bfloat16", "float32", "float64"]
COMPLEX = ["complex64", "complex128"]
HIGHER = {
    "float16": "float64",
    "bfloat16": "float64",
    "float32": "float64",
    "float64": "longdouble",
    "complex64": "complex128",
    "complex128": "clongdouble",
}
# A last rounding to 16 bits after arithmetic in float32; three roundings in the dtype itself.
TOLERANCE = {
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "float32": 2.0**-22,
    "float64": 2.0**-51,
    "complex64": 2.0**-21,
    "complex128": 2.0**-50,
}
BITWISE = {"band": np.bitwise_and, "bor": np.bitwise_or, "bxor": np.bitwise_xor}
CASES = [
    *((dtype, op) for dtype in ["bool", *INTEGERS] for op in BITWISE),
    *((dtype, op) for dtype in ["bool", *INTEGERS] for op in ("sum", "prod", "min", "max")),
    *((dtype, op) for dtype in FLOATS for op in ("sum", "mean", "prod", "min", "max")),
    *((dtype, op) for dtype in COMPLEX for op in ("sum", "mean", "prod")),
]
SMALL, LARGE = 1000, 100_003
REDUCE = {"sum": np.add, "mean": np.add, "prod": np.multiply, "min": np.minimum, "max": np.maximum}


def dtype_of(name: str) -> np.dtype:
    """Return the dtype, of ml_dtypes where numpy has none."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def inputs(name: str, count: int, seed: int) -> list[np.ndarray]:
    """Return what the three ranks put in; positive floats, so that sums lose no digits."""
    random = np.random.default_rng(seed)
    dtype = dtype_of(name)
    if name == "bool":
        return [random.integers(0, 2, count).astype(bool) for _ in range(3)]
    if name in INTEGERS:
        info = np.iinfo(dtype)
        return [random.integers(info.min, info.max, count, dtype, endpoint=True) for _ in range(3)]
    parts = [random.uniform(0.5, 2.0, (2, count)) for _ in range(3)]
    if name in COMPLEX:
        return [(real + 1j * imaginary).astype(dtype) for real, imaginary in parts]
    return [real.astype(dtype) for real, _ in parts]


def expected(name: str, op: str, arrays: list[np.ndarray]) -> np.ndarray:
    """Return the result in a higher precision; integers wrap in their own."""
    if op in BITWISE:
        return BITWISE[op].reduce(arrays, axis=0)
    if name == "bool":
        return (
            np.logical_or.reduce(arrays) if op in ("sum", "max") else np.logical_and.reduce(arrays)
        )
    if name in INTEGERS:
        return REDUCE[op].reduce(arrays, axis=0, dtype=dtype_of(name))
    result = REDUCE[op].reduce([array.astype(HIGHER[name]) for array in arrays], axis=0)
    return result / 3 if op == "mean" else result


@pytest.mark.parametrize("count", [SMALL, LARGE])
@pytest.mark.parametrize(("name", "op"), CASES)
def test_values(calm: list[ringd.Ring], name: str, op: str, count: int) -> None:
    """Every dtype with every op it has is right, with the same bits on all ranks."""
    arrays = inputs(name, count, seed=len(name) + count)
    results = everywhere(calm, lambda ring: ring.all_reduce(arrays[ring.rank], op))
    want = expected(name, op, arrays)
    assert [result.dtype for result in results] == [dtype_of(name)] * 3
    if name in TOLERANCE:
        error = np.abs(results[0].astype(HIGHER[name]) - want) / np.abs(want)
        exact = op in ("min", "max")
        assert float(error.max()) <= (0 if exact else TOLERANCE[name])
    else:
        np.testing.assert_array_equal(results[0], want)
    assert len({result.tobytes() for result in results}) == 1


@pytest.mark.parametrize("count", [SMALL, LARGE])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision_is_summed_in_float32(calm: list[ringd.Ring], name: str, count: int) -> None:
    """Large and small cancel without the small one's loss: 2048 + 1 - 2048 is 1."""
    values = [2048.0, 1.0, -2048.0]
    results = everywhere(
        calm, lambda ring: ring.all_reduce(np.full(count, values[ring.rank], dtype_of(name)))
    )
    for result in results:
        np.testing.assert_array_equal(result.astype(np.float32), np.ones(count, np.float32))


@pytest.mark.parametrize("count", [SMALL, LARGE])
def test_nan_and_infinity(calm: list[ringd.Ring], count: int) -> None:
    """NaN comes through min and max as in numpy, infinities through sums."""

    def call(ring: ringd.Ring) -> tuple[np.ndarray, np.ndarray]:
        x = np.full(count, ring.rank, np.float64)
        if ring.rank == 1:
            x[::2] = np.nan
        lowest = ring.all_reduce(x, "min")
        return lowest, ring.all_reduce(np.full(count, np.inf if ring.rank == 2 else 1.0))

    for lowest, top in everywhere(calm, call):
        np.testing.assert_array_equal(np.isnan(lowest), np.arange(count) % 2 == 0)
        np.testing.assert_array_equal(lowest[1::2], np.zeros(count // 2))
        np.testing.assert_array_equal(top, np.full(count, np.inf))


@pytest.mark.parametrize("op", ["sum", "mean", "prod", "min", "max"])
@pytest.mark.parametrize("name", FLOATS)
def test_odd_values_have_one_form(calm: list[ringd.Ring], name: str, op: str) -> None:
    """NaNs of any kind and signed zeros give the promised bits, in small tensors and in large."""
    form = FORMATS[name]
    bits = np.dtype(f"u{form.width // 8}")
    rows = list(itertools.islice(itertools.product(form.specials(), repeat=3), 0, None, 40))
    expected = np.array([fold(op, name, row) for row in rows], bits)
    columns = [np.array(column, bits).view(dtype_of(name)) for column in zip(*rows, strict=True)]

    def call(ring: ringd.Ring) -> tuple[np.ndarray, np.ndarray]:
        x = columns[ring.rank]
        return ring.all_reduce(x, op), ring.all_reduce(np.repeat(x, 60), op)  # large: in chunks

    results = everywhere(calm, call)
    for small, large in results:
        assert small.view(bits).tolist() == expected.tolist()
        assert large.tobytes() == results[0][1].tobytes()
        assert set(large[np.isnan(large)].view(bits).tolist()) == {form.nan}
        if op in ("min", "max"):  # sums and products of three depend on the order
            assert large.view(bits).tolist() == np.repeat(expected, 60).tolist()


@pytest.mark.parametrize("count", [SMALL, LARGE])
@pytest.mark.parametrize("name", ["bfloat16", "float32", "float64", "complex64"])
def test_a_mean_is_infinite_where_the_sum_is(calm: list[ringd.Ring], name: str, count: int) -> None:
    """A mean of very large numbers overflows at any size; the sum of x / size does not."""
    dtype = dtype_of(name)
    largest = float(ml_dtypes.finfo(name.replace("complex64", "float32")).max)
    x = np.full(count, 0.9 * largest, dtype)
    for ring_mean, remedy in everywhere(
        calm, lambda ring: (ring.all_reduce(x, "mean"), ring.all_reduce(x / dtype.type(ring.size)))
    ):
        assert np.isinf(ring_mean).all()
        assert np.isfinite(remedy).all()


@pytest.mark.parametrize("count", [SMALL, LARGE])
def test_nobody_warns_of_odd_numbers(
    calm_cluster: Cluster, calm: list[ringd.Ring], count: int
) -> None:
    """They show in the result; a daemon's log is for what is wrong with the ring."""
    x = np.full(count, 3e38, np.float32)
    for result in everywhere(calm, lambda ring: ring.all_reduce(x)):
        assert np.isinf(result).all()
    for node in calm_cluster.nodes:
        assert "Warning" not in node.log_path.read_text()


@pytest.mark.parametrize("count", [SMALL, LARGE])
def test_a_mean_of_float16_never_overflows(calm: list[ringd.Ring], count: int) -> None:
    """Its sum is taken in float32, which has room for 64 of the largest float16."""
    x = np.full(count, 65504, np.float16)
    for result in everywhere(calm, lambda ring: ring.all_reduce(x, "mean")):
        np.testing.assert_array_equal(result, x)


def test_same_bits_from_run_to_run(calm: list[ringd.Ring]) -> None:
    """A float sum whose bits depend on its order has the same bits each time."""
    random = np.random.default_rng(1)
    arrays = [random.normal(0, 10.0**k, LARGE).astype(np.float32) for k in (-3, 0, 3)]

    def call(ring: ringd.Ring) -> set[str]:
        x = arrays[ring.rank]
        return {hashlib.sha256(ring.all_reduce(x).tobytes()).hexdigest() for _ in range(5)}

    found = everywhere(calm, call)
    assert len(set().union(*found)) == 1


@pytest.mark.parametrize(
    "count",
    [
        *(1, 2, 3, 4, 5),  # fewer elements than ranks, and just not
        *(8191, 8192, 8193),  # 32 KiB: eager in every ring, or as so few take part
        *(16383, 16384, 16385),  # 64 KiB: inside messages, or in shared memory
        *(32767, 32768, 32769),  # 128 KiB: in one trip, or in chunks
        *(3 * 32768 - 1, 3 * 32768, 3 * 32768 + 1),  # a chunk for each rank, or two of 64 KiB
        *(3 * 4 * 65536 - 1, 3 * 4 * 65536 + 1),  # two of 512 KiB, and just more
        1_000_003,
    ],
)
def test_sizes(calm: list[ringd.Ring], count: int) -> None:
    """Each size, on each way that tensors take, is summed at each position."""

    def call(ring: ringd.Ring) -> np.ndarray:
        return ring.all_reduce(np.arange(count, dtype=np.float32) % 1021 + ring.rank)

    want = 3 * (np.arange(count, dtype=np.float32) % 1021) + 3
    for result in everywhere(calm, call):
        np.testing.assert_array_equal(result, want)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "complex128"])
@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_chunk_boundaries_of_other_widths(calm: list[ringd.Ring], dtype: str, excess: int) -> None:
    """Narrow and wide elements beside the boundaries of chunks are summed right."""
    count = 3 * (256 << 10) // np.dtype(dtype).itemsize + excess
    x = (np.arange(count) % 61).astype(dtype)
    for result in everywhere(calm, lambda ring: ring.all_reduce(x)):
        np.testing.assert_array_equal(result, (x * 3).astype(dtype))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["float32", "bool", "complex64"])
def test_shapes(calm: list[ringd.Ring], shape: tuple[int, ...], dtype: str) -> None:
    """A result has the shape and dtype of its input, also without dimensions or elements."""
    x = np.ones(shape, dtype)
    for result in everywhere(calm, lambda ring: ring.all_reduce(x)):
        assert (result.shape, result.dtype) == (shape, np.dtype(dtype))
        np.testing.assert_array_equal(result, np.ones(shape) if dtype == "bool" else x * 3)
