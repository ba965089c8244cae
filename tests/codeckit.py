"""The formats of :mod:`ringd.collective.codec`, value by value in fractions, and their errors."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from ringd.collective.codec import CODECS

BLOCK = {"bfloat16": 1, "int8": 64}
UNIT = {"bfloat16": Fraction(1, 256), "int8": Fraction(1, 125)}
"""The largest error of an encoding: of the value, or of the largest finite one of its block."""
LEAST = {"bfloat16": Fraction(1, 2**134), "int8": Fraction(1, 2**127)}
"""Or this, if that is more."""
OVERFLOW = {"bfloat16": Fraction(0x1FF) * 2**119, "int8": Fraction(127) * 2**121}
"""The least magnitude that becomes infinite."""
_FLOAT32_ROUNDING = Fraction(1, 2**24)


def encode(wire, values):
    """Return the bytes of *values*."""
    out = np.full(CODECS[wire].nbytes(len(values)), 0xA5, np.uint8)
    CODECS[wire].encode(values, out)
    return out


def decode(wire, data, count):
    """Return the values of *data*."""
    out = np.full(count, 1e9, np.float32)
    CODECS[wire].decode(data, out)
    return out


def travelled(wire, values):
    """Return *values* as they arrive."""
    return decode(wire, encode(wire, values), len(values))


def on_grid(wire, values):
    """Return what arrives of *values*, the first of which begins a block."""
    return np.array([each for block in _blocks(wire, values) for each in block], np.float32)


def _blocks(wire, values):
    for start in range(0, len(values), BLOCK[wire]):
        block = [float(value) for value in values[start : start + BLOCK[wire]]]
        finite = [abs(Fraction(value)) for value in block if math.isfinite(value)]
        step = _step(wire, max(finite, default=Fraction(0)))
        yield [_rounded(wire, value, step) for value in block]


def _step(wire, largest):
    """Return what values of a block are multiples of."""
    exponent = max(math.frexp(largest)[1] - 1, -126)  # largest: from 2^exponent on
    if wire == "bfloat16":
        return Fraction(2) ** (exponent - 7)
    fits = largest <= 125 * Fraction(2) ** (exponent - 6)
    return Fraction(2) ** max(exponent - 6 if fits else exponent - 5, -126)


def _rounded(wire, value, step):
    if not math.isfinite(value):
        return value
    if abs(Fraction(value)) >= OVERFLOW[wire]:
        return math.copysign(math.inf, value)
    near = float(round(Fraction(value) / step) * step)  # ties to even
    return math.copysign(near, value) if wire == "bfloat16" else near


def error_bound(wire, magnitudes, encodings, inputs=1):
    """Return how far a result may be from the exact one, as docs/compression.md has it.

    Args:
        wire: the format.
        magnitudes: by input, that of one value; of int8, the largest of its block.
        encodings: how often it is encoded on its way.
        inputs: how many are added, each time rounded to float32.
    """
    growth = (1 + UNIT[wire]) ** encodings * (1 + _FLOAT32_ROUNDING) ** inputs
    total = sum(Fraction(float(magnitude)) for magnitude in magnitudes)
    return (growth - 1) * total + encodings * growth * LEAST[wire]


def magnitudes(wire, values):
    """Return, for each of the finite *values*, the one by which its error is bounded."""
    size, block = len(values), BLOCK[wire]
    padded = np.zeros(-(-size // block) * block, np.float32)
    padded[:size] = np.abs(values)
    return np.repeat(padded.reshape(-1, block).max(axis=1), block)[:size]
