"""The daemon's log: structlog on standard error, for eyes on a terminal, JSON lines elsewhere.

No line is too long for systemd's journal, which is told how severe each is.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections import deque
from collections.abc import MutableMapping
from functools import partial
from typing import Any, TextIO

import structlog

from ringd.host import journal, logfile
from ringd.observe import brevity
from ringd.observe.linewriter import LineWriter

_MARK = len("<4>")

_AT_EXIT = 1.0
"""Seconds that the last lines get to be written."""

KEPT = 1000
"""Lines of the log that can be asked for."""

_kept: deque[str] = deque(maxlen=KEPT)

_writers: list[LineWriter] = []  # one for each stream that was ever logged to


def configure(level: str = "info", form: str = "auto", stream: TextIO | None = None) -> None:
    """Send the log of every module to *stream* (standard error).

    Args:
        level: The least severe level written: ``debug``, ``info``, ``warning`` or ``error``.
        form: ``console``, ``json``, or ``auto``: console if *stream* is a terminal.
        stream: Where to. Nobody waits for it: lines that it does not take are lost and counted.

    May be called again, to change the level; loggers taken by ``structlog.get_logger()`` follow.
    """
    stream = sys.stderr if stream is None else stream
    writer = _writer(stream)
    terminal = stream.isatty()
    last: list[Any]
    if form == "console" or (form == "auto" and terminal):
        last = [
            structlog.dev.ConsoleRenderer(
                colors=terminal and not os.environ.get("NO_COLOR"),
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    else:
        last = [structlog.processors.format_exc_info, _render_json]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _hide_bytes,
            *last[:-1],
            _marking(last[-1]) if journal.leads_to(stream) else last[-1],
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=lambda *_: _Logger(writer),
        # Bound methods are not cached, so that a new level reaches loggers in use.
        cache_logger_on_first_use=False,
    )


def flush(timeout: float = _AT_EXIT) -> bool:
    """Wait until all lines are written, or *timeout* seconds for a stream; return if they are."""
    written = [writer.flush(timeout) for writer in _writers]  # each gets its time
    return all(written)


def recent() -> list[str]:
    """Return the last lines, the oldest first, whether or not anybody has read them."""
    return list(_kept)


def lost() -> int:
    """Return how many lines could not be written."""
    return sum(writer.lost for writer in _writers)


def _writer(stream: TextIO) -> LineWriter:
    for writer in _writers:
        if writer.stream is stream:
            return writer
    if not _writers:
        atexit.register(flush)
    path = os.environ.get(logfile.VARIABLE) if stream is sys.stderr else None
    _writers.append(LineWriter(stream, partial(logfile.follow, path) if path else None))
    return _writers[-1]


class _Logger:
    """What structlog writes lines to."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer

    def msg(self, line: str) -> None:
        _kept.append(line)
        if self._writer.write(line):
            so_far = self._writer.news_of_loss()
            if so_far:
                structlog.get_logger("log").warning("log lines were lost", so_far=so_far)

    debug = info = warning = error = critical = exception = msg


def _hide_bytes(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Write bytes as their length: keys, nonces and tensors are bytes, and belong in no log."""
    for key, value in event.items():
        if isinstance(value, (bytes, bytearray, memoryview)):
            event[key] = f"<{len(value)} bytes>"
    return event


def _render_json(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    """Render one line: time, level and event first, for people who read it as it is."""
    first = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    return brevity.render({**first, **event}, journal.MAX_LINE - _MARK)


def _marking(render: Any) -> Any:
    """Return the processor *render* as the journal needs it."""

    def marked(logger: object, method: str, event: MutableMapping[str, Any]) -> str:
        level = event["level"]
        return journal.marked(render(logger, method, event), level)

    return marked
