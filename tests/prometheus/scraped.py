"""A real Prometheus scrapes a real ring under load: metrics, alerts, dashboard.

The tests follow each other on the same ring, so run the whole file: ``make test-metrics``. Two
members serve their metrics on a port, the third one writes a file, which node_exporter shows.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ringd
from ringd.errors import Mismatch
from tests.cluster import Cluster, wait_until
from tests.ownports import free_ports
from tests.prometheus.servers import Prometheus, Server, get, node_exporter, programs
from tests.ringkit import PATIENT, Call, connected, everywhere

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "packaging" / "grafana"
ALERTS = GRAFANA / "alerts.yml"
DASHBOARD = json.loads((GRAFANA / "dashboard.json").read_text())

WINDOW = 10
"""Seconds that rates are taken over."""


class Scene:
    """The ring, and who looks at it."""

    def __init__(self, place: Path, found: dict[str, str]) -> None:
        self.place = place
        self.promtool = found["promtool"]
        self.cluster = Cluster(place, 3, settings=PATIENT)
        self.ports = free_ports(2)
        self.textfile = place / "ringd.prom"
        collected = place / "collected"
        collected.mkdir()
        (collected / "ringd.prom").symlink_to(self.textfile)  # as docs/metrics.md has it
        settings = [f'listen = "127.0.0.1:{port}"' for port in self.ports]
        settings.append(f'textfile = "{self.textfile}"\ninterval = "1s"')
        shared = self.cluster.config.read_text()
        for node, setting in zip(self.cluster.nodes, settings, strict=True):
            node.config = place / f"{node.name}.toml"
            node.config.write_text(f"{shared}\n[metrics]\n{setting}\n")
        self.cluster.start().wait_ready()
        self.servers: list[Server] = []
        exporter = node_exporter(found["prometheus-node-exporter"], place, collected)
        self.servers.append(exporter)
        addresses = [f"127.0.0.1:{port}" for port in self.ports]
        jobs = {"ringd": addresses, "node": [exporter.url.removeprefix("http://")]}
        self.prometheus = Prometheus(found["prometheus"], place, jobs, ALERTS)
        self.servers.append(self.prometheus)
        self.made: Counter[str] = Counter()
        """Calls that each rank has made and that completed, by kind."""

    def metrics(self, port: int) -> bytes:
        """Return what a member serves."""
        return get(f"http://127.0.0.1:{port}/metrics")

    def load(self, rings: list[ringd.Ring], seconds: float) -> None:
        """Make calls of several kinds and sizes for some *seconds*, and check all values."""
        until = time.monotonic() + seconds
        step = 0
        while time.monotonic() < until:
            count = 10 ** (1 + step % 5)

            def calls(ring: ringd.Ring, count: int = count, step: int = step) -> None:
                x = np.full(count, ring.rank + step, np.float32)
                np.testing.assert_array_equal(ring.all_reduce(x), np.float32(3 * step + 3))
                np.testing.assert_array_equal(ring.broadcast(x, root=0), np.float32(step))
                ring.barrier()

            everywhere(rings, calls)
            self.made.update(("all_reduce", "broadcast", "barrier"))
            step += 1

    def close(self) -> None:
        """End all of it."""
        for server in self.servers:
            server.close()
        self.cluster.close()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Give a ring that is scraped."""
    scene = Scene(tmp_path_factory.mktemp("scraped"), programs(tmp_path_factory.mktemp("programs")))
    yield scene
    scene.close()


