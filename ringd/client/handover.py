"""How a call's tensors reach the daemon: inside the message, or in shared memory.

What is long stands in shared memory. An input there has a target beside it in any case, be it for
the seal alone, which says that its memory is needed no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt

from ringd import errors
from ringd.client import tensors
from ringd.client.pool import Block
from ringd.client.rows import Row
from ringd.client.session import Op
from ringd.collective.call import Call
from ringd.wire.border.messages import ROOM_FOR_HEADERS, Attached

Array = npt.NDArray[Any]
Reserve = Callable[[Sequence[int]], "list[Block] | None"]
"""Returns blocks of these lengths; None where the system has no shared memory at all."""
Find = Callable[[Array], "tuple[Block, int] | None"]
"""Returns the lent block that an array lies in, and where."""


def make_op(
    call: Call,
    array: Array | Row,
    result_length: int | None,
    *,
    here: Attached,
    find: Find,
    reserve: Reserve,
) -> Op:
    """Put *array* where the daemon can read it, find a place for the result, and return the op.

    Args:
        call: what is called.
        array: the input. Of a row a copy is handed over in any case.
        result_length: bytes of the result; None where there is none.
        here: the daemon's limits.
        find: see :data:`Find`.
        reserve: see :data:`Reserve`.

    Raises:
        ResourceExhausted: there is no shared memory, and it is too long for a message.
    """
    length, target_length = array.nbytes, result_length or 0
    limit = here.max_message - ROOM_FOR_HEADERS - len(call.tensors)
    inline_limit = min(here.inline_limit, limit)
    if max(length, target_length) > inline_limit:
        large = length > inline_limit
        found = None
        if large and not isinstance(array, Row) and tensors.in_place(array):
            found = find(array)
        copies = large and found is None
        blocks = reserve([length, target_length] if copies else [target_length])
        if blocks is not None:
            target = blocks[-1]
            target.clear_seal(target_length)
            if found is not None:
                block, start = found
            elif copies:
                block, start = blocks[0], 0
                if isinstance(array, Row):
                    array.copy_into(block.bytes(length))
                else:
                    tensors.copy_into(array, block.bytes(length))
            else:
                payload = array.to_bytes() if isinstance(array, Row) else tensors.to_bytes(array)
                return Op(call, length, result_length, payload=payload, target=target)
            return Op(
                call,
                length,
                result_length,
                source=block.ref(length, start),
                source_block=block,
                target=target,
                hold=found is not None,
            )
    if max(length, target_length) > limit:
        raise errors.ResourceExhausted(
            f"this system has no shared memory, and {max(length, target_length)} bytes are too "
            "many for one message; raise ipc.max_message in the daemon's config (now "
            f"{limit} bytes)"
        )
    payload = array.to_bytes() if isinstance(array, Row) else tensors.to_bytes(array)
    return Op(call, length, result_length, payload=payload)
