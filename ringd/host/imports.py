"""What a package imports for uses of it that this process has not: left out, or put off."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any


class _PutOff(ModuleType):
    """Stands in for a module until something of it is asked for.

    :class:`importlib.util.LazyLoader` is not for this: there the next ``import`` asks.
    """

    def __getattr__(self, name: str) -> Any:
        here = self.__name__
        if sys.modules.get(here) is self:
            del sys.modules[here]
        return getattr(importlib.import_module(here), name)


def put_off(name: str) -> None:
    """Have the top-level module *name* imported only when something of it is asked for."""
    sys.modules.setdefault(name, _PutOff(name))


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    """Import in this context as if *name*, which is optional there, were not installed."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # how Python says so
    try:
        yield
    finally:
        del sys.modules[name]
