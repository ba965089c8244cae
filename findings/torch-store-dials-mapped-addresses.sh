#!/usr/bin/env bash
# torch 2.13.0: a TCPStore that is told "127.0.0.1" connects over an IPv6 socket, to ::ffff:127.0.0.1.
#
# Linux lists such a connection in /proc/net/tcp6 alone, with the mapped address; /proc/net/tcp has no line of it.
# Whatever looks up who is behind a connection from loopback (its user, its process) in the table of IPv4 only, as the
# address that it was given suggests, finds nobody.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$place"
cat > store.py <<'PYTHON'
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist

soon = timedelta(seconds=20)
server = dist.TCPStore("127.0.0.1", 0, None, True, soon, wait_for_workers=False)
client = dist.TCPStore("127.0.0.1", server.port, None, False, soon, wait_for_workers=False)
client.set("key", "value")


def dialed(table):
    """Return the addresses to which connections to the store's port were made, in the kernel's form."""
    rows = [line.split() for line in Path("/proc/net", table).read_text().splitlines()[1:]]
    ends = (row[2].split(":") for row in rows if row[3] == "01")
    return sorted({address for address, port in ends if int(port, 16) == server.port})


found = {table: dialed(table) for table in ("tcp", "tcp6")}
print(f"torch {torch.__version__}, addresses of established connections to the store: {found}")
expected = {"tcp": [], "tcp6": ["0000000000000000FFFF00000100007F"]}
raise SystemExit(0 if found == expected else "the behaviour has changed")
PYTHON
"$place/venv/bin/python" store.py
