"""Sealed links between real daemons, with somebody on the way who reads and alters what passes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import ringd
from ringd.net.ciphers import aes_is_fast
from tests.cluster import Cluster, wait_until
from tests.ownports import free_ports
from tests.proxy import Proxy
from tests.ringkit import HASTY, begin, connected, everywhere, tensor, total

BRISK = HASTY.replace("600ms", "15s")
"""Something is said soon behind what was altered, and silence costs no link."""

SEALED = ["integrity", "encrypt"]
COUNT = 500_000
"""Elements of float32: some chunks."""


@contextmanager
def tapped(place: Path, protect: str) -> Iterator[tuple[Cluster, list[Proxy]]]:
    """Give two daemons with a proxy before each, so that all they say passes one."""
    ports = free_ports(2)
    proxies = [Proxy(port) for port in ports]
    dial = {f"n{rank}": proxy.port for rank, proxy in enumerate(proxies)}
    with Cluster(place, 2, settings=BRISK, ports=ports, dial=dial, protect=protect) as cluster:
        cluster.start().wait_ready()
        yield cluster, proxies
    for proxy in proxies:
        proxy.close()


class Tap:
    """Keeps all that passes some proxies."""

    def __init__(self, proxies: list[Proxy]) -> None:
        self.streams: list[bytearray] = []
        for proxy in proxies:
            up, down = bytearray(), bytearray()
            self.streams += [up, down]
            proxy.through = self._keep(up, down)

    @staticmethod
    def _keep(up: bytearray, down: bytearray) -> Callable[[bool, bytes], bytes]:
        def through(goes_down: bool, data: bytes) -> bytes:
            (down if goes_down else up).extend(data)
            return data

        return through


def blocks(stream: bytes) -> list[bytes]:
    """Return all that stands in 16 bytes one behind the other, wherever they begin."""
    return [bytes(stream[at : at + 16]) for at in range(len(stream) - 15)]


@pytest.mark.parametrize("protect", ["off", *SEALED])
def test_what_a_listener_reads(place: Path, protect: str) -> None:
    """With "encrypt" no text and no number; and nothing twice, of a tensor that is all the same."""
    same, small = np.full(COUNT // 6, 1.5, np.float32), np.arange(100, dtype=np.float32)
    with tapped(place, protect) as (cluster, proxies):
        tap = Tap(proxies)
        with connected(cluster, "secret group") as rings:
            for x in (same, small):
                results = everywhere(rings, lambda ring, x=x: ring.all_reduce(x, name="a secret"))
                for result in results:
                    np.testing.assert_array_equal(result, 2 * x)
        cipher = "AES-256-GCM" if aes_is_fast() else "ChaCha20-Poly1305"
        said = {link["protection"] for link in cluster[0].status()["links"].values()}
        assert said == {protect if protect == "off" else f"{protect}, {cipher}"}
        heard = b"|".join(map(bytes, tap.streams))
        known = [b"secret", *(x[:4].tobytes() for x in (same, 2 * same, small))]
        assert [text in heard for text in known] == [protect != "encrypt"] * len(known)
        if protect == "encrypt":
            for stream in tap.streams:
                found = blocks(stream)
                assert len(set(found)) == len(found)
            assert len(heard) > 2 * same.nbytes


def alter(how: str) -> Callable[[bytes, list[bytes]], bytes | None]:
    """Return what makes, of bytes that pass and what was kept of earlier ones, others.

    It returns None as long as it has done nothing.
    """

    def altered(data: bytes, kept: list[bytes]) -> bytes | None:
        at = len(data) // 2
        if how == "drop":
            return data[:at] + data[at + 1 :]
        if how == "drop all":
            return b""
        if how == "repeat":
            return data + data
        if how == "truncate":
            return data[:at]
        if how == "append":
            return data + os.urandom(100)
        if how == "flip":
            return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        if kept:
            return data + kept.pop()
        kept.append(data)  # swap: what passes now goes behind what comes next
        return None

    return altered


WAYS = ["drop", "drop all", "repeat", "truncate", "append", "flip", "swap"]


@pytest.mark.parametrize("protect", SEALED)
def test_an_altered_stream(place: Path, protect: str) -> None:
    """Nothing of it is believed, the link is made anew, and calls end well."""
    with tapped(place, protect) as (cluster, proxies), connected(cluster) as rings:
        proxy = proxies[1]
        ways = WAYS if protect == "encrypt" else WAYS[-2:]
        for number, how in enumerate(ways):
            generation = cluster.wait_ready()
            everywhere(rings, lambda ring: ring.barrier())
            done, kept, function = threading.Event(), [], alter(how)

            def through(
                down: bool,
                data: bytes,
                done: threading.Event = done,
                kept: list[bytes] = kept,
                function: Callable[[bytes, list[bytes]], bytes | None] = function,
            ) -> bytes:
                if not down or done.is_set() or (len(data) < 1000 and not kept):
                    return data
                passed = function(data, kept)
                if passed is None:
                    return b""
                done.set()
                return passed

            proxy.through = through
            calls = begin(
                rings, lambda ring, n=number: ring.all_reduce(tensor(ring.rank, COUNT, n))
            )
            for call in calls:
                np.testing.assert_array_equal(call.result(), total(2, COUNT, number))
            assert done.is_set(), how
            cluster.wait_ready(beyond=generation)
        lost = [line for line in cluster[1].log() if line["event"] == "link lost"]
        broken = [line for line in lost if "the seal of frame" in line["reason"]]
        assert len(broken) == len(ways)


@pytest.mark.parametrize("protect", SEALED)
def test_programs_that_write_meanwhile(place: Path, protect: str) -> None:
    """A program that changes what it has lent costs no link, and no other call."""
    with Cluster(place, 2, settings=BRISK, protect=protect) as cluster:
        generation = cluster.start().wait_ready()
        over = threading.Event()

        def scribble(x: np.ndarray) -> None:
            value = 0
            while not over.is_set():
                value += 1
                x[:] = value

        def reduce(ring: ringd.Ring) -> int:
            x = ring.empty(4 * COUNT, np.float32)
            vandal = threading.Thread(target=scribble, args=(x,))
            vandal.start()
            torn = 0
            for _ in range(10):
                torn += len(np.unique(ring.all_reduce(x)[::1000])) > 1
            over.set()
            vandal.join()
            return torn

        with connected(cluster) as rings:
            assert any(everywhere(rings, reduce))  # it did write while that was on its way
            for result in everywhere(rings, lambda ring: ring.all_reduce(tensor(ring.rank, COUNT))):
                np.testing.assert_array_equal(result, total(2, COUNT))
        assert cluster.wait_ready() == generation
        assert not [
            line for node in cluster.nodes for line in node.log() if "lost" in line["event"]
        ]


def test_mixed_settings(place: Path) -> None:
    """Machines that protect their links in different ways form no ring, and say both values."""
    with Cluster(place, 2, settings=HASTY, protect="off") as cluster:
        cluster.start([0])
        wait_until(cluster[0].status)
        cluster.protect = None
        cluster.write_config(HASTY)
        cluster.start([1])

        def said() -> bool:
            errors = [
                member["last_error"] or ""
                for node in cluster.nodes
                for member in (node.status() or {"members": []})["members"]
            ]
            return sum("protect=integrity" in text and "protect=off" in text for text in errors) > 1

        wait_until(said, "both say both values")
        assert {node.status()["state"] for node in cluster.nodes} == {"forming"}


def test_a_reload_does_not_change_it(place: Path) -> None:
    """It is agreed on by all machines; so it needs a restart, and a reload says so."""
    with Cluster(place, 1, settings=HASTY) as cluster:
        cluster.start().wait_ready()
        cluster.protect = "encrypt"
        cluster.write_config(HASTY)
        assert cluster[0].process is not None
        cluster[0].signal(1)
        error = wait_until(lambda: (cluster[0].status() or {}).get("reload_error"))
        assert error["reason"] == "ring.protect changed: restart ringd to use the new values"
