"""What a client's message must satisfy beyond its types; the daemon believes none of it."""

from __future__ import annotations

import math
from functools import lru_cache

from ringd import errors
from ringd.collective import kinds
from ringd.collective.call import (
    MAX_AXES,
    MAX_CALL_NAME,
    MAX_LOCAL_SIZE,
    MAX_PART_NAME,
    MAX_TEXT,
    MAX_WORD,
    Call,
)
from ringd.wire.border.messages import (
    MAX_CARRIED,
    MAX_LOSS,
    ROOM_FOR_HEADERS,
    SEAL,
    VERSION,
    Ack,
    AskAwaited,
    Attach,
    Carry,
    Detach,
    Hold,
    Open,
    Ref,
    Request,
    Submit,
    seal_offset,
)

_MAX_U16 = (1 << 16) - 1
_MAX_U64 = (1 << 64) - 1
_MAX_NUMBER = 1 << 62
"""Of an op. Far from where 64 bits end, so that one may count on from any of them."""
_MAX_TEXT = 1024
MAX_PROGRAM = _MAX_TEXT
"""Characters of a program's name."""

_MAX_SERVICES = 256
_UNKNOWN = 0


def fault_of(message: Request, payload_bytes: int | None) -> str | None:
    """Return what is wrong with *message* and its payload, None if nothing is.

    The call in a Submit is :func:`check_call`'s.

    Args:
        message: as decoded.
        payload_bytes: length of the payload; None without one.
    """
    if not isinstance(message, Submit):
        return _fault_of_other(message, payload_bytes)
    for seconds in (message.timeout, message.asked):
        if seconds is not None and not math.isfinite(seconds):
            return "a timeout is a finite number of seconds"
    in_range = 0 <= message.seq <= _MAX_NUMBER and 0 <= message.acked <= _MAX_NUMBER
    if in_range and 0 < message.join_id <= _MAX_U64:  # of every call
        return None
    return _numbers_fault(message.join_id, message.seq, message.acked)


def _fault_of_other(message: Request, payload_bytes: int | None) -> str | None:
    if isinstance(message, Carry):
        return _carry_fault(message, payload_bytes or 0)
    if payload_bytes is not None:
        return "a payload came where none belongs"
    if isinstance(message, Attach):
        return _attach_fault(message)
    if isinstance(message, Open):
        numbers = (message.released, message.next_seq, message.source, message.to, message.tag)
        return _numbers_fault(message.channel_id, *numbers)
    if isinstance(message, (Ack, Detach)):
        return _numbers_fault(message.join_id, message.acked)
    if isinstance(message, AskAwaited):
        return _numbers_fault(message.join_id)
    if isinstance(message, Hold):
        return _hold_fault(message)
    version = getattr(message, "version", VERSION)
    if version != VERSION:
        return _version_fault(version)
    return None


def _version_fault(version: int) -> str:
    return (
        f"the client speaks version {version} of the border's protocol, this daemon version "
        f"{VERSION}; install the same release of ringd for both"
    )


def _attach_fault(message: Attach) -> str | None:
    if message.version != VERSION:
        return _version_fault(message.version)
    if not 0 < len(message.group) <= MAX_PART_NAME or not message.group.isprintable():
        return f"a group's name has 1 to {MAX_PART_NAME} printable characters"
    fault = _numbers_fault(message.join_id, message.released, message.next_seq)
    if fault is not None:
        return fault
    if message.released > message.next_seq:
        return "released and next_seq contradict each other"
    if message.on_loss not in ("wait", "fail"):
        return f"on_loss is 'wait' or 'fail', not {message.on_loss[:32]!r}"
    if len(message.program) > _MAX_TEXT:
        return "the program's name is too long"
    if not 0 <= message.former <= _MAX_U64 or len(message.loss) > MAX_LOSS:
        return f"a former stay has a number of 64 bits, and a loss of up to {MAX_LOSS} characters"
    return _part_fault(message)


def _part_fault(message: Attach) -> str | None:
    local_rank, local_size, members = message.local_rank, message.local_size, message.members
    if not 0 <= local_rank < local_size <= MAX_LOCAL_SIZE:
        return (
            f"local rank {local_rank} is none of {local_size} programs; a machine has 1 to "
            f"{MAX_LOCAL_SIZE}"
        )
    if max(map(len, members), default=0) > _MAX_TEXT:
        return "a member's name is too long"
    if message.ordered and not members:
        return "members by rank are some"
    if not message.ordered and len(set(members)) < len(members):
        return "a member is named twice"
    if len(message.places) not in {0, len(message.session)}:
        return "each of a session's ranks has a place, or none has"
    if not all(0 <= place <= _MAX_U16 for place in message.places):
        return "a place is a number of 16 bits"
    return None


def _numbers_fault(join_id: int, *numbers: int) -> str | None:
    if not 0 < join_id <= _MAX_U64:
        return "a join id is a positive number of 64 bits"
    for number in numbers:
        if not 0 <= number <= _MAX_NUMBER:
            return "a sequence number lies between 0 and 2**62"
    return None


def _hold_fault(message: Hold) -> str | None:
    if message.version != VERSION:
        return _version_fault(message.version)
    if len(message.program) > _MAX_TEXT:
        return "the program's name is too long"
    if max(len(message.serves), len(message.reaches)) > _MAX_SERVICES:
        return f"a program serves and reaches up to {_MAX_SERVICES} services"
    words = (*message.serves, *(word for pair in message.reaches for word in pair))
    if not all(0 < len(word) <= _MAX_TEXT and word.isprintable() for word in words):
        return f"a service's name has 1 to {_MAX_TEXT} printable characters"
    return None


