"""The arithmetic: defined for the right dtypes, in the right precision, without warnings."""

import functools
import itertools
import operator
import sys
import warnings

import ml_dtypes
import numpy as np
import pytest

from ringd.collective import reduction as module
from ringd.collective.reduction import (
    DTYPE_NAMES,
    OPERATIONS,
    Reduction,
    check,
    dtype_from_name,
    dtype_name,
)

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def defined(operation, name):
    """Say whether the operation has a meaning for the dtype, by the field's conventions."""
    kind = dtype_from_name(name).kind
    if operation == "mean":
        return kind not in "biu"
    if operation in ("band", "bor", "bxor"):
        return kind in "biu"
    return True


CASES = list(itertools.product(OPERATIONS, DTYPE_NAMES))


@pytest.fixture(autouse=True)
def _no_warnings():
    """Let any warning fail its test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(("operation", "name"), [case for case in CASES if defined(*case)])
def test_defined_operations_pass_the_check(operation, name):
    """Every op with a meaning is allowed, and can be built."""
    dtype = dtype_from_name(name)
    check(operation, dtype)
    assert Reduction(operation, dtype, 2).dtype == dtype


@pytest.mark.parametrize(("operation", "name"), [case for case in CASES if not defined(*case)])
def test_undefined_operations_are_type_errors(operation, name):
    """The error names the op and the dtype."""
    with pytest.raises(TypeError, match=f"op '{operation}' is not defined for dtype {name}"):
        check(operation, dtype_from_name(name))
    with pytest.raises(TypeError):
        Reduction(operation, dtype_from_name(name), 2)


@pytest.mark.parametrize(
    "dtype",
    [
        object,
        "S4",
        "U2",
        "V2",
        "datetime64[s]",
        "timedelta64[s]",
        [("a", "f4")],
        "(2,)f4",
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.int4,
    ],
    ids=str,
)
def test_other_dtypes_are_type_errors(dtype):
    """What has no place on the wire is refused with the list of what has."""
    with pytest.raises(TypeError, match=r"cannot be handed over; .* float32, .* bfloat16"):
        check("sum", dtype)


def test_an_unknown_operation_is_a_value_error():
    """The error lists the ops."""
    with pytest.raises(ValueError, match="unknown op 'avg'; the ops are sum, mean, prod, min, max"):
        check("avg", np.float32)


@pytest.mark.parametrize("name", DTYPE_NAMES)
def test_names_lead_back_to_their_dtype(name):
    """A dtype travels by name, whatever its byte order, and comes back in native order."""
    dtype = dtype_from_name(name)
    assert dtype_name(dtype) == name
    assert dtype_name(dtype.newbyteorder("S")) == name
    assert dtype.isnative


@pytest.mark.parametrize("name", ["", "float128", "float8_e4m3fn", "object", "f4", "int"])
def test_an_unknown_name_is_a_type_error(name):
    """Names from the wire are looked up, never interpreted."""
    with pytest.raises(TypeError, match=f"unknown dtype '{name}'"):
        dtype_from_name(name)


def test_bfloat16_without_ml_dtypes_says_what_to_install(monkeypatch):
    """A member that lacks the package learns its name."""
    known = {name: dtype for name, dtype in module._BY_NAME.items() if name != "bfloat16"}
    monkeypatch.setattr(module, "_BY_NAME", known)
    with pytest.raises(TypeError, match=r"ml_dtypes.*pip install '\.\[bf16\]'"):
        dtype_from_name("bfloat16")


def test_the_module_imports_without_ml_dtypes(monkeypatch):
    """bfloat16 is optional."""
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    source = module.__spec__.loader.get_code(module.__name__)
    namespace = {"__name__": "without_ml_dtypes"}
    exec(source, namespace)  # noqa: S102 (a second import, apart from sys.modules)
    assert "bfloat16" not in namespace["_BY_NAME"]
    assert namespace["Reduction"]("sum", "float16", 2).accumulator == np.float32


@pytest.mark.parametrize("name", DTYPE_NAMES)
def test_halves_accumulate_in_float32_and_others_in_themselves(name):
    """The accumulator is wider for float16 and bfloat16 only."""
    halves = ("float16", "bfloat16")
    reduction = Reduction("sum", dtype_from_name(name), 2)
    assert reduction.accumulator == (np.float32 if name in halves else dtype_from_name(name))
    assert reduction.wide == (name in halves)


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=str)
@pytest.mark.parametrize("operation", [op for op in OPERATIONS if defined(op, "float16")])
def test_combine_takes_inputs_and_partial_results(operation, dtype):
    """Any mix of own and accumulator dtype gives the float32 result, also in place."""
    rng = np.random.default_rng(1)
    reduction = Reduction(operation, dtype, 2)
    ufunc = {"prod": np.multiply, "min": np.minimum, "max": np.maximum}.get(operation, np.add)
    a, b = (rng.normal(size=40_001).astype(dtype) for _ in range(2))
    wide_a, wide_b = a.astype(np.float32), b.astype(np.float32)
    expected = ufunc(wide_a, wide_b)
    for left, right in itertools.product((a, wide_a), (b, wide_b)):
        out = np.empty_like(expected)
        reduction.combine(left, right, out)
        np.testing.assert_array_equal(out, expected)
    in_place = wide_a.copy()
    reduction.combine(in_place, b, in_place)
    np.testing.assert_array_equal(in_place, expected)


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=str)
def test_a_mean_of_halves_is_rounded_once(dtype):
    """The sum neither overflows nor rounds on the way: the mean is that of float64, rounded."""
    size = 8
    rng = np.random.default_rng(2)
    largest = float(ml_dtypes.finfo(dtype).max)
    inputs = [(rng.uniform(0.5, 1, 1000) * largest).astype(dtype) for _ in range(size)]
    if dtype == BFLOAT16:  # float32 has bfloat16's range: stay below its overflow
        inputs = [(x.astype(np.float64) / size).astype(dtype) for x in inputs]
    out = np.empty(1000, dtype)
    Reduction("mean", dtype, size).reduce_all(inputs, out)
    exact = np.sum([x.astype(np.float64) for x in inputs], axis=0) / size
    np.testing.assert_array_equal(out, exact.astype(np.float32).astype(dtype))


@pytest.mark.parametrize(("operation", "name"), [case for case in CASES if defined(*case)])
def test_order_matters_for_floats_of_three(operation, name):
    """Two inputs commute; integers, minima and maxima take any order; nothing else does."""
    kind = "float" in name or "complex" in name
    assert not Reduction(operation, dtype_from_name(name), 1).order_matters
    assert not Reduction(operation, dtype_from_name(name), 2).order_matters
    expected = kind and operation in ("sum", "mean", "prod")
    assert Reduction(operation, dtype_from_name(name), 3).order_matters == expected


@pytest.mark.parametrize("operation", ["min", "max"])
@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_numbers_are_ordered_by_their_parts(dtype, operation):
    """Whatever the order of the inputs, and wherever an element stands; NaN is carried."""
    parts = [-np.inf, -1.5, -0.0, 0.0, 2.0**-140, 3.0, np.inf, np.nan]
    values = np.array([complex(real, imag) for real in parts for imag in parts], dtype)

    def rank(value):
        parts = (value.real, value.imag)
        return [*parts, *(not np.signbit(part) for part in parts)]

    choose = min if operation == "min" else max
    for size in (1, 2, 3):
        rows = np.array(list(itertools.product(range(len(values)), repeat=min(size, 2)))).T
        columns = [values[row] for row in rows] + [values[rows[0][::-1]]] * (size == 3)
        expected = [
            complex(np.nan, np.nan) if np.isnan(row).any() else choose(row, key=rank)
            for row in zip(*columns, strict=True)
        ]
        for inputs in itertools.permutations(columns):
            out = np.empty(len(columns[0]), dtype)
            Reduction(operation, dtype, size).reduce_all(inputs, out)
            assert out.tobytes() == np.array(expected, dtype).tobytes()


def test_small_addends_survive_in_float16():
    """2048 + 1 + 1 is 2050, though float16 alone would stay at 2048."""
    out = np.empty(1, np.float16)
    inputs = [np.array([x], np.float16) for x in (2048, 1, 1)]
    Reduction("sum", np.float16, 3).reduce_all(inputs, out)
    assert out.tolist() == [2050.0]


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("sum", [False, True, True, True]),
        ("max", [False, True, True, True]),
        ("prod", [False, False, False, True]),
        ("min", [False, False, False, True]),
        ("band", [False, False, False, True]),
        ("bor", [False, True, True, True]),
        ("bxor", [False, True, True, False]),
    ],
)
def test_bool_is_or_and_and(operation, expected):
    """Sum and max are or, prod and min are and."""
    a = np.array([False, False, True, True])
    b = np.array([False, True, False, True])
    out = np.empty(4, bool)
    Reduction(operation, bool, 2).reduce_all([a, b], out)
    assert out.tolist() == expected


@pytest.mark.parametrize("name", [name for name in DTYPE_NAMES if "int" in name])
def test_integers_wrap(name):
    """Sum and prod are those of unbounded integers, taken modulo two to the number of bits."""
    dtype = dtype_from_name(name)
    info = np.iinfo(dtype)
    rng = np.random.default_rng(3)
    inputs = [rng.integers(info.min, info.max, 200, dtype=dtype, endpoint=True) for _ in range(5)]
    columns = list(zip(*(x.tolist() for x in inputs), strict=True))
    for operation, exact in (
        ("sum", [sum(column) for column in columns]),
        ("prod", [int(np.prod(np.array(column, object))) for column in columns]),
        ("min", [min(column) for column in columns]),
        ("max", [max(column) for column in columns]),
        ("band", [functools.reduce(operator.and_, column) for column in columns]),
        ("bor", [functools.reduce(operator.or_, column) for column in columns]),
        ("bxor", [functools.reduce(operator.xor, column) for column in columns]),
    ):
        out = np.empty(200, dtype)
        Reduction(operation, dtype, 5).reduce_all(inputs, out)
        wrapped = [(x - info.min) % 2**info.bits + info.min for x in exact]
        assert out.tolist() == wrapped


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_overflow_is_infinite_and_nan_is_carried(name):
    """Odd numbers show in the result, not in warnings; min and max carry NaN from either side."""
    dtype = dtype_from_name(name)
    largest = float(ml_dtypes.finfo(dtype).max)
    a = np.array([largest, np.inf, np.nan, 1, 0]).astype(dtype)
    b = np.array([largest, -np.inf, 1, np.nan, -0.0]).astype(dtype)
    inf, nan = np.inf, np.nan
    for operation, expected in {
        "sum": [inf, nan, nan, nan, 0],
        "prod": [inf, -inf, nan, nan, 0],
        "min": [largest, -inf, nan, nan, 0],
        "max": [largest, inf, nan, nan, 0],
    }.items():
        out = np.empty(5, dtype)
        Reduction(operation, dtype, 2).reduce_all([a, b], out)
        np.testing.assert_array_equal(out.astype(np.float64), expected)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_a_complex_mean_is_taken_part_by_part(dtype):
    """An infinite real part leaves the imaginary part alone."""
    out = np.empty(2, dtype)
    inputs = [np.array([complex(np.inf, 1), 1 + 2j], dtype), np.array([1 + 2j, 2 + 5j], dtype)]
    Reduction("mean", dtype, 2).reduce_all(inputs, out)
    assert out.real.tolist() == [np.inf, 1.5]
    assert out.imag.tolist() == [1.5, 3.5]


@pytest.mark.parametrize("name", [name for name in DTYPE_NAMES if defined("sum", name)])
@pytest.mark.parametrize("count", [0, 1, 16_384, 40_000])
def test_all_inputs_are_reduced_in_rank_order(name, count):
    """The one-trip path is the left fold over the ranks, block boundaries or not."""
    dtype = dtype_from_name(name)
    rng = np.random.default_rng(4)
    inputs = [np.abs(rng.normal(size=count) * 3).astype(dtype) for _ in range(3)]
    kept = [x.copy() for x in inputs]
    reduction = Reduction("sum", dtype, 3)
    out = np.empty(count, dtype)
    reduction.reduce_all(inputs, out)
    wide = [x.astype(reduction.accumulator) for x in inputs]
    expected = ((wide[0] + wide[1]) + wide[2]).astype(dtype)
    assert out.tobytes() == expected.tobytes()
    assert [x.tobytes() for x in inputs] == [x.tobytes() for x in kept]


@pytest.mark.parametrize(("operation", "name"), [case for case in CASES if defined(*case)])
def test_a_ring_of_one_returns_its_input(operation, name):
    """With one member every op is the identity, bit for bit."""
    values = np.arange(-3, 9).astype(np.float32).astype(dtype_from_name(name))
    out = np.empty_like(values)
    Reduction(operation, values.dtype, 1).reduce_all([values], out)
    assert out.tobytes() == values.tobytes()


def test_the_number_of_inputs_is_the_size():
    """A missing member is an error, not a smaller sum."""
    with pytest.raises(ValueError, match="2 inputs for a ring of 3"):
        Reduction("sum", np.float32, 3).reduce_all([np.ones(1), np.ones(1)], np.empty(1))
    with pytest.raises(ValueError, match="size must be at least 1, not 0"):
        Reduction("sum", np.float32, 0)
