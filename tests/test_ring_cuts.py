"""Cut links, silence, pauses, rejoins and reloads under calls: they come back right."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ringd
from ringd.cli.picture import render
from tests.cluster import Cluster, wait_until
from tests.ownports import free_ports
from tests.proxy import Proxy
from tests.ringkit import (
    HASTY,
    Call,
    begin,
    connected,
    everywhere,
    tensor,
    total,
    wait_counts,
    wait_state,
)

LARGE = 2_000_000
"""Elements of float32; more than the sockets on the way hold."""


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, list[Proxy]]]:
    """Give three daemons with a proxy before each."""
    ports = free_ports(3)
    proxies = [Proxy(port) for port in ports]
    dial = {f"n{rank}": proxy.port for rank, proxy in enumerate(proxies)}
    directory = tmp_path_factory.mktemp("ring")
    with Cluster(directory, 3, settings=HASTY, ports=ports, dial=dial) as cluster:
        cluster.start().wait_ready()
        yield cluster, proxies
    for proxy in proxies:
        proxy.close()


def start_and_stop_half_way(proxy: Proxy, rings: list[ringd.Ring]) -> list[Call]:
    """Begin a large call everywhere; return when it is under way and *proxy* has stalled."""
    everywhere(rings, lambda ring: ring.barrier())
    proxy.stall_after(LARGE)  # bytes: a fifth of what each link carries for it
    calls = begin(rings, lambda ring: ring.all_reduce(tensor(ring.rank, LARGE)))
    assert proxy.stalled.wait(120)
    return calls


def check(calls: list[Call]) -> None:
    """See that all calls end well."""
    for call in calls:
        np.testing.assert_array_equal(call.result(), total(3, LARGE))


@pytest.mark.parametrize("link", [0, 1, 2])
def test_cut_in_mid_transfer(proxied: tuple[Cluster, list[Proxy]], link: int) -> None:
    """A reset connection costs no call, whichever it is."""
    cluster, proxies = proxied
    group = f"cut {link}"
    generation = cluster.wait_ready()
    with connected(cluster, group) as rings:
        calls = start_and_stop_half_way(proxies[2], rings)
        proxies[link].cut()
        proxies[2].resume()
        check(calls)
        assert cluster.wait_ready(beyond=generation) > generation


def test_silent_link(proxied: tuple[Cluster, list[Proxy]]) -> None:
    """A link that carries nothing any more is noticed by its silence, and replaced."""
    cluster, proxies = proxied
    generation = cluster.wait_ready()
    with connected(cluster, "silent") as rings:
        calls = start_and_stop_half_way(proxies[2], rings)
        for node in cluster.nodes:  # also those that are not beside it
            wait_state(node, "forming")
        proxies[2].resume()
        check(calls)
        assert cluster.wait_ready(beyond=generation) > generation
    log = cluster[1].log() + cluster[2].log()  # one notices it, and may tell the other
    assert any("nothing heard" in e["reason"] for e in log if e["event"] == "link lost")


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_paused_daemon(proxied: tuple[Cluster, list[Proxy]], victim: int) -> None:
    """A daemon that sleeps longer than the others' patience is lost, comes back, and goes on."""
    cluster, _ = proxied
    group = f"paused {victim}"
    generation = cluster.wait_ready()
    others = [node for rank, node in enumerate(cluster.nodes) if rank != victim]
    with connected(cluster, group) as rings:
        works = [ring.all_reduce_async(tensor(ring.rank, LARGE)) for ring in rings[:2]]
        wait_counts(cluster[2], [1, 1, 0], group)
        cluster[victim].signal(signal.SIGSTOP)
        for node in others:
            wait_state(node, "forming")
        late = Call(lambda: rings[2].all_reduce(tensor(2, LARGE)))
        cluster[victim].signal(signal.SIGCONT)
        np.testing.assert_array_equal(late.result(), total(3, LARGE))
        for work in works:
            np.testing.assert_array_equal(work.wait(), total(3, LARGE))
        assert cluster.wait_ready(beyond=generation) > generation


