"""Samples of one quantity, one for each round, and what is said of them. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def median(samples: Sequence[float]) -> float:
    """Return the middle one; of an even number the mean of the two in the middle."""
    return statistics.median(samples)


def spread(samples: Sequence[float]) -> float:
    """Return the distance from the least to the largest sample, as a share of the median."""
    return (max(samples) - min(samples)) / median(samples)


def ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """Return by which factor the median of *to* is above that of *of*.

    Of times: how many times as fast *of* is.
    """
    return median(to) / median(of)
