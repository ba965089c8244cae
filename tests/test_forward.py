"""Loopback ports, and who may use them."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from ringd.config.settings import IpcSettings
from ringd.daemon.streams import may_use
from ringd.errors import RingError
from ringd.forward import doorkeeper
from ringd.forward.door import Door
from ringd.forward.doorkeeper import BURST, KEPT, SHARE, Doorkeeper
from ringd.forward.forwarder import port_of, service_of
from ringd.host.tcptable import LINUX, is_listened_to, peer_user
from ringd.host.users import group_id, is_in_group
from ringd.loop import Loop


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give both ends of a connection over loopback: the one that connected, and the other."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        accepted, _ = listener.accept()
        with accepted:
            yield client, accepted


@pytest.mark.skipif(not LINUX, reason="only Linux tells")
def test_the_system_tells_who_connected(pair) -> None:
    """By the number of the user."""
    assert peer_user(pair[1]) == os.geteuid()


def test_some_systems_do_not_tell(pair, tmp_path) -> None:
    """So whoever is on the machine may connect there; but on a Linux without /proc nobody may."""
    assert peer_user(pair[1], linux=False) is None
    with pytest.raises(OSError, match="tcp is not there; mount /proc"):
        peer_user(pair[1], linux=True, net=tmp_path)
    assert is_listened_to(5, linux=True, net=tmp_path) is None


@pytest.mark.skipif(not LINUX, reason="only Linux tells")
def test_a_program_may_connect_from_a_socket_of_ipv6() -> None:
    """As torch and Java do."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_INET6) as client,
    ):
        client.connect(("::ffff:127.0.0.1", listener.getsockname()[1]))
        accepted, _ = listener.accept()
        with accepted:
            assert peer_user(accepted) == os.geteuid()


@pytest.mark.skipif(not LINUX, reason="only Linux tells")
@pytest.mark.parametrize(
    ("family", "host"),
    [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, ""), (socket.AF_INET6, "::")],
)
def test_whether_somebody_listens(family: int, host: str) -> None:
    """Is told without connecting."""
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        port = listener.getsockname()[1]
        assert is_listened_to(port) is False
        listener.listen()
        assert is_listened_to(port) is True
    assert is_listened_to(port) is False
    assert is_listened_to(port, linux=False) is None


@pytest.mark.skipif(not LINUX, reason="only Linux tells")
def test_who_has_hung_up_is_nobody(pair) -> None:
    """The system calls the owner of such a socket root, whoever it was."""
    client, accepted = pair
    client.close()
    with pytest.raises(OSError, match="hung up"):
        peer_user(accepted)


def entered(loop: Loop, *, may: bool) -> tuple[list[socket.socket], list[str]]:
    """Have somebody connect to a door; return who came in, and who did not and why."""
    came: list[socket.socket] = []
    refused: list[str] = []

    def stop(where: list, what: object) -> None:
        where.append(what)
        loop.stop()

    asked: list[int] = []
    door = Door(
        loop,
        0,
        keeper=Doorkeeper(loop, lambda uid: asked.append(uid) or may),
        on_connection=lambda sock: stop(came, sock),
        on_refused=lambda why: stop(refused, why),
    )
    with socket.create_connection(("127.0.0.1", door.port)):
        loop.run()
    door.close()
    assert asked == ([os.geteuid()] if LINUX else [])
    return came, refused


def test_a_door_lets_in_whom_it_may(loop: Loop) -> None:
    """And hands the connection over."""
    (sock,), refused = entered(loop, may=True)
    sock.close()
    assert refused == []


@pytest.mark.skipif(not LINUX, reason="only Linux tells")
def test_a_door_turns_other_users_away(loop: Loop) -> None:
    """Saying who that was."""
    came, (why,) = entered(loop, may=False)
    assert came == []
    assert f"user {os.geteuid()} may not use port" in why


def test_a_door_that_closes_lets_in_those_who_stand_there(loop: Loop) -> None:
    """They have connected, and may have said all that they wanted to say."""
    came: list[socket.socket] = []
    door = Door(
        loop,
        0,
        keeper=Doorkeeper(loop, lambda _: True),
        on_connection=came.append,
        on_refused=pytest.fail,
    )
    where = ("127.0.0.1", door.port)
    with socket.create_connection(where) as one, socket.create_connection(where):
        one.sendall(b"hello")
        door.close_behind()
        assert len(came) == 2
        assert came[0].recv(10) == b"hello"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(where)
        for sock in came:
            sock.close()


