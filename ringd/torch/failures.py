"""ringd's errors as errors of torch.distributed, which programs written for that catch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from torch import distributed as dist

from ringd.errors import DeadlineExceeded, RingError

Function = TypeVar("Function", bound=Callable[..., Any])


def failure(error: RingError) -> Exception:
    """Return *error* as what is of its own class and a ``dist.DistBackendError``, too."""
    text = str(error)
    if isinstance(error, DeadlineExceeded):
        text = f"the group's timeout has passed: {text}"
    kind = type(error)
    if kind not in _BOTH:
        bases = (kind, dist.DistBackendError)
        _BOTH[kind] = type(
            kind.__name__, bases, {"__module__": __name__, "__reduce_ex__": _tell_instead}
        )
    failed: Exception = _BOTH[kind](text)
    return failed


_BOTH: dict[type[RingError], Any] = {}


def _tell_instead(error: Exception, _protocol: object) -> Any:
    """Raise *error*, in place of being pickled.

    DDP takes what is in a failed future for tensors, looks for them with a pickler, and shows what
    that says: so what it says is what happened.
    """
    raise error


def in_torch_terms(function: Function) -> Function:
    """Decorate *function*: what it raises of ringd's errors are errors of torch as well."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except RingError as error:
            raise failure(error) from None

    return wrapped  # type: ignore[return-value] # of the same signature
