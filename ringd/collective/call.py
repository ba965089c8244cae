"""What a program asks for: one call, and the limits of the names and texts that go with it."""

from __future__ import annotations

import msgspec

from ringd.collective import coalesced

MAX_GROUP_NAME = 64
MAX_COLOR = 32
"""Characters of a text by which a group is split."""
MAX_PART_NAME = MAX_GROUP_NAME + MAX_COLOR + 18
"""Of the name of a part: that of the group, a slash, the color, and 17 characters."""
MAX_LOCAL_SIZE = 1000
"""Programs of one group on one machine; the ranks of 64 machines fit into 16 bits."""
MAX_CALL_NAME = 256
MAX_TAG = 32767
"""Of a channel."""
MAX_TEXT = 4096
"""Characters of an error's message."""
MAX_WORD = 32
"""Characters of a kind, an op, a dtype or an error's code."""
MAX_AXES = coalesced.MAX_AXES
MAX_RANK = (1 << 16) - 1
MAX_COUNTS = 2 * (MAX_RANK + 1)


NO_ROOT = -1


def title_of(group: str, seq: int, channel: tuple[int, int, int] | None = None) -> str:
    """Return what texts call op *seq* of a group, or of one of its channels.

    *channel*: the sender's rank, the receiver's, and the tag.
    """
    if channel is None:
        return f"op {seq} of group {group!r}"
    source, to, tag = channel
    return f"message {seq} from rank {source} to rank {to} under tag {tag} in group {group!r}"


class Call(msgspec.Struct, frozen=True, array_like=True):
    """What one member asks for; members must agree on every field."""

    kind: str
    """A key of :data:`ringd.collective.kinds.KINDS`."""
    reduction: str
    """One of :data:`ringd.collective.reduction.OPERATIONS`; empty where nothing is reduced."""
    dtype: str
    """The numpy dtype's name, such as ``"float32"`` or ``"bfloat16"``; empty where there is no
    data."""
    shape: tuple[int, ...]
    name: str
    """The caller's own name for the call, such as ``"layer3.grad"``; may be empty."""
    root: int = NO_ROOT
    """The rank that has, or is given, what others have not or are not."""
    counts: tuple[int, ...] = ()
    """Rows of axis 0 where they are not even. Of an all_gather those of each rank; of an all_to_all
    those for each rank, then those from each rank."""
    wire: str = ""
    """A key of :data:`ringd.collective.codec.CODECS`, the format in which a large tensor travels;
    empty for its own."""
    tensors: str = ""
    """The shapes of those that travel as one row, whose shape is :attr:`shape`; as
    :func:`ringd.collective.coalesced.written` gives them."""

    @property
    def bounded(self) -> bool:
        """Whether every field is as short as one can be, and words are safe to print."""
        words = f"{self.kind}{self.reduction}{self.dtype}{self.wire}"
        return (
            len(words) <= MAX_WORD * 4
            and words.isprintable()
            and len(self.shape) <= MAX_AXES
            and len(self.name) <= MAX_CALL_NAME
            and len(self.counts) <= MAX_COUNTS
            and (not self.tensors or coalesced.fits(self.tensors))
        )

    def cut(self) -> Call:
        """Return what is said of a call that cannot be made, such as one that is not bounded."""
        kind, reduction, dtype, wire = (
            word[:MAX_WORD] if word.isprintable() else "?"
            for word in (self.kind, self.reduction, self.dtype, self.wire)
        )
        shape, name = self.shape[:MAX_AXES], self.name[:MAX_CALL_NAME]
        return Call(kind, reduction, dtype, shape, name, self.root, wire=wire)

    def __str__(self) -> str:
        words = [self.kind, self.reduction] if self.reduction else [self.kind]
        if self.dtype:
            shape = "x".join(map(str, self.shape)) or "scalar"
            words.append(f"{self.dtype}[{shape}]")
        if self.root != NO_ROOT:
            words.append(f"of root {self.root}")
        if self.counts:
            words.append(f"with counts {', '.join(map(str, self.counts))}")
        if self.tensors:
            words.append(f"of {coalesced.brief(self.tensors)}")
        if self.wire:
            words.append(f"with wire {self.wire}")
        text = " ".join(words)
        return f"{text} named {self.name!r}" if self.name else text
