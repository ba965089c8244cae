"""Every bit of a result is the one that whole-number arithmetic gives, on any processor."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from ringd.collective.reduction import Reduction, dtype_from_name
from tests.ieee import FORMATS, Format, fold

FLOATS = list(FORMATS)
OPERATIONS = ("sum", "mean", "prod", "min", "max")
LENGTHS = (1, 2, 3, 5, 8, 15, 17, 31, 64, 65)
"""Around the widths of vector units, so that elements stand in their bodies and in their rests."""


def unsigned(name: str) -> np.dtype:
    """Return the dtype of the bit patterns."""
    return np.dtype(f"u{FORMATS[name].width // 8}")


def from_bits(bits: list[int], name: str) -> np.ndarray:
    """Return the array that has these bit patterns."""
    return np.array(bits, unsigned(name)).view(dtype_from_name(name))


def to_bits(values: np.ndarray, name: str) -> list[int]:
    """Return the bit patterns of *values*."""
    return values.view(unsigned(name)).tolist()


def reduced(operation: str, columns: list[np.ndarray], offset: int, *, in_place: bool):
    """Return the reduction by single steps, as chunks take it, at *offset* elements of memory."""
    reduction = Reduction(operation, columns[0].dtype, len(columns))
    count = len(columns[0])
    partial = np.empty(count + offset, reduction.accumulator)[offset:]
    into = np.empty(count, reduction.accumulator)
    reduction.combine(columns[0], columns[1], partial)
    for column in columns[2:]:
        reduction.combine(partial, column, partial if in_place else into)
        partial, into = (partial, into) if in_place else (into, partial)
    out = np.empty(count, reduction.dtype) if reduction.wide else partial
    reduction.finish(partial, out)
    return out


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", FLOATS)
def test_all_pairs_of_edges(name, operation):
    """Signed zeros, subnormals, infinities and NaNs of all kinds, each with each, both ways."""
    rows = list(itertools.product(FORMATS[name].specials(), repeat=2))
    left, right = (from_bits(list(side), name) for side in zip(*rows, strict=True))
    expected = [fold(operation, name, row) for row in rows]
    out = np.empty_like(left)
    Reduction(operation, left.dtype, 2).reduce_all([left, right], out)
    assert to_bits(out, name) == expected
    assert to_bits(reduced(operation, [left, right], 0, in_place=True), name) == expected


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", FLOATS)
def test_every_position_of_every_length(name, operation):
    """An element's bits depend on the inputs alone: not on what stands beside it, nor where."""
    chosen = random.Random(f"{name} {operation}")
    rows = [tuple(chosen.choices(FORMATS[name].specials(), k=3)) for _ in range(400)]
    columns = [from_bits(list(side), name) for side in zip(*rows, strict=True)]
    expected = [fold(operation, name, row) for row in rows]
    reduction = Reduction(operation, columns[0].dtype, 3)
    for offset, length in itertools.product(range(17), LENGTHS):
        first = offset * 19
        part = [column[first : first + length] for column in columns]
        want = expected[first : first + length]
        out = np.empty(length + offset, columns[0].dtype)[offset:]
        reduction.reduce_all(part, out)
        assert to_bits(out, name) == want
        for in_place in (False, True):
            got = reduced(operation, part, offset, in_place=in_place)
            assert to_bits(got, name) == want


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", FLOATS)
def test_rare_values_amid_many_others(name, operation):
    """One NaN or one negative zero far inside 70,000 ordinary elements has its rule's bits."""
    form = FORMATS[name]
    one, zero = form.bias << form.digits, 0
    for odd in (form.nan + 3, form.infinity + 1, form.sign, form.infinity | form.sign):
        for place in (0, 16_383, 16_384, 40_001, 69_999):
            left, right = [zero] * 70_000, [zero] * 70_000
            left[place] = odd
            right[(place + 1) % 70_000] = odd
            right[(place + 2) % 70_000] = one
            pairs = zip(left, right, strict=True)
            out = np.empty(70_000, dtype_from_name(name))
            inputs = [from_bits(left, name), from_bits(right, name)]
            Reduction(operation, out.dtype, 2).reduce_all(inputs, out)
            assert to_bits(out, name) == [fold(operation, name, pair) for pair in pairs]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_rule_holds_in_a_ring_of_one(operation, name):
    """With one member a NaN is the one NaN, too, and everything else is what it was."""
    form = FORMATS[name]
    bits = form.specials()
    out = np.empty(len(bits), dtype_from_name(name))
    Reduction(operation, out.dtype, 1).reduce_all([from_bits(bits, name)], out)
    assert to_bits(out, name) == [form.convert(x, form) for x in bits]


COMPLEX = {"complex64": "float32", "complex128": "float64"}


def complex_model(operation: str, form: Format, rows: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the bits of both parts of one complex result."""
    real, imaginary = rows[0]
    for x, y in rows[1:]:
        if operation == "prod":
            minus = form.negated(form.multiply(imaginary, y))
            real, imaginary = (
                form.add(form.multiply(real, x), minus),
                form.add(form.multiply(real, y), form.multiply(imaginary, x)),
            )
        else:
            real, imaginary = form.add(real, x), form.add(imaginary, y)
    if operation == "mean":
        real, imaginary = form.divide(real, len(rows)), form.divide(imaginary, len(rows))
    return form.convert(real, form), form.convert(imaginary, form)


@pytest.mark.parametrize("operation", ["sum", "mean", "prod"])
@pytest.mark.parametrize("name", list(COMPLEX))
def test_complex_numbers_are_reduced_by_steps_of_real_ones(name, operation):
    """Each product and each sum is rounded by itself, at every position of every length."""
    part = COMPLEX[name]
    form = FORMATS[part]
    chosen = random.Random(f"{name} {operation}")

    def number() -> int:
        if chosen.random() < 0.3:
            return chosen.choice(form.specials())
        near_one = form.bias - 3 + chosen.randrange(6) << form.digits
        return chosen.getrandbits(form.digits) | near_one | form.sign * chosen.randrange(2)

    rows = [[(number(), number()) for _ in range(3)] for _ in range(200)]
    expected = [complex_model(operation, form, row) for row in rows]
    columns = [
        from_bits([bits for row in rows for bits in row[i]], part).view(name) for i in range(3)
    ]
    reduction = Reduction(operation, name, 3)
    for offset, length in itertools.product(range(5), (*LENGTHS, 130)):
        first = offset * 14
        inputs = [column[first : first + length] for column in columns]
        want = [bits for pair in expected[first : first + length] for bits in pair]
        out = np.empty(length + offset, name)[offset:]
        reduction.reduce_all(inputs, out)
        assert to_bits(out, part) == want
        for in_place in (False, True):
            got = reduced(operation, inputs, offset, in_place=in_place)
            assert to_bits(got, part) == want


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("operation", ["sum", "prod", "min", "max"])
def test_bool_results_are_bytes_of_zero_and_one(operation, size):
    """Whatever byte stands for true in an input: 1 stands for it in the result."""
    rows = list(itertools.product((0, 1, 2, 254, 255), repeat=size))
    inputs = [np.array(side, np.uint8).view(bool) for side in zip(*rows, strict=True)]
    out = np.empty(len(rows), bool)
    Reduction(operation, bool, size).reduce_all(inputs, out)
    true = all if operation in ("prod", "min") else any
    assert out.view(np.uint8).tolist() == [int(true(row)) for row in rows]
