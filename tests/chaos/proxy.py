"""The network of the chaos run: TCP between neighbours, through here, as bad as it is told to be.

One :class:`Proxy` stands before each member: its left neighbour's link and its right
neighbour's knocks come through it. All of them run in one thread, the :class:`Network`'s;
what is asked of a proxy is done there, in turn.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import queue
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

READ = 256 * 1024
BACKLOG = 1 << 20
"""Bytes that a direction holds before it reads no more."""

REPLAYED = 4096
"""Bytes of each connection's beginning that are kept, to be sent again by a liar."""

_RESET = struct.pack("ii", 1, 0)


@dataclass
class Harm:
    """Something that will happen once, to the bytes that pass next in one direction."""

    kind: str
    """``"garble"``, ``"drop"``, ``"truncate"``."""
    after: int
    """Bytes that pass unharmed before."""
    length: int = 1
    """Bytes that it affects."""
    mask: int = 0xFF


@dataclass
class Flow:
    """One direction of one connection."""

    source: socket.socket
    sink: socket.socket
    proxy: Proxy
    up: bool
    """Whether it leads to the member behind the proxy."""
    twin: socket.socket | None = None
    """Gets the same bytes."""
    waiting: deque[tuple[float, memoryview]] = field(default_factory=deque)
    held: int = 0
    ended: bool = False
    """Nothing more comes; what waits is still passed on."""
    swallow: bool = False
    """What comes is taken and forgotten."""
    timer: float = math.inf
    """When it is looked at next, at the latest."""


class Proxy:
    """Stands before the member that listens on *target*; reached on each of ``ports``."""

    def __init__(self, network: Network, target: int) -> None:
        self.network = network
        self.target = target
        self.listeners = [socket.create_server(("127.0.0.1", 0), backlog=128) for _ in range(2)]
        self.ports = [int(listener.getsockname()[1]) for listener in self.listeners]
        self.flows: list[Flow] = []
        self.harms: dict[bool, list[Harm]] = {True: [], False: []}
        self.stalled = False
        self.delay = 0.0
        self.twins = 0
        self.recorded = b""
        self.harmed = 0
        """Harms that were done, so far."""

    def cut(self, *, reset: bool) -> None:
        """End all connections, with a reset or in good order."""
        for flow in list(self.flows):
            self.network.close(flow, reset=reset)

    def half_open(self, *, far: bool) -> None:
        """End one side of all connections with a reset; the other side hears nothing."""
        for flow in list(self.flows):
            if flow.up is far:
                self.network.forsake(flow)

    def replay(self) -> None:
        """Say again to the member what a neighbour has said before."""
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.target), 0.5) as liar,
        ):
            liar.sendall(self.recorded)

    def calm(self) -> None:
        """Be a good network again; connections that are silent by now stay so."""
        self.stalled, self.delay, self.twins = False, 0.0, 0
        for harms in self.harms.values():
            harms.clear()


