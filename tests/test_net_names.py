"""Names to addresses, at every attempt and off the loop; and errors to words."""

from __future__ import annotations

import errno
import socket
import threading

import pytest
from dialkit import free_port
from netkit import run_until

from ringd.config.settings import JoinSettings
from ringd.net import oserrors, resolver


def test_names_are_resolved_at_every_attempt(scene, monkeypatch):
    """A name is looked up anew in each round, off the loop, and all it resolves to is tried."""
    port = free_port()
    answers = [
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        [("127.0.0.1", port), ("127.0.0.1", port)],
        [("127.0.0.1", port), ("127.0.0.2", port)],
    ]
    real = socket.getaddrinfo
    asked = []

    def lookup(host, port, **options):
        if host != "studio.local" or options["flags"]:
            return real(host, port, **options)
        asked.append(host)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", found) for found in answer]

    monkeypatch.setattr(resolver.socket, "getaddrinfo", lookup)
    scene.listener(host="127.0.0.2", port=port)
    name = f"studio.local:{port}"
    scene.dialer(name)
    run_until(scene.loop, lambda: scene.links and scene.accepted)
    refused = oserrors.describe(OSError(errno.ECONNREFUSED, ""))
    assert scene.failures == [
        (name, "cannot resolve the name: Name or service not known"),
        (f"{name} (127.0.0.1:{port})", refused),
        (f"{name} (127.0.0.1:{port})", refused),
    ]
    assert scene.links[0][2] == f"{name} (127.0.0.2:{port})"
    assert len(asked) == 3


def test_a_name_server_that_does_not_answer(scene, monkeypatch):
    """A lookup that hangs fails in time, holds nothing up, and is not begun twice."""
    gate = threading.Event()
    asked = []
    real = socket.getaddrinfo

    def lookup(host, port, **options):
        if host != "studio.local" or options["flags"]:
            return real(host, port, **options)
        asked.append(host)
        gate.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure")

    monkeypatch.setattr(resolver.socket, "getaddrinfo", lookup)
    settings = JoinSettings(connect_timeout=0.02)
    dialer = scene.dialer("studio.local:5680", settings=settings)
    text = "cannot resolve the name: no answer within 0.02 s"
    run_until(scene.loop, lambda: len(scene.failures) >= 5)
    assert set(scene.failures) == {("studio.local:5680", text)}
    assert asked == ["studio.local"]
    gate.set()
    run_until(scene.loop, lambda: len(asked) >= 2)
    dialer.stop()
    run_until(scene.loop, lambda: not dialer._resolver._waiting)


@pytest.mark.parametrize(
    ("number", "darwin", "words"),
    [
        (errno.ECONNREFUSED, False, "connection refused"),
        (errno.ETIMEDOUT, False, "timed out"),
        (errno.ETIMEDOUT, True, "timed out: the machine is off, asleep or elsewhere"),
        (errno.ECONNREFUSED, True, "connection refused: the machine is there, and no ringd"),
        (errno.EHOSTUNREACH, False, "no route to host"),
        (errno.EHOSTUNREACH, True, "no route to host: if ping works, macOS Local Network Privacy"),
        (errno.ENETUNREACH, False, "network is unreachable"),
        (errno.EACCES, False, "Permission denied"),
    ],
)
def test_words(monkeypatch, number, darwin, words):
    """What the system says is put in words, with its number, on either platform."""
    monkeypatch.setattr(oserrors, "DARWIN", darwin)
    text = oserrors.describe(OSError(number, "Permission denied"))
    assert text.startswith(words)
    assert text.endswith(f" (errno {number})")
