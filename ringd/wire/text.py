"""Text from the other side of a connection: shown to people, never trusted."""

from __future__ import annotations


def printable(text: str, limit: int) -> str:
    """Return *text* cut to *limit* characters, with ``?`` for what a terminal might obey."""
    return "".join(char if char.isprintable() else "?" for char in text[:limit])


def capped(text: str, limit: int) -> bytes:
    """Return *text* in UTF-8, cut between characters to at most *limit* bytes."""
    return text.encode(errors="replace")[:limit].decode(errors="ignore").encode()
