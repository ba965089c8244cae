"""Packaging: its scripts parse, and the list of the Makefile's targets is whole."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "script", [".ci/run", "packaging/systemd/install.sh", "packaging/systemd/uninstall.sh"]
)
def test_scripts(script):
    """Scripts are executable and parse."""
    path = ROOT / script
    assert path.stat().st_mode & 0o111 == 0o111
    shell = path.read_text().partition("\n")[0].split("/")[-1].split()[-1]
    checked = subprocess.run([shell, "-n", path], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_make_help_lists_every_target():
    """The help, which plain make shows, knows every target that people may call."""
    makefile = (ROOT / "Makefile").read_text()
    [phony] = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)$", makefile, re.MULTILINE)
    shown = subprocess.run(
        [shutil.which("make"), "-C", ROOT], capture_output=True, text=True, check=True
    ).stdout
    listed = {line.split()[0] for line in shown.splitlines() if "Entering" not in line}
    assert set(phony.replace("\\\n", " ").split()) <= listed
