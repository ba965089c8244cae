"""The metrics and probes of real daemons in a ring: the counts are those of the status."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import ringd
from ringd.cli.ask import ask
from ringd.errors import Mismatch
from ringd.metrics.server import MOST
from ringd.wire.border.messages import AskReload
from tests.cluster import Cluster, Node, wait_until
from tests.ringkit import PATIENT, Call, connected, everywhere


class Scraper:
    """Asks one member over its Unix socket."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.path = node.cluster.directory / f"{node.name}.metrics"
        node.config = node.cluster.directory / f"{node.name}.toml"
        settings = f'\n[metrics]\nlisten = "{self.path}"\n'
        node.config.write_text(node.cluster.config.read_text() + settings)

    def connect(self) -> socket.socket:
        """Return a connection."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        sock.connect(str(self.path))
        return sock

    def get(self, path: str, within: float = 10.0) -> tuple[int, str]:
        """Return status and body."""
        with self.connect() as sock:
            sock.settimeout(within)
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            response = http.client.HTTPResponse(sock)
            response.begin()
            return response.status, response.read().decode().strip()

    def values(self, name: str) -> dict[tuple[str, ...], float]:
        """Return the values of a metric, by its labels' values."""
        status, text = self.get("/metrics")
        assert status == 200
        return {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text + "\n")
            for sample in family.samples
            if sample.name == name
        }


@pytest.fixture(scope="module")
def ring_of_two(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Cluster, list[Scraper]]]:
    """Give two members with metrics, and who asks them."""
    with Cluster(tmp_path_factory.mktemp("ring"), 2, settings=PATIENT) as cluster:
        scrapers = [Scraper(node) for node in cluster.nodes]
        cluster.start().wait_ready()
        yield cluster, scrapers


def test_calls_are_counted_as_in_the_status(
    ring_of_two: tuple[Cluster, list[Scraper]],
) -> None:
    """By kind and result, with their seconds and bytes; and those that wait, while they do."""
    cluster, scrapers = ring_of_two
    with connected(cluster, "counted") as rings:
        for count in (10, 100_000):
            everywhere(rings, lambda ring, n=count: ring.all_reduce(np.ones(n)))
        everywhere(rings, lambda ring: ring.barrier())

        def differ(ring: ringd.Ring) -> None:
            with pytest.raises(Mismatch):
                ring.all_reduce(np.ones(1 + ring.rank))

        everywhere(rings, differ)
        early = Call(rings[0].barrier)
        wait_until(
            lambda: scrapers[0].values("ringd_open_calls")[("waiting",)] == 1, "a call that waits"
        )
        [age] = scrapers[0].values("ringd_oldest_open_call_age_seconds").values()
        assert age > 0
        assert scrapers[1].values("ringd_open_calls") == {("running",): 0, ("waiting",): 0}
        rings[1].barrier()
        early.result()
        for node, scraper in zip(cluster.nodes, scrapers, strict=True):
            wait_until(
                lambda scraper=scraper: scraper.values("ringd_calls_total")[("barrier", "ok")] == 2,
                "all calls counted",
            )
            calls = scraper.values("ringd_calls_total")
            assert {labels: n for labels, n in calls.items() if n} == {
                ("all_reduce", "ok"): 2,
                ("all_reduce", "mismatch"): 1,
                ("barrier", "ok"): 2,
            }
            assert scraper.values("ringd_call_seconds_count") == {
                ("all_reduce",): 2,
                ("barrier",): 2,
            }
            assert scraper.values("ringd_call_bytes_sum") == {
                ("all_reduce",): 8 * 100_010,
                ("barrier",): 0,
            }
            [memory] = scraper.values("ringd_shared_memory_bytes").values()
            assert memory >= 2 * 8 * 100_000
            status = node.status()
            assert status is not None
            assert status["counters"]["calls"] == {"ok": 4, "mismatch": 1}
            assert scraper.values("ringd_ring_generation") == {(): status["generation"]}


