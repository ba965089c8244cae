"""Writes what of the Debian package follows from the description of the service.

Usage: files.py TREE
"""

from __future__ import annotations

import sys
from pathlib import Path

from ringd.host.paths import system_paths
from ringd.service import systemd
from ringd.service.description import Service

PLACES = system_paths(macos=False)

SERVICE = Service(
    program=Path("/usr/bin/ringd"),
    control=Path("/usr/bin/ringd-cli"),
    config=PLACES.config,
    user="ringd",
    socket=PLACES.socket,
    state_dir=PLACES.state_dir,
    environment_file=Path("/etc/default/ringd"),
)

FILES = {
    "usr/lib/systemd/system/ringd.service": systemd.unit(SERVICE),
    "usr/lib/sysusers.d/ringd.conf": systemd.sysusers(SERVICE),
    "usr/lib/tmpfiles.d/ringd.conf": systemd.tmpfiles(SERVICE),
}

if __name__ == "__main__":
    for name, text in FILES.items():
        path = Path(sys.argv[1], name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
