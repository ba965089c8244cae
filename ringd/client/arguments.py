"""Arguments that are no tensors: texts, seconds, shapes, paths; each error says what to write."""

from __future__ import annotations

import contextlib
import math
import operator
import os
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from typing import SupportsIndex

import numpy as np
import numpy.typing as npt

from ringd.collective.call import MAX_COLOR, MAX_LOCAL_SIZE, MAX_TAG


def plain(text: str, what: str) -> str:
    """Return *text*, which is *what*, as a plain str: messages take no subclass, such as numpy's.

    Raises:
        TypeError: it is no string.
        ValueError: it is no text that can be sent.
    """
    if type(text) is str and text.isascii():
        return text
    if not isinstance(text, str):
        remedy = f"; write {text!r}.decode()" if isinstance(text, bytes) else ""
        raise TypeError(f"{what} is a string, not {type(text).__name__}{remedy}")
    try:
        return text.encode().decode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} is text that can be sent as UTF-8, and {text!r} has half of a surrogate pair "
            f"at {error.start}; leave it out, as .encode(errors='replace').decode() does"
        ) from None


def seconds(timeout: object, what: str = "timeout") -> float:
    """Return *timeout*, of any type of number, as a float, which may be infinite.

    Raises:
        TypeError: it is no number.
        ValueError: it is not a number, or one that no float can be.
    """
    text = f"{what} is a number of seconds, such as 5.0 or math.inf, or None, not {timeout!r:.80}"
    if isinstance(timeout, (str, bytes, bytearray)):  # some of which float() takes
        raise TypeError(text)
    try:
        number = float(timeout)  # type: ignore[arg-type] # that is the question
    except OverflowError:
        raise ValueError(text) from None
    except (TypeError, ValueError):  # also an array of several
        raise TypeError(text) from None
    if math.isnan(number):
        raise ValueError(text)
    return number


def _index(given: SupportsIndex) -> int:
    """Return the whole number *given*; True and False, which Python counts as such, are none here.

    Raises:
        TypeError: it is no whole number.
    """
    if isinstance(given, bool):
        raise TypeError(f"{given} is no number")
    return operator.index(given)


def rank(given: SupportsIndex, what: str) -> int:
    """Return the rank *given*, which is *what*, as a plain number; see :func:`check_rank`.

    Raises:
        TypeError: it is no whole number.
    """
    try:
        return _index(given)
    except TypeError:
        raise TypeError(
            f"{what} is a rank, a whole number, not {given!r:.80}; write op= before an op"
        ) from None


def tag(given: SupportsIndex) -> int:
    """Return the tag *given*.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is out of its range.
    """
    try:
        number = _index(given)
    except TypeError:
        raise TypeError(f"tag is a whole number, not {given!r:.80}") from None
    if not 0 <= number <= MAX_TAG:
        raise ValueError(f"tag is a number from 0 to {MAX_TAG}, not {number}")
    return number


def check_rank(rank: int, what: str, size: int) -> None:
    """Make sure that *rank*, which is *what*, is one of *size*.

    Raises:
        ValueError: there is no such rank.
    """
    if not 0 <= rank < size:
        raise ValueError(f"{what} is a rank from 0 to {size - 1}, not {rank}")


def counts(given: Sequence[SupportsIndex], what: str, size: int) -> tuple[int, ...]:
    """Return the counts *given*, which are *what*: one for each of *size* ranks.

    Raises:
        TypeError: they are no whole numbers.
        ValueError: there are more or fewer, or one is negative.
    """
    try:
        found = tuple(map(_index, given))
    except TypeError:
        raise TypeError(f"{what} are whole numbers, one for each rank, not {given!r:.80}") from None
    if len(found) != size:
        raise ValueError(f"{what} are {size}, one for each rank, not {len(found)}")
    if min(found) < 0:
        raise ValueError(f"{what} are not negative, as in {given!r:.80}")
    return found


