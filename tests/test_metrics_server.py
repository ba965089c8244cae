"""What serves the metrics: whoever asks is answered, and nobody can hold it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections import Counter
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace

import pytest
from netkit import run_until

from ringd.host.limits import OpenFiles
from ringd.metrics import server as serving
from ringd.metrics.http import MAX_HEAD, BadRequest, Response, parse, plain
from ringd.metrics.place import Place
from ringd.metrics.server import MOST, Server
from tests.ownports import free_ports

GET = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"
LARGE = b"ringd 1\n" * (1 << 20)


class Stand:
    """A server on a Unix socket or a port, and what has become of whom it refused."""

    def __init__(self, loop, text, body=b"ringd_info 1\n"):
        self.loop, self.text = loop, text
        self.refused = Counter()
        self.later = []
        self.open_files = OpenFiles()
        self.said = []
        log = SimpleNamespace(
            error=lambda event, **details: self.said.append((event, details["reason"])),
            info=lambda event, **_details: self.said.append((event, "")),
        )
        answers = {
            "/metrics": lambda reply: reply(Response(HTTPStatus.OK, body)),
            "/later": self.later.append,
        }
        self.server = Server(
            loop,
            Place(text, mode=0o660, gid=None),
            answers,
            refused=self.refused,
            log=log,
            open_files=self.open_files,
        )

    def connect(self, data=b""):
        """Connect, and send *data*."""
        if self.text.startswith("/"):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(self.text)
        else:
            sock = socket.create_connection(("127.0.0.1", int(self.text.rpartition(":")[2])))
        sock.sendall(data)
        sock.setblocking(False)
        return sock

    def answer(self, data, sock=None):
        """Return all that is said to *data*."""
        got = bytearray()

        def ended():
            try:
                while part := sock.recv(1 << 16):
                    got.extend(part)
            except BlockingIOError:
                return False
            except ConnectionError:
                pass
            return True

        sock = sock or self.connect(data)
        with sock:
            run_until(self.loop, ended)
        return bytes(got)


@pytest.fixture(params=["port", "socket"])
def stand(request, loop, place):
    """Give one that is closed afterwards, and leaves nothing open."""
    before = len(list(Path("/dev/fd").iterdir()))
    text = f"127.0.0.1:{free_ports(1)[0]}" if request.param == "port" else str(place / "m")
    made = Stand(loop, text)
    yield made
    made.server.close()
    assert len(list(Path("/dev/fd").iterdir())) == before
    assert loop._earliest() is None
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"GET / HTTP/1.1\r\n", None),
        (b"GET /metrics?x=1 HTTP/1.0\r\nA: b\r\n\r\n", ("GET", "/metrics")),
        (b"HEAD /livez HTTP/1.1\n\n", ("HEAD", "/livez")),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET /m\xc3 HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01" + bytes(99) + b"\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"a" * MAX_HEAD, 431),
    ],
)
def test_requests(data, expected):
    """A method that only reads, and a path; anything else is refused."""
    if isinstance(expected, int):
        with pytest.raises(BadRequest) as caught:
            parse(data)
        assert caught.value.status == expected
    else:
        assert parse(data) == expected


def test_answers(stand):
    """As a scraper reads them; the connection ends behind each."""
    head, _, body = stand.answer(GET).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nContent-Length: 13\r\n" in head
    assert b"\r\nConnection: close" in head
    assert body == b"ringd_info 1\n"
    assert stand.answer(b"HEAD /metrics HTTP/1.1\r\n\r\n") == head + b"\r\n\r\n"
    assert b"404" in stand.answer(b"GET /x HTTP/1.1\r\n\r\n").split(b"\r\n")[0]
    assert b"Allow: GET" in stand.answer(b"PUT /metrics HTTP/1.1\r\n\r\n")
    assert stand.refused == {}


def test_a_request_that_comes_in_pieces(stand):
    """It is answered when it is whole."""
    sock = stand.connect()
    for byte in GET[:-1]:
        sock.send(bytes([byte]))
    run_until(stand.loop, lambda: stand.server._connections)
    sock.send(GET[-1:])
    assert stand.answer(b"", sock).endswith(b"ringd_info 1\n")


def test_a_slow_head_is_hung_up_on(stand, monkeypatch):
    """However slowly it goes on."""
    monkeypatch.setattr(serving, "WITHIN", 0.1)
    over = []
    with stand.connect(b"GET /metrics HTTP/1.1\r\n") as slow:

        def trickle():
            try:
                slow.send(b"A: b\r\n")
                stand.loop.call_later(0.01, trickle)
            except OSError:
                over.append(True)

        trickle()
        run_until(stand.loop, lambda: over)
    assert stand.refused == {"slow": 1}
    assert not stand.server._connections


def test_a_reader_that_never_reads_holds_nothing(loop, place, monkeypatch):
    """It has its time, others are served meanwhile, and then it is gone."""
    monkeypatch.setattr(serving, "WITHIN", 1.0)
    stand = Stand(loop, str(place / "m"), LARGE)
    deaf = stand.connect(GET)
    run_until(loop, lambda: stand.server._connections)
    monkeypatch.setattr(serving, "WITHIN", 60.0)  # for who reads, however slow the machine is
    assert stand.answer(GET).partition(b"\r\n\r\n")[2] == LARGE
    run_until(loop, lambda: stand.refused == {"slow": 1})
    assert not stand.server._connections
    deaf.close()
    stand.server.close()


def test_one_that_goes_away_before_its_answer(stand):
    """An answer that comes later finds nobody, and does no harm."""
    sock = stand.connect(b"GET /later HTTP/1.1\r\n\r\n")
    run_until(stand.loop, lambda: stand.later)
    sock.close()
    stand.later.pop()(plain(HTTPStatus.OK))
    run_until(stand.loop, lambda: not stand.server._connections)


def test_a_crowd_pushes_the_oldest_out(stand):
    """There are never more than so many, and who asks at once is answered."""
    silent = [stand.connect() for _ in range(MOST + 4)]
    run_until(stand.loop, lambda: stand.refused == {"crowded": 4})
    assert len(stand.server._connections) == MOST
    assert stand.answer(GET).endswith(b"ringd_info 1\n")
    assert stand.refused == {"crowded": 5}
    for sock in silent:
        sock.close()
    run_until(stand.loop, lambda: not stand.server._connections)


def test_a_flood_is_taken_a_few_at_a_time(stand):
    """Beyond a burst, five hundred in a second; the rest wait in the system."""
    taken = []

    def take(sock, _address):
        taken.append(stand.loop.now())
        sock.close()

    stand.server._acceptor._on_connection = take
    stop = threading.Event()

    def flood():
        while not stop.is_set():
            with contextlib.suppress(OSError):
                stand.connect().close()

    thread = threading.Thread(target=flood)
    thread.start()
    began = stand.loop.now()
    run_until(stand.loop, lambda: stand.loop.now() - began > 0.5 and len(taken) > serving.BURST)
    stop.set()
    stand.server.close()
    thread.join()
    spent = taken[-1] - began
    assert serving.BURST <= len(taken) <= serving.BURST + spent / serving.PAUSE + 1


def test_near_the_limit_of_open_files_it_waits(stand):
    """Others need these more; when there is room again the one that waited is served."""
    stand.open_files.refusal = lambda **_: "none left"
    sock = stand.connect(GET)
    run_until(stand.loop, lambda: stand.server._acceptor._resting)
    assert not stand.server._connections
    stand.open_files.refusal = lambda **_: ""
    assert stand.answer(b"", sock).endswith(b"ringd_info 1\n")


def test_a_socket_that_is_removed_is_made_anew(loop, place, monkeypatch):
    """By a cleaner, or as /run was wiped."""
    monkeypatch.setattr(serving, "LOOK_EVERY", 0.02)
    stand = Stand(loop, str(place / "m"))
    assert (place / "m").stat().st_mode & 0o777 == 0o660
    (place / "m").unlink()
    run_until(loop, (place / "m").exists)
    assert stand.answer(GET).endswith(b"ringd_info 1\n")
    stand.server.close()


def test_a_place_that_is_taken_is_waited_for(loop, place, monkeypatch):
    """That is said once, and nobody is pushed out; the ring does without metrics until then."""
    monkeypatch.setattr(serving, "LOOK_EVERY", 0.02)
    for text in (str(place / "m"), f"127.0.0.1:{free_ports(1)[0]}"):
        first, second = Stand(loop, text), Stand(loop, text)
        run_until(loop, lambda second=second: second.said)
        loop.call_later(0.1, loop.stop)
        loop.run()
        [(event, reason)] = second.said
        assert event == "metrics are not served; it is tried again all the time"
        taken = "another process listens there; stop it, or change metrics.listen"
        assert reason.startswith((os.strerror(errno.EADDRINUSE), taken))
        assert first.answer(GET).endswith(b"ringd_info 1\n")
        first.server.close()
        run_until(loop, lambda second=second: len(second.said) == 2)
        assert second.answer(GET).endswith(b"ringd_info 1\n")
        second.server.close()


def test_a_file_in_its_place_stays(loop, place):
    """What is no socket is never removed."""
    (place / "m").write_text("precious")
    stand = Stand(loop, str(place / "m"))
    assert "is not a socket but a file" in stand.said[0][1]
    stand.server.close()
    assert (place / "m").read_text() == "precious"


def test_one_that_cannot_be_put_there_leaves_nothing(loop, place, monkeypatch):
    """However often that is tried."""

    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(serving, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(Path, "rename", refuse)
    before = len(list(Path("/dev/fd").iterdir()))
    stand = Stand(loop, str(place / "m"))
    loop.call_later(0.1, loop.stop)
    loop.run()
    assert len(stand.said) == 1
    assert list(place.iterdir()) == []
    assert len(list(Path("/dev/fd").iterdir())) == before
    stand.server.close()


def test_what_is_left_of_a_dead_daemon_is_replaced(loop, place):
    """Nobody answers there."""
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(place / "m"))
    stand = Stand(loop, str(place / "m"))
    assert stand.answer(GET).endswith(b"ringd_info 1\n")
    stand.server.close()
