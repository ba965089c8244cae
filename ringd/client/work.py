"""The handle of one call under way."""

from __future__ import annotations

import asyncio
import itertools
import time
from _thread import RLock  # what threading.RLock makes, without a function around it
from collections.abc import Callable, Generator, Sequence
from concurrent import futures
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ringd import errors
from ringd.client import arguments, tensors
from ringd.client.notifier import call_back
from ringd.client.rows import Row
from ringd.client.session import Op
from ringd.client.stay import Stay

T = TypeVar("T")
Array = npt.NDArray[Any]


class Work(Generic[T]):
    """A call that was handed over; made by the methods of :class:`ringd.Ring` that end in _async.

    May be dropped without having been waited for: the call still takes place, as the other
    members count on it.
    """

    __slots__ = (
        "__weakref__",
        "_collected",
        "_collecting",
        "_dtype",
        "_lock",
        "_op",
        "_out",
        "_result",
        "_ring",
        "_shape",
        "_stay",
    )

    def __init__(
        self,
        ring: object,
        stay: Stay,
        op: Op,
        *,
        shape: tuple[int, ...] | None = None,
        dtype: np.dtype[Any] | None = None,
        out: npt.NDArray[Any] | None = None,
    ) -> None:
        self._ring = ring  # which must not be collected, and so closed, before this
        self._stay = stay
        self._shape = shape
        self._dtype = dtype
        self._out = out
        self._lock = RLock()
        self._collecting = False
        self._collected = False
        self._op = op
        self._result: Any = None

    def __repr__(self) -> str:
        op = self._op
        state = "open" if not op.ended else "done" if op.error is None else f"failed: {op.error}"
        return f"<ringd.Work op {op.seq}, {op.call}, {state}>"

    @property
    def source(self) -> int | None:
        """The rank from which a message comes; None where this is none."""
        return self._stay.source

    def wait(self, timeout: float | None = None) -> T:
        """Return the result, as soon as it is there.

        Args:
            timeout: seconds to wait; None for as long as the call's own deadline allows.

        Returns:
            What the method of :class:`Ring` returns; *out* if that was given. The same array each
            time.

        Raises:
            DeadlineExceeded: the call's deadline passed; or *timeout* did, in which case the
                call goes on and may be waited for again.
            Mismatch: the members submitted different calls.
            GroupLost: a client of the group died or left.
            PeerLost: a member was lost, and the ring was made with ``on_loss="fail"``.
            TypeError, ValueError: *timeout* is no number of seconds.
            CalledFromHandler, MainThreadFailed: as :meth:`Ring.all_reduce`.
            RingError: any other reason; see :mod:`ringd.errors`.
        """
        until = None if timeout is None else time.monotonic() + arguments.seconds(timeout)
        try:
            self._stay.wait(self._op, until)
            taken = self._collected or self._collect()
        except errors.RingError:
            raise
        except BaseException:  # Ctrl-C: a program that cannot wait again may write to the input
            connection = self._stay.connection
            self._op.left = connection.inputs_left = True
            try:
                connection.leave_input()
            except BaseException:  # noqa: BLE001 - a second one, at its very beginning
                connection.leave_input()
            raise
        if not taken:
            raise errors.CalledFromHandler
        result: T = self._result
        return result

    def done(self) -> bool:
        """Whether :meth:`wait` would return, or raise the call's error, at once.

        A given *out* has its values once this has returned True.
        """
        if not self._stay.done(self._op):
            return False
        return self._op.error is not None or self._collected or self._collect()

    def add_done_callback(self, callback: Callable[[Work[T]], object]) -> None:
        """Have ``callback(self)`` called once the call has ended; at once if it has.

        Else in a thread of ringd's own, one after the other, without anybody waiting. So it may
        make calls and wait for them, but not for futures or other callbacks of this ring. What it
        raises goes to the log (``logging``) of ``ringd.client.notifier``. It keeps
        no program alive: at a program's end, those of open calls come with an error or not at all.
        """
        if self.done():
            call_back(self._op, lambda: callback(self))
        else:
            self._stay.tell(self._op, lambda: callback(self))

    def future(self) -> futures.Future[T]:
        """Return a future of the result, or of the error; it cannot be cancelled."""
        future: futures.Future[T] = futures.Future()
        future.set_running_or_notify_cancel()

        def resolve(work: Work[T]) -> None:
            try:
                result = work.wait()
            except Exception as error:  # noqa: BLE001 - which is its user's
                future.set_exception(error)
            else:
                future.set_result(result)

        self.add_done_callback(resolve)
        return future

    def __await__(self) -> Generator[Any, None, T]:
        """Wait in asyncio; a task that is cancelled leaves the call to go on."""
        return asyncio.wrap_future(self.future()).__await__()

    def _collect(self) -> bool:
        """Take the result; False beneath a signal handler that interrupted just that."""
        with self._lock:
            if self._collecting:
                return self._collected
            self._collecting = True
            try:
                if not self._collected:
                    self._result = self._take()
                    self._op.target = self._op.reply = None
                    self._collected = True
            except errors.CalledFromHandler:  # beneath a handler that interrupted another call
                return False
            finally:
                self._collecting = False
            return True

    def _take(self) -> object:
        """Return what the call gives, from where the daemon left it."""
        op, out, dtype, shape = self._op, self._out, self._dtype, self._shape
        if shape is None or dtype is None:
            return None
        block = op.target
        if block is None:
            data = op.reply if op.reply is not None else b""
            if out is None:
                return tensors.from_bytes(data, dtype, shape)
            np.copyto(out, np.frombuffer(data, np.uint8).view(dtype).reshape(shape))
            return out
        length = op.target_length
        if out is None:
            lent = self._stay.connection.lend(block, length) if length else None
            if lent is not None:
                return lent.view(dtype).reshape(shape)
            out = np.empty(shape, dtype)
        np.copyto(out, block.bytes(length).view(dtype).reshape(shape))
        return out


