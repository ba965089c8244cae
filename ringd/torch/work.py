"""The handle that torch is given of calls under way."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import distributed as dist

from ringd.client.work import Work as RingWork
from ringd.errors import RingError
from ringd.torch.calls import Land
from ringd.torch.failures import failure, in_torch_terms

_FORGETFUL = torch.__version__ < "2.7"
"""Whether torch's own code drops the Python object of a handle that it goes on to use."""

_kept: set[Work] = set()
"""The handles that such a torch may use, until they have been waited for."""


class Part(NamedTuple):
    """A call that was made."""

    work: RingWork[Any]
    land: Land


class Work(dist._Work):  # noqa: SLF001 - its name in torch's own namespace
    """Calls of a process group under way, and the tensors to which their results go.

    Whoever waits writes the results; without a future there is no other thread in it.
    """

    def __init__(
        self, parts: Sequence[Part], tensors: Sequence[torch.Tensor], futures: Futures
    ) -> None:
        super().__init__()
        self._futures = futures
        self._parts = parts
        self._tensors = list(tensors)
        if _FORGETFUL:
            _kept.add(self)
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
        _kept.discard(self)  # the caller has it
        limit = timeout.total_seconds()
        results = [part.work.wait(limit if limit > 0 else None) for part in self._parts]
        with self._landing:
            if not self._landed:
                for part, result in zip(self._parts, results, strict=True):
                    part.land(result)
                self._landed = True
        return True

    def get_future(self) -> torch.futures.Future[list[torch.Tensor]]:
        """Return a future of the tensors, for which nobody needs to wait."""
        if self._future is None:
            cuda = {tensor.device for tensor in self._tensors if tensor.is_cuda}
            self._future = torch.futures.Future(devices=sorted(cuda, key=str) or None)
            if _thread.resolves:
                self.resolve()
            else:
                self._futures.add(self)
        return self._future

    def resolve(self) -> None:
        """Give the future its result, or the error; waits for it."""
        assert self._future is not None  # noqa: S101 - it was asked for
        try:
            self.wait()
        except Exception as error:  # noqa: BLE001 - which is its user's
            self._future.set_exception(error)
        else:
            self._future.set_result(self._tensors)

    def tell(self, callback: Callable[[object], object]) -> None:
        """Have *callback* called as each of the calls has ended; once where there is none."""
        for part in self._parts:
            part.work.add_done_callback(callback)
        if not self._parts:
            callback(self)

    def ended(self) -> bool:
        """Whether :meth:`wait` would return, or raise the calls' error, at once."""
        return all(part.work.done() for part in self._parts)

    @in_torch_terms
    def is_completed(self) -> bool:
        """As :meth:`ended`; the results are in their tensors then."""
        if not self.ended():
            return False
        self.exception()
        return True

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


class Futures:
    """Those of a process group, which are resolved in the order in which they were asked for.

    What waits for a future may make calls, as some hooks of DDP do. So the ranks make these in one
    order, too, as far as nothing else makes calls meanwhile.
    """

    def __init__(self) -> None:
        self._works: deque[Work] = deque()
        self._lock = threading.Lock()
        self._resolving = False
        """Whether a thread is at it, which goes on to what comes meanwhile."""

    def add(self, work: Work) -> None:
        """Resolve that of *work* in its turn."""
        with self._lock:
            self._works.append(work)
        work.tell(lambda _ended: self._advance())

    def _advance(self) -> None:
        while (work := self._next()) is not None:
            outer, _thread.resolves = _thread.resolves, True
            try:
                work.resolve()
            finally:
                _thread.resolves, self._resolving = outer, False

    def _next(self) -> Work | None:
        """Return the first one, if that has ended and no other thread is at it."""
        with self._lock:
            if self._resolving or not self._works or not self._works[0].ended():
                return None
            self._resolving = True
            return self._works.popleft()


class _Thread(threading.local):
    """What is known of each thread."""

    resolves = False
    """Whether what waits for a future runs in it: other futures may then have nobody else."""


_thread = _Thread()


class Arrival(Work):
    """Of a message from whatever rank sends first: it is asked for when it is waited for."""

    def __init__(self, begin: Callable[[], Part], tensor: torch.Tensor, futures: Futures) -> None:
        super().__init__([], [tensor], futures)
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