def _carry_fault(message: Carry, payload_bytes: int) -> str | None:
    if not all(0 <= number <= _MAX_U64 for number in (message.number, message.generation)):
        return "a stream and a generation have numbers of 64 bits"
    if not 0 <= message.member <= _MAX_U16:
        return "a member has a number of 16 bits"
    if not 0 <= message.offset <= _MAX_NUMBER:
        return "an offset lies between 0 and 2**62"
    if len(message.body) + payload_bytes > MAX_CARRIED:
        return f"a stream's message has up to {MAX_CARRIED} bytes"
    return None


def check_call(
    message: Submit,
    payload_bytes: int | None,
    place: tuple[int, int] | None,
    *,
    max_message: int,
) -> int | None:
    """Make sure that the call in *message* can be run here.

    Args:
        message: one of which :func:`fault_of` has nothing to say.
        payload_bytes: length of the payload; None without one.
        place: the client's rank, and the number of ranks in its group; None while that has yet to
            form.
        max_message: bytes that a reply may have.

    Returns:
        The bytes of the result that will travel inside the reply. None where they and more depend
        on the place, while that is unknown: the call is to be looked at again once it is known.

    Raises:
        Refused: it cannot be run; the message says why.
    """
    if len(message.message) > MAX_TEXT or len(message.outcome) > _MAX_TEXT:
        raise errors.Refused("the outcome's text is too long")
    call, source = message.call, message.source
    rank, size = place or (0, _UNKNOWN)
    try:
        taken, given = _bytes_of(_bare(call) if call.name or call.tensors else call, rank, size)
    except (TypeError, ValueError) as error:
        raise errors.Refused(str(error)) from None
    if source is not None and payload_bytes is not None:
        raise errors.Refused("the input came twice, as a segment and as a frame")
    if place is None and kinds.of(call).sized:
        return None
    came = payload_bytes if source is None else source.length
    if came != taken and (text := _input_fault(message, came, taken)):
        raise errors.Refused(text)
    if message.target is not None:
        _check_target(message, message.target, given)
    if message.target is not None or message.outcome:  # what has ended is given no result
        return 0
    inline = given or 0
    if inline + ROOM_FOR_HEADERS > max_message:
        text = f"{given} bytes, too many for a message; it needs a target"
        raise errors.Refused(f"the result of {call} has {text}")
    return inline


def _input_fault(message: Submit, came: int | None, taken: int | None) -> str:
    if came is not None:
        return f"{message.call} has {taken} bytes, but {came} came"
    # An op that has ended with an error may have given its input up.
    return "the input is missing" if taken and message.outcome in {"", "ok"} else ""


def _check_target(message: Submit, target: Ref, given: int | None) -> None:
    if target.length != given:
        text = f"{given} bytes, its target {target.length}"
        raise errors.Refused(f"the result of {message.call} has {text}")
    if message.source is not None and (text := _overlap(message.source, target)):
        raise errors.Refused(text)


def _overlap(source: Ref, target: Ref) -> str:
    if source.segment != target.segment:
        return ""
    target_end = seal_offset(target) + SEAL.size
    if source.offset < target_end and target.offset < source.offset + source.length:
        return (
            f"bytes {source.offset} to {source.offset + source.length} of segment "
            f"{source.segment}, the input, overlap {target.offset} to {target_end}, the target "
            "and its seal"
        )
    return ""


def unfit(call: Call, size: int) -> str:
    """Return why *call*, of any of *size* ranks, cannot be run here; empty if it can.

    Where the size is unknown (0), what depends on it is left out.
    """
    try:
        _bytes_of(_bare(call) if call.name or call.tensors else call, 0, size)
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


def _bare(call: Call) -> Call:
    """Return :func:`ringd.collective.kinds.bare`.

    Raises:
        ValueError: the name is too long, or what it says of tensors is none.
    """
    if len(call.name) > MAX_CALL_NAME:
        raise ValueError(f"a call's name has up to {MAX_CALL_NAME} characters")
    return kinds.bare(call)


@lru_cache(maxsize=1024)  # which keeps no call that raises: that may be of any length
def _bytes_of(call: Call, rank: int, size: int) -> tuple[int | None, int | None]:
    """Return the bytes that *rank* hands over, and those that it is given.

    Where they depend on a size that is unknown, they are None.

    Args:
        call: one that is bare.
        rank: within the group.
        size: of the group; 0 while that is unknown.

    Raises:
        TypeError: as :func:`ringd.collective.kinds.check`.
        ValueError: likewise, or its words are too long.
    """
    if max(map(len, (call.kind, call.reduction, call.dtype, call.wire))) > MAX_WORD:
        raise ValueError(f"a call's kind, op, dtype and wire have up to {MAX_WORD} characters")
    if len(call.shape) > MAX_AXES:
        raise ValueError("a shape has up to 64 sides, none negative")
    if not call.bounded:
        raise ValueError("a call has words that can be printed, and up to two counts for each rank")
    if size == _UNKNOWN and kinds.of(call).sized:
        return None, None
    if len(call.counts) > 2 * size:
        raise ValueError(f"{len(call.counts)} counts are too many for {size} ranks")
    kinds.check(call, size)
    return kinds.nbytes(call, rank, size)