class LendingWork(Work[T]):
    """That of a call whose input is the user's own memory."""

    __slots__ = ()

    def __del__(self) -> None:
        # Nobody can tell any more when the call has ended, as where an interrupt came between the
        # call's return and the handle's first name; or before this had its attributes.
        if hasattr(self, "_op") and self._op.hold and not self._op.ended:
            connection = self._stay.connection
            self._op.left = connection.inputs_left = True
            connection.leave_input()


class BytesWork(Work[T]):
    """That of an :meth:`Ring.all_gather_bytes`: of the second of its calls, *op*.

    *made* makes the result of the bytes of all ranks, for who takes it.
    """

    __slots__ = ("_made",)

    def __init__(
        self, ring: object, stay: Stay, op: Op, made: Callable[[list[bytes], Op], T]
    ) -> None:
        super().__init__(ring, stay, op)
        self._made = made

    def __del__(self) -> None:
        self._look_after()

    def wait(self, timeout: float | None = None) -> T:
        """Return the result; as :meth:`Work.wait`."""
        try:
            return super().wait(timeout)
        except BaseException:  # nobody may take in the end of the first call
            self._look_after()
            raise

    def _look_after(self) -> None:
        """Let the thread that listens make the second call, if nobody waits for the first."""
        if hasattr(self, "_op") and self._op.filler is not None:
            self._stay.connection.keeper.wake()

    def _take(self) -> object:
        op = self._op
        whole = memoryview(op.result_bytes())
        ends = itertools.accumulate(op.call.counts)
        parts = [bytes(whole[end - n : end]) for end, n in zip(ends, op.call.counts, strict=True)]
        return self._made(parts, op)


class RowWork(Work["list[Array]"]):
    """That of tensors that travel as one *row*; *outs*, if there are any, take their results."""

    __slots__ = ("_outs", "_row")

    def __init__(
        self, ring: object, stay: Stay, op: Op, row: Row, outs: Sequence[Array] | None
    ) -> None:
        super().__init__(ring, stay, op, shape=row.layout.call.shape, dtype=row.dtype)
        self._row = row
        self._outs = outs

    @property
    def places(self) -> Sequence[int]:
        """The numbers of its tensors among those of all rows."""
        return self._row.places

    @property
    def failed(self) -> bool:
        """Whether the call has ended with an error."""
        return self._op.error is not None

    def ended(self) -> bool:
        """Whether the call has ended, well or not; no result is taken."""
        return self._stay.done(self._op)

    def end(self, until: float | None) -> errors.RingError | None:
        """Wait until the call has ended, and return how, None for well; no result is taken.

        Raises:
            RingError: it has not ended by *until*.
        """
        try:
            self._stay.wait(self._op, until)
        except errors.RingError as error:
            if not self._op.ended:
                raise
            return error
        return None

    def tell(self, callback: Callable[[], object]) -> None:
        """Have *callback* called in a thread of its own once the call has ended."""
        self._stay.tell(self._op, callback)

    def _take(self) -> object:
        whole = super()._take()
        assert isinstance(whole, np.ndarray)  # noqa: S101 - a row always has a result
        parts = self._row.layout.parts(whole)
        if self._outs is None:
            return parts
        for out, part in zip(self._outs, parts, strict=True):
            np.copyto(out, part)
        return list(self._outs)


class RowsWork(Work["list[Array]"]):
    """That of several rows: it ends when all have, and well if all have.

    Before that is known, none of their results is taken, nor written to an array of the program.
    *stay* and *op* are those of the last one.
    """

    __slots__ = ("_rows",)

    def __init__(self, ring: object, stay: Stay, op: Op, rows: Sequence[RowWork]) -> None:
        super().__init__(ring, stay, op)
        self._rows = rows

    def __repr__(self) -> str:
        return f"<ringd.Work of {', '.join(map(repr, self._rows))}>"

    def wait(self, timeout: float | None = None) -> list[Array]:
        """Return the results; as :meth:`Work.wait`."""
        until = None if timeout is None else time.monotonic() + arguments.seconds(timeout)
        for error in [row.end(until) for row in self._rows]:
            if error is not None:
                raise error
        if not (self._collected or self._collect()):
            raise errors.CalledFromHandler
        result: list[Array] = self._result
        return result

    def done(self) -> bool:
        """Whether :meth:`wait` would return, or raise the error of one of them, at once."""
        if not all(row.ended() for row in self._rows):
            return False
        # Not by end, which tells the program of a loss.
        return any(row.failed for row in self._rows) or self._collected or self._collect()

    def add_done_callback(self, callback: Callable[[Work[list[Array]]], object]) -> None:
        """Have ``callback(self)`` called once all have ended; as :meth:`Work.add_done_callback`."""
        for row in self._rows:
            if not row.ended():
                row.tell(lambda: self.add_done_callback(callback))
                return
        super().add_done_callback(callback)

    def _take(self) -> object:
        found: dict[int, Array] = {}
        for row in self._rows:
            found.update(zip(row.places, row.wait(), strict=True))
        return [found[place] for place in range(len(found))]