@pytest.mark.parametrize("end", ["deadline", "closed"])
def test_lent_to_a_paused_daemon(proxied: tuple[Cluster, list[Proxy]], end: str) -> None:
    """Its program has the array back while it sleeps; what is written then changes no sum."""
    cluster, proxies = proxied
    group = f"lent to the paused, {end}"
    generation = cluster.wait_ready()
    with connected(cluster, group) as rings:
        buffer = rings[1].empty(LARGE, np.float32)
        buffer[:] = tensor(1, LARGE)
        everywhere(rings, lambda ring: ring.barrier())
        proxies[2].stall_after(LARGE)
        timeout = 0.5 if end == "deadline" else None
        lent = rings[1].all_reduce_async(buffer, timeout=timeout)
        works = [rings[r].all_reduce_async(tensor(r, LARGE)) for r in (0, 2)]
        assert proxies[2].stalled.wait(120)
        cluster[1].signal(signal.SIGSTOP)
        if end == "closed":
            rings[1].close()
        with pytest.raises(ringd.RingError, match="does not answer" if timeout else "closed"):
            lent.wait()
        np.testing.assert_array_equal(buffer, tensor(1, LARGE))
        buffer[:] = np.nan
        cluster[1].signal(signal.SIGCONT)
        proxies[2].resume()
        for work in works:
            if end == "deadline":
                with pytest.raises(ringd.DeadlineExceeded, match="on 'n1'"):
                    work.wait()
            else:
                np.testing.assert_array_equal(work.wait(), total(3, LARGE))
        assert cluster.wait_ready(beyond=generation) > generation


def test_all_daemons_paused(proxied: tuple[Cluster, list[Proxy]]) -> None:
    """When all sleep at once, and wake at different times, the calls still come back."""
    cluster, _ = proxied
    with connected(cluster, "asleep") as rings:
        works = [ring.all_reduce_async(tensor(ring.rank, LARGE)) for ring in rings]
        for node in cluster.nodes:
            node.signal(signal.SIGSTOP)
        time.sleep(1.2)  # how long they sleep; nobody is awake to say when it is enough
        for node in (cluster[1], cluster[0], cluster[2]):
            node.signal(signal.SIGCONT)
        for work in works:
            np.testing.assert_array_equal(work.wait(), total(3, LARGE))


def test_rejoin_in_mid_transfer(proxied: tuple[Cluster, list[Proxy]]) -> None:
    """``rejoin`` drops the links under a call, and the call goes on in the next generation."""
    cluster, proxies = proxied
    for rank in range(3):
        generation = cluster.wait_ready()
        group = f"rejoin {rank}"
        with connected(cluster, group) as rings:
            calls = start_and_stop_half_way(proxies[2], rings)
            cluster[rank].rejoin()
            proxies[2].resume()
            check(calls)
            assert cluster.wait_ready(beyond=generation) > generation


def test_losses_among_many_calls(proxied: tuple[Cluster, list[Proxy]]) -> None:
    """Cuts at any moment of a stream of calls of all kinds change no value."""
    cluster, proxies = proxied
    sizes = [100, 12_000, 300_000]

    def run(ring: ringd.Ring) -> None:
        for step in range(40):
            works = [
                ring.all_reduce_async(tensor(ring.rank, count, step + count)) for count in sizes
            ]
            for count, work in zip(sizes, works, strict=True):
                np.testing.assert_array_equal(work.wait(), total(3, count, step + count))

    with connected(cluster, "stream") as rings:
        calls = begin(rings, run)
        for number in range(6):
            generation = cluster.wait_ready()
            proxies[number % 3].cut()
            cluster.wait_ready(beyond=generation)
        for call in calls:
            call.result()


