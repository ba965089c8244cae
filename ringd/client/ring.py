"""What a program uses: :func:`connect` and :class:`Ring`."""

from __future__ import annotations

import contextlib
import math
import os
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Any, SupportsIndex, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from ringd import errors
from ringd.client import arguments, tensors
from ringd.client.connection import Connection, connection_at
from ringd.client.forms import SIZED, Form, call_of, form_of
from ringd.client.gathering import LENGTH, Gathering
from ringd.client.group import Group, Place, Wish
from ringd.client.handover import make_op
from ringd.client.messages import (
    ANY,
    BUFFERED,
    MOST_BUFFERED,
    Key,
    linger,
    open_line,
    submit_when_sent,
    unreceived,
)
from ringd.client.rows import Row, arrays_of, check_outs, rows_of
from ringd.client.session import Op
from ringd.client.splitting import Choice, choices, part_of
from ringd.client.stay import Stay
from ringd.client.work import BytesWork, LendingWork, RowsWork, RowWork, Work
from ringd.collective import kinds
from ringd.collective.call import MAX_GROUP_NAME, NO_ROOT, Call
from ringd.collective.reduction import dtype_name
from ringd.host.limits import out_of_files
from ringd.host.paths import left_out, socket_candidates

T = TypeVar("T")
Array = npt.NDArray[Any]

_CONNECT_TIMEOUT = 30.0

_LINGER = 10.0
"""Seconds that receivers may take for what was sent before a ring is closed."""

_NOTHING: Array = np.empty(0, np.uint8)


def connect(
    socket: str | os.PathLike[str] | None = None,
    group: str = "default",
    timeout: float | None = None,
    *,
    on_loss: str = "wait",
    members: Collection[str] | None = None,
    local_rank: SupportsIndex = 0,
    local_size: SupportsIndex = 1,
) -> Ring:
    """Connect to this machine's daemon and join a group of programs, one or more on each machine.

    Returns as soon as the daemon has answered; the ring need not be ready, calls wait for it.

    Rings that are open when the program ends are hung up on first, before exit handlers
    (:mod:`atexit`) that were registered before this call: those can make no more calls.

    Args:
        socket: path of the daemon's socket; by default the environment variable RINGD_SOCKET,
            else the usual places of a user's own daemon, else that of the system's.
        group: the calls of a group are matched in the order in which they are made. Groups are
            independent of each other.
        timeout: seconds to wait for a daemon to appear; None for 30.
        on_loss: what happens to open calls when a member of the ring is lost: with ``"wait"``
            they wait for its return and then go on, with ``"fail"`` they end with PeerLost.
        members: names of the machines that take part, in any order; None for all of the ring. The
            same on all of them.
        local_rank: which one of the group's programs on this machine this is, from 0 to
            ``local_size - 1``.
        local_size: how many there are, up to 1000; other machines may have more or fewer.

    Raises:
        DaemonUnavailable: no daemon there in time; says where it was looked for.
        Refused: the daemon says no, for instance because the group has a client in this place
            already, or there is no such member; or its socket is not for this user, which is said
            at once, with what to do.
        ResourceExhausted: this process, or the daemon, can open no more files; names the limit.
        MainThreadFailed: by another thread, and only this call kept the program alive.
        TypeError, ValueError: an argument is none, or out of its range; says what to write.
    """
    group, on_loss = arguments.plain(group, "group"), arguments.plain(on_loss, "on_loss")
    if not 0 < len(group) <= MAX_GROUP_NAME or not group.isprintable():
        raise ValueError(
            f"a group's name has 1 to {MAX_GROUP_NAME} printable characters, not {group!r:.80}"
        )
    if on_loss not in ("wait", "fail"):
        raise ValueError(f"on_loss is 'wait' or 'fail', not {on_loss!r:.80}")
    within = _CONNECT_TIMEOUT if timeout is None else arguments.seconds(timeout)
    if within < 0:
        raise ValueError(f"timeout is a number of seconds, 0 or more, not {timeout!r}")
    local = arguments.local_place(local_rank, local_size)
    wish = Wish(group, on_loss, *local, arguments.member_names(members))
    given = socket or os.environ.get("RINGD_SOCKET")
    paths = [arguments.socket_path(given)] if given else [str(p) for p in socket_candidates()]
    try:
        return _join(paths, wish, within)
    except errors.DaemonUnavailable as error:
        others = "" if given else left_out()
        if others:
            raise errors.DaemonUnavailable(f"{error}; {others}") from None
        raise


def _join(paths: Sequence[str], wish: Wish, timeout: float) -> Ring:
    """Join the group of *wish* over a connection that is there, or else a new one."""
    while True:
        shared = connection_at(paths)
        try:
            connection = Connection(paths) if shared is None else shared
        except OSError as error:  # of its pipes
            raise errors.ResourceExhausted(out_of_files(error)) from error
        ring = _join_over(connection, wish, timeout, new=shared is None)
        if ring is not None:
            return ring


def _join_over(
    connection: Connection,
    wish: Wish,
    timeout: float,
    *,
    new: bool,
    place: Place | None = None,
) -> Ring | None:
    """Join over *connection*; None if that has been closed meanwhile.

    *place*: the program's in the group, where that is known already.
    """
    group = Group(wish, connection.daemon)
    group.place = place
    stay = Stay(connection, group)
    try:
        return Ring(connection, stay) if stay.begin(timeout, new=new) else None
    except BaseException:  # also Ctrl-C: without a ring nobody could close it
        try:
            stay.close()
        finally:  # where another interrupt ended that
            stay.abandon()
        raise


