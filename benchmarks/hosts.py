"""Hosts within this machine: network namespaces, joined by links of a given rate. Linux, root."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

_NETWORK = "10.77.0"
_CLONE_NEWNET = 0x4000_0000
_BURST = "128kb"
"""More than the longest packet that the kernel hands over at once; so tbf need not cut them."""
_QUEUE = "20ms"
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Host:
    """One of them."""

    netns: str
    address: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """What is put before a command, to have it run there."""
        return "ip", "netns", "exec", self.netns

    def socket(self) -> socket.socket:
        """Return a new TCP socket of that host, for this process."""
        own, other = Path("/proc/thread-self/ns/net"), Path("/run/netns", self.netns)
        with own.open() as here, other.open() as there:
            _enter(there.fileno())
            try:
                return socket.socket()
            finally:
                _enter(here.fileno())


@contextlib.contextmanager
def hosts(number: int, rate: str) -> Iterator[list[Host]]:
    """Give so many hosts on one switch, of which each sends *rate* at most, such as ``1gbit``."""
    switch = f"ringd-bench-{os.getpid()}"
    with ExitStack() as stack:
        _add(stack, switch)
        _run("ip", "-n", switch, "link", "add", "switch", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "switch", "up")
        found = []
        for index in range(number):
            host = Host(f"{switch}-{index}", f"{_NETWORK}.{index + 1}")
            _add(stack, host.netns)
            port, own = f"port{index}", ("ip", "-n", host.netns)
            peer = ("peer", "name", "eth0", "netns", host.netns)
            _run("ip", "-n", switch, "link", "add", port, "type", "veth", *peer)
            _run("ip", "-n", switch, "link", "set", port, "master", "switch", "up")
            _run(*own, "address", "add", f"{host.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _run(*own, "link", "set", device, "up")
            shape = ("tbf", "rate", rate, "burst", _BURST, "latency", _QUEUE)
            _run("tc", "-n", host.netns, "qdisc", "add", "dev", "eth0", "root", *shape)
            found.append(host)
        yield found


def carried(sender: Host, receiver: Host, nbytes: int) -> float:
    """Return how many bytes per second plain TCP carries from one to the other."""
    piece = memoryview(bytearray(_PIECE))
    with receiver.socket() as listener, sender.socket() as source:
        listener.bind((receiver.address, 0))
        listener.listen()
        source.connect(listener.getsockname())
        target, _ = listener.accept()
        sending = threading.Thread(
            target=lambda: [source.sendall(piece) for _ in range(2 * nbytes // _PIECE)]
        )
        sending.start()
        with target:
            _receive(target, nbytes)  # until the connection is at its full speed
            began = time.perf_counter()
            _receive(target, nbytes)
            taken = time.perf_counter() - began
        sending.join()
    return nbytes / taken


def _receive(source: socket.socket, nbytes: int) -> None:
    memory = memoryview(bytearray(_PIECE))
    left = nbytes // _PIECE * _PIECE
    while left:
        left -= source.recv_into(memory[: min(left, _PIECE)])


def _add(stack: ExitStack, netns: str) -> None:
    _run("ip", "netns", "add", netns)
    stack.callback(_run, "ip", "netns", "delete", netns)


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
