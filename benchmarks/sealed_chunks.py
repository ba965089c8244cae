"""What does a chunk cost on a link, by ``ring.protect``? Two links in one process, no daemon.

    python benchmarks/sealed_chunks.py [--chunk 524288] [--rounds 15]

Chunks of a long array go over loopback from one :class:`~ringd.net.link.Link` to another, to
their places in another long array, neither of which any cache holds. Small frames go one at a time,
each with a message of 120 bytes. The settings take turns; the least processor time counts, as what
else the machine does only adds to it.
"""

from __future__ import annotations

import argparse
import socket
import time

from ringd.loop import Loop
from ringd.net.link import Link
from ringd.wire.link import frames
from ringd.wire.link.agreement import Cipher, Secrets
from ringd.wire.link.frames import FrameType, Header
from ringd.wire.link.handshake import Peer

ARRAY = 64 << 20
SMALL = 2000
MESSAGE = bytes(120)
CASES: list[tuple[str, Cipher]] = [
    ("off", "AES-256-GCM"),
    ("integrity", "AES-256-GCM"),
    ("encrypt", "AES-256-GCM"),
    ("integrity", "ChaCha20-Poly1305"),
    ("encrypt", "ChaCha20-Poly1305"),
]


class Ends:
    """Two links, and what one sends the other."""

    def __init__(self, protect: str, cipher: Cipher, chunk: int) -> None:
        self._loop = Loop()
        self._source = memoryview(bytearray(b"x") * ARRAY)
        self._target = memoryview(bytearray(b"y") * ARRAY)
        self._chunk = chunk
        self._next = self._left = 0
        self._flags = 0 if protect != "off" else frames.CHECKSUM
        with socket.create_server(("127.0.0.1", 0)) as server:
            near = socket.create_connection(server.getsockname())
            far, _ = server.accept()
        keys = (b"1" * 32, b"2" * 32)
        self._links = []
        for sock, (sending, receiving) in ((near, keys), (far, keys[::-1])):
            secrets = Secrets(cipher, protect == "encrypt", sending, receiving)
            peer = Peer("peer", 0, 1, "link", secrets=None if protect == "off" else secrets)
            self._links.append(
                Link(
                    *(self._loop, sock, peer),
                    side="left",
                    address="",
                    handler=self,
                    heartbeat=60.0,
                    lost_after=180.0,
                )
            )

    def chunks(self) -> float:
        """Send the array; return the processor time for each chunk, in seconds."""
        self._next = 0
        self._left = count = ARRAY // self._chunk
        begin = time.process_time()
        self._links[0].kick()
        self._loop.run()
        return (time.process_time() - begin) / count

    def messages(self) -> float:
        """Send small frames; return the processor time for each, in seconds."""
        self._left = SMALL
        begin = time.process_time()
        self._send()
        self._loop.run()
        return (time.process_time() - begin) / SMALL

    def close(self) -> None:
        """End both."""
        for link in self._links:
            link.close("over")
        self._loop.close()

    def _send(self) -> None:
        crc = frames.checksum(MESSAGE) if self._flags else 0
        size = len(MESSAGE)
        header = Header(FrameType.GROUP, size, index=size, flags=self._flags, payload_crc=crc)
        self._links[0].send(header, MESSAGE)

    # --- as the links' handler --------------------------------------------------------

    def frame_received(self, *_: object) -> None:
        """Send the next message."""
        self._left -= 1
        if self._left:
            self._send()
        else:
            self._loop.stop()

    def _place(self, array: memoryview, index: int) -> memoryview:
        return array[index * self._chunk : (index + 1) * self._chunk]

    def data_buffer(self, _link: Link, header: Header) -> memoryview:
        """Give the chunk's place."""
        return self._place(self._target, header.index)

    def data_received(self, _link: Link, _header: Header) -> None:
        """Count."""
        self._left -= 1
        if not self._left:
            self._loop.stop()

    def next_data(self, link: Link) -> tuple[Header, memoryview] | None:
        """Give the next chunk."""
        index = self._next
        if link is not self._links[0] or index == ARRAY // self._chunk:
            return None
        self._next = index + 1
        return Header(FrameType.DATA, self._chunk, index=index), self._place(self._source, index)

    def data_sent(self, _link: Link, _header: Header) -> None:
        """Nothing waits for that."""

    def link_lost(self, _link: Link, reason: str) -> None:
        """Fail."""
        raise SystemExit(reason)


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunk", type=int, default=512 << 10, help="bytes, which divide 64 MiB")
    parser.add_argument("--rounds", type=int, default=15)
    how = parser.parse_args()
    ends = {case: Ends(*case, how.chunk) for case in CASES}
    chunks: dict[tuple[str, Cipher], list[float]] = {case: [] for case in CASES}
    small: dict[tuple[str, Cipher], list[float]] = {case: [] for case in CASES}
    for _ in range(how.rounds):
        for case, pair in ends.items():
            chunks[case].append(pair.chunks())
            small[case].append(pair.messages())
    print(f"| protect | cipher | chunk of {how.chunk >> 10} KiB (us) | message of 120 B (us) |")
    print("| --- | --- | --- | --- |")
    for (protect, cipher), pair in ends.items():
        name = "" if protect == "off" else cipher
        best, least = min(chunks[protect, cipher]) * 1e6, min(small[protect, cipher]) * 1e6
        print(f"| {protect} | {name} | {best:.0f} | {least:.1f} |")
        pair.close()


if __name__ == "__main__":
    main()