def test_promtool_has_nothing_to_say(scene: Scene) -> None:
    """Of names, units and types, on a member that has seen calls; nor of rules, which do fire."""
    with connected(scene.cluster, "first") as rings:
        scene.load(rings, 0.5)
    time.sleep(0.3)  # until the text is made anew
    for port in scene.ports:
        checked = subprocess.run(
            [scene.promtool, "check", "metrics"],
            input=scene.metrics(port),
            capture_output=True,
            check=False,
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
    for file in (ALERTS, Path(__file__).with_name("alerts_test.yml")):
        shutil.copy(file, scene.place)
    for argv in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        checked = subprocess.run(
            [scene.promtool, *argv], cwd=scene.place, capture_output=True, check=False
        )
        assert checked.returncode == 0, (checked.stdout, checked.stderr)


def test_it_is_scraped_under_load(scene: Scene) -> None:
    """All values are right, in the ring and in Prometheus; a member is killed and comes back."""
    generation = scene.cluster.wait_ready()
    with connected(scene.cluster, "load") as rings:
        scene.load(rings, WINDOW)
        early = [Call(ring.barrier) for ring in rings[:2]]
        prometheus = scene.prometheus
        wait_until(lambda: prometheus.value('sum(ringd_open_calls{phase="waiting"})') == 2)
        wait_until(lambda: prometheus.value("max(ringd_oldest_open_call_age_seconds)") > 1)
        rings[2].barrier()
        for call in early:
            call.result()
        scene.made["barrier"] += 1

        def differ(ring: ringd.Ring) -> None:
            with pytest.raises(Mismatch):
                ring.all_reduce(np.ones(1 + ring.rank))

        everywhere(rings, differ)
        scene.cluster[1].kill()
        wait_until(
            lambda: state_of(scene, "RingdNotReady") == "pending", "an alert that is pending"
        )
        wait_until(lambda: state_of(scene, "RingdDown") == "pending", "an alert that is pending")
        scene.cluster[1].start()
        scene.cluster.wait_ready(beyond=generation)
        wait_until(lambda: not state_of(scene, "RingdNotReady"), "an alert that is over")
        scene.load(rings, WINDOW)

    def counted() -> bool:
        return all(
            prometheus.value(f'ringd_calls_total{{job="{job}",kind="{kind}",result="ok"{more}}}')
            == count
            for kind, count in scene.made.items()
            for job, more in (("ringd", f',instance="127.0.0.1:{scene.ports[0]}"'), ("node", ""))
        )

    wait_until(counted, lambda: f"all of {scene.made} counted")
    assert prometheus.value("count(ringd_info)") == 3
    assert prometheus.value("sum(node_textfile_scrape_error)") == 0
    assert prometheus.value('sum(ringd_ring_state{state="ready"})') == 3
    assert prometheus.value("count(count by (ring) (ringd_info))") == 1
    mismatches = 'max(increase(ringd_calls_total{job="ringd",result="mismatch"}[2m]))'
    assert prometheus.value(mismatches) > 0
    assert state_of(scene, "RingdCallsFail") == "firing"
    anew = 'sum(ringd_link_reconnects_total{instance="127.0.0.1:%d",side="right"})'
    assert prometheus.value(anew % scene.ports[0]) >= 1

    def ill() -> list[object]:
        targets = prometheus.api("targets")["activeTargets"]
        return [each for each in targets if (each["health"], each["lastError"]) != ("up", "")]

    wait_until(lambda: not ill(), lambda: f"all targets are well: {ill()}")
    for group in prometheus.api("rules")["groups"]:
        for rule in group["rules"]:
            assert rule["health"] == "ok", rule


def state_of(scene: Scene, alert: str) -> str:
    """Return whether an alert is pending or fires; empty if neither."""
    states = {
        each["state"]
        for each in scene.prometheus.api("alerts")["alerts"]
        if each["labels"]["alertname"] == alert
    }
    return min(states, default="")  # "firing" comes first


def queries() -> Iterator[tuple[str, str]]:
    """Yield title and expression of each query on the dashboard, its variables replaced."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            expression = target["expr"].replace("$ring", "test").replace("$node", ".+")
            yield panel["title"], expression.replace("$__rate_interval", f"{WINDOW}s")


def test_every_panel_shows_something(scene: Scene) -> None:
    """Each query of the dashboard has values of each member; variables have theirs."""
    now = time.time()
    for title, expression in queries():
        assert "$" not in expression
        series = scene.prometheus.api(
            "query_range", query=expression, start=now - 20, end=now, step=1
        )["result"]
        nodes = {one["metric"]["node"] for one in series}
        assert nodes == {"n0", "n1", "n2"}, (title, expression)
    values = scene.prometheus.api("label/node/values", **{"match[]": 'ringd_info{ring="test"}'})
    assert values == ["n0", "n1", "n2"]
    times = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert times == ["datasource", "ring", "node"]


def test_legends_use_labels_that_there_are(scene: Scene) -> None:
    """A name in braces would stand there as it is, or be empty."""
    now = time.time()
    for panel in DASHBOARD["panels"]:
        for target, (_, expression) in zip(
            panel["targets"], [q for q in queries() if q[0] == panel["title"]], strict=True
        ):
            wanted = {part.split("}}")[0] for part in target["legendFormat"].split("{{")[1:]}
            for one in scene.prometheus.api("query", query=expression, time=now)["result"]:
                assert wanted <= set(one["metric"]), (panel["title"], one["metric"])


def test_a_flood_of_scrapers_and_a_load(scene: Scene) -> None:
    """Prometheus goes on to see each member every few seconds, and calls have their values."""
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            for port in scene.ports:
                try:
                    scene.metrics(port)
                except OSError:
                    continue

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        generation = scene.cluster.wait_ready()
        with connected(scene.cluster, "flooded") as rings:
            scene.load(rings, 5)
        assert scene.cluster.wait_ready() == generation
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    seen = scene.prometheus.value('min(sum_over_time(up{job="ringd"}[4s]))')
    assert seen >= 1


def test_a_member_that_stops_takes_its_file_along(scene: Scene) -> None:
    """Else its last values would stay for ever."""
    assert scene.cluster[2].stop() == 0
    assert not scene.textfile.exists()
    wait_until(lambda: scene.prometheus.value('count(ringd_info{job="node"})') == -1)
