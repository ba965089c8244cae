"""The one line in which the service manager shows how the ring is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ringd.loop import Loop, Timer

EVERY = 2.0
"""Seconds between looks at who is missing, and why, while somebody is."""


class StatusLine:
    """Keeps the line true.

    Args:
        loop: Where it looks again.
        awaited: Returns who is missing, and why.
        tell: Hands the line over.
    """

    def __init__(
        self, loop: Loop, awaited: Callable[[], Mapping[str, str]], tell: Callable[[str], None]
    ) -> None:
        self._loop = loop
        self._awaited = awaited
        self._tell = tell
        self.text = ""
        """What was told last."""
        self._state = ""
        self._again: Timer | None = None

    def show(self, state: str) -> None:
        """Show the ring's *state*, in words, from now on."""
        self._state = state
        if self._again is not None:
            self._again.cancel()
        self._look()

    def _look(self) -> None:
        awaited = self._awaited()
        self._again = self._loop.call_later(EVERY, self._look) if awaited else None
        missing = "; ".join(f"waits for {name}: {why}" for name, why in awaited.items())
        line = f"{self._state}; {missing}" if missing else self._state
        if line != self.text:
            self.text = line
            self._tell(line)
