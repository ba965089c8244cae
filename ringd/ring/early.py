"""What others said in a generation that is not on this member's disk yet, kept until it is."""

from __future__ import annotations

from dataclasses import dataclass

from ringd.net.link import Link
from ringd.wire.link.frames import Header

MOST = 64 << 20
"""Bytes kept at most. A disk that hangs may do so for hours, in which programs come and go."""

EACH = 512
"""Bytes that a frame costs here beside its payload, about."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A group frame, and the link that it came over."""

    link: Link
    header: Header
    payload: memoryview


class Early:
    """Keeps the frames of one generation, in order, up to a bound."""

    def __init__(self) -> None:
        self._frames: list[Frame] = []
        self._size = 0

    def __len__(self) -> int:
        return len(self._frames)

    def keep(self, link: Link, header: Header, payload: memoryview) -> bool:
        """Keep the frame; return whether there was room for it."""
        size = self._size + EACH + len(payload)
        if size > MOST:
            return False
        self._size = size
        self._frames.append(Frame(link, header, payload))
        return True

    def outlive(self, generation: int | None) -> None:
        """Forget the frames, unless they are of *generation*, the one being written."""
        if self._frames and self._frames[0].header.generation != generation:
            self.take()

    def take(self) -> list[Frame]:
        """Return and forget the frames."""
        frames, self._frames, self._size = self._frames, [], 0
        return frames
