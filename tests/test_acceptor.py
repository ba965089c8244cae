"""Who connects is taken in, a few at a time, and waits in the system where there is no room."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ringd import acceptor
from ringd.acceptor import Acceptor
from ringd.loop import Loop
from tests.netkit import every_turn, run_until


class Stand:
    """An acceptor, who came, and who has connected."""

    def __init__(self, loop: Loop, stack: contextlib.ExitStack, **options: Any) -> None:
        self._stack = stack
        self.came: list[tuple[socket.socket, Any]] = []
        self.turns = 0
        self.per_turn: Counter[int] = Counter()
        every_turn(loop, self._turn)
        self.acceptor = Acceptor(loop, listener(), self.take, **options)
        stack.callback(self.acceptor.close)

    def _turn(self) -> None:
        self.turns += 1

    def take(self, sock: socket.socket, address: Any) -> None:
        """Keep a connection."""
        self._stack.callback(sock.close)
        self.came.append((sock, address))
        self.per_turn[self.turns] += 1

    def connect(self) -> tuple[str, int]:
        """Connect; return from where."""
        sock = socket.create_connection(self.acceptor.listener.getsockname())
        self._stack.callback(sock.close)
        return sock.getsockname()  # type: ignore[no-any-return]


def listener() -> socket.socket:
    """Return a socket that listens on a port that is free."""
    return socket.create_server(("127.0.0.1", 0))


@pytest.fixture
def stand(loop: Loop) -> Iterator[Callable[..., Stand]]:
    """Make stands, and close what they had."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: Stand(loop, stack, **options)


def test_each_comes_with_its_address(loop: Loop, stand: Callable[..., Stand]) -> None:
    """In the order in which they have connected."""
    here = stand()
    addresses = [here.connect() for _ in range(3)]
    run_until(loop, lambda: len(here.came) == 3)
    assert [address for _, address in here.came] == addresses


def test_no_more_are_taken_in_one_turn_than_was_said(
    loop: Loop, stand: Callable[..., Stand]
) -> None:
    """All else in the loop has its turn between them."""
    here = stand(per_event=2)
    for _ in range(7):
        here.connect()
    run_until(loop, lambda: len(here.came) == 7)
    assert max(here.per_turn.values()) == 2


def test_nobody_is_taken_in_while_it_rests(loop: Loop, stand: Callable[..., Stand]) -> None:
    """It is asked again when that is over, and does not spin until then."""
    rests = [0.0, 0.03, 0.03, 0.0, 0.0]
    left: list[int] = []

    def rests_for() -> float:
        left.append(len(here.came))
        return rests.pop(0) if rests else 0.0

    here = stand(rests_for=rests_for)
    for _ in range(2):
        here.connect()
    run_until(loop, lambda: len(here.came) == 2)
    assert left[:4] == [0, 1, 1, 1]


class Exhausted:
    """In the place of a listening socket, when there are no descriptors."""

    def __init__(self, real: socket.socket, error: int = errno.EMFILE, times: int = 1 << 30):
        self._real, self._error, self._left = real, error, times

    def accept(self) -> tuple[socket.socket, Any]:
        """Fail so many times."""
        if self._left > 0:
            self._left -= 1
            raise OSError(self._error, os.strerror(self._error))
        return self._real.accept()

    def fileno(self) -> int:
        """Return the real one's."""
        return self._real.fileno()

    def getsockname(self) -> Any:
        """Return where that listens."""
        return self._real.getsockname()

    def close(self) -> None:
        """Close that."""
        self._real.close()


def test_without_descriptors_it_waits(
    loop: Loop, stand: Callable[..., Stand], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has connected meanwhile is taken in when there are some again."""
    monkeypatch.setattr(acceptor, "PAUSE", 0.01)
    here = stand()
    here.acceptor.listener = Exhausted(here.acceptor.listener, times=3)  # type: ignore[assignment]
    here.connect()
    assert here.acceptor.accept_one() is False
    run_until(loop, lambda: here.came)


def test_room_is_made_before_it_waits(loop: Loop, stand: Callable[..., Stand]) -> None:
    """As often as that helps."""
    errors: list[OSError] = []

    def make_room(error: OSError) -> bool:
        errors.append(error)
        return True

    here = stand(make_room=make_room)
    here.acceptor.listener = Exhausted(here.acceptor.listener, times=3)  # type: ignore[assignment]
    here.connect()
    run_until(loop, lambda: here.came)
    assert [error.errno for error in errors] == [errno.EMFILE] * 3


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.EHOSTUNREACH])
def test_one_that_is_gone_holds_up_nobody(
    loop: Loop, stand: Callable[..., Stand], number: int
) -> None:
    """The system may say of a connection that it has ended, by the error that ended it."""
    here = stand()
    gone = Exhausted(here.acceptor.listener, number, times=1)
    here.acceptor.listener = gone  # type: ignore[assignment]
    assert here.acceptor.accept_one() is True
    here.connect()
    run_until(loop, lambda: here.came)


def test_one_by_hand(stand: Callable[..., Stand]) -> None:
    """Until nobody stands there."""
    here = stand()
    here.connect()
    assert here.acceptor.accept_one() is True
    assert here.acceptor.accept_one() is False
    assert len(here.came) == 1


def test_it_may_be_closed_by_whom_it_lets_in(loop: Loop, stand: Callable[..., Stand]) -> None:
    """Nobody comes in after that."""
    here = stand()
    for _ in range(2):
        here.connect()
    take = here.take

    def take_and_close(sock: socket.socket, address: Any) -> None:
        take(sock, address)
        here.acceptor.close()
        loop.stop()

    here.acceptor._on_connection = take_and_close
    loop.run()
    here.acceptor.close()
    assert len(here.came) == 1
    assert here.acceptor.accept_one() is False


@pytest.mark.parametrize("resting", [False, True])
def test_another_listener_takes_its_place(
    loop: Loop, stand: Callable[..., Stand], resting: bool
) -> None:
    """At once, also where the old one had no room."""
    here = stand()
    if resting:
        exhausted = Exhausted(here.acceptor.listener)
        here.acceptor.listener = exhausted  # type: ignore[assignment]
        assert here.acceptor.accept_one() is False
    old = here.acceptor.listener
    here.acceptor.use(listener())
    assert old.fileno() == -1
    here.connect()
    run_until(loop, lambda: here.came)
