"""How much programs may have of a daemon."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ringd.border.accounts import Accounts, Limit, Resource
from ringd.host.limits import OpenFiles
from ringd.wire.border.messages import MAX_REQUEST, ROOM_FOR_HEADERS

MAX_ZMQ_MESSAGE = MAX_REQUEST + (64 << 10)
"""Bytes of a message over ZeroMQ: libzmq takes in two of each connection, which count nowhere."""

MAX_STAYS = 4096
"""Stays in groups of one program."""

MAX_CHANNELS = 65536
"""Ends of channels of one program."""

_CHANNELS = 4 * MAX_CHANNELS  # of all
_QUESTIONS = 256  # that have yet to be answered, of all
_MOST = "the most"
_FILES = "the limit of open files, LimitNOFILE= of the service or ulimit -n, less ipc.reserve"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may have, which it is told when it attaches, and what all may."""

    inline_limit: int = 65536
    """Bytes of a tensor that travels inside the message."""
    max_message: int = 1 << 30
    """Bytes; over ZeroMQ at most :data:`MAX_ZMQ_MESSAGE`."""
    segment_budget: int = 8 << 30
    """Bytes of shared memory."""
    window: int = 256
    """Unreleased ops of a stay in a group."""
    connections: int = 8192
    """Of all: each program has two, a lifeline and one over ZeroMQ."""
    segment_total: int = 16 << 30
    """Bytes of shared memory, of all."""
    message_total: int = 2 << 30
    """Bytes of all that is in messages: tensors of open calls, and what is unread."""
    groups: int = 16384
    """Stays in groups, of all."""

    @property
    def over_zmq(self) -> Limits:
        """What one program may have that uses no call socket."""
        most = min(self.max_message, MAX_ZMQ_MESSAGE)
        inline_limit = min(self.inline_limit, most - ROOM_FOR_HEADERS)
        return replace(self, max_message=most, inline_limit=inline_limit)

    def accounts(self, open_files: OpenFiles) -> Accounts:
        """Return accounts with these limits, of a process with these files."""
        memory = Limit(
            "bytes of shared memory",
            self.segment_total,
            "ipc.segment_total",
            self.segment_budget,
            "ipc.segment_budget",
        )
        return Accounts(
            connections=Resource(Limit("connections", self.connections, "ipc.connections")),
            files=Resource(lambda: Limit("open files", open_files.for_programs, _FILES)),
            memory=Resource(memory),
            messages=Resource(Limit("bytes in messages", self.message_total, "ipc.message_total")),
            groups=Resource(
                Limit("groups", self.groups, "what other machines keep", MAX_STAYS, _MOST)
            ),
            channels=Resource(
                Limit("channels", _CHANNELS, "what a daemon keeps", MAX_CHANNELS, _MOST)
            ),
            questions=Resource(
                Limit("open questions", _QUESTIONS, "what a daemon answers at a time")
            ),
        )
