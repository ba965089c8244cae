"""A Prometheus and a node_exporter, as Debian has them, on ports of loopback.

They are taken from the system where it has them, else from Debian's packages without installing
these: their services stay away.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tests.cluster import wait_until
from tests.ownports import free_ports

PROGRAMS = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-node-exporter": "prometheus-node-exporter",
}
"""In which package each is."""


def programs(place: Path) -> dict[str, str]:
    """Return where each program is; what the system lacks is put below *place*."""
    missing = {PROGRAMS[name] for name in PROGRAMS if not shutil.which(name)}
    if missing:
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "--quiet", "update"], env=environ, check=True)
        subprocess.run(
            ["apt-get", "--quiet", "download", *sorted(missing)], cwd=place, env=environ, check=True
        )
        for package in place.glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", package, place / "root"], check=True)
    there = f"{place / 'root' / 'usr' / 'bin'}:{os.environ['PATH']}"
    found = {name: shutil.which(name, path=there) for name in PROGRAMS}
    return {name: path for name, path in found.items() if path is not None}


def get(url: str) -> bytes:
    """Return what is at *url*."""
    with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - ours
        body: bytes = response.read()
        return body


class Server:
    """A program that serves HTTP on a port of its own."""

    def __init__(self, argv: list[str], port: int, log: Path, ready: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        with log.open("ab") as file:
            self.process = subprocess.Popen(argv, stdout=file, stderr=file)
        wait_until(lambda: self.answers(ready), f"{argv[0]} serves; see {log}")

    def answers(self, path: str) -> bool:
        """Whether it has an answer for *path*."""
        try:
            return bool(self.get(path))
        except OSError:
            return False

    def get(self, path: str) -> bytes:
        """Return what is at *path*."""
        return get(self.url + path)

    def close(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


class Prometheus(Server):
    """One that scrapes every second.

    Args:
        program: The binary.
        place: Where its data, its config and its log are.
        jobs: The addresses to scrape, by job.
        rules: A file of rules.
    """

    def __init__(self, program: str, place: Path, jobs: dict[str, list[str]], rules: Path) -> None:
        [port] = free_ports(1)
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": addresses}]}
                for job, addresses in jobs.items()
            ],
        }
        path = place / "prometheus.yml"
        path.write_text(json.dumps(config))  # JSON is YAML, too
        argv = [program, f"--config.file={path}", f"--storage.tsdb.path={place / 'data'}"]
        argv.append(f"--web.listen-address=127.0.0.1:{port}")
        super().__init__(argv, port, place / "prometheus.log", "/-/ready")

    def api(self, what: str, **parameters: object) -> Any:
        """Return the answer of its API."""
        query = urllib.parse.urlencode(parameters)
        answer = json.loads(self.get(f"/api/v1/{what}?{query}"))
        assert answer["status"] == "success", answer
        return answer["data"]

    def value(self, expression: str) -> float:
        """Return the one value of *expression* now; -1 if it has none."""
        found = self.api("query", query=expression)["result"]
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else -1.0


def node_exporter(program: str, place: Path, files: Path) -> Server:
    """Return one that shows nothing but the text files in *files*."""
    [port] = free_ports(1)
    argv = [program, "--collector.disable-defaults", "--collector.textfile"]
    argv += [f"--collector.textfile.directory={files}", f"--web.listen-address=127.0.0.1:{port}"]
    return Server(argv, port, place / "node_exporter.log", "/metrics")
