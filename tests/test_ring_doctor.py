"""``ringd-cli doctor`` beside real daemons."""

from __future__ import annotations

import ipaddress
import json
import socket
from pathlib import Path

import ringd
from ringd.cli.doctor import _look_up
from ringd.config.keyfile import create_key
from ringd.doctor.facts import Way
from ringd.host import interfaces
from tests.cluster import Cluster, wait_until
from tests.test_ring_commands import cli, run


def test_a_ring_that_is_well(calm_cluster: Cluster) -> None:
    """Nothing is wrong; what each member says of itself is here; no link was disturbed."""
    before = calm_cluster[0].status()
    done = cli(calm_cluster, 0, "doctor", "--json")
    assert done.returncode == 0, done.stdout
    body = json.loads(done.stdout)
    assert body["schema_version"] == 1
    texts = "\n".join(f"{found['severity']} {found['text']}" for found in body["findings"])
    for part in (
        f"good {calm_cluster.config}: this is 'n0'",
        f"good {calm_cluster.sockets[0]}: mode 0660, group ",
        f"good all 3 members run {ringd.__version__}",
        "good all clocks agree",
        "good there is one, and other users can neither",
        "good shared memory can be had",
        "good the daemon has ",
        "good n0 (this machine), 127.0.0.1:",
        "good n1, 127.0.0.1:",
        "full packets arrive",
    ):
        assert part in texts
    after = calm_cluster[0].status()
    assert before is not None
    assert after is not None
    assert (after["state"], after["generation"]) == (before["state"], before["generation"])


def test_an_address_with_a_scope() -> None:
    """It is kept: without it there is no way to such an address."""
    name = interfaces.addresses()[ipaddress.ip_address("127.0.0.1")]
    (way,) = _look_up(Way("mini", f"[fe80::2%{name}]:5680", f"fe80::2%{name}"))
    assert way.target == f"fe80::2%{socket.if_nametoindex(name)}"


def test_a_member_that_is_gone(place: Path) -> None:
    """It is named, with what to do, and the exit code says that this is serious."""
    with Cluster(place, 2) as cluster:
        cluster.start().wait_ready()
        cluster[1].kill()
        wait_until(lambda: (cluster[0].status() or {}).get("waiting_for"), "its loss is noticed")
        done = cli(cluster, 0, "doctor")
    assert done.returncode == 1
    assert "!! ring     waits for n1: " in done.stdout
    assert "connection refused" in done.stdout
    assert "-> start ringd on n1" in done.stdout


def test_a_file_that_was_changed_and_not_reloaded(place: Path) -> None:
    """A key that another one has taken the place of is not called good; nor other settings."""
    with Cluster(place, 1, settings="[ops]\ntimeout = '60s'\n") as cluster:
        cluster.start().wait_ready()
        key = cluster.directory / "ring.key"
        before = key.read_bytes()
        key.unlink()
        create_key(key)

        def notes(command: str) -> list[tuple[str, str]]:
            done = cli(cluster, 0, command, "--json")
            assert done.returncode == 0, done.stdout
            found = json.loads(done.stdout)["findings"]
            return [(f["subject"], f["text"]) for f in found if f["severity"] == "note"]

        ((subject, text),) = notes("doctor")
        assert (subject, "another one than the daemon goes by" in text) == ("key", True)
        assert "there is one, and" not in cli(cluster, 0, "doctor").stdout
        config = cluster.config.read_text()
        cluster.config.write_text(config + "[log]\nlevel = 'debug'\n[join]\nheartbeat = '900ms'\n")
        (_, (subject, text)) = notes("doctor")
        assert (subject, text.startswith("[join], [log] in the file differ")) == ("config", True)
        assert cli(cluster, 0, "reload").returncode == 0
        assert notes("doctor") == []
        key.write_bytes(before)
        assert len(notes("doctor")) == 1
        assert cli(cluster, 0, "reload").returncode == 0
        assert notes("doctor") == []


def test_a_daemon_that_is_not_found(calm_cluster: Cluster, place: Path) -> None:
    """Its socket is elsewhere than where it is looked for; its port is in use, as it should be."""
    own = calm_cluster[1]
    options = ("--config", str(calm_cluster.config), "--node", own.name)
    done = run("ringd-cli", "doctor", *options, "--socket", str(place / "none.sock"), "--json")
    findings = json.loads(done.stdout)["findings"]
    (port,) = [found for found in findings if found["subject"] == "port"]
    assert port["severity"] == "note"
    assert f"cannot listen on 127.0.0.1:{own.port}: Address already in use" in port["text"]
    assert "this member's own ringd" in port["text"]
    assert "--socket" in port["remedy"]
    serious = {found["subject"] for found in findings if found["severity"] == "serious"}
    assert serious == {"socket"}
