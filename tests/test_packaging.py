"""Packaging: its scripts parse, and the list of the Makefile's targets is whole."""

from __future__ import annotations

import json
import plistlib
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from ringd.service import launchd
from ringd.service.description import Service

ROOT = Path(__file__).resolve().parent.parent
FORMULA = ROOT / "packaging" / "homebrew" / "ringd.rb"


@pytest.mark.parametrize(
    "script",
    [
        ".ci/run",
        *(f"packaging/systemd/{name}.sh" for name in ("install", "uninstall")),
        *(f"packaging/debian/{name}" for name in ("build.sh", "postinst", "prerm", "postrm")),
    ],
)
def test_scripts(script):
    """Scripts are executable and parse."""
    path = ROOT / script
    assert path.stat().st_mode & 0o111 == 0o111
    shell = path.read_text().partition("\n")[0].split("/")[-1].split()[-1]
    checked = subprocess.run([shell, "-n", path], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_an_install_as_root_runs_nothing_of_the_callers_directory(tmp_path):
    """Python is started elsewhere, and told to look for modules in its own places only."""
    told = tmp_path / "told"
    for name, text in (
        ("python", f'pwd > "{told}"; echo "$1" >> "{told}"; exit 1'),
        ("systemctl", ":"),
        ("uname", "echo Linux"),
        ("id", "echo 0"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [ROOT / "packaging" / "systemd" / "install.sh"],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": str(tmp_path / "python")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "is not Python 3.10" in done.stderr
    assert told.read_text().split() == ["/", "-I"]


def test_what_root_installs_is_named_by_its_hash():
    """All that ringd depends on, and nothing of which a hash is missing."""
    text = (ROOT / "packaging" / "systemd" / "requirements.txt").read_text()
    blocks = [b for b in re.split(r"\n(?=\w)", text) if not b.startswith("#")]
    assert all("--hash=sha256:" in block for block in blocks)
    pinned = {re.split(r"==", block)[0].replace("-", "_").lower() for block in blocks}
    project = (ROOT / "pyproject.toml").read_text()
    depends = re.search(r"^dependencies = \[(.*?)\]", project, re.MULTILINE | re.DOTALL)
    needed = set(re.findall(r'"(\w+)', depends[1]))
    assert needed | {"ml_dtypes", "prometheus_client", "rich"} <= pinned


@pytest.mark.parametrize(
    "way", ["README.md", "packaging/debian/build.sh", "packaging/homebrew/ringd.rb"]
)
def test_each_way_to_install_a_daemon_brings_the_same_extras(way):
    """As the one above does, whose packages are named by their hashes."""
    assert re.findall(r"\[([\w,]*bf16,[\w,]*)\]", (ROOT / way).read_text()) == [
        "bf16,metrics,watch"
    ]


def test_make_help_lists_every_target():
    """The help, which plain make shows, knows every target that people may call."""
    makefile = (ROOT / "Makefile").read_text()
    [phony] = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)$", makefile, re.MULTILINE)
    shown = subprocess.run(
        [shutil.which("make"), "-C", ROOT], capture_output=True, text=True, check=True
    ).stdout
    listed = {line.split()[0] for line in shown.splitlines() if "Entering" not in line}
    assert set(phony.replace("\\\n", " ").split()) <= listed


def test_homebrews_formula(place):
    """Its service is what the job is, and its test passes; a stand-in for Homebrew runs it."""
    ruby = shutil.which("ruby")
    if ruby is None:
        pytest.skip("no Ruby here")
    scripts = Path(sysconfig.get_path("scripts"))
    done = subprocess.run(
        [ruby, ROOT / "tests" / "formula_stub.rb", FORMULA, scripts, place],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    service = Service(
        Path("/p"), Path("/c"), Path("/t"), log=Path("/opt/homebrew/var/log/ringd.log")
    )
    job = plistlib.loads(launchd.job(service).encode())
    assert said["service"] == {
        "run": ["/opt/homebrew/opt/ringd/bin/ringd"],
        "keep_alive": {"successful_exit": job["KeepAlive"]["SuccessfulExit"]},
        "process_type": job["ProcessType"].lower(),
        "error_log_path": job["StandardErrorPath"],
        "environment_variables": job["EnvironmentVariables"],
    }
    assert said["told"]["head"][0] == f"file://{ROOT}"
    assert "ringd-cli service install" in said["caveats"]
