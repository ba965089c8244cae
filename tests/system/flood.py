"""A user of the group who connects without end, and stays.

Usage: flood.py SOCKET. It prints a line when it is through.
"""

from __future__ import annotations

import resource
import socket
import sys
import time

COUNT = 6000

soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
kept = []
for number in range(COUNT):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(sys.argv[1] + ("" if number % 2 else ".life"))
    kept.append(sock)
sys.stdout.write(f"{COUNT} connections\n")
sys.stdout.flush()
time.sleep(3600)
