"""The handle that torch is given of calls under way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import distributed as dist

from ringd.client.work import Work as RingWork
from ringd.errors import RingError
from ringd.torch.calls import Land
from ringd.torch.failures import failure, in_torch_terms


class Part(NamedTuple):
    """A call that was made."""

    work: RingWork[Any]
    land: Land


class Work(dist._Work):  # noqa: SLF001 - its name in torch's own namespace
    """Calls of a process group under way, and the tensors to which their results go.

    Whoever waits writes the results; without a future there is no other thread in it.
    """

    def __init__(self, parts: Sequence[Part], tensors: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self._parts = parts
        self._tensors = list(tensors)
        self._landed = False
        self._landing = threading.Lock()
        self._future: torch.futures.Future[list[torch.Tensor]] | None = None

    @in_torch_terms
    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Return True once all results are in their tensors.

        Args:
            timeout: how long to wait; 0 for as long as the group's own allows.

        Raises:
            DeadlineExceeded: that is over; the calls go on.
            RingError: as the calls of :class:`ringd.Ring`.
        """
        limit = timeout.total_seconds()
        results = [part.work.wait(limit if limit > 0 else None) for part in self._parts]
        with self._landing:
            if not self._landed:
                for part, result in zip(self._parts, results, strict=True):
                    part.land(result)
                self._landed = True
        return True

    def get_future(self) -> torch.futures.Future[list[torch.Tensor]]:
        """Return a future of the tensors, which needs nobody to wait."""
        if self._future is None:
            cuda = {tensor.device for tensor in self._tensors if tensor.device.type == "cuda"}
            self._future = torch.futures.Future(devices=sorted(cuda, key=str) or None)
            if self._parts:
                self._parts[-1].work.add_done_callback(self._resolve)  # the others end before it
            else:
                self._future.set_result(self._tensors)
        return self._future

    def _resolve(self, _work: object) -> None:
        assert self._future is not None  # noqa: S101 - it asked for this
        try:
            self.wait()
        except Exception as error:  # noqa: BLE001 - which is its user's
            self._future.set_exception(error)
        else:
            self._future.set_result(self._tensors)

    @in_torch_terms
    def is_completed(self) -> bool:
        """Whether :meth:`wait` would return, or raise the calls' error, at once."""
        return all(part.work.done() for part in self._parts)

    def is_success(self) -> bool:
        """Whether all has ended well."""
        return self.is_completed() and self.exception() is None

    def exception(self) -> Exception | None:
        """Return what :meth:`wait` raises; waits for it."""
        try:
            self.wait()
        except Exception as error:  # noqa: BLE001 - which is its user's
            return error
        return None

    def result(self) -> list[torch.Tensor]:
        """Return the tensors, once they have their results."""
        self.wait()
        return self._tensors

    def synchronize(self) -> None:
        """Wait."""
        self.wait()


class Arrival(Work):
    """Of a message from whatever rank sends first: it is asked for when it is waited for."""

    def __init__(self, begin: Callable[[], Part], tensor: torch.Tensor) -> None:
        super().__init__([], [tensor])
        self._begin = begin

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Return True once the message is in its tensor; as :meth:`Work.wait`."""
        with self._landing:
            if not self._parts:
                try:
                    self._parts = [self._begin()]
                except RingError as error:
                    raise failure(error) from None
        return super().wait(timeout)

    def get_future(self) -> torch.futures.Future[list[torch.Tensor]]:
        """Return a future of the tensor; waits for a message to be sent."""
        self.wait()
        return super().get_future()

    def is_completed(self) -> bool:
        """Whether the message has been waited for, and is there."""
        return bool(self._parts) and super().is_completed()

    def source_rank(self) -> int:
        """Return the rank that has sent it."""
        self.wait()
        source = self._parts[0].work.source
        assert source is not None  # noqa: S101 - of a message
        return source

    _source_rank = source_rank
