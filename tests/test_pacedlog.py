"""Logging what happens often: bounded, counted, and all of it again after a calm time."""

from __future__ import annotations

import pytest

from ringd.loop import Loop
from ringd.observe.pacedlog import FEW, MANY, MINUTE, PacedLog


class Lines:
    """A log that keeps what it is told, by level, on a loop whose time is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loop: Loop) -> None:
        self.info_lines: list[str] = []
        self.warnings: list[dict[str, object]] = []
        self.debug_lines: list[str] = []
        self.now = 0.0
        self._loop = loop
        monkeypatch.setattr(loop, "now", lambda: self.now)

    def info(self, event: str, **_details: object) -> None:
        """Keep it."""
        self.info_lines.append(event)

    def debug(self, event: str, **_details: object) -> None:
        """Keep it."""
        self.debug_lines.append(event)

    def warning(self, event: str, **details: object) -> None:
        """Keep it."""
        self.warnings.append({"event": event, **details})

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self._loop.call_soon(self._loop.stop)
        self._loop.run()


def test_what_comes_too_often_is_counted(monkeypatch: pytest.MonkeyPatch, loop: Loop) -> None:
    """So many lines at once, then fewer a minute; debug has all; a calm time allows many again."""
    lines = Lines(monkeypatch, loop)
    paced = PacedLog(lines, loop)  # type: ignore[arg-type]
    for number in range(100):
        paced.info(f"first {number}")
    assert lines.info_lines == [f"first {number}" for number in range(MANY)]
    assert lines.debug_lines == [f"first {number}" for number in range(MANY, 100)]
    assert lines.warnings == []
    lines.wait(MINUTE)
    (told,) = lines.warnings
    assert (told["held_back"], told["last"]) == (100 - MANY, "first 99")
    for number in range(100):
        paced.info(f"second {number}", reason="lost")
    assert len(lines.info_lines) == MANY + FEW
    lines.wait(MINUTE)
    assert lines.warnings[1]["last"] == "second 99: lost"
    lines.wait(MINUTE * MANY / FEW)  # without a line
    for number in range(MANY):
        paced.info(f"third {number}")
    assert len(lines.info_lines) == MANY + FEW + MANY
    assert len(lines.warnings) == 2
    paced.info("the last")
    paced.stop()
    assert lines.warnings[2]["held_back"] == 1
    paced.stop()
    assert len(lines.warnings) == 3
