"""``ringd-cli bugreport``: all that is to be known, and no key, however it came in there."""

from __future__ import annotations

import base64
import json
import re
import tarfile
import time
from pathlib import Path

import pytest
import tomli
from click.testing import CliRunner

from ringd.cli.bugreport import HIDDEN, PACKAGES, scrubbed
from ringd.cli.main import main
from ringd.client.ring import connect
from ringd.config.keyfile import read_key
from tests.cluster import Cluster
from tests.test_ring_commands import cli, run

KEY = base64.b64encode(bytes(range(7, 39))).decode()


def contents(archive: Path) -> dict[str, str]:
    """Return the texts in an archive, by name."""
    with tarfile.open(archive) as tar:
        read = {entry.name.partition("/")[2]: tar.extractfile(entry) for entry in tar}
        return {name: file.read().decode() for name, file in read.items() if file is not None}


def test_what_is_in_it(place: Path) -> None:
    """Doctor, status, trace of all members, log, config; and the key nowhere in any form of it."""
    with Cluster(place, 2, settings="# ring.key") as cluster:
        key = read_key(place / "ring.key")
        text = base64.b64encode(key).decode()
        with cluster.config.open("a") as config:
            config.write(f"# once pasted here: {text}\n")
        cluster.start().wait_ready()
        connect(cluster.sockets[0], group=text).close()  # so it is in the recorder
        archive = place / "report.tar.gz"
        done = cli(cluster, 0, "bugreport", "-o", str(archive), "--json")
    assert done.returncode == 0, done.stderr
    assert archive.stat().st_mode & 0o777 == 0o600
    files = contents(archive)
    assert json.loads(done.stdout)["files"] == sorted(files)
    assert "pyzmq " in files["system.txt"]
    assert "ok ring     ready, generation 1, 2 members" in files["doctor.txt"]
    doctor = json.loads(files["doctor.json"])
    assert doctor["facts"]["daemon"]["socket"] == cluster.sockets[0]
    assert (doctor["schema_version"], doctor["findings"][0]["subject"]) == (1, "config")
    assert json.loads(files["status.json"])["node"] == "n0"
    assert files["status.txt"].startswith("ring 'test', 2 members\nn0: ready")
    assert [m["node"] for m in json.loads(files["trace.json"])["members"]] == ["n0", "n1"]
    assert "client joins" in files["trace.txt"]
    assert "ringd started" in files["log.txt"]
    assert '[ring]\nname = "test"' in files["config.toml"]
    assert f"# once pasted here: {HIDDEN}" in files["config.toml"]
    whole = "\n".join(files.values())
    urlsafe = base64.urlsafe_b64encode(key).decode()
    for form in (text, text.rstrip("="), urlsafe, key.hex(), key.hex().upper(), repr(key)[2:-1]):
        assert form not in whole


def test_it_names_all_that_ringd_depends_on() -> None:
    """Also what comes with an extra."""
    project = tomli.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    needed = [*project["dependencies"], *(line for extra in extras for line in extra)]
    assert {re.split(r"\W", line)[0] for line in needed} <= set(PACKAGES)


def test_without_a_daemon(place: Path) -> None:
    """There is less in it, and it says why."""
    archive = place / "report.tar.gz"
    words = ("--socket", str(place / "none"), "--config", str(place / "ringd.toml"))
    done = run("ringd-cli", "bugreport", "-o", str(archive), *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "There is no key in it" in done.stdout
    files = contents(archive)
    assert "not to be had: no daemon here" in files["log.txt"]
    assert "not to be had: [Errno 2]" in files["config.toml"]
    assert "!! socket   no daemon here" in files["doctor.txt"]
    assert "status.json" not in files
    assert run("ringd-cli", "bugreport", "-o", str(place), *words).returncode == 2
    gone = str(place / "gone" / "report")
    assert run("ringd-cli", "bugreport", "-o", gone, *words).returncode == 1


def test_a_link_under_the_name_that_others_can_guess(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not followed, as where root types the command in a directory of another user."""
    other = place / "other"
    other.write_text("precious")
    monkeypatch.setattr(time, "strftime", lambda *_: "NOW")
    monkeypatch.chdir(place)
    Path("ringd-bugreport-NOW.tar.gz").symlink_to(other)
    words = ["--socket", str(place / "none"), "--config", str(place / "ringd.toml")]
    done = CliRunner().invoke(main, ["bugreport", *words])
    assert (done.exit_code, other.read_text()) == (1, "precious")
    assert done.stderr == (
        "Error: ringd-bugreport-NOW.tar.gz is a link and is left as it is; name a file\n"
    )
    other.chmod(0o644)
    done = CliRunner().invoke(main, ["bugreport", "-o", "other", "--force", *words])
    assert done.exit_code == 0
    assert other.stat().st_mode & 0o777 == 0o600  # though it was there
    assert "system.txt" in contents(other)


@pytest.mark.parametrize(
    "key",
    [KEY, KEY.rstrip("="), KEY.replace("/", "_").replace("+", "-"), bytes(range(32)).hex()],
)
def test_keys_are_hidden(key: str) -> None:
    """In base64, also that of addresses, or in hexadecimal; what stands around stays."""
    assert scrubbed(f"key_file = {key!r}  # x") == f"key_file = '{HIDDEN}'  # x"


@pytest.mark.parametrize(
    "text",
    [
        "/usr/lib/python3/site-packages/ringd/cli/something/rather/deep/in/there",
        "/Users/ann/Library/Logs/ringd/and/something/else/in/it",
        "the-name-of-a-group-which-somebody-found-worth-a-long-one",
        "2026-11-29T21:48:57.123456Z  generation=12345678901234567890123456789012345678901234",
    ],
)
def test_words_and_paths_are_no_keys(text: str) -> None:
    """They are what the report is for."""
    assert scrubbed(text) == text
