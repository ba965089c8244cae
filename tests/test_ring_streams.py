"""Connections that go through real daemons, and links that break under them."""

from __future__ import annotations

import json
import re
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ringd.cli.watch import render
from tests.cluster import PATIENCE, Cluster, wait_until
from tests.ownports import free_ports
from tests.proxy import Proxy
from tests.ringkit import HASTY, PATIENT, Call, connected
from tests.streamkit import (
    PIECE,
    Server,
    ask,
    connect,
    digest,
    echo,
    exactly,
    hear,
    say,
    speech,
    unread,
)

MIB = 1 << 20
PAGE = Path(__file__).parents[1] / "docs" / "streams.md"


def table(to: str, port: int, listen: int | None = None, sources: list[str] | None = None) -> str:
    """Return a table of the config."""
    text = f'[[streams]]\nto = "{to}:{port}"\n'
    text += f"listen = {listen}\n" if listen else ""
    return text + (f"from = {sources}\n" if sources else "")


@contextmanager
def ring(directory: Path, port: int) -> Iterator[tuple[Cluster, int]]:
    """Give a ring of two whose n0 listens for *port* of n1, as the page has it; and where."""
    (listen,) = free_ports(1)
    text = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    text = text.replace("studio:5000", f"n1:{port}").replace("15000", str(listen))
    with Cluster(directory, 2, settings=PATIENT + text) as cluster:
        cluster.start().wait_ready()
        yield cluster, listen


@dataclass
class Scene:
    """Four daemons, a proxy before each; n0 listens at *listen* for *port* of n2.

    That is as far one way as the other: either leads by another member.
    """

    cluster: Cluster
    proxies: list[Proxy]
    listen: int
    port: int

    @property
    def open(self) -> list[int]:
        """How many streams each daemon has."""
        return [node.status()["streams"]["open"] for node in self.cluster.nodes]

    @property
    def carried(self) -> int:
        """How many bytes all links have carried."""
        return sum(proxy.forwarded for proxy in self.proxies)

    def settled(self) -> None:
        """See that nothing is left of any stream."""
        wait_until(lambda: not any(self.open), lambda: f"{self.open} streams are open")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Give one that lasts for all tests here."""
    *ports, listen, port = free_ports(6)
    proxies = [Proxy(port) for port in ports]
    dial = {f"n{rank}": proxy.port for rank, proxy in enumerate(proxies)}
    text = HASTY + table("n2", port, listen, ["n0"])
    directory = tmp_path_factory.mktemp("ring")
    with Cluster(directory, 4, settings=text, ports=ports, dial=dial) as cluster:
        cluster.start().wait_ready()
        yield Scene(cluster, proxies, listen, port)
    for proxy in proxies:
        proxy.close()


class Exchange:
    """Two programs that say *size* bytes to each other at the same time, as far as *until*."""

    def __init__(self, size: int) -> None:
        self.size = self.until = size
        self.heard = ""

    def say(self, connection: socket.socket, seed: int) -> None:
        """Say it all, and that it is all."""
        for number, piece in enumerate(speech(seed, self.size)):
            wait_until(lambda n=number: n * PIECE < self.until, "leave to go on")
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)

    def serve(self, connection: socket.socket) -> None:
        """As the server."""
        saying = Call(lambda: self.say(connection, 2))
        self.heard = hear(connection)
        saying.result()

    def run(self, port: int) -> None:
        """As the client; see that each heard what the other one said."""
        with connect(port) as client:
            saying = Call(lambda: self.say(client, 1))
            assert hear(client) == digest(2, self.size)
            saying.result()
        wait_until(lambda: self.heard, "the other direction")
        assert self.heard == digest(1, self.size)


def cut(scene: Scene) -> None:
    """Reset the links."""
    scene.proxies[1].cut()


def strand(scene: Scene) -> None:
    """Let a link fall silent for ever."""
    scene.proxies[1].strand()


def rejoin(scene: Scene) -> None:
    """Have all links dropped and made anew."""
    scene.cluster[0].rejoin()


def pause(scene: Scene) -> None:
    """Stop a daemon for longer than is borne."""
    scene.cluster[1].signal(signal.SIGSTOP)
    time.sleep(1.0)
    scene.cluster[1].signal(signal.SIGCONT)


@pytest.mark.parametrize("disturb", [cut, strand, rejoin, pause])
def test_streams_survive(scene: Scene, disturb: Callable[[Scene], None]) -> None:
    """Not one byte is lost, doubled or moved, both ways at once, whatever becomes of the links."""
    exchange = Exchange(32 * MIB)
    with Server(exchange.serve, scene.port):
        generation, before = scene.cluster.wait_ready(), scene.carried
        exchange.until = 0
        call = Call(lambda: exchange.run(scene.listen))
        for _ in range(2):
            exchange.until += exchange.size // 3
            wait_until(lambda n=before: scene.carried > n + MIB, "bytes on their way")
            disturb(scene)
            if disturb is not pause:
                generation = scene.cluster.wait_ready(generation)
            before = scene.carried
        assert call.running
        exchange.until = exchange.size
        call.result()
    scene.settled()


def test_hundreds_of_streams_with_questions_and_answers(scene: Scene) -> None:
    """All at once, also while the links are cut."""
    with Server(echo, scene.port), ExitStack() as stack:
        clients = [stack.enter_context(connect(scene.listen)) for _ in range(300)]
        for round_ in range(3):
            for number, client in enumerate(clients):
                client.sendall(struct.pack("<II", round_, number) * 100)
            if round_ == 1:
                scene.proxies[1].cut()
            for number, client in enumerate(clients):
                expected = struct.pack("<II", round_, number) * 100
                assert exactly(client, len(expected)) == expected
        assert scene.open == [300, 0, 300, 0]
    scene.settled()


def test_a_slow_reader_holds_up_nobody(scene: Scene) -> None:
    """Not another stream, not a collective; and it costs little memory."""
    stuck: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        if connection.recv(1) == b"!":
            stuck.append(connection)
            time.sleep(PATIENCE)
        else:
            echo(connection)

    with Server(serve, scene.port), ExitStack() as stack:
        before = scene.cluster[2].resident_bytes()
        slow = [stack.enter_context(connect(scene.listen)) for _ in range(20)]
        for client in slow:
            client.sendall(b"!")
            client.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    client.send(bytes(MIB))
        wait_until(lambda: len(stuck) == 20)
        with connect(scene.listen) as quick, connected(scene.cluster) as rings:
            quick.sendall(b"?")
            assert ask(quick, b"x" * MIB) == b"x" * MIB
            x = np.ones(1_000_000, np.float32)
            calls = [Call(lambda ring=ring: ring.all_reduce(x)) for ring in rings]
            for call in calls:
                assert call.result()[0] == 4
        assert scene.cluster[2].resident_bytes() - before < 100 * MIB
    scene.settled()


def test_streams_and_collectives_share_a_link(scene: Scene) -> None:
    """Neither waits for the other's end."""
    exchange = Exchange(64 * MIB)
    with Server(exchange.serve, scene.port), connected(scene.cluster) as rings:
        stream = Call(lambda: exchange.run(scene.listen))
        x = np.ones(500_000, np.float32)
        done = 0
        while stream.running:
            for call in [Call(lambda ring=ring: ring.all_reduce(x)) for ring in rings]:
                assert call.result()[0] == 4
            done += stream.running
        stream.result()
    assert done


