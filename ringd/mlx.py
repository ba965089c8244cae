"""MLX's JACCL backend without a rendezvous of its own.

JACCL moves tensors over RDMA between Macs. To set that up, its ranks have to tell each other some
bytes once, and to ask for that it takes a factory (``all_gather_factory`` of MLX's
``mx.distributed.init``, which states the contract). The ring is where they can meet. MLX itself is
not imported here: what it hands over are numbers and bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from ringd.client.ring import Ring, connect

AllGather = Callable[[bytes, int], bytes]


def jaccl_factory(
    socket: str | os.PathLike[str] | None = None,
    group: str = "jaccl",
    timeout: float | None = None,
) -> Callable[[int, int], AllGather]:
    """Return what ``mx.distributed.init(backend="jaccl", all_gather_factory=...)`` asks for.

    Called with a rank and the number of ranks, each on a machine of its own, it joins *group* of
    the ring and returns a function ``f(src, n_bytes)``: the *n_bytes* of every rank, in the order
    of MLX's ranks, which need not be the ring's. It leaves the group when MLX lets go of that.

    Args:
        socket: as of :func:`ringd.connect`.
        group: the name under which the ranks meet; jobs at the same time need different ones.
        timeout: seconds for each step; None for the default of the daemon's config.

    Returns:
        The factory. It, and the function that it returns, raise ``ValueError`` where ranks and
        sizes do not fit, and what :meth:`ringd.Ring.all_gather` raises.
    """

    def factory(rank: int, size: int) -> AllGather:
        return _Exchange(connect(socket, group, timeout), rank, size, timeout)

    return factory


class _Exchange:
    """An all-gather of bytes among MLX's ranks."""

    def __init__(self, ring: Ring, rank: int, size: int, timeout: float | None) -> None:
        self._ring = ring
        self._timeout = timeout
        claims = ring.all_gather(np.array([rank, size]), name="ranks", timeout=timeout).reshape(
            -1, 2
        )
        ranks, sizes = claims.T.tolist()
        if set(sizes) != {len(ranks)} or sorted(ranks) != list(range(len(ranks))):
            said = ", ".join(
                f"{node} is rank {rank} of {size}"
                for node, (rank, size) in zip(ring.nodes, claims.tolist(), strict=True)
            )
            ring.close()
            raise ValueError(f"the ring has {len(ranks)} machines, but to MLX {said}")
        self._order = np.argsort(ranks)

    def __call__(self, src: bytes, n_bytes: int) -> bytes:
        if len(src) != n_bytes:
            raise ValueError(f"{len(src)} bytes to exchange, {n_bytes} announced")
        rows = self._ring.all_gather(
            np.frombuffer(src, np.uint8).reshape(1, n_bytes), name="jaccl", timeout=self._timeout
        )
        return rows[self._order].tobytes()