class Network:
    """The thread in which the proxies work."""

    def __init__(self) -> None:
        self.proxies: list[Proxy] = []
        self.hurts: list[float] = []
        """When bytes were spoilt or held back, of which members hear only after a while."""
        self._selector = selectors.DefaultSelector()
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, Flow]] = []
        self._count = 0
        self._bell, self._ear = socket.socketpair()
        self._ear.setblocking(False)
        self._selector.register(self._ear, selectors.EVENT_READ, self._hear)
        self._running = True
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self._thread.start()

    def add(self, target: int) -> Proxy:
        """Return a new proxy before the port *target*."""
        proxy = Proxy(self, target)
        self.proxies.append(proxy)
        for listener in proxy.listeners:
            listener.setblocking(False)
        self.ask(lambda: self._listen(proxy))
        return proxy

    def ask(self, action: Callable[[], None]) -> None:
        """Do *action* in the network's thread, soon."""
        self._asked.put(action)
        self._bell.send(b"!")

    def stop(self) -> None:
        """End the thread and all connections."""
        self._running = False
        self.ask(lambda: None)
        self._thread.join(10)
        for proxy in self.proxies:
            proxy.cut(reset=True)
            for listener in proxy.listeners:
                listener.close()
        self._selector.close()
        self._bell.close()
        self._ear.close()

    # --- in the thread ----------------------------------------------------------------

    def _listen(self, proxy: Proxy) -> None:
        for listener in proxy.listeners:
            accept = self._accepter(proxy, listener)
            self._selector.register(listener, selectors.EVENT_READ, accept)

    def _run(self) -> None:
        while self._running:
            due = self._timers[0][0] - time.monotonic() if self._timers else None
            for key, events in self._selector.select(None if due is None else max(0.0, due)):
                key.data(events)
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                flow = heapq.heappop(self._timers)[2]
                flow.timer = math.inf
                self._pass_on(flow)

    def _hear(self, _events: int) -> None:
        self._ear.recv(4096)
        while not self._asked.empty():
            self._asked.get()()
            for proxy in self.proxies:  # what stalled may flow again
                for flow in list(proxy.flows):
                    self._pass_on(flow)

    def _accepter(self, proxy: Proxy, listener: socket.socket) -> Callable[[int], None]:
        def accept(_events: int) -> None:
            near, _ = listener.accept()
            try:
                far = socket.create_connection(("127.0.0.1", proxy.target), 0.5)
            except OSError:
                _close(near, reset=True)
                return
            twin = None
            if proxy.twins:
                proxy.twins -= 1
                proxy.harmed += 1
                with contextlib.suppress(OSError):
                    twin = socket.create_connection(("127.0.0.1", proxy.target), 0.5)
            for sock in (near, far, *([twin] if twin else [])):
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            proxy.recorded = b""
            up = Flow(near, far, proxy, up=True, twin=twin)
            down = Flow(far, near, proxy, up=False)
            proxy.flows += [up, down]
            self._watch(up)
            self._watch(down)

        return accept

    def _watch(self, flow: Flow) -> None:
        """Wait for what *flow* needs: bytes to read, while it may hold more of them."""
        if flow not in flow.proxy.flows:
            return
        wanted = flow.held < BACKLOG and not flow.ended
        known = flow.source in self._selector.get_map()
        if wanted and not known:
            self._selector.register(
                flow.source, selectors.EVENT_READ, lambda _events: self._read(flow)
            )
        elif known and not wanted:
            self._selector.unregister(flow.source)

    def _read(self, flow: Flow) -> None:
        try:
            data = flow.source.recv(READ)
        except BlockingIOError:
            return
        except OSError:
            self.close(flow, reset=True)
            return
        proxy = flow.proxy
        if not data:
            flow.ended = True
        elif not flow.swallow:
            if flow.up and len(proxy.recorded) < REPLAYED:
                proxy.recorded += data[:REPLAYED]
            passed, goes_on = self._harmed(flow, data)
            flow.waiting.append((time.monotonic() + proxy.delay, memoryview(passed)))
            flow.held += len(passed)
            flow.ended = not goes_on
        self._pass_on(flow)

    def _harmed(self, flow: Flow, data: bytes) -> tuple[bytes, bool]:
        """Return what becomes of *data*, and whether the connection goes on after it."""
        harms = flow.proxy.harms[flow.up]
        if not harms:
            return data, True
        harm = harms[0]
        if harm.after >= len(data):
            harm.after -= len(data)
            return data, True
        flow.proxy.harmed += 1
        self.hurts.append(time.monotonic())
        start, stop = harm.after, min(len(data), harm.after + harm.length)
        harms.pop(0)
        if harm.kind == "truncate":
            return data[:start], False
        if harm.kind == "drop":
            return data[:start] + data[stop:], True
        spoilt = bytes(byte ^ harm.mask for byte in data[start:stop])
        return data[:start] + spoilt + data[stop:], True

    def _pass_on(self, flow: Flow) -> None:
        """Send what is due, unless the cable is out."""
        proxy = flow.proxy
        if flow not in proxy.flows or proxy.stalled:
            return
        now = time.monotonic()
        while flow.waiting:
            due, data = flow.waiting[0]
            if due > now:
                self._call_at(due, flow)
                break
            try:
                sent = flow.sink.send(data)
            except BlockingIOError:
                self._call_at(now + 0.001, flow)
                break
            except OSError:
                self.close(flow, reset=True)
                return
            if flow.twin is not None:
                with contextlib.suppress(OSError):
                    flow.twin.send(data[:sent])
                    flow.twin.recv(READ)
            flow.held -= sent
            if sent == len(data):
                flow.waiting.popleft()
            else:
                flow.waiting[0] = (due, data[sent:])
        if flow.ended and not flow.waiting:
            self.close(flow, reset=False)
        else:
            self._watch(flow)

    def _call_at(self, when: float, flow: Flow) -> None:
        if when >= flow.timer:
            return
        flow.timer = when
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, flow))

    def close(self, flow: Flow, *, reset: bool) -> None:
        """End the connection that *flow* is one direction of."""
        proxy = flow.proxy
        ends = {flow.source, flow.sink}
        for other in [other for other in proxy.flows if other.source in ends]:
            proxy.flows.remove(other)
            if other.source in self._selector.get_map():
                self._selector.unregister(other.source)
            _close(other.source, reset=reset)
            if other.twin is not None:
                _close(other.twin, reset=False)
        if flow.sink.fileno() >= 0:  # the other direction was gone before
            _close(flow.sink, reset=reset)

    def forsake(self, flow: Flow) -> None:
        """Reset *flow*'s sink, and keep its source, unheard and without an answer."""
        proxy = flow.proxy
        for other in [other for other in proxy.flows if other.source is flow.sink]:
            proxy.flows.remove(other)
            if other.source in self._selector.get_map():
                self._selector.unregister(other.source)
        _close(flow.sink, reset=True)
        flow.waiting.clear()
        flow.held = 0
        flow.swallow = True
        self._watch(flow)


def _close(sock: socket.socket, *, reset: bool) -> None:
    if reset:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