def test_a_member_that_goes_and_comes(ring_of_two: tuple[Cluster, list[Scraper]]) -> None:
    """Alive all the time, ready while the ring is up; the link that is made anew says why."""
    cluster, (scraper, other) = ring_of_two
    assert scraper.get("/livez") == scraper.get("/readyz") == (200, "ok")
    before = scraper.values("ringd_link_received_bytes_total")
    generation = cluster.wait_ready()
    cluster[1].kill()
    wait_until(lambda: scraper.get("/readyz")[0] == 503, "not ready")
    assert "forming; waits for n1: " in scraper.get("/readyz")[1]
    assert scraper.get("/livez") == (200, "ok")
    wait_until(lambda: not any(scraper.values("ringd_link_up").values()), "links shown as down")
    cluster[1].start()
    cluster.wait_ready(beyond=generation)
    wait_until(lambda: scraper.get("/readyz") == (200, "ok"), "ready")

    def reconnected() -> set[str]:
        reconnects = scraper.values("ringd_link_reconnects_total")
        return {side for (_, side), count in reconnects.items() if count}

    wait_until(lambda: reconnected() == {"left", "right"}, "links counted as made anew")
    lost = scraper.values("ringd_links_lost_total")
    status = cluster[0].status()
    assert status is not None
    assert sum(lost.values()) == sum(status["counters"]["links_lost"].values()) == 2
    after = scraper.values("ringd_link_received_bytes_total")
    assert all(after[labels] > before[labels] for labels in before)
    assert not any(other.values("ringd_link_reconnects_total").values())  # it began anew itself


def test_another_place_needs_a_restart(ring_of_two: tuple[Cluster, list[Scraper]]) -> None:
    """The reload says so, and the old one stays."""
    cluster, (scraper, _) = ring_of_two
    text = cluster[0].config.read_text()
    cluster[0].config.write_text(text.replace(".metrics", ".elsewhere"))
    refused = ask(cluster[0].socket, AskReload)["refused"]
    cluster[0].config.write_text(text)
    assert refused == "metrics.listen changed: restart ringd to use the new values"
    assert ask(cluster[0].socket, AskReload)["refused"] is None
    assert scraper.get("/livez") == (200, "ok")


def test_one_that_hangs_is_not_alive(ring_of_two: tuple[Cluster, list[Scraper]]) -> None:
    """It gives no answer, which a probe takes for what it is; then it goes on."""
    cluster, (scraper, _) = ring_of_two
    cluster[0].signal(signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError):
            scraper.get("/livez", within=0.3)
    finally:
        cluster[0].signal(signal.SIGCONT)
    assert scraper.get("/livez") == (200, "ok")
    wait_until(lambda: scraper.get("/readyz") == (200, "ok"), "ready")


def test_bad_scrapers_cost_the_ring_nothing(ring_of_two: tuple[Cluster, list[Scraper]]) -> None:
    """Slow heads, readers that do not read and a flood: calls have their values, links stay."""
    cluster, (scraper, _) = ring_of_two
    generation = cluster.wait_ready()
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                scraper.connect().close()

    bad = [scraper.connect() for _ in range(2 * MOST + 4)]
    for number, sock in enumerate(bad):
        with contextlib.suppress(ConnectionError):  # those that are too many are hung up on
            sock.sendall(b"GET /metrics HTTP/1.1\r\n" + (b"\r\n" if number % 2 else b""))
    files = cluster[0].open_files()
    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        with connected(cluster, "bad") as rings:
            for step in range(30):
                x = np.full(1000 * (1 + step), step, np.float64)
                for total in everywhere(rings, lambda ring, x=x: ring.all_reduce(x + ring.rank)):
                    np.testing.assert_array_equal(total, 2 * x + 1)
            assert cluster[0].open_files() <= files + 2 * MOST
    finally:
        stop.set()
        flooding.join()
        for sock in bad:
            sock.close()
    assert cluster.wait_ready() == generation

    def let_in() -> bool:
        with contextlib.suppress(OSError):  # as long as what is left of the flood waits
            return scraper.get("/livez") == (200, "ok")
        return False

    wait_until(let_in, "an answer after the flood")
    assert sum(scraper.values("ringd_refused_requests_total").values()) > 0


def test_without_the_library(place: Path) -> None:
    """A config that asks for metrics then is one that a person must change; the remedy is said."""
    with Cluster(place, 1, settings='[metrics]\ntextfile = "/nowhere/r.prom"\n') as cluster:
        hidden = place / "hidden"
        hidden.mkdir()
        (hidden / "sitecustomize.py").write_text(
            "import importlib.util as u\nfind = u.find_spec\n"
            "u.find_spec = lambda name, *more: None if name == 'prometheus_client' "
            "else find(name, *more)\n"
        )
        path = cluster.environ.get("PYTHONPATH", "")
        cluster.environ["PYTHONPATH"] = f"{hidden}:{path}"
        cluster[0].start()
        assert cluster[0].process is not None
        assert cluster[0].process.wait(30) == 78
        assert "pip install '.[metrics]'" in cluster[0].log_path.read_text()
