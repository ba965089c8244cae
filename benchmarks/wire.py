"""Two machines that are none: network namespaces with a wire of a given speed between them.

Needs root, and Linux with iproute2. Programs reach the daemons in there by their sockets' files.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator

from daemons import Host


@contextlib.contextmanager
def wire(rate: str) -> Iterator[list[Host]]:
    """Give two hosts with a wire of *rate* (``"1gbit"``, in each direction) between them."""
    names = [f"ringd-{os.getpid()}-{end}" for end in "ab"]
    with contextlib.ExitStack() as stack:
        for name in names:
            _run("ip", "netns", "add", name)
            stack.callback(_run, "ip", "netns", "delete", name)
        link = ("ip", "-n", names[0], "link", "add", "wire", "type", "veth")
        _run(*link, "peer", "name", "wire", "netns", names[1])
        hosts = []
        for name, address in zip(names, ("192.0.2.1", "192.0.2.2"), strict=True):
            _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "wire")
            _run("ip", "-n", name, "link", "set", "wire", "up")
            shape = ("root", "tbf", "rate", rate, "burst", "256kb", "latency", "50ms")
            _run("tc", "-n", name, "qdisc", "add", "dev", "wire", *shape)
            hosts.append(Host(address, ("ip", "netns", "exec", name)))
        yield hosts


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