def local_place(local_rank: SupportsIndex, local_size: SupportsIndex) -> tuple[int, int]:
    """Return which one of a machine's programs this is, and how many there are.

    Raises:
        TypeError: they are no whole numbers.
        ValueError: there can be none such.
    """
    rank, size = whole(local_rank, "local_rank"), whole(local_size, "local_size")
    if not 1 <= size <= MAX_LOCAL_SIZE:
        raise ValueError(f"local_size is a number from 1 to {MAX_LOCAL_SIZE}, not {size}")
    if not 0 <= rank < size:
        raise ValueError(
            f"local_rank counts this machine's programs from 0 to local_size - 1, which is "
            f"{size - 1}, not {rank}"
        )
    return rank, size


def member_names(members: Collection[str] | None) -> tuple[str, ...]:
    """Return the *members* that take part in a group; none of them for None, which is all.

    Raises:
        TypeError: they are no sequence of strings.
        ValueError: there is none, or one is named twice.
    """
    if members is None:
        return ()
    if isinstance(members, (str, bytes)) or not isinstance(members, (Sequence, AbstractSet)):
        raise TypeError(
            f"members is a list of the machines' names in the ring, not {members!r:.80}"
        )
    names = tuple(plain(name, "a member's name") for name in members)
    if not names:
        raise ValueError("members is empty; write None for all of the ring's")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"members names {', '.join(map(repr, twice))} more than once; each of a machine's "
            "programs says which one it is by local_rank"
        )
    return names


def color(given: object) -> int | str | None:
    """Return the color *given* for a split.

    Raises:
        TypeError: it is none.
        ValueError: it is too long, or too large.
    """
    if given is None:
        return None
    if isinstance(given, str):
        text = plain(given, "color")
        if not 0 < len(text) <= MAX_COLOR or not text.isprintable():
            raise ValueError(
                f"a color has 1 to {MAX_COLOR} printable characters, or is a whole number, not "
                f"{given!r:.80}"
            )
        return text
    if isinstance(given, (bytes, bool)) or not isinstance(given, SupportsIndex):
        raise TypeError(f"color is a whole number, a string, or None, not {given!r:.80}")
    return whole(given, "color")


def whole(given: SupportsIndex, what: str) -> int:
    """Return the number *given*, which is *what*.

    Raises:
        TypeError: it is no whole number.
        ValueError: it has more than 64 bits.
    """
    try:
        number = _index(given)
    except TypeError:
        raise TypeError(f"{what} is a whole number, not {given!r:.80}") from None
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"{what} is a number of 64 bits, not {number}")
    return number


def raw(data: bytes | bytearray | memoryview, what: str) -> npt.NDArray[np.uint8]:
    """Return *data*, which is *what*, as an array of bytes.

    Raises:
        TypeError: it is no bytes.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        remedy = "; write .encode()" if isinstance(data, str) else ""
        raise TypeError(f"{what} is bytes, not {type(data).__name__}{remedy}")
    return np.frombuffer(bytes(data), np.uint8)  # a copy of what may change meanwhile


def shape_of(shape: SupportsIndex | Sequence[SupportsIndex]) -> tuple[int, ...]:
    """Return the *shape* of an array.

    Raises:
        TypeError: it is none.
        ValueError: a length in it is negative.
    """
    lengths: tuple[int, ...] | None = None
    with contextlib.suppress(TypeError):
        lengths = (operator.index(shape),)  # type: ignore[arg-type] # that is the question
    if lengths is None and not isinstance(shape, (str, bytes)):
        with contextlib.suppress(TypeError):
            lengths = tuple(map(operator.index, shape))  # type: ignore[arg-type] # likewise
    if lengths is None:
        raise TypeError(f"shape is a whole number or a tuple of such, not {shape!r:.80}")
    if min(lengths, default=0) < 0:
        raise ValueError(f"shape has no negative lengths, as {shape!r:.80} does")
    return lengths


def socket_path(socket: str | os.PathLike[str]) -> str:
    """Return *socket*, of a daemon, as an absolute path.

    Raises:
        TypeError: it is no path.
        ValueError: no socket can have it.
    """
    path = os.fspath(socket) if isinstance(socket, os.PathLike) else socket
    path = plain(path, "socket (or RINGD_SOCKET), a path,")
    if "\0" in path:
        raise ValueError(f"socket (or RINGD_SOCKET) is a path, and {path!r} has a zero byte in it")
    return os.path.abspath(path)  # noqa: PTH100 - as in the daemon