class Clock:
    """In the place of a loop; it stands still."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> float:
        """Return the time."""
        return self.seconds


def test_who_connects_again_and_again_has_a_fifth_of_the_loop(monkeypatch) -> None:
    """However long the system takes to say who it is; but a few are let in at once."""
    clock = Clock()

    def look(_sock: socket.socket) -> int:
        clock.seconds += 0.03
        return 5

    monkeypatch.setattr(doorkeeper, "peer_user", look)
    keeper = Doorkeeper(clock, lambda _: True)
    begun, let_in, at_once = clock.seconds, 0, 0
    while clock.seconds < begun + 60:
        if (rests_for := keeper.rests_for) > 0:
            at_once = at_once or let_in
            clock.seconds += rests_for
        assert keeper.refusal(None, 5) == ""
        let_in += 1
    assert at_once == 4
    assert 0.9 * 60 * SHARE < let_in * 0.03 < 60 * SHARE + BURST + 0.03
    clock.seconds += 3600  # nobody comes: no more is saved than that
    for _ in range(4):
        assert keeper.rests_for <= 0
        keeper.refusal(None, 5)
    assert keeper.rests_for > 0


def test_what_is_said_of_a_user_is_kept_for_a_moment(monkeypatch) -> None:
    """To ask may take the network."""
    clock, asked = Clock(), []
    monkeypatch.setattr(doorkeeper, "peer_user", lambda _sock: 5)
    keeper = Doorkeeper(clock, lambda uid: bool(asked.append(uid)))
    for _ in range(3):
        assert keeper.refusal(None, 80) == "user 5 may not use port 80"
    assert asked == [5]
    clock.seconds += KEPT
    keeper.refusal(None, 80)
    assert asked == [5, 5]


def test_doors_of_one_keeper_wait_for_one_another(loop: Loop, monkeypatch) -> None:
    """All who came are let in all the same."""
    monkeypatch.setattr(doorkeeper, "BURST", 0.0)
    came: list[socket.socket] = []
    at_once: list[bool] = []

    def enter(sock: socket.socket) -> None:
        at_once.append(keeper.rests_for > 0)
        came.append(sock)
        if len(came) == 6:
            loop.stop()

    keeper = Doorkeeper(loop, lambda _: True)
    doors = [
        Door(loop, 0, keeper=keeper, on_connection=enter, on_refused=pytest.fail) for _ in range(2)
    ]
    with contextlib.ExitStack() as stack:
        for door in doors * 3:
            stack.enter_context(socket.create_connection(("127.0.0.1", door.port)))
        loop.run()
        for sock in came:
            sock.close()
    for door in doors:
        door.close()
    assert all(at_once) or not LINUX


def test_a_port_that_is_taken(loop: Loop) -> None:
    """Is an error that says what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RingError, match=f"127.0.0.1:{port}.*another program has that port"):
            Door(
                loop,
                port,
                keeper=Doorkeeper(loop, bool),
                on_connection=socket.socket.close,
                on_refused=lambda _: None,
            )


def test_streams_are_for_those_who_may_use_the_daemons_socket() -> None:
    """Its user, root, and its group, unless its mode shuts that out."""
    own, stranger = os.geteuid(), 4_000_000
    assert may_use(IpcSettings(), own)
    assert may_use(IpcSettings(mode=0o600), own)
    assert may_use(IpcSettings(), 0)
    assert not may_use(IpcSettings(), stranger)
    assert not may_use(IpcSettings(group="no such group"), stranger)


def test_groups_are_told() -> None:
    """By number or name; a user that there is not is in none."""
    assert is_in_group(0, 0)
    assert not is_in_group(0, 4_000_000)
    assert not is_in_group(4_000_000, 0)
    assert group_id("17") == 17
    with pytest.raises(KeyError):
        group_id("no such group")


@pytest.mark.parametrize(
    "service", ["tcp:", "tcp:x", "tcp:123456", "udp:5", "5", "tcp:-1", "tcp:²"]
)
def test_what_is_no_port(service: str) -> None:
    """Nobody is believed to name one."""
    assert port_of(service) is None


def test_a_port_is_a_service() -> None:
    """There and back."""
    assert port_of(service_of(5000)) == 5000