def test_each_direction_ends_on_its_own(scene: Scene) -> None:
    """A program that has said all still hears the answer."""
    with (
        Server(lambda c: c.sendall(hear(c).encode()), scene.port),
        connect(scene.listen) as client,
    ):
        say(client, 5, 100_000)
        assert exactly(client, 128).decode() == digest(5, 100_000)
    scene.settled()


def test_a_reset_goes_through(scene: Scene) -> None:
    """Whoever resets its connection resets the other end's."""
    errors: list[OSError] = []

    def serve(connection: socket.socket) -> None:
        try:
            hear(connection)
        except OSError as error:
            errors.append(error)

    with Server(serve, scene.port):
        with connect(scene.listen) as client:
            client.sendall(b"x")
            wait_until(lambda: scene.open == [1, 0, 1, 0])
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_until(lambda: errors, "the reset")
    assert isinstance(errors[0], ConnectionResetError)
    scene.settled()


def test_what_came_before_a_reset_is_heard(scene: Scene) -> None:
    """As with TCP: also by a reader that has not come to it yet."""
    come = b"x" * MIB
    heard = bytearray()

    def serve(connection: socket.socket) -> None:
        connection.recv(1)
        time.sleep(0.5)
        with suppress(ConnectionResetError):
            while data := connection.recv(PIECE):
                heard.extend(data)

    with Server(serve, scene.port):
        with connect(scene.listen) as client:
            client.sendall(b"!" + come)
            wait_until(lambda: unread(client) == 0, "the daemon reads it all")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_until(lambda: len(heard) == len(come))
    scene.settled()


def test_nobody_at_the_port(scene: Scene) -> None:
    """Whoever connected is reset, and the log says why."""
    with pytest.raises(ConnectionResetError), connect(scene.listen) as client:
        client.recv(1)  # if it comes so far
    text = f"nothing takes connections on port {scene.port}: Connection refused"
    log = scene.cluster[0].log_path
    (line,) = wait_until(lambda: [line for line in log.read_text().splitlines() if text in line])
    assert json.loads(line)["address"] == "n2"
    scene.settled()


def test_a_daemons_death_resets_what_it_held_and_the_other_end(tmp_path: Path) -> None:
    """Also where that end is asked of only when the ring has formed anew."""
    with Server(echo) as server, ring(tmp_path, server.port) as (cluster, port):
        for victim in (1, 0):
            with connect(port) as client:
                assert ask(client, b"hello") == b"hello"
                cluster[victim].kill()
                cluster[victim].start()
                cluster.wait_ready()
                with pytest.raises(ConnectionError):
                    ask(client, b"are you there?")
        wait_until(lambda: not any(node.status()["streams"]["open"] for node in cluster.nodes))
        with connect(port) as client:
            assert ask(client, b"hello") == b"hello"
            cluster[1].stop()
            with pytest.raises(ConnectionError):
                ask(client, b"are you there?")


def test_a_reload_listens_at_other_ports(tmp_path: Path) -> None:
    """Also once a port is free that another program had; until then the status says so."""
    with Server(echo) as server, ring(tmp_path, server.port) as (cluster, port):
        with connect(port) as old, Server(echo) as holder:
            assert ask(old, b"one") == b"one"
            text = table("n1", server.port, holder.port, ["n0"])
            cluster.write_config(PATIENT + text)
            cluster[0].signal(signal.SIGHUP)

            def listens() -> dict[str, object]:
                (listen,) = cluster[0].status()["streams"]["listens"]
                return listen

            wait_until(lambda: listens()["port"] == holder.port)
            text = render(cluster[0].status())
            assert f"streams to n1:{server.port}: cannot listen on 127.0.0.1:{holder.port}" in text
            assert "another program has that port" in text
            assert "streams: 1 open" in text
            assert ask(old, b"two") == b"two"
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
        wait_until(lambda: listens()["trouble"] is None)
        with connect(holder.port) as client:
            assert ask(client, b"three") == b"three"
