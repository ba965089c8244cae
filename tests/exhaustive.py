"""How much of what is alike the tests try: some of it, or with ``RINGD_TEST_EXHAUSTIVE=1`` all."""

from __future__ import annotations

import os
from typing import TypeVar

EXHAUSTIVE = bool(os.environ.get("RINGD_TEST_EXHAUSTIVE"))

T = TypeVar("T")


def usually(some: T, everything: T) -> T:
    """Return *some*, or *everything* where that was asked for."""
    return everything if EXHAUSTIVE else some
