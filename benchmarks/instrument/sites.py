"""Where the members are: all on loopback, or each in a network namespace on a shaped link."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from instrument.batch import Failure

_NETWORK = "10.213.77"
_BRIDGE = "ringd-bridge"
_INTERFACE = "eth0"
_BURST = 128 << 10  # bytes that may leave at once: a few segments as large as the kernel makes them
_QUEUE = 20e-3  # seconds that a packet may wait before it is dropped
SHARE_OF_PAYLOAD = 1448 / 1514
"""Of an Ethernet frame as tbf counts it, in TCP over IPv4 with timestamps."""


@dataclass(frozen=True, slots=True)
class Site:
    """The members' places in the network, by rank."""

    addresses: tuple[str, ...]
    interface: str
    prefixes: tuple[tuple[str, ...], ...]
    """What a command starts with that is to run there."""
    rate: float | None = None
    """Bits per second that each member may send, and receive; None: as much as loopback carries."""

    @property
    def payload(self) -> float | None:
        """Bytes of tensors that a link carries in a second."""
        return None if self.rate is None else self.rate / 8 * SHARE_OF_PAYLOAD

    @property
    def size(self) -> int:
        """How many members there are."""
        return len(self.addresses)


def loopback(size: int) -> Site:
    """Return the site of *size* members on loopback."""
    interface = "lo0" if sys.platform == "darwin" else "lo"
    return Site(("127.0.0.1",) * size, interface, ((),) * size)


@contextlib.contextmanager
def shaped(size: int, rate: float) -> Iterator[Site]:
    """Give a site of *size* network namespaces around a bridge, and take it away afterwards.

    Linux, root. A member's link is shaped to *rate* bits per second in either direction, by tbf.

    Raises:
        Failure: ``ip`` or ``tc`` is not here, or has said why not.
    """
    hub = f"ringd-{os.getpid()}"
    names = [f"{hub}-{rank}" for rank in range(size)]
    with contextlib.ExitStack() as stack:
        for name in (hub, *names):
            _run("ip", "netns", "add", name)
            stack.callback(_run, "ip", "netns", "delete", name)
        _run("ip", "-n", hub, "link", "add", _BRIDGE, "type", "bridge")
        _run("ip", "-n", hub, "link", "set", _BRIDGE, "up")
        for rank, name in enumerate(names):
            port = f"port{rank}"
            link = ("ip", "-n", hub, "link")
            _run(
                *(*link, "add", port, "type", "veth"),
                *("peer", "name", _INTERFACE, "netns", name),
            )
            _run(*link, "set", port, "master", _BRIDGE, "up")
            _run("ip", "-n", name, "address", "add", f"{_address(rank)}/24", "dev", _INTERFACE)
            _run("ip", "-n", name, "link", "set", _INTERFACE, "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _shape(name, _INTERFACE, rate)
            _shape(hub, port, rate)
        yield Site(
            tuple(map(_address, range(size))),
            _INTERFACE,
            tuple(("ip", "netns", "exec", name) for name in names),
            rate,
        )


def _address(rank: int) -> str:
    return f"{_NETWORK}.{rank + 1}"


def _shape(namespace: str, interface: str, rate: float) -> None:
    _run(
        *("tc", "-n", namespace, "qdisc", "add", "dev", interface, "root", "tbf"),
        *("rate", f"{rate:.0f}bit", "burst", str(_BURST), "latency", f"{_QUEUE * 1e3:.0f}ms"),
    )


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        raise Failure(f"shaped links need {command[0]}, of iproute2, which is not here") from None
    except subprocess.CalledProcessError:
        raise Failure(f"shaped links need root; this failed: {' '.join(command)}") from None