class Ring:
    """A place in a group of the ring; made by :func:`connect`.

    All rings of a program that have the same daemon share one connection to it, its memory and its
    threads, so hundreds of them cost little.

    May be used from several threads: calls are numbered in the order in which they are made.
    After a fork, the child must connect anew; arrays in shared memory (large results and those
    of :meth:`empty`) remain shared with the parent there, so copy what is to be kept.

    As a context manager it closes itself.
    """

    def __init__(self, connection: Connection, stay: Stay) -> None:
        self._connection = connection
        self._stay = stay
        # A ring that is forgotten is hung up on, and the group notices.
        weakref.finalize(self, stay.abandon).atexit = False  # the connection sees to that

    # --- what and where ---------------------------------------------------------------

    @property
    def rank(self) -> int:
        """This program's place among those of the group, from 0 to ``size - 1``.

        It is known, as are :attr:`size` and :attr:`nodes`, once every program of the group is there
        for the first time: to ask for it earlier waits, and raises, as a call does. Later, while
        the group forms anew, it is what it was last.

        Raises:
            DeadlineExceeded: not within the daemon's ``ops.timeout``; says for whom that waits.
            RingError: as :meth:`all_reduce`.
        """
        return self._place().rank

    @property
    def size(self) -> int:
        """The number of programs in the group; waits and raises as :attr:`rank`."""
        return self._place().size

    @property
    def local_rank(self) -> int:
        """Which one of the group's programs on this machine this is, from 0."""
        return self._stay.group.wish.local_rank

    @property
    def local_size(self) -> int:
        """The number of the group's programs on this machine."""
        return self._stay.group.wish.local_size

    @property
    def node(self) -> str:
        """This machine's name in the ring."""
        return self._stay.info.node

    @property
    def nodes(self) -> tuple[str, ...]:
        """For each rank the name of the machine it is on; waits and raises as :attr:`rank`."""
        names = self._connection.latest.nodes
        return tuple(names[machine] for machine in self._place().machines)

    @property
    def members(self) -> tuple[str, ...]:
        """The names of all machines of the ring, in its order, whether they are there or not."""
        return self._connection.latest.nodes

    def _place(self) -> Place:
        return self._stay.place(self._deadline(None)[1])

    @property
    def generation(self) -> int:
        """How often the ring has formed, counted over all restarts; rises with each loss."""
        return self._stay.info.generation

    @property
    def state(self) -> str:
        """``"forming"``, ``"ready"`` or ``"draining"``; as far as this program knows."""
        return self._stay.info.state

    def __repr__(self) -> str:
        info, group = self._connection.latest, self._stay.group
        place = group.place
        rank = "rank not known yet" if place is None else f"rank {place.rank} of {place.size}"
        return (
            f"<ringd.Ring group {group.name!r}, {rank} ({info.node}), {info.state}, "
            f"generation {info.generation}>"
        )

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until all members of the ring are connected; calls do that by themselves.

        Args:
            timeout: in seconds; None waits for ever.

        Raises:
            NotReady: it did not come to that in time.
            CalledFromHandler, MainThreadFailed: as :meth:`all_reduce`.
        """
        self._stay.check_call()
        until = None if timeout is None else time.monotonic() + arguments.seconds(timeout)
        if not self._stay.wait_state("ready", until):
            raise errors.NotReady(
                f"the ring was still {self._connection.latest.state} after {timeout or 0:g} s; "
                "`ringd-cli status` shows who is missing"
            )

    # --- calls ------------------------------------------------------------------------

    def all_reduce(
        self,
        x: npt.ArrayLike,
        op: str = "sum",
        *,
        out: Array | None = None,
        name: str = "",
        wire: str | None = None,
        timeout: float | None = None,
    ) -> Array:
        """Reduce *x* over all members, element by element, and return the result.

        All members must make the same call: same op, shape, dtype and name. The result has the
        same bits everywhere.

        Args:
            x: an array of any shape and layout, or what numpy makes one of: bool, integer,
                float (16 to 64 bits, or bfloat16 of ml_dtypes, torch or MLX), complex64 or
                complex128. What has a mask, a unit or labels, also within a list, is refused
                with the line to write. It is never written to, and may be reused as soon as
                this returns.
            op: ``"sum"``, ``"mean"`` (not for bool and integers), ``"prod"``, ``"min"`` or
                ``"max"`` (of complex numbers by the real part, then the imaginary one), ``"band"``,
                ``"bor"`` or ``"bxor"`` (the bits of bool and integers). float16 and bfloat16 are
                accumulated in float32. A mean is the sum, divided: infinite where the sum
                overflows; of such large numbers take the sum of ``x / ring.size``.
            out: takes the result, once that is complete; of the result's shape and dtype, any
                layout; may be *x* itself.
            name: compared among the members, and shown in errors; such as ``"layer3.grad"``.
            wire: the format in which a large float32 tensor travels between machines, the same on
                all of them: ``"bfloat16"``, half as many bytes, or ``"int8"``, a quarter; not for
                ``"prod"``. The result is rounded then, within the bound of docs/compression.md; up
                to ``ops.eager_limit`` it is exact. None: as it is.
            timeout: the call's deadline, in seconds from now; None for the default of the
                daemon's config (``ops.timeout``), ``math.inf`` for none.

        Returns:
            A new array of the shape and (native) dtype of *x*, or *out*. It is a plain one, also
            where *x* is of a subclass, such as numpy's matrix. A large one stands in shared
            memory, which is used again once the array and all views of it are gone.

        Raises:
            TypeError: *x* cannot be reduced in this way, or *out* is of another dtype, or an
                argument is of another type, or a *wire* is given and *x* is not float32.
            ValueError: no such op or *wire*, or *out* is of another shape, or read-only, or *name*
                or *timeout* cannot be one.
            DeadlineExceeded: says which members had not made the call.
            Mismatch: the members made different calls; says which.
            GroupLost: a program of the group died or left; the next call joins it anew.
            PeerLost: a member was lost, and this ring was made with ``on_loss="fail"``.
            ResourceExhausted: no shared memory left for it; names the setting.
            CalledFromHandler: by a signal handler or finaliser that interrupted its own thread in
                the midst of ringd; call when that goes on.
            MainThreadFailed: by another thread, and only this call kept the program alive.
            RingError: any other reason; see :mod:`ringd.errors`.
        """
        work: Work[Array] = self._begin(
            "all_reduce", x, op=op, out=out, name=name, wire=wire, timeout=timeout
        )
        return work.wait()

    def all_reduce_async(
        self,
        x: npt.ArrayLike,
        op: str = "sum",
        *,
        out: Array | None = None,
        name: str = "",
        wire: str | None = None,
        timeout: float | None = None,
    ) -> Work[Array]:
        """Begin to reduce *x*; as :meth:`all_reduce`, which tells of arguments and errors.

        Returns:
            A handle; ``wait()`` returns the result. *x* may be reused at once, unless it lies in
            an array of :meth:`empty`, which is not copied: then only after ``wait()``. *out* is
            written to by ``wait()`` or ``done()``.
        """
        return self._begin("all_reduce", x, op=op, out=out, name=name, wire=wire, timeout=timeout)

    def all_reduce_coalesced(
        self,
        xs: Sequence[npt.ArrayLike],
        op: str = "sum",
        *,
        out: Sequence[Array] | None = None,
        name: str = "",
        wire: str | None = None,
        timeout: float | None = None,
    ) -> list[Array]:
        """Reduce each of *xs* over all members, in one call, and return the results.

        A thousand small tensors take a small part of the time that they take one by one. They
        travel as one row: there is one result or one error for all, and one deadline. Those of
        several dtypes are a call for each, in the order of the first of each, which are made
        together.

        All members must make the same call, as of :meth:`all_reduce`: as many tensors, of the same
        shapes and dtypes, in the same order. Results have the same bits everywhere.

        Args:
            xs: arrays, each as for :meth:`all_reduce`; up to 16,384 of a dtype. All are copied,
                also those of :meth:`empty`, so they may be reused as soon as this returns.
            op: as for :meth:`all_reduce`.
            out: arrays that take the results, once all are complete; one for each of *xs*, which
                may be that itself.
            name: as for :meth:`all_reduce`.
            wire: likewise; it is the row that is large or small.
            timeout: likewise; in seconds, for all together.

        Returns:
            New arrays, each of the shape and (native) dtype of its tensor, or those of *out*. Those
            of one dtype are views of one row, whose memory is used again once all of them and
            their views are gone.

        Raises:
            TypeError, ValueError: as :meth:`all_reduce`; says which of *xs* or *out* it is. No
                call was made.
            Mismatch: the members made different calls; says which tensor differs.
            RingError: and the others, as :meth:`all_reduce`.
        """
        return self.all_reduce_coalesced_async(
            xs, op, out=out, name=name, wire=wire, timeout=timeout
        ).wait()

    def all_reduce_coalesced_async(
        self,
        xs: Sequence[npt.ArrayLike],
        op: str = "sum",
        *,
        out: Sequence[Array] | None = None,
        name: str = "",
        wire: str | None = None,
        timeout: float | None = None,
    ) -> Work[list[Array]]:
        """Begin to reduce *xs*; as :meth:`all_reduce_coalesced`.

        Returns:
            A handle, as :meth:`all_reduce_async`; it ends when all tensors have their results, or
            an error.
        """
        return self._begin_rows(
            "all_reduce_coalesced", xs, op=op, out=out, name=name, wire=wire, timeout=timeout
        )

    def reduce(
        self,
        x: npt.ArrayLike,
        root: int = 0,
        op: str = "sum",
        *,
        out: Array | None = None,
        name: str = "",
        wire: str | None = None,
        timeout: float | None = None,
    ) -> Array | None:
        """Reduce *x* over all ranks, and return the result on the rank *root*; None elsewhere.

        Args, errors: as :meth:`all_reduce`; *root* must be the same everywhere. ValueError: *out*
        is given where there is no result.
        """
        return self.reduce_async(x, root, op, out=out, name=name, wire=wire, timeout=timeout).wait()

    def reduce_async(
        self,
        x: npt.ArrayLike,
        root: int = 0,
        op: str = "sum",
        *,
        out: Array | None = None,
        name: str = "",
        wire: str | None = None,
        timeout: float | None = None,
    ) -> Work[Array | None]:
        """Begin a :meth:`reduce`; returns a handle, as :meth:`all_reduce_async`."""
        return self._begin(
            "reduce", x, root=root, op=op, out=out, name=name, wire=wire, timeout=timeout
        )

    def broadcast(
        self,
        x: npt.ArrayLike,
        root: int = 0,
        *,
        out: Array | None = None,
        name: str = "",
        wire: str | None = None,
        timeout: float | None = None,
    ) -> Array:
        """Return the values of *x* of the rank *root*; elsewhere *x* says shape and dtype only.

        Args, errors: as :meth:`all_reduce`; *root* must be the same everywhere.
        """
        return self.broadcast_async(x, root, out=out, name=name, wire=wire, timeout=timeout).wait()

    def broadcast_async(
        self,
        x: npt.ArrayLike,
        root: int = 0,
        *,
        out: Array | None = None,
        name: str = "",
        wire: str | None = None,
        timeout: float | None = None,
    ) -> Work[Array]:
        """Begin a :meth:`broadcast`; returns a handle, as :meth:`all_reduce_async`."""
        return self._begin(
            "broadcast", x, root=root, out=out, name=name, wire=wire, timeout=timeout
        )

    def all_gather(
        self,
        x: npt.ArrayLike,
        *,
        out: Array | None = None,
        name: str = "",
        wire: str | None = None,
        timeout: float | None = None,
    ) -> Array:
        """Return the *x* of all ranks, joined along axis 0 in their order; a scalar has shape (1,).

        Args, errors: as :meth:`all_reduce`.
        """
        return self.all_gather_async(x, out=out, name=name, wire=wire, timeout=timeout).wait()

    def all_gather_async(
        self,
        x: npt.ArrayLike,
        *,
        out: Array | None = None,
        name: str = "",
        wire: str | None = None,
        timeout: float | None = None,
    ) -> Work[Array]:
        """Begin an :meth:`all_gather`; returns a handle, as :meth:`all_reduce_async`."""
        return self._begin("all_gather", x, out=out, name=name, wire=wire, timeout=timeout)

    def gather(
        self,
        x: npt.ArrayLike,
        root: int = 0,
        *,
        out: Array | None = None,
        name: str = "",
        timeout: float | None = None,
    ) -> Array | None:
        """Return the *x* of all ranks, as :meth:`all_gather`, on the rank *root*; None elsewhere.

        Args, errors: as :meth:`all_reduce`; *root* must be the same everywhere. ValueError: *out*
        is given where there is no result.
        """
        return self.gather_async(x, root, out=out, name=name, timeout=timeout).wait()

    def gather_async(
        self,
        x: npt.ArrayLike,
        root: int = 0,
        *,
        out: Array | None = None,
        name: str = "",
        timeout: float | None = None,
    ) -> Work[Array | None]:
        """Begin a :meth:`gather`; returns a handle, as :meth:`all_reduce_async`."""
        return self._begin("gather", x, root=root, out=out, name=name, timeout=timeout)

    def scatter(
        self,
        x: npt.ArrayLike,
        root: int = 0,
        *,
        out: Array | None = None,
        name: str = "",
        timeout: float | None = None,
    ) -> Array:
        """Return this rank's part of the *x* of the rank *root*.

        Axis 0 is divided evenly among the ranks, in their order. Elsewhere *x* says shape and
        dtype only.

        Args, errors: as :meth:`all_reduce`; *root* must be the same everywhere. ValueError: axis 0
        cannot be divided so.
        """
        return self.scatter_async(x, root, out=out, name=name, timeout=timeout).wait()

    def scatter_async(
        self,
        x: npt.ArrayLike,
        root: int = 0,
        *,
        out: Array | None = None,
        name: str = "",
        timeout: float | None = None,
    ) -> Work[Array]:
        """Begin a :meth:`scatter`; returns a handle, as :meth:`all_reduce_async`."""
        return self._begin("scatter", x, root=root, out=out, name=name, timeout=timeout)

    def reduce_scatter(
        self,
        x: npt.ArrayLike,
        op: str = "sum",
        *,
        out: Array | None = None,
        name: str = "",
        wire: str | None = None,
        timeout: float | None = None,
    ) -> Array:
        """Reduce *x* over all ranks, and return this rank's part of the result.

        Axis 0 is divided evenly among the ranks, in their order.

        Args, errors: as :meth:`all_reduce`. ValueError: axis 0 cannot be divided so.
        """
        return self.reduce_scatter_async(
            x, op, out=out, name=name, wire=wire, timeout=timeout
        ).wait()

    def reduce_scatter_async(
        self,
        x: npt.ArrayLike,
        op: str = "sum",
        *,
        out: Array | None = None,
        name: str = "",
        wire: str | None = None,
        timeout: float | None = None,
    ) -> Work[Array]:
        """Begin a :meth:`reduce_scatter`; returns a handle, as :meth:`all_reduce_async`."""
        return self._begin(
            "reduce_scatter", x, op=op, out=out, name=name, wire=wire, timeout=timeout
        )

    def all_to_all(
        self,
        x: npt.ArrayLike,
        send_counts: Sequence[SupportsIndex] | None = None,
        recv_counts: Sequence[SupportsIndex] | None = None,
        *,
        out: Array | None = None,
        name: str = "",
        timeout: float | None = None,
    ) -> Array:
        """Send each rank its part of *x*, and return what all ranks sent here, in their order.

        Args:
            x: as for :meth:`all_reduce`.
            send_counts: how many rows of axis 0 go to each rank, in their order; None for the same
                number to each.
            recv_counts: how many come from each rank; given where *send_counts* is.
            out: as for :meth:`all_reduce`.
            name: likewise.
            timeout: likewise.

        Raises:
            ValueError: the counts do not add up to *x*, or are not one for each rank; without
                counts, axis 0 cannot be divided evenly.
            Mismatch: the ranks' counts do not fit together; says which.
            RingError: and the others, as :meth:`all_reduce`.
        """
        work = self.all_to_all_async(
            x, send_counts, recv_counts, out=out, name=name, timeout=timeout
        )
        return work.wait()

    def all_to_all_async(
        self,
        x: npt.ArrayLike,
        send_counts: Sequence[SupportsIndex] | None = None,
        recv_counts: Sequence[SupportsIndex] | None = None,
        *,
        out: Array | None = None,
        name: str = "",
        timeout: float | None = None,
    ) -> Work[Array]:
        """Begin an :meth:`all_to_all`; returns a handle, as :meth:`all_reduce_async`."""
        if (send_counts is None) != (recv_counts is None):
            raise ValueError("give both send_counts and recv_counts, or none of them")

        def counts(size: int) -> tuple[int, ...]:
            if send_counts is None or recv_counts is None:
                return ()
            sent = arguments.counts(send_counts, "send_counts", size)
            return (*sent, *arguments.counts(recv_counts, "recv_counts", size))

        return self._begin("all_to_all", x, counts=counts, out=out, name=name, timeout=timeout)

    def all_gather_bytes(
        self,
        data: bytes | bytearray | memoryview,
        *,
        name: str = "",
        timeout: float | None = None,
    ) -> list[bytes]:
        """Return the *data* of all ranks, in their order; they may be of any lengths.

        It is two calls, of which the first tells the lengths; both count from the beginning.

        Args:
            data: bytes.
            name: compared among the members, and shown in errors.
            timeout: the deadline of each of the calls, in seconds; as for :meth:`all_reduce`.

        Raises:
            TypeError: *data* is no bytes.
            RingError: as :meth:`all_reduce`.
        """
        return self._gather_bytes(data, name, timeout, _as_it_is, waits=True).wait()

    def all_gather_bytes_async(
        self,
        data: bytes | bytearray | memoryview,
        *,
        name: str = "",
        timeout: float | None = None,
    ) -> Work[list[bytes]]:
        """Begin an :meth:`all_gather_bytes`; returns a handle, as :meth:`all_reduce_async`.

        The second of its calls is made as soon as the first has ended, whoever notices that.
        """
        return self._gather_bytes(data, name, timeout, _as_it_is, waits=False)

    def _gather_bytes(
        self,
        data: bytes | bytearray | memoryview,
        name: str,
        timeout: float | None,
        made: Callable[[list[bytes], Op], T],
        *,
        waits: bool,
    ) -> Work[T]:
        """Begin to gather *data*, of which *made* makes the result."""
        stay, kind = self._stay, "all_gather_bytes"
        stay.check_call()
        mine, name = arguments.raw(data, "data"), tensors.call_name(name)
        wire_timeout, until = self._deadline(timeout)
        size = stay.place(until).size
        length = np.array([len(mine)], LENGTH)
        first = make_op(
            Call(kind, "", LENGTH.name, (1,), name),
            length,
            size * LENGTH.itemsize,
            here=self._connection.latest,
            find=self._connection.find,
            reserve=lambda lengths: stay.reserve(lengths, until),
        )
        second = Op(Call(kind, "", mine.dtype.name, (len(mine),), name), 0, 0)
        second.filler = Gathering(
            first, waits, mine, self._connection.daemon, wire_timeout, stay.grace
        )
        stay.submit(first, wire_timeout, until, then=second, waits=waits)
        return BytesWork(self, stay, second, made)

    def send(
        self,
        x: npt.ArrayLike,
        to: SupportsIndex,
        tag: SupportsIndex = 0,
        *,
        name: str = "",
        timeout: float | None = None,
    ) -> None:
        """Send *x* to the rank *to*, which receives it with :meth:`recv`.

        Messages to one rank under one tag arrive in the order in which they are sent, each once.
        One of up to 1 MiB is sent without waiting for its receiver, as long as no more than 16 MiB
        of this ring's are unreceived; it has no deadline then, and *x* may be reused at once. If
        such a one is not received after all, the next call of this to that rank and tag says so
        and sends nothing, or else :meth:`close`. Others wait until they are received.

        Args:
            x: as of :meth:`all_reduce`.
            to: a rank, not the own one.
            tag: from 0 to 32767; each one has an order of its own.
            name: compared with the receiver's, and shown in errors.
            timeout: as of :meth:`all_reduce`.

        Raises:
            Mismatch: the receiver asks for another shape, dtype or name.
            TypeError, ValueError: an argument is none, or out of its range.
            RingError: as :meth:`all_reduce`.
        """
        work, buffered = self._send(x, to, tag, name, timeout, buffer=True)
        if not buffered:
            work.wait()

    def send_async(
        self,
        x: npt.ArrayLike,
        to: SupportsIndex,
        tag: SupportsIndex = 0,
        *,
        name: str = "",
        timeout: float | None = None,
    ) -> Work[None]:
        """Begin a :meth:`send`; the handle says when *x* has been received."""
        return self._send(x, to, tag, name, timeout, buffer=False)[0]

    def recv(
        self,
        out_or_shape: Array | SupportsIndex | Sequence[SupportsIndex],
        source: SupportsIndex,
        tag: SupportsIndex = 0,
        dtype: npt.DTypeLike | None = None,
        *,
        name: str = "",
        timeout: float | None = None,
    ) -> Array:
        """Return the next array that the rank *source* sends here under *tag*.

        Args:
            out_or_shape: an array that takes it, or the shape of what comes.
            source: a rank, not the own one; or ``ringd.ANY``, for the first that has sent some.
            tag: from 0 to 32767.
            dtype: of what comes, where there is no array; float64 by default.
            name: compared with the sender's, and shown in errors.
            timeout: as of :meth:`all_reduce`. If one is given and nothing has been sent when it is
                over, nothing is lost either: what comes later is the next call's.

        Raises:
            Mismatch: the sender sends another shape, dtype or name.
            TypeError, ValueError: an argument is none, or out of its range.
            RingError: as :meth:`all_reduce`.
        """
        return self._receive(
            out_or_shape, source, tag, dtype=dtype, name=name, timeout=timeout, waits=True
        ).wait()

    def recv_async(
        self,
        out_or_shape: Array | SupportsIndex | Sequence[SupportsIndex],
        source: SupportsIndex,
        tag: SupportsIndex = 0,
        dtype: npt.DTypeLike | None = None,
        *,
        name: str = "",
        timeout: float | None = None,
    ) -> Work[Array]:
        """Begin a :meth:`recv`; returns a handle, as :meth:`all_reduce_async`.

        Each one takes its place in the order of messages: if its deadline passes, the message that
        comes in that place is not received, of which its sender is told. With ``ringd.ANY`` there
        is no such place before some rank has sent something: this waits for that, and so is not
        for an event loop.
        """
        return self._receive(
            out_or_shape, source, tag, dtype=dtype, name=name, timeout=timeout, waits=False
        )

    def _receive(
        self,
        out_or_shape: Array | SupportsIndex | Sequence[SupportsIndex],
        source: SupportsIndex,
        tag: SupportsIndex,
        *,
        dtype: npt.DTypeLike | None,
        name: str,
        timeout: float | None,
        waits: bool,
    ) -> Work[Array]:
        """Begin to receive; the caller is about to wait for that if it *waits*."""
        stay = self._stay
        stay.check_call()
        out = out_or_shape if isinstance(out_or_shape, np.ndarray) else None
        if out is not None and dtype is not None and np.dtype(dtype) != out.dtype:
            raise ValueError(f"dtype is {np.dtype(dtype)}, but the array has {out.dtype}")
        wanted = tensors.native(np.dtype(dtype) if out is None else out.dtype)
        if out is None:
            tensors.check_no_tensor(out_or_shape)
            shape = arguments.shape_of(out_or_shape)
        else:
            shape = out.shape
            tensors.check_out(out, shape, wanted)
        call = _message(wanted, shape, name)
        wire_timeout, until = self._deadline(timeout)
        place, rank = stay.place(until), arguments.rank(source, "source")
        number = arguments.tag(tag)
        if rank != ANY:
            arguments.check_rank(rank, "source", place.size)
        if rank == place.rank or (rank == ANY and place.size == 1):
            raise ValueError(f"source is {rank}: there is no other rank from which it could come")
        work_op = self._make_op(call, _NOTHING, tensors.size_of(shape, wanted), until)

        def submit(op: Op, wire_timeout: float | None, until: float | None) -> Stay:
            if rank == ANY or (waits and timeout is not None):
                stay.set_times(op, wire_timeout, until)
                return submit_when_sent(stay, rank, number, op, until)
            line = open_line(stay, Key(rank, place.rank, number), until)
            return line.submit(op, wire_timeout, until)

        return self._hand_over(
            work_op, submit, wire_timeout, until, shape=shape, dtype=wanted, out=out
        )

    def barrier(self, timeout: float | None = None, name: str = "") -> None:
        """Return when all members have called this.

        Args:
            timeout: the call's deadline, in seconds; as for :meth:`all_reduce`.
            name: compared among the members, and shown in errors.

        Raises:
            RingError: as :meth:`all_reduce`.
        """
        self.barrier_async(timeout, name).wait()

    def barrier_async(self, timeout: float | None = None, name: str = "") -> Work[None]:
        """Begin a :meth:`barrier`; returns a handle, as :meth:`all_reduce_async`."""
        return self._begin("barrier", _NOTHING, name=name, timeout=timeout)

    def split(
        self, color: int | str | None, key: int = 0, *, timeout: float | None = None
    ) -> Ring | None:
        """Return a ring over those that give the same color; all ranks of this one call it.

        Its ranks are ordered by *key*, and where that is equal as here. It is a group of its own,
        which does not wait for this one, nor this one for it; ``close()`` it when it is not needed
        any more. It has this one's *on_loss*, and goes on when this one is closed.

        Args:
            color: a whole number of 64 bits, or up to 32 printable characters; None to be in none.
            key: a whole number of 64 bits.
            timeout: the deadline of each of its calls, in seconds; as for :meth:`all_reduce`.

        Returns:
            The ring; None for the color None.

        Raises:
            TypeError, ValueError: *color* or *key* can be none.
            DeadlineExceeded: says which ranks had not called it.
            RingError: and others, as :meth:`all_reduce` and :func:`connect`.
        """
        return self._split(color, key, timeout, waits=True).wait()

    def split_async(
        self, color: int | str | None, key: int = 0, *, timeout: float | None = None
    ) -> Work[Ring | None]:
        """Begin a :meth:`split`; returns a handle, as :meth:`all_reduce_async`.

        The ring is there, and its calls are waited for, once the handle's result is taken: by
        ``wait``, ``done``, a future or ``await``.
        """
        return self._split(color, key, timeout, waits=False)

    def _split(
        self, color: int | str | None, key: int, timeout: float | None, *, waits: bool
    ) -> Work[Ring | None]:
        stay, connection = self._stay, self._connection
        mine = Choice(arguments.color(color), arguments.whole(key, "key"))

        def join(everyone: list[bytes], op: Op) -> Ring | None:
            until = self._deadline(timeout)[1]
            stay.wait_for_peers(op.session, until)
            place, names = Place.of(op.session), connection.latest.nodes
            part = part_of(choices(everyone), place, stay.group.wish, op, names)
            if part is None:
                return None
            left = math.inf if until is None else max(0.0, until - time.monotonic())
            try:
                ring = _join_over(connection, part[0], left, new=False, place=part[1])
            except errors.DaemonUnavailable as error:
                text = f"split of group {stay.group.name!r}: {error}"
                raise errors.DeadlineExceeded(text) from None
            if ring is None:
                stay.check()
                raise errors.RingError("the ring is closed")
            return ring

        return self._gather_bytes(mine.pack(), "split", timeout, join, waits=waits)

    def empty(
        self, shape: SupportsIndex | Sequence[SupportsIndex], dtype: npt.DTypeLike = np.float32
    ) -> Array:
        """Return a new array that the daemon can reduce without a copy.

        It is an ordinary array of undefined content, in shared memory; also its contiguous
        views are handed over as they are. Small ones, which travel inside messages, need no
        such thing and are made in ordinary memory. One whose call ended while other members might
        still need it (by a deadline, a lost daemon, or Ctrl-C) has become ordinary memory.

        Args:
            shape: of the array.
            dtype: any that :meth:`all_reduce` takes.

        Raises:
            TypeError: *dtype* is none of those, such as object, or *shape* is none.
            ValueError: *shape* has a negative length.
            ResourceExhausted: no shared memory left for it; names the setting.
            CalledFromHandler: as :meth:`all_reduce`.
        """
        dtype_name(dtype)
        wanted = np.dtype(dtype)
        size = arguments.shape_of(shape)
        length = tensors.size_of(size, wanted)
        if length > self._stay.info.inline_limit and self._connection.shared_memory:
            blocks = self._stay.reserve([length], time.monotonic())
            if blocks is not None:
                array = self._connection.lend(blocks[0], length, as_input=True)
                if array is not None:
                    return array.view(wanted).reshape(size)
        return np.empty(size, wanted)

    # --- the end ----------------------------------------------------------------------

    def close(self) -> None:
        """Leave the group in good order; calls that are open here end with an error.

        Waits until the daemon knows, up to two seconds; and before, for messages that were sent
        without waiting for their receivers, up to ten.

        Raises:
            RingError: some of those were not received; the ring is closed all the same.
        """
        self._close(_LINGER)

    def _close(self, linger_for: float) -> None:
        stay, left = self._stay, ""
        try:
            if not stay.closed:
                with contextlib.suppress(errors.CalledFromHandler):  # which hangs up at once
                    left = linger(stay, linger_for)
        finally:
            stay.close()
        if left and linger_for:
            raise errors.RingError(f"the ring is closed, but messages were not received: {left}")

    def __enter__(self) -> Ring:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close(0.0 if exc_type is not None else _LINGER)

    # --- the way in -------------------------------------------------------------------

    def _begin(
        self,
        kind: str,
        x: npt.ArrayLike,
        *,
        op: str = "",
        root: SupportsIndex = NO_ROOT,
        counts: Callable[[int], tuple[int, ...]] = lambda _size: (),
        out: Array | None = None,
        name: str,
        wire: str | None = None,
        timeout: float | None,
    ) -> Work[Any]:
        """Hand a call of *kind* over; what it has not is left out.

        *counts* are those for so many ranks. Where they matter, they are waited for.
        """
        stay = self._stay
        if stay.left or stay.connection.closed or os.getpid() != stay.pid:
            stay.check_call()
        row = kinds.KINDS[kind]
        plain = type(x) is np.ndarray and x.dtype.names is None
        array: Array = x if plain else tensors.plain_array(x)  # type: ignore[assignment]
        if array.ndim == 0 and row.rows:
            array = array.reshape(1)
        if type(op) is not str:
            op = arguments.plain(op, "op")
        if wire is None:
            wire = ""
        elif type(wire) is not str:
            wire = arguments.plain(wire, "wire")
        call = call_of(kind, op, array.dtype, array.shape, wire)
        if type(name) is not str or name:
            name = tensors.call_name(name)
        wire_timeout, until = self._deadline(timeout)
        sized = kind in SIZED
        form = self._form_here(call, row, root, counts, until) if sized else form_of(call, 0, 1)
        if out is not None:
            tensors.check_out(out, form.shape, form.dtype)
        work_op = self._make_op(
            msgspec.structs.replace(form.call, name=name) if name else form.call,
            array if form.gives else _NOTHING,
            form.length,
            until,
        )
        return self._hand_over(
            work_op, stay.submit, wire_timeout, until, shape=form.shape, dtype=form.dtype, out=out
        )

    def _begin_rows(
        self,
        kind: str,
        xs: Sequence[npt.ArrayLike],
        *,
        op: str,
        out: Sequence[Array] | None,
        name: str,
        wire: str | None,
        timeout: float | None,
    ) -> Work[list[Array]]:
        """Hand calls of *kind* over, one for each row of tensors: all of them, or none."""
        stay = self._stay
        stay.check_call()
        arrays, name = arrays_of(xs), tensors.call_name(name)
        op = arguments.plain(op, "op")
        wire = "" if wire is None else arguments.plain(wire, "wire")
        rows = rows_of(kind, op, wire, arrays)
        if out is not None:
            check_outs(out, arrays)
        wire_timeout, until = self._deadline(timeout)
        made = []
        for row in rows:
            call = msgspec.structs.replace(row.layout.call, name=name)
            made.append(self._make_op(call, row, row.nbytes, until))
        work_stay = stay.submit(made[0], wire_timeout, until, beside=made[1:])
        works = []
        for row, work_op in zip(rows, made, strict=True):
            outs = None if out is None else [out[place] for place in row.places]
            works.append(RowWork(self, work_stay, work_op, row, outs))
        if len(works) == 1:
            return works[0]
        return RowsWork(self, work_stay, made[-1], works)

    def _form_here(
        self,
        call: Call,
        row: kinds.Kind,
        root: SupportsIndex,
        counts: Callable[[int], tuple[int, ...]],
        until: float | None,
    ) -> Form:
        """Return what *call* means here, where it means something else to each rank.

        Waits until our own rank is known.
        """
        if row.rooted:
            call = msgspec.structs.replace(call, root=arguments.rank(root, "root"))
        place = self._stay.place(until)
        if row.rooted:
            arguments.check_rank(call.root, "root", place.size)
        if found := counts(place.size):
            call = msgspec.structs.replace(call, counts=found)
        return form_of(call, place.rank, place.size)

    def _hand_over(
        self,
        work_op: Op,
        submit: Callable[[Op, float | None, float | None], Stay],
        timeout: float | None,
        until: float | None,
        *,
        shape: tuple[int, ...] | None = None,
        dtype: np.dtype[Any] | None = None,
        out: Array | None = None,
    ) -> Work[Any]:
        """Have *work_op* submitted, and return its handle; *submit* says by whom."""
        try:
            stay = submit(work_op, timeout, until)
            handle = LendingWork if work_op.hold else Work
            return handle(self, stay, work_op, shape=shape, dtype=dtype, out=out)
        except errors.RingError:
            raise
        except BaseException:  # Ctrl-C: without a handle nobody knows when the input is free
            connection = self._connection
            work_op.left = connection.inputs_left = True
            try:
                connection.leave_input()
            except BaseException:  # noqa: BLE001 - a second one, at its very beginning
                connection.leave_input()
            raise

    def _send(
        self,
        x: npt.ArrayLike,
        to: SupportsIndex,
        tag: SupportsIndex,
        name: str,
        timeout: float | None,
        *,
        buffer: bool,
    ) -> tuple[Work[None], bool]:
        """Begin to send *x*; return the handle, and whether nobody need wait for it."""
        stay = self._stay
        stay.check_call()
        array = tensors.plain_array(x)
        wire_timeout, until = self._deadline(timeout)
        place, to = stay.place(until), arguments.rank(to, "to")
        arguments.check_rank(to, "to", place.size)
        if to == place.rank:
            raise ValueError(f"to is {to}, this program's own rank; it cannot send to itself")
        call = _message(array.dtype, array.shape, name)
        line = open_line(stay, Key(place.rank, to, arguments.tag(tag)), until)
        if error := line.end.refused():
            raise error
        buffer = buffer and array.nbytes <= BUFFERED
        buffer = buffer and array.nbytes + unreceived(stay) <= MOST_BUFFERED
        if buffer:
            array = np.array(array)  # of the user's memory nothing is lent
        work_op = self._make_op(call, array, None, until)
        if buffer:
            wire_timeout, until = 0.0, None

        def submit(op: Op, timeout: float | None, until: float | None) -> Stay:
            line.submit(op, timeout, until)
            stay.group.sending[line.end] = None
            if buffer:
                line.end.buffered.append(op)
            return line

        return self._hand_over(work_op, submit, wire_timeout, until), buffer

    def _make_op(
        self,
        call: Call,
        array: Array | Row,
        length: int | None,
        until: float | None,
    ) -> Op:
        """Return the op of *call*, with a place for a result of *length* bytes, if there is one."""
        connection, stay = self._connection, self._stay
        here = connection.daemon.info
        assert here is not None  # noqa: S101 - no ring is made before
        return make_op(
            call,
            array,
            length,
            here=here,
            find=connection.find,
            reserve=lambda lengths: stay.reserve(lengths, until),
        )

    def _deadline(self, timeout: float | None) -> tuple[float | None, float | None]:
        """Return *timeout* as (what the daemon is told, the moment on the monotonic clock)."""
        if timeout is not None:
            timeout = arguments.seconds(timeout)  # numpy's numbers cannot be sent
        if timeout == math.inf:
            return 0.0, None
        if timeout is None:
            timeout = self._connection.daemon.timeout
            if timeout is None:
                return None, None
        elif timeout <= 0:
            raise ValueError(f"timeout is a positive number of seconds, not {timeout!r}")
        return timeout, time.monotonic() + timeout


def _as_it_is(everyone: list[bytes], _op: Op) -> list[bytes]:
    return everyone


def _message(dtype: np.dtype[Any], shape: tuple[int, ...], name: str) -> Call:
    """Return the call of a message, as its sender and its receiver make it."""
    call = Call("message", "", dtype_name(dtype), shape, tensors.call_name(name))
    kinds.check(call, kinds.PAIR)
    return call
