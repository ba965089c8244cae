"""What crosses a call socket: a plain Unix stream beside a client's ZeroMQ connection.

The daemon makes it, and passes the client's end with the token, as a descriptor (SCM_RIGHTS). What
a client then sends of its calls, and all that it is sent, goes here and not over ZeroMQ: a message
is in the kernel's hands when it is sent, and no thread in between has to wake up for it. Messages
are those of :mod:`ringd.wire.border.messages`, each behind its length (u32, little-endian).
"""

from __future__ import annotations

import struct

LENGTH = struct.Struct("<I")
"""Bytes of the message that follows."""