def test_reload_with_other_addresses(place: Path) -> None:
    """SIGHUP takes new addresses of the neighbours into use, under a call."""
    ports = free_ports(3)
    with (
        Proxy(ports[2]) as old,
        Proxy(ports[2]) as new,
        Cluster(place, 3, settings=HASTY, ports=ports, dial={"n2": old.port}) as cluster,
    ):
        generation = cluster.start().wait_ready()
        with connected(cluster, "reload") as rings:
            calls = start_and_stop_half_way(old, rings)
            assert new.forwarded == 0
            cluster.write_config(HASTY, {"n2": new.port})
            for node in cluster.nodes:
                node.signal(signal.SIGHUP)
            check(calls)
            cluster.wait_ready(beyond=generation)
        assert new.forwarded > LARGE
        status = cluster[1].status()
        assert status is not None
        assert status["links"]["right"]["address"] == f"127.0.0.1:{new.port}"


def test_reload_with_another_patience(place: Path) -> None:
    """What programs are told of the daemon's patience is what the reloaded config says."""
    with Cluster(place, 2, settings=HASTY) as cluster:
        cluster.start().wait_ready()
        cluster.write_config(HASTY.replace("600ms", "700ms"))
        cluster[0].signal(signal.SIGHUP)
        wait_until(
            lambda: any(event["event"] == "reloaded" for event in cluster[0].log()), "the reload"
        )
        with ringd.connect(cluster.sockets[0]) as ring:
            assert ring._connection.latest.lost_after == pytest.approx(0.7)


def test_reload_with_another_own_port(place: Path) -> None:
    """SIGHUP moves a member's own listener, and the others find it there."""
    with Cluster(place, 2, settings=HASTY) as cluster:
        generation = cluster.start().wait_ready()
        with connected(cluster, "moved") as rings:
            work = rings[0].all_reduce_async(tensor(0, LARGE))
            (cluster[1].port,) = free_ports(1)
            cluster.write_config(HASTY)
            for node in cluster.nodes:
                node.signal(signal.SIGHUP)
            cluster.wait_ready(beyond=generation)
            result = rings[1].all_reduce(tensor(1, LARGE))
            np.testing.assert_array_equal(result, total(2, LARGE))
            np.testing.assert_array_equal(work.wait(), result)


@pytest.mark.parametrize(
    ("settings", "culprit"),
    [('[ops]\nchunk = "64KiB"\n', "ops.chunk"), ('[join]\nheartbeat = "1 year"\n', "heartbeat")],
)
def test_reload_of_a_bad_config(place: Path, settings: str, culprit: str) -> None:
    """A config that cannot be used is refused in the log, and nothing changes."""
    with Cluster(place, 2) as cluster:
        generation = cluster.start().wait_ready()
        cluster.write_config(settings)
        cluster[0].signal(signal.SIGHUP)

        def refusals() -> list[str]:
            return [
                e["reason"] for e in cluster[0].log() if e["event"].startswith("reload refused")
            ]

        wait_until(refusals, "a line in the log")
        assert culprit in refusals()[0]
        assert cluster.wait_ready() == generation


def test_reload_to_a_taken_port(place: Path) -> None:
    """A port that is taken is refused, as status says until a reload is good; the old one stays."""
    with Cluster(place, 2) as cluster:
        generation = cluster.start().wait_ready()
        old = cluster[1].port

        def refusal() -> Any:
            status = cluster[1].status()
            return status and status["reload_error"]

        with socket.create_server(("127.0.0.1", 0)) as taken:
            cluster[1].port = taken.getsockname()[1]
            cluster.write_config("")
            cluster[1].signal(signal.SIGHUP)
            wait_until(refusal, "the refusal in status")
        where = f"127.0.0.1:{cluster[1].port}"
        key = f"{cluster.config}: ring.members[1].listen"
        assert refusal()["reason"].startswith(f"{key}: cannot listen on {where}: ")
        status = cluster[1].status()
        assert status is not None
        assert refusal()["reason"] in render(status)
        cluster[0].rejoin()  # which makes the link anew, to the old port
        assert cluster.wait_ready(beyond=generation) > generation
        cluster[1].port = old
        cluster.write_config("")
        cluster[1].signal(signal.SIGHUP)
        wait_until(lambda: (cluster[1].status() or {}).get("reload_error", 1) is None, "good again")
