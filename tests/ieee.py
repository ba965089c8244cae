"""IEEE 754 arithmetic in whole numbers: what every processor must compute, bit for bit.

Nothing here touches a floating-point unit: numbers are bit patterns, and their values fractions.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from fractions import Fraction

INFINITY = "inf"
NAN = "nan"


@dataclass(frozen=True)
class Format:
    """A binary format: *width* bits, of which *digits* of fraction are stored."""

    width: int
    digits: int

    @property
    def sign(self) -> int:
        """The bit of the sign."""
        return 1 << (self.width - 1)

    @property
    def bias(self) -> int:
        """Of the exponent."""
        return (1 << (self.width - self.digits - 2)) - 1

    @property
    def infinity(self) -> int:
        """Positive infinity."""
        return (2 * self.bias + 1) << self.digits

    @property
    def nan(self) -> int:
        """The one NaN that may come out: quiet, positive, no payload."""
        return self.infinity | 1 << (self.digits - 1)

    def specials(self) -> list[int]:
        """Return bit patterns at all edges of the format, and some amid it."""
        one = self.bias << self.digits
        positive = [
            0,
            1,  # the smallest subnormal, and the largest
            (1 << self.digits) - 1,
            1 << self.digits,  # the smallest normal number
            (1 << self.digits) + 3,
            one - 1,
            one,
            one + 1,
            one + (1 << self.digits) + 5,
            (self.bias // 2 << self.digits) + 1,  # a square that is subnormal
            self.infinity - 1,  # the largest number
            self.infinity - (1 << self.digits),
            self.infinity,
            self.nan,
            self.nan + 5,
            self.infinity + 1,  # signalling
            self.infinity + 2,
        ]
        return positive + [bits | self.sign for bits in positive]

    def value(self, bits: int) -> Fraction | str:
        """Return the magnitude: a fraction, INFINITY or NAN."""
        bits &= ~self.sign
        if bits >= self.infinity:
            return INFINITY if bits == self.infinity else NAN
        exponent, fraction = bits >> self.digits, bits & ((1 << self.digits) - 1)
        whole = fraction + (1 << self.digits if exponent else 0)
        return whole * Fraction(2) ** (max(exponent, 1) - self.bias - self.digits)

    def negative(self, bits: int) -> int:
        """Return the sign bit of *bits*, or 0."""
        return bits & self.sign

    def round(self, magnitude: Fraction, sign: int) -> int:
        """Return the nearest number, ties to even, overflow to infinity; *sign* is its sign bit."""
        if magnitude == 0:
            return sign
        least = 1 - self.bias - self.digits  # the exponent of the last digit of subnormals
        length = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
        exponent = max(least, length - self.digits - 1)
        if magnitude >= Fraction(2) ** (exponent + self.digits + 1):
            exponent += 1
        whole, rest = divmod(magnitude / Fraction(2) ** exponent, 1)
        if rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2):
            whole += 1
        # A carry out of the fraction goes on into the exponent by itself.
        bits = int(whole) + (exponent - least << self.digits)
        return sign | min(bits, self.infinity)

    def add(self, a: int, b: int) -> int:
        """Return a + b."""
        x, y = self.value(a), self.value(b)
        if NAN in (x, y):
            return self.nan
        if x == INFINITY:
            return a if y != INFINITY or a == b else self.nan
        if y == INFINITY:
            return b
        total = (-x if self.negative(a) else x) + (-y if self.negative(b) else y)
        if total == 0:
            return a & b & self.sign  # exact zeros are positive, unless both are negative
        return self.round(abs(total), self.sign if total < 0 else 0)

    def multiply(self, a: int, b: int) -> int:
        """Return a * b."""
        x, y, sign = self.value(a), self.value(b), self.negative(a ^ b)
        if NAN in (x, y):
            return self.nan
        if INFINITY in (x, y):
            return self.nan if 0 in (x, y) else self.infinity | sign
        return self.round(x * y, sign)

    def divide(self, a: int, whole: int) -> int:
        """Return a / whole, of a positive whole number."""
        x = self.value(a)
        if x == NAN:
            return self.nan
        return a if x == INFINITY else self.round(x / whole, self.negative(a))

    def maximum(self, a: int, b: int) -> int:
        """Return the larger one, where -0 < +0, and NaN if either is."""
        if NAN in (self.value(a), self.value(b)):
            return self.nan
        return max(a, b, key=self._rank)

    def minimum(self, a: int, b: int) -> int:
        """Return the smaller one, likewise."""
        if NAN in (self.value(a), self.value(b)):
            return self.nan
        return min(a, b, key=self._rank)

    def _rank(self, bits: int) -> int:
        return -1 - (bits ^ self.sign) if self.negative(bits) else bits

    def negated(self, bits: int) -> int:
        """Return -bits."""
        return bits ^ self.sign

    def convert(self, bits: int, to: Format) -> int:
        """Return *bits* in another format."""
        value = self.value(bits)
        if value == NAN:
            return to.nan
        sign = to.sign if self.negative(bits) else 0
        return to.infinity | sign if value == INFINITY else to.round(value, sign)


FORMATS = {
    "float16": Format(16, 10),
    "bfloat16": Format(16, 7),
    "float32": Format(32, 23),
    "float64": Format(64, 52),
}


@functools.cache
def fold(operation: str, name: str, row: tuple[int, ...]) -> int:
    """Return the bits of *operation* over the bits *row*, in this order, in the dtype *name*.

    Of 16 bits, the numbers are reduced in float32 and rounded at the end.
    """
    own = FORMATS[name]
    inner = FORMATS["float32"] if own.width == 16 else own
    step = {
        "prod": Format.multiply,
        "min": Format.minimum,
        "max": Format.maximum,
    }.get(operation, Format.add)
    total = own.convert(row[0], inner)
    for other in row[1:]:
        total = step(inner, total, own.convert(other, inner))
    if operation == "mean":
        total = inner.divide(total, len(row))
    return inner.convert(total, own)
