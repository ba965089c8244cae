"""What a program asks for: one call, and the limits of the names and texts that go with it."""

from __future__ import annotations

import msgspec

MAX_GROUP_NAME = 64
MAX_CALL_NAME = 256
MAX_TEXT = 4096
"""Characters of an error's message."""


class Call(msgspec.Struct, frozen=True, array_like=True):
    """What one member asks for; members must agree on every field."""

    kind: str
    """``"all_reduce"`` or ``"barrier"``."""
    reduction: str
    """``"sum"``, ``"mean"``, ``"prod"``, ``"min"`` or ``"max"``; empty for a barrier."""
    dtype: str
    """The numpy dtype's name, such as ``"float32"`` or ``"bfloat16"``; empty for a barrier."""
    shape: tuple[int, ...]
    name: str
    """The caller's own name for the call, such as ``"layer3.grad"``; may be empty."""

    def __str__(self) -> str:
        if self.kind == "barrier":
            text = "barrier"
        else:
            shape = "x".join(map(str, self.shape)) or "scalar"
            text = f"{self.kind} {self.reduction} {self.dtype}[{shape}]"
        return f"{text} named {self.name!r}" if self.name else text
