"""What the commands say of a socket at which nobody answers: what is wrong, and what to do."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ringd.cli.ask import ask
from ringd.errors import DaemonUnavailable
from ringd.wire.border import lifeline
from ringd.wire.border.messages import AskStatus


def said(path: Path) -> str:
    """Return what asking at *path* ends with."""
    with pytest.raises(DaemonUnavailable) as caught:
        ask(path, AskStatus, timeout=0.2)
    return str(caught.value)


def test_a_daemon_that_is_gone(place: Path) -> None:
    """It has left its sockets behind."""
    path = place / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path) + lifeline.SUFFIX)
    assert "the daemon that made it is gone" in said(path)


def test_a_daemon_that_is_stuck(place: Path) -> None:
    """Nobody accepts, and no more may wait: to start a second daemon is no remedy."""
    path = place / "s"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path) + lifeline.SUFFIX)
        listener.listen(0)
        first.connect(listener.getsockname())
        text = said(path)
    assert "its daemon is stuck: see its log" in text
    assert "gone" not in text


@pytest.mark.parametrize("name", ["x" * 200, "file/s"])
def test_a_path_that_is_none(place: Path, name: str) -> None:
    """Nothing is said of a daemon there."""
    (place / "file").touch()
    text = said(place / name)
    assert text.endswith("correct --socket")
    assert "gone" not in text
