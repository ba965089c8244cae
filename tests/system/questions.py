"""Asks the daemon for its status again and again, as many a monitor does.

Usage: questions.py SOCKET COUNT. It prints a line when it is through.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ringd.cli.ask import ask
from ringd.wire.border.messages import AskStatus

count = int(sys.argv[2])
for _ in range(count):
    state = ask(Path(sys.argv[1]), AskStatus)["state"]
    if state != "ready":
        sys.exit(f"the ring is {state}")
sys.stdout.write(f"{count} answers\n")
