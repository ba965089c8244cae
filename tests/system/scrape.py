"""Prints what a daemon answers on its Unix socket for metrics: scrape.py SOCKET PATH."""

from __future__ import annotations

import http.client
import socket
import sys

with socket.socket(socket.AF_UNIX) as sock:
    sock.settimeout(30)
    sock.connect(sys.argv[1])
    sock.sendall(f"GET {sys.argv[2]} HTTP/1.1\r\nHost: ringd\r\n\r\n".encode())
    response = http.client.HTTPResponse(sock)
    response.begin()
    sys.stdout.write(response.read().decode())
