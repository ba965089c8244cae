"""The ends of processes: of those that a benchmark has started, and of its own."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys


def end_on_sigterm() -> None:
    """Let SIGTERM end this process as an exception does, which ends what it has started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def end(process: subprocess.Popen[bytes], patience: float = 0.0) -> None:
    """Wait so many seconds for *process* to end by itself; then ask it to, then force it."""
    for ask in (None, process.terminate, process.kill):
        if ask is not None:
            ask()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience if ask is None else 10.0)
            return
